//! Credentials that the program supplies at every connect.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::by_identity::ByIdentity;
use crate::error::{Error, ErrorKind};

/// A user name and a secret, such as an OAuth 2 token, returned by the function of
/// [`ConnectionOptions::credentials`](super::ConnectionOptions::credentials).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(crate) username: String,
    pub(crate) secret: String,
    pub(crate) valid_for: Option<Duration>,
}

impl Credentials {
    /// Creates credentials from a user name and a password or token. With a token, RabbitMQ takes
    /// the name from the token and ignores `username`.
    pub fn new(username: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            secret: secret.into(),
            valid_for: None,
        }
    }

    /// Sets how long the secret is valid from now on. Default: forever.
    ///
    /// After three quarters of this time, the connection asks for new credentials and sends the new
    /// secret to the broker (`connection.update-secret`).
    #[must_use]
    pub fn valid_for(mut self, valid_for: Duration) -> Self {
        self.valid_for = Some(valid_for);
        self
    }
}

/// Omits the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("valid_for", &self.valid_for)
            .finish_non_exhaustive()
    }
}

type Ask = dyn Fn() -> Result<Credentials, Box<dyn StdError + Send + Sync>> + Send + Sync;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Provider(ByIdentity<Ask>);

impl Provider {
    pub(super) fn new(
        ask: impl Fn() -> Result<Credentials, Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        Self(ByIdentity(Arc::new(ask)))
    }

    pub(crate) fn ask(&self) -> crate::error::Result<Credentials> {
        (self.0 .0)().map_err(|error| {
            let text = error.to_string();
            Error::new(ErrorKind::CredentialsUnavailable { text })
        })
    }
}
