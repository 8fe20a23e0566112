//! How to prove who one is.

use std::fmt;

/// A SASL mechanism of one's own, for [`LoginMethod::Sasl`](crate::LoginMethod::Sasl). Those that every RabbitMQ has are built in.
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
///         Box::new(move |_challenge| answers.next().ok_or("there is nothing more to say".to_owned()))
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
    /// As the server offers it.
    fn name(&self) -> &str;

    /// Begins to log in; each connect begins anew.
    fn begin(&self) -> SaslConversation;
}

impl fmt::Debug for dyn SaslMechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The client's side of one login. It is called first with an empty challenge, for the initial response, then with each
/// challenge of the server (`connection.secure`). What it fails with is shown in the error of the login; it must not be a
/// secret. It runs on the thread that connects, within `connect_timeout`.
pub type SaslConversation = Box<dyn FnMut(&[u8]) -> Result<Vec<u8>, String> + Send>;
