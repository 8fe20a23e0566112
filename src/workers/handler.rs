//! What handlers return, and how each thread gets its own handler.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::result::Result;
use std::sync::Arc;

use super::Settlement;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind};

/// What a handler of [`Workers`](crate::Workers) can return:
///
/// - `()`: the message is acknowledged;
/// - a [`Settlement`];
/// - a `Result` of either, with a `Box<dyn Error>` or any error that converts into a
///   `Box<dyn Error + Send + Sync>`: those of this crate and of the standard library, text, and the
///   errors of crates such as `anyhow`. So a handler can use `?`. For an error,
///   [`WorkerOptions::on_error`](crate::WorkerOptions::on_error) decides.
///
/// `E` is the error that the value is converted into. A program never names it.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "this handler must return `()`, `Settlement`, or a `Result` of either"
)]
pub trait HandlerOutput<E> {
    /// Converts the value into the settlement of the message, or the error.
    ///
    /// # Errors
    /// Why the handler failed.
    fn into_settlement(self) -> Result<Settlement, Box<dyn StdError>>;
}

impl HandlerOutput<Infallible> for () {
    fn into_settlement(self) -> Result<Settlement, Box<dyn StdError>> {
        Ok(Settlement::Ack)
    }
}

impl HandlerOutput<Infallible> for Settlement {
    fn into_settlement(self) -> Result<Settlement, Box<dyn StdError>> {
        Ok(self)
    }
}

impl<T, E> HandlerOutput<Box<dyn StdError + Send + Sync>> for Result<T, E>
where
    T: HandlerOutput<Infallible>,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    fn into_settlement(self) -> Result<Settlement, Box<dyn StdError>> {
        match self {
            Ok(output) => output.into_settlement(),
            Err(error) => Err(error.into()),
        }
    }
}

impl<T: HandlerOutput<Infallible>> HandlerOutput<Box<dyn StdError>>
    for Result<T, Box<dyn StdError>>
{
    fn into_settlement(self) -> Result<Settlement, Box<dyn StdError>> {
        self?.into_settlement()
    }
}

/// A handler of one thread. It need not leave its thread.
pub(super) type Handler = dyn FnMut(&Delivery) -> Result<Settlement, Box<dyn StdError>>;

/// Makes the handler of each thread.
pub(super) type Factory = dyn Fn() -> Result<Box<Handler>, Error> + Send + Sync;

/// All threads call the same handler.
pub(super) fn shared<R: HandlerOutput<E>, E>(
    handler: impl Fn(&Delivery) -> R + Send + Sync + 'static,
) -> Arc<Factory> {
    let handler = Arc::new(handler);
    Arc::new(move || {
        let handler = Arc::clone(&handler);
        Ok(
            Box::new(move |delivery: &Delivery| handler(delivery).into_settlement())
                as Box<Handler>,
        )
    })
}

/// Each thread makes its own handler.
pub(super) fn per_thread<H, R, E, F>(
    make: impl Fn() -> Result<H, F> + Send + Sync + 'static,
) -> Arc<Factory>
where
    H: FnMut(&Delivery) -> R + 'static,
    R: HandlerOutput<E>,
    F: Into<Box<dyn StdError + Send + Sync>>,
{
    Arc::new(move || match make() {
        Ok(mut handler) => {
            let handler = move |delivery: &Delivery| handler(delivery).into_settlement();
            Ok(Box::new(handler) as Box<Handler>)
        }
        Err(error) => {
            let text = chain(&*error.into());
            Err(Error::new(ErrorKind::HandlerNotCreated { text }))
        }
    })
}

/// An error with all its sources, except those that show a part of a message's body.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let own = error.downcast_ref::<Error>().map(Error::kind);
    let shows_body = matches!(own, Some(ErrorKind::InvalidJson { .. }));
    let mut source = error.source().filter(|_| !shows_body);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
