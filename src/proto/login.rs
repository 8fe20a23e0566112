//! The SASL login: mechanism, user and responses.

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::wire::codec::Writer;
use crate::wire::value::FieldTable;

/// Returns the client's response to a challenge, or the reason why it has none. The server's offer
/// counts as an empty challenge.
pub(crate) type Conversation = Box<dyn FnMut(&[u8]) -> Result<Vec<u8>, String> + Send>;

/// A login with one SASL mechanism.
pub(crate) struct Login {
    pub(crate) mechanism: String,
    pub(crate) user: String,
    /// Secret: keep it out of `Debug`.
    conversation: Conversation,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {:?}", self.mechanism, self.user)
    }
}

impl Login {
    pub(crate) fn new(mechanism: &str, user: &str, conversation: Conversation) -> Self {
        Self {
            mechanism: mechanism.to_owned(),
            user: user.to_owned(),
            conversation,
        }
    }

    /// A mechanism that sends its whole response at once, and answers no challenge.
    fn in_one(mechanism: &str, user: &str, response: Vec<u8>) -> Self {
        let mut response = Some(response);
        let conversation = move |_: &[u8]| {
            let response = response.take();
            response.ok_or_else(|| "this mechanism has no challenges".to_owned())
        };
        Self::new(mechanism, user, Box::new(conversation))
    }

    pub(crate) fn plain(user: &str, password: &str) -> Self {
        let response = format!("\0{user}\0{password}");
        Self::in_one("PLAIN", user, response.into_bytes())
    }

    /// The broker takes the user from the client certificate; `user` is only for errors and logs.
    pub(crate) fn external(user: &str) -> Self {
        Self::in_one("EXTERNAL", user, Vec::new())
    }

    /// Answers a challenge. The server's offer counts as an empty challenge.
    pub(crate) fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, Error> {
        (self.conversation)(challenge).map_err(|text| self.failed(&text))
    }

    pub(super) fn failed(&self, text: &str) -> Error {
        Error::new(ErrorKind::LoginRefused {
            user: self.user.clone(),
            mechanism: self.mechanism.clone(),
            text: text.to_owned(),
        })
    }

    /// Sends user and password like PLAIN, but as a field table without its length.
    pub(crate) fn amqplain(user: &str, password: &str) -> Self {
        let table = FieldTable::new()
            .with("LOGIN", user)
            .with("PASSWORD", password);
        let mut response = Vec::new();
        // Cannot fail: the field names are short, and a Vec takes any number of bytes.
        let _ = Writer::new(&mut response).table(&table, "response");
        response.drain(..4);
        Self::in_one("AMQPLAIN", user, response)
    }
}
