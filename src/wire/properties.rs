//! The 14 properties of a message.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::codec::{Reader, WireError, WireResult, Writer};
use super::value::{self, FieldTable, FieldValue};

/// How one property stands on the wire.
trait Property: Sized {
    fn read(reader: &mut Reader<'_>, name: &'static str) -> WireResult<Self>;
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()>;
}

impl Property for String {
    fn read(reader: &mut Reader<'_>, name: &'static str) -> WireResult<Self> {
        Ok(Self::from_utf8_lossy(reader.short_bytes(name)?).into_owned())
    }
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()> {
        writer.short_bytes(self.as_bytes(), name)
    }
}

impl Property for FieldTable {
    fn read(reader: &mut Reader<'_>, _name: &'static str) -> WireResult<Self> {
        value::read_table(reader, 0)
    }
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()> {
        writer.table(self, name)
    }
}

impl Property for u8 {
    fn read(reader: &mut Reader<'_>, name: &'static str) -> WireResult<Self> {
        reader.u8(name)
    }
    fn write(&self, writer: &mut Writer<'_>, _name: &'static str) -> WireResult<()> {
        writer.u8(*self);
        Ok(())
    }
}

impl Property for u64 {
    fn read(reader: &mut Reader<'_>, name: &'static str) -> WireResult<Self> {
        reader.u64(name)
    }
    fn write(&self, writer: &mut Writer<'_>, _name: &'static str) -> WireResult<()> {
        writer.u64(*self);
        Ok(())
    }
}

macro_rules! properties {
    ($($(#[$doc:meta])* $field:ident: $type:ty, $set:ty, $bit:literal;)*) => {
        /// The properties of a message: what AMQP carries beside the body. All are optional.
        ///
        /// RabbitMQ acts on `delivery_mode`, `priority`, `expiration`, `user_id` and some `headers`; the rest is for
        /// the programs at both ends. Texts have at most 255 bytes; a longer one is refused by the call that would
        /// send it.
        ///
        /// ```
        /// use leveret::Properties;
        ///
        /// let properties = Properties::default().content_type("application/json").persistent();
        /// assert_eq!(properties.delivery_mode, Some(2));
        /// ```
        ///
        /// See <https://www.rabbitmq.com/docs/publishers#message-properties>.
        #[derive(Clone, Default, PartialEq)]
        #[non_exhaustive]
        pub struct Properties { $($(#[$doc])* pub $field: Option<$type>,)* }

        impl Properties {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $field(mut self, value: $set) -> Self {
                    self.$field = Some(value.into());
                    self
                }
            )*

            pub(crate) fn encode(&self, buffer: &mut Vec<u8>) -> WireResult<()> {
                let mut writer = Writer::new(buffer);
                writer.u16(0 $(| u16::from(self.$field.is_some()) << $bit)*);
                $(if let Some(value) = &self.$field {
                    value.write(&mut writer, stringify!($field))?;
                })*
                Ok(())
            }

            /// Reads what stands in a content header behind the body's size.
            pub(crate) fn decode(bytes: &[u8]) -> WireResult<Self> {
                const KNOWN: u16 = 0 $(| 1 << $bit)*;
                let mut reader = Reader::new(bytes);
                let flags = reader.u16("property flags")?;
                if flags & !KNOWN != 0 {
                    return Err(WireError::UnknownPropertyFlags(flags));
                }
                let properties = Self {
                    $($field: if flags & (1 << $bit) == 0 {
                        None
                    } else {
                        Some(Property::read(&mut reader, stringify!($field))?)
                    },)*
                };
                reader.finish("the properties")?;
                Ok(properties)
            }
        }

        /// Shows only what is set.
        impl fmt::Debug for Properties {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut shown = f.debug_struct("Properties");
                $(if let Some(value) = &self.$field {
                    shown.field(stringify!($field), value);
                })*
                shown.finish()
            }
        }
    };
}

properties! {
    /// The MIME type of the body, such as `application/json`.
    content_type: String, impl Into<String>, 15;
    /// How the body is encoded on top of its type, such as `gzip`.
    content_encoding: String, impl Into<String>, 14;
    /// Named values; headers exchanges route by them.
    headers: FieldTable, FieldTable, 13;
    /// 1: kept in memory. 2: written to disk if the queue is durable; see [`Properties::persistent`].
    delivery_mode: u8, u8, 12;
    /// The priority in its queue: [`Message::priority`](crate::Message::priority) says which
    /// priorities each type of queue has.
    priority: u8, u8, 11;
    /// Which request this message answers.
    correlation_id: String, impl Into<String>, 10;
    /// The queue that an answer shall go to.
    reply_to: String, impl Into<String>, 9;
    /// After how many milliseconds in a queue the message expires, as a text of digits.
    expiration: String, impl Into<String>, 8;
    /// A name for this message, given by the program.
    message_id: String, impl Into<String>, 7;
    /// Seconds since 1970-01-01 00:00 UTC; see [`Properties::sent_at`].
    timestamp: u64, u64, 6;
    /// What kind of message this is, to the programs at both ends (the property `type`).
    message_type: String, impl Into<String>, 5;
    /// The user who publishes; RabbitMQ refuses any other name than the connection's user.
    user_id: String, impl Into<String>, 4;
    /// The program that publishes.
    app_id: String, impl Into<String>, 3;
    /// Unused; RabbitMQ ignores it.
    cluster_id: String, impl Into<String>, 2;
}

impl Properties {
    /// Delivery mode 2: a durable queue writes the message to disk before it confirms it.
    #[must_use]
    pub fn persistent(self) -> Self {
        self.delivery_mode(2)
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<FieldValue>) -> Self {
        self.headers
            .get_or_insert_with(FieldTable::new)
            .insert(name, value);
        self
    }

    /// The [`timestamp`](Self::timestamp) of that time, in whole seconds.
    #[must_use]
    pub fn sent_at(self, time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.timestamp(seconds.as_secs())
    }
}
