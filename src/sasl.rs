//! SASL mechanisms that the program implements.

use std::error::Error;
use std::fmt;

/// A SASL mechanism that the program implements, for
/// [`LoginMethod::Sasl`](crate::LoginMethod::Sasl). PLAIN, AMQPLAIN and EXTERNAL are built in.
///
/// ```
/// use leveret::{SaslConversation, SaslMechanism};
///
/// /// RabbitMQ's demonstration of challenge and response (RABBIT-CR-DEMO).
/// struct Demo;
///
/// impl SaslMechanism for Demo {
///     fn name(&self) -> &str {
///         "RABBIT-CR-DEMO"
///     }
///
///     fn begin(&self) -> SaslConversation {
///         let mut answers = [b"guest".to_vec(), b"My password is guest".to_vec()].into_iter();
///         SaslConversation::new(move |_challenge| {
///             answers.next().ok_or("no more answers".into())
///         })
///     }
/// }
///
/// let mut conversation = Demo.begin();
/// assert_eq!(conversation.respond(b"").unwrap(), b"guest");
/// let challenge = b"Please tell me your password";
/// assert_eq!(conversation.respond(challenge).unwrap(), b"My password is guest");
/// ```
///
/// See <https://www.rabbitmq.com/docs/access-control#mechanisms>.
pub trait SaslMechanism: Send + Sync {
    /// Returns the mechanism's name, as the broker offers it.
    fn name(&self) -> &str;

    /// Begins a login. This crate calls it once for each connect.
    fn begin(&self) -> SaslConversation;
}

impl fmt::Debug for dyn SaslMechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The client's side of one login: answers the broker's challenges.
///
/// The conversation runs on the thread that connects, within `connect_timeout`.
pub struct SaslConversation {
    respond: Box<Respond>,
}

type Response = Result<Vec<u8>, Box<dyn Error + Send + Sync>>;
type Respond = dyn FnMut(&[u8]) -> Response + Send;

impl SaslConversation {
    /// Creates a conversation that calls `respond` with each challenge: first with an empty one,
    /// for the initial response, then with each challenge of the broker (`connection.secure`).
    ///
    /// If `respond` returns an error, the login fails. The login's error shows the text, so the
    /// text must not contain a secret.
    pub fn new<R>(respond: R) -> Self
    where
        R: FnMut(&[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let respond = Box::new(respond);
        Self { respond }
    }

    /// Returns the response to a challenge.
    ///
    /// # Errors
    /// Why the mechanism has no response.
    pub fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        (self.respond)(challenge)
    }
}

/// Shows nothing of the login.
impl fmt::Debug for SaslConversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaslConversation").finish_non_exhaustive()
    }
}
