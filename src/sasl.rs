//! SASL mechanisms that the program implements.

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
///         Box::new(move |_challenge| answers.next().ok_or("no more answers".to_owned()))
///     }
/// }
///
/// let mut conversation = Demo.begin();
/// assert_eq!(conversation(b"").unwrap(), b"guest");
/// assert_eq!(conversation(b"Please tell me your password").unwrap(), b"My password is guest");
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

/// The client's side of one login.
///
/// The first call gets an empty challenge and returns the initial response. Each later call gets a
/// challenge from the broker (`connection.secure`). The login error shows the text of an `Err`, so
/// the text must not contain a secret. The conversation runs on the thread that connects, within
/// `connect_timeout`.
pub type SaslConversation = Box<dyn FnMut(&[u8]) -> Result<Vec<u8>, String> + Send>;
