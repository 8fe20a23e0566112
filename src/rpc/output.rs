//! What handlers return.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::result::Result;

use crate::message::Message;

/// What a handler of [`RpcServer`](crate::RpcServer) can return:
///
/// - anything that converts into a [`Message`]: bytes, text, or a message with properties;
/// - a `Result` of that, with a `Box<dyn Error>` or any error that converts into a
///   `Box<dyn Error + Send + Sync>`: those of this crate and of the standard library, text, and the
///   errors of crates such as `anyhow`. So a handler can use `?`. The client gets the error's text.
///
/// `E` is the error that the value is converted into. A program never names it.
#[diagnostic::on_unimplemented(
    message = "a handler cannot reply with `{Self}`",
    label = "this handler must return what converts into a `Message`, or a `Result` of that"
)]
pub trait RpcOutput<E> {
    /// Converts the value into the reply, or the error.
    ///
    /// # Errors
    /// Why the handler failed.
    fn into_reply(self) -> Result<Message<'static>, Box<dyn StdError>>;
}

impl<T: Into<Message<'static>>> RpcOutput<Infallible> for T {
    fn into_reply(self) -> Result<Message<'static>, Box<dyn StdError>> {
        Ok(self.into())
    }
}

impl<T, E> RpcOutput<Box<dyn StdError + Send + Sync>> for Result<T, E>
where
    T: Into<Message<'static>>,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    fn into_reply(self) -> Result<Message<'static>, Box<dyn StdError>> {
        match self {
            Ok(reply) => Ok(reply.into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl<T: Into<Message<'static>>> RpcOutput<Box<dyn StdError>> for Result<T, Box<dyn StdError>> {
    fn into_reply(self) -> Result<Message<'static>, Box<dyn StdError>> {
        self.map(Into::into)
    }
}
