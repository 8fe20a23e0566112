//! What handlers return, and how each thread gets its own handler.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::result::Result;
use std::sync::Arc;

use super::Settlement;
use crate::delivery::Delivery;
use crate::error::{chain, Error, ErrorKind};
use crate::io_thread::panics;

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

/// What a handler of [`Workers::consume_batches`](crate::Workers::consume_batches) can return: what
/// a handler of single messages can return ([`HandlerOutput`]), for all messages of the batch, or a
/// vector with one [`Settlement`] for each message.
///
/// `E` is the error that the value is converted into. A program never names it.
#[diagnostic::on_unimplemented(
    message = "a handler of batches cannot return `{Self}`",
    label = "this handler must return `()`, `Settlement`, `Vec<Settlement>`, or a `Result` of them"
)]
pub trait BatchOutput<E> {
    /// Converts the value into the settlements of the messages, or the error.
    ///
    /// # Errors
    /// Why the handler failed.
    fn into_settlements(self) -> Result<Settlements, Box<dyn StdError>>;
}

/// The settlements of a batch of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlements {
    /// One for all messages.
    All(Settlement),
    /// One for each message, in the order of the batch.
    Each(Vec<Settlement>),
}

impl BatchOutput<Infallible> for () {
    fn into_settlements(self) -> Result<Settlements, Box<dyn StdError>> {
        Ok(Settlements::All(Settlement::Ack))
    }
}

impl BatchOutput<Infallible> for Settlement {
    fn into_settlements(self) -> Result<Settlements, Box<dyn StdError>> {
        Ok(Settlements::All(self))
    }
}

impl BatchOutput<Infallible> for Vec<Settlement> {
    fn into_settlements(self) -> Result<Settlements, Box<dyn StdError>> {
        Ok(Settlements::Each(self))
    }
}

impl<T, E> BatchOutput<Box<dyn StdError + Send + Sync>> for Result<T, E>
where
    T: BatchOutput<Infallible>,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    fn into_settlements(self) -> Result<Settlements, Box<dyn StdError>> {
        match self {
            Ok(output) => output.into_settlements(),
            Err(error) => Err(error.into()),
        }
    }
}

impl<T: BatchOutput<Infallible>> BatchOutput<Box<dyn StdError>> for Result<T, Box<dyn StdError>> {
    fn into_settlements(self) -> Result<Settlements, Box<dyn StdError>> {
        self?.into_settlements()
    }
}

/// What became of a batch.
pub(super) type Handled = Result<Settlements, Box<dyn StdError>>;

/// A handler of one thread. It need not leave its thread.
pub(super) type Handler = dyn FnMut(&[Delivery]) -> Handled;

/// Makes the handler of each thread.
pub(super) type Factory = dyn Fn() -> Result<Box<Handler>, Error> + Send + Sync;

/// Calls a handler of single messages with a batch of one.
pub(super) fn single<R: HandlerOutput<E>, E>(
    batch: &[Delivery],
    handler: impl FnOnce(&Delivery) -> R,
) -> Handled {
    let settlement = match batch.first() {
        Some(delivery) => handler(delivery).into_settlement()?,
        None => Settlement::Ack,
    };
    Ok(Settlements::All(settlement))
}

/// All threads call the same handler.
pub(super) fn shared(
    handler: impl Fn(&[Delivery]) -> Handled + Send + Sync + 'static,
) -> Arc<Factory> {
    let handler = Arc::new(handler);
    Arc::new(move || {
        let handler = Arc::clone(&handler);
        Ok(Box::new(move |batch: &[Delivery]| handler(batch)) as Box<Handler>)
    })
}

/// Each thread makes its own handler.
pub(super) fn per_thread<H, F>(
    make: impl Fn() -> Result<H, F> + Send + Sync + 'static,
) -> Arc<Factory>
where
    H: FnMut(&[Delivery]) -> Handled + 'static,
    F: Into<Box<dyn StdError + Send + Sync>>,
{
    Arc::new(move || match make() {
        Ok(handler) => Ok(Box::new(handler) as Box<Handler>),
        Err(error) => {
            let text = chain(&*error.into());
            Err(Error::new(ErrorKind::HandlerNotCreated { text }))
        }
    })
}

/// Why a handler has not handled its messages.
pub(super) enum Failure {
    /// The text of its error.
    Error(String),
    /// The text of its panic.
    Panic(String),
}

impl Failure {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Error(text) | Self::Panic(text) => text,
        }
    }
}

/// Calls the handler. After a panic, drops it: its state may be broken.
pub(super) fn call(
    handler: &mut Option<Box<Handler>>,
    batch: &[Delivery],
) -> Result<Settlements, Failure> {
    let Some(current) = handler else {
        return Err(Failure::Error("there is no handler".to_owned()));
    };
    let called = panics::catch(|| current(batch).map_err(|error| chain(&*error)));
    match called {
        Ok(returned) => returned.map_err(Failure::Error),
        Err(panic) => {
            discard(handler.take());
            Err(Failure::Panic(panic))
        }
    }
}

/// Makes a handler. A panic of the program's function is an error.
pub(super) fn make(factory: &Arc<Factory>) -> Result<Box<Handler>, Error> {
    let made = panics::catch(|| factory());
    made.unwrap_or_else(|text| Err(Error::new(ErrorKind::HandlerNotCreated { text })))
}

/// Drops a handler. The panic hook reports a panic of its destructor.
pub(super) fn discard(handler: Option<Box<Handler>>) {
    let _ = panics::catch(|| drop(handler));
}
