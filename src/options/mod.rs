//! Options of connections, declarations and calls: structs with defaults and chained setters.

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $name.into();
                self
            }
        )*
    };
}

/// A table of arguments can be given at once or one by one.
macro_rules! arguments {
    ($(#[$doc:meta])*) => {
        $(#[$doc])*
        #[must_use]
        pub fn arguments(mut self, arguments: FieldTable) -> Self {
            self.arguments = arguments;
            self
        }

        /// One more argument.
        #[must_use]
        pub fn argument(mut self, name: impl Into<String>, value: impl Into<FieldValue>) -> Self {
            self.arguments.insert(name, value);
            self
        }
    };
}

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self) -> Self {
                self.$name = true;
                self
            }
        )*
    };
}

mod bind;
mod connection;
mod consume;
mod exchange;
mod publisher;
mod queue;

pub use bind::BindOptions;
pub use connection::{ConnectionOptions, LoginMethod};
pub use consume::{ConsumeOptions, NackOptions, QosOptions};
pub use exchange::{ExchangeDeclareOptions, ExchangeDeleteOptions};
pub use publisher::PublisherOptions;
pub use queue::{QueueDeclareOptions, QueueDeleteOptions};
