//! Who logs in, and what is said for that.

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::wire::codec::Writer;
use crate::wire::value::FieldTable;

/// What the client says to the server's offer (an empty challenge) and to each challenge, or why it has nothing to say.
pub(crate) type Conversation = Box<dyn FnMut(&[u8]) -> Result<Vec<u8>, String> + Send>;

/// Who logs in, and how.
pub(crate) struct Login {
    pub(crate) mechanism: String,
    pub(crate) user: String,
    /// What it says is secret.
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

    /// A mechanism that says all at once, and has no answer to any challenge.
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

    /// Who it is stands in the client's certificate.
    pub(crate) fn external(user: &str) -> Self {
        Self::in_one("EXTERNAL", user, Vec::new())
    }

    /// Answers a challenge, or the server's offer.
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

    /// PLAIN's content as a field table, without the table's length.
    pub(crate) fn amqplain(user: &str, password: &str) -> Self {
        let table = FieldTable::new()
            .with("LOGIN", user)
            .with("PASSWORD", password);
        let mut response = Vec::new();
        // The names are short and known, and a Vec takes everything.
        let _ = Writer::new(&mut response).table(&table, "response");
        response.drain(..4);
        Self::in_one("AMQPLAIN", user, response)
    }
}
