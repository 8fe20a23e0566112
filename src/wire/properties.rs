//! The 14 properties of a message.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::codec::{Reader, WireError, WireResult, Writer};
use super::expiration::Expiration;
use super::short_string::ShortString;
use super::value::{self, FieldTable, FieldValue};

/// A type of property: how it is read and written.
trait Property: Sized {
    fn read(reader: &mut Reader<'_>, name: &'static str) -> WireResult<Self>;
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()>;
}

impl Property for ShortString {
    fn read(reader: &mut Reader<'_>, name: &'static str) -> WireResult<Self> {
        Ok(reader.short_bytes(name)?.into())
    }
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()> {
        writer.short_bytes(self.as_bytes(), name)
    }
}

impl Property for Expiration {
    fn read(reader: &mut Reader<'_>, name: &'static str) -> WireResult<Self> {
        ShortString::read(reader, name).map(Self::from)
    }
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()> {
        match self.as_duration() {
            Some(_) => self.text().write(writer, name),
            // RabbitMQ would close the channel, after the publish has returned.
            None => Err(WireError::BadExpiration {
                value: self.to_string(),
            }),
        }
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
    ($($(#[$doc:meta])* $field:ident: $type:ty, $set:ty, $bit:literal, $setter_doc:literal;)*) => {
        /// The properties of a message, which AMQP carries besides the body. All are optional.
        ///
        /// RabbitMQ uses `delivery_mode`, `priority`, `expiration`, `user_id` and some `headers`;
        /// the other properties are for the programs at both ends. A call that would send a text
        /// longer than 255 bytes fails.
        ///
        /// ```
        /// use leveret::Properties;
        ///
        /// let properties =
        /// Properties::default().content_type("application/json").persistent(true);
        /// assert_eq!(properties.delivery_mode, Some(2));
        /// ```
        ///
        /// See <https://www.rabbitmq.com/docs/publishers#message-properties>.
        #[derive(Clone, Default, PartialEq)]
        #[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
        #[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
        #[non_exhaustive]
        pub struct Properties {
            $(
                $(#[$doc])*
                #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
                pub $field: Option<$type>,
            )*
        }

        impl Properties {
            $(
                #[doc = $setter_doc]
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

            /// Reads the part of a content header that follows the body size.
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

        /// Shows only the properties that are set.
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
    /// MIME type of the body, such as `application/json`.
    content_type: ShortString, impl Into<ShortString>, 15,
        "Sets the MIME type of the body, such as `application/json`.";
    /// Encoding of the body, such as `gzip`.
    content_encoding: ShortString, impl Into<ShortString>, 14,
        "Sets the encoding of the body, such as `gzip`.";
    /// Headers: named values. Headers exchanges route by them.
    headers: FieldTable, impl Into<FieldTable>, 13,
        "Sets all headers. Replaces headers that were set before.";
    /// Delivery mode. 1: kept in memory. 2: written to disk if the queue is durable.
    delivery_mode: u8, u8, 12,
        "Sets the delivery mode. 1: kept in memory. 2: written to disk if the queue is durable.";
    /// Priority of the message in its queue: see [`Message::priority`](crate::Message::priority).
    priority: u8, u8, 11,
        "Sets the message's priority in its queue: see \
         [`Message::priority`](crate::Message::priority).";
    /// Identifier that links a reply to its request.
    correlation_id: ShortString, impl Into<ShortString>, 10,
        "Sets the identifier that links a reply to its request.";
    /// Queue for replies to the message.
    reply_to: ShortString, impl Into<ShortString>, 9,
        "Sets the queue for replies to the message.";
    /// How long the message may stay in a queue before it expires.
    expiration: Expiration, impl Into<Expiration>, 8,
        "Sets how long the message may stay in a queue before it expires: a [`Duration`], or a \
         number of milliseconds.";
    /// Identifier that the program gives the message.
    message_id: ShortString, impl Into<ShortString>, 7,
        "Sets an identifier that the program gives the message.";
    /// Timestamp, in seconds since 1970-01-01 00:00 UTC.
    timestamp: u64, u64, 6,
        "Sets the timestamp, in seconds since 1970-01-01 00:00 UTC.";
    /// Kind of message, for the programs at both ends (the property `type`).
    #[cfg_attr(feature = "serde", serde(rename = "type", alias = "message_type"))]
    message_type: ShortString, impl Into<ShortString>, 5,
        "Sets the kind of message, for the programs at both ends (the property `type`).";
    /// Publishing user. RabbitMQ refuses any name but that of the connection's user.
    user_id: ShortString, impl Into<ShortString>, 4,
        "Sets the publishing user. RabbitMQ refuses any name but that of the connection's user.";
    /// Name of the publishing program.
    app_id: ShortString, impl Into<ShortString>, 3,
        "Sets the name of the publishing program.";
    /// Unused. RabbitMQ ignores this property.
    cluster_id: ShortString, impl Into<ShortString>, 2,
        "Sets a property that is unused and that RabbitMQ ignores.";
}

impl Properties {
    /// Sets whether a durable queue writes the message to disk before the broker confirms it
    /// (delivery mode 2) or may keep it in memory only (delivery mode 1).
    #[must_use]
    pub fn persistent(self, persistent: bool) -> Self {
        self.delivery_mode(if persistent { 2 } else { 1 })
    }

    /// Adds a header. Replaces an earlier header of the same name.
    #[must_use]
    pub fn header(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.headers
            .get_or_insert_with(FieldTable::new)
            .insert(name, value);
        self
    }

    /// Sets how long the message may stay in a queue before it expires, in whole milliseconds,
    /// rounded up (the property `expiration`). A call that would send more than 49 days fails.
    #[must_use]
    pub fn expires_after(self, after: Duration) -> Self {
        self.expiration(after)
    }

    /// Sets the timestamp from a `SystemTime`, in whole seconds.
    #[must_use]
    pub fn sent_at(self, time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.timestamp(seconds.as_secs())
    }
}
