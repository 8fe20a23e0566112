//! The method table: every method of AMQP 0-9-1 and RabbitMQ's extensions, with its ids, fields and
//! reply. All other code about methods is generated from this table.

use std::borrow::Cow;
use std::fmt;

use super::codec::{Reader, WireError, WireResult, Writer};
use super::value::{self, FieldTable};

/// A text of at most 255 bytes. A peer may send invalid UTF-8, which is replaced.
pub(crate) type ShortString<'a> = Cow<'a, str>;

/// Bytes with a 32-bit length. `Debug` shows only their number, because passwords are sent this
/// way.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct LongString<'a>(pub(crate) Cow<'a, [u8]>);

impl fmt::Debug for LongString<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

pub(crate) type Table<'a> = Cow<'a, FieldTable>;

/// A type of a method's field: how it is read and written.
trait Field<'a>: Sized {
    type Static;
    fn read(reader: &mut Reader<'a>, name: &'static str) -> WireResult<Self>;
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()>;
    fn into_owned(self) -> Self::Static;
    /// Only tables have floats.
    #[cfg(feature = "broker")]
    fn is_finite(&self) -> bool {
        true
    }
}

macro_rules! integer_fields {
    ($($type:ty: $method:ident, $write:ident;)*) => {
        $(impl<'a> Field<'a> for $type {
            type Static = Self;
            #[inline]
            fn read(reader: &mut Reader<'a>, name: &'static str) -> WireResult<Self> {
                reader.$method(name)
            }
            #[inline]
            fn write(&self, writer: &mut Writer<'_>, _name: &'static str) -> WireResult<()> {
                writer.$write(*self);
                Ok(())
            }
            fn into_owned(self) -> Self {
                self
            }
        })*
    };
}

integer_fields! {
    bool: bit, bit;
    u8: u8, u8;
    u16: u16, u16;
    u32: u32, u32;
    u64: u64, u64;
}

impl<'a> Field<'a> for ShortString<'a> {
    type Static = ShortString<'static>;
    #[inline]
    fn read(reader: &mut Reader<'a>, name: &'static str) -> WireResult<Self> {
        let bytes = reader.short_bytes(name)?;
        // Ten times as fast as `from_utf8_lossy`. Invalid UTF-8 is very rare.
        Ok(match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(bytes),
        })
    }
    #[inline]
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()> {
        writer.short_bytes(self.as_bytes(), name)
    }
    fn into_owned(self) -> Self::Static {
        Cow::Owned(Cow::into_owned(self))
    }
}

impl<'a> Field<'a> for LongString<'a> {
    type Static = LongString<'static>;
    fn read(reader: &mut Reader<'a>, name: &'static str) -> WireResult<Self> {
        Ok(Self(Cow::Borrowed(reader.long_bytes(name)?)))
    }
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()> {
        writer.long_bytes(&self.0, name)
    }
    fn into_owned(self) -> Self::Static {
        LongString(Cow::Owned(self.0.into_owned()))
    }
}

impl<'a> Field<'a> for Table<'a> {
    type Static = Table<'static>;
    fn read(reader: &mut Reader<'a>, _name: &'static str) -> WireResult<Self> {
        Ok(Cow::Owned(value::read_table(reader, 0)?))
    }
    fn write(&self, writer: &mut Writer<'_>, name: &'static str) -> WireResult<()> {
        writer.table(self, name)
    }
    #[cfg(feature = "broker")]
    fn is_finite(&self) -> bool {
        FieldTable::is_finite(self)
    }
    fn into_owned(self) -> Self::Static {
        Cow::Owned(Cow::into_owned(self))
    }
}

/// The two numbers that name a method on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MethodId {
    pub(crate) class: u16,
    pub(crate) method: u16,
}

impl fmt::Display for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "method {}.{}", self.class, self.method),
        }
    }
}

/// A method that can be put into a frame.
pub(crate) trait Encode {
    const ID: MethodId;
    fn encode(&self, buffer: &mut Vec<u8>) -> WireResult<()>;
}

/// A method that the peer answers with exactly one reply.
pub(crate) trait Request: Encode {
    type Reply: TryFrom<Method<'static>>;
    const REPLY: MethodId;
}

/// Defines a method's struct. The pattern spells out the lifetime `'a`, so that the macro can name
/// the owned form.
macro_rules! method {
    ($name:ident { $($field:ident: $type:ty,)* }) => {
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(crate) struct $name { $(pub(crate) $field: $type,)* }
        impl From<$name> for Method<'static> {
            fn from(method: $name) -> Self {
                Self::$name(method)
            }
        }
        impl $name {
            pub(crate) fn into_owned(self) -> Self {
                self
            }
        }
        impl<'a> TryFrom<Method<'a>> for $name {
            type Error = Method<'a>;
            fn try_from(method: Method<'a>) -> Result<Self, Method<'a>> {
                match method {
                    Method::$name(method) => Ok(method),
                    other => Err(other),
                }
            }
        }
    };
    ($name:ident <'a> { $($field:ident: $type:ty,)* }) => {
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(crate) struct $name<'a> { $(pub(crate) $field: $type,)* }
        impl From<$name<'_>> for Method<'static> {
            fn from(method: $name<'_>) -> Self {
                Self::$name(method.into_owned())
            }
        }
        impl $name<'_> {
            pub(crate) fn into_owned(self) -> $name<'static> {
                $name { $($field: Field::into_owned(self.$field),)* }
            }
        }
        impl<'a> TryFrom<Method<'a>> for $name<'a> {
            type Error = Method<'a>;
            fn try_from(method: Method<'a>) -> Result<Self, Method<'a>> {
                match method {
                    Method::$name(method) => Ok(method),
                    other => Err(other),
                }
            }
        }
    };
}

/// Implements `Request` for a method that has a reply.
macro_rules! request {
    ($name:ident $(<'a>)? =>) => {};
    ($name:ident => $reply:ident) => {
        impl Request for $name {
            type Reply = $reply;
            const REPLY: MethodId = $reply::ID;
        }
    };
    ($name:ident <'a> => $reply:ident) => {
        impl Request for $name<'_> {
            type Reply = $reply;
            const REPLY: MethodId = $reply::ID;
        }
    };
    ($name:ident <'a> => $reply:ident <'a>) => {
        impl Request for $name<'_> {
            type Reply = $reply<'static>;
            const REPLY: MethodId = $reply::ID;
        }
    };
}

macro_rules! methods {
    ($(
        $name:ident $(<$life:lifetime>)? = $text:literal ($class:literal, $method:literal)
        $(-> $reply:ident $(<$reply_life:lifetime>)?)? { $($field:ident: $type:ty),* }
    )*) => {
        /// Any method.
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) enum Method<'a> { $($name($name $(<$life>)?),)* }

        impl<'a> Method<'a> {
            /// Reads the payload of a method frame.
            #[inline]
            pub(crate) fn decode(payload: &'a [u8]) -> WireResult<Self> {
                let mut reader = Reader::new(payload);
                let class = reader.u16("a method frame")?;
                let method = reader.u16("a method frame")?;
                match (class, method) {
                    $(($class, $method) => {
                        let decoded = $name { $($field: Field::read(&mut reader, concat!($text, " ", stringify!($field)))?,)* };
                        reader.finish($text)?;
                        Ok(Self::$name(decoded))
                    })*
                    _ => Err(WireError::UnknownMethod { class, method }),
                }
            }

            pub(crate) fn id(&self) -> MethodId {
                match self { $(Self::$name(_) => $name::ID,)* }
            }

            /// Whether all floats in its tables are finite.
            #[cfg(feature = "broker")]
            pub(crate) fn is_finite(&self) -> bool {
                match self {
                    $(Self::$name($name { $($field,)* }) => true $(&& Field::is_finite($field))*,)*
                }
            }

            pub(crate) fn into_owned(self) -> Method<'static> {
                match self { $(Self::$name(method) => Method::$name(method.into_owned()),)* }
            }
        }

        impl MethodId {
            pub(crate) fn name(self) -> Option<&'static str> {
                match (self.class, self.method) {
                    $(($class, $method) => Some($text),)*
                    _ => None,
                }
            }
        }

        $(
            method! { $name $(<$life>)? { $($field: $type,)* } }

            impl $(<$life>)? Encode for $name $(<$life>)? {
                const ID: MethodId = MethodId { class: $class, method: $method };
                #[inline]
                fn encode(&self, buffer: &mut Vec<u8>) -> WireResult<()> {
                    let mut writer = Writer::new(buffer);
                    writer.u16($class);
                    writer.u16($method);
                    $(self.$field.write(&mut writer, stringify!($field))?;)*
                    Ok(())
                }
            }

            request! { $name $(<$life>)? => $($reply $(<$reply_life>)?)? }
        )*

        #[cfg(test)]
        impl<'a> Method<'a> {
            pub(crate) fn encode(&self, buffer: &mut Vec<u8>) -> WireResult<()> {
                match self { $(Self::$name(method) => method.encode(buffer),)* }
            }

            /// One of each method. All fields have different values.
            pub(crate) fn samples() -> Vec<Method<'static>> {
                use super::tests::Sample;
                let mut seed = 0;
                vec![$(Method::$name($name { $($field: Sample::sample(&mut seed),)* }),)*]
            }

            /// For each row: name, ids, and the field types in the specification's terms.
            pub(crate) fn rows() -> Vec<String> {
                use super::tests::Sample;
                vec![$([
                    concat!($text, " ", $class, " ", $method) $(, <$type as Sample>::TYPE)*
                ].join(" "),)*]
            }
        }
    };
}

methods! {
    ConnectionStart<'a> = "connection.start" (10, 10) {
        version_major: u8, version_minor: u8, server_properties: Table<'a>, mechanisms: LongString<'a>,
        locales: LongString<'a>
    }
    ConnectionStartOk<'a> = "connection.start-ok" (10, 11) {
        client_properties: Table<'a>, mechanism: ShortString<'a>, response: LongString<'a>, locale: ShortString<'a>
    }
    ConnectionSecure<'a> = "connection.secure" (10, 20) { challenge: LongString<'a> }
    ConnectionSecureOk<'a> = "connection.secure-ok" (10, 21) { response: LongString<'a> }
    ConnectionTune = "connection.tune" (10, 30) { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionTuneOk = "connection.tune-ok" (10, 31) { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionOpen<'a> = "connection.open" (10, 40) -> ConnectionOpenOk<'a> {
        virtual_host: ShortString<'a>, capabilities: ShortString<'a>, insist: bool
    }
    ConnectionOpenOk<'a> = "connection.open-ok" (10, 41) { known_hosts: ShortString<'a> }
    ConnectionClose<'a> = "connection.close" (10, 50) -> ConnectionCloseOk {
        reply_code: u16, reply_text: ShortString<'a>, class_id: u16, method_id: u16
    }
    ConnectionCloseOk = "connection.close-ok" (10, 51) {}
    ConnectionBlocked<'a> = "connection.blocked" (10, 60) { reason: ShortString<'a> }
    ConnectionUnblocked = "connection.unblocked" (10, 61) {}
    ConnectionUpdateSecret<'a> = "connection.update-secret" (10, 70) -> ConnectionUpdateSecretOk {
        new_secret: LongString<'a>, reason: ShortString<'a>
    }
    ConnectionUpdateSecretOk = "connection.update-secret-ok" (10, 71) {}

    ChannelOpen<'a> = "channel.open" (20, 10) -> ChannelOpenOk<'a> { out_of_band: ShortString<'a> }
    ChannelOpenOk<'a> = "channel.open-ok" (20, 11) { channel_id: LongString<'a> }
    ChannelFlow = "channel.flow" (20, 20) -> ChannelFlowOk { active: bool }
    ChannelFlowOk = "channel.flow-ok" (20, 21) { active: bool }
    ChannelClose<'a> = "channel.close" (20, 40) -> ChannelCloseOk {
        reply_code: u16, reply_text: ShortString<'a>, class_id: u16, method_id: u16
    }
    ChannelCloseOk = "channel.close-ok" (20, 41) {}

    AccessRequest<'a> = "access.request" (30, 10) -> AccessRequestOk {
        realm: ShortString<'a>, exclusive: bool, passive: bool, active: bool, write: bool, read: bool
    }
    AccessRequestOk = "access.request-ok" (30, 11) { ticket: u16 }

    ExchangeDeclare<'a> = "exchange.declare" (40, 10) -> ExchangeDeclareOk {
        ticket: u16, exchange: ShortString<'a>, kind: ShortString<'a>, passive: bool, durable: bool,
        auto_delete: bool, internal: bool, no_wait: bool, arguments: Table<'a>
    }
    ExchangeDeclareOk = "exchange.declare-ok" (40, 11) {}
    ExchangeDelete<'a> = "exchange.delete" (40, 20) -> ExchangeDeleteOk {
        ticket: u16, exchange: ShortString<'a>, if_unused: bool, no_wait: bool
    }
    ExchangeDeleteOk = "exchange.delete-ok" (40, 21) {}
    ExchangeBind<'a> = "exchange.bind" (40, 30) -> ExchangeBindOk {
        ticket: u16, destination: ShortString<'a>, source: ShortString<'a>, routing_key: ShortString<'a>,
        no_wait: bool, arguments: Table<'a>
    }
    ExchangeBindOk = "exchange.bind-ok" (40, 31) {}
    ExchangeUnbind<'a> = "exchange.unbind" (40, 40) -> ExchangeUnbindOk {
        ticket: u16, destination: ShortString<'a>, source: ShortString<'a>, routing_key: ShortString<'a>,
        no_wait: bool, arguments: Table<'a>
    }
    ExchangeUnbindOk = "exchange.unbind-ok" (40, 51) {}

    QueueDeclare<'a> = "queue.declare" (50, 10) -> QueueDeclareOk<'a> {
        ticket: u16, queue: ShortString<'a>, passive: bool, durable: bool, exclusive: bool, auto_delete: bool,
        no_wait: bool, arguments: Table<'a>
    }
    QueueDeclareOk<'a> = "queue.declare-ok" (50, 11) {
        queue: ShortString<'a>, message_count: u32, consumer_count: u32
    }
    QueueBind<'a> = "queue.bind" (50, 20) -> QueueBindOk {
        ticket: u16, queue: ShortString<'a>, exchange: ShortString<'a>, routing_key: ShortString<'a>,
        no_wait: bool, arguments: Table<'a>
    }
    QueueBindOk = "queue.bind-ok" (50, 21) {}
    QueuePurge<'a> = "queue.purge" (50, 30) -> QueuePurgeOk { ticket: u16, queue: ShortString<'a>, no_wait: bool }
    QueuePurgeOk = "queue.purge-ok" (50, 31) { message_count: u32 }
    QueueDelete<'a> = "queue.delete" (50, 40) -> QueueDeleteOk {
        ticket: u16, queue: ShortString<'a>, if_unused: bool, if_empty: bool, no_wait: bool
    }
    QueueDeleteOk = "queue.delete-ok" (50, 41) { message_count: u32 }
    QueueUnbind<'a> = "queue.unbind" (50, 50) -> QueueUnbindOk {
        ticket: u16, queue: ShortString<'a>, exchange: ShortString<'a>, routing_key: ShortString<'a>,
        arguments: Table<'a>
    }
    QueueUnbindOk = "queue.unbind-ok" (50, 51) {}

    BasicQos = "basic.qos" (60, 10) -> BasicQosOk { prefetch_size: u32, prefetch_count: u16, global: bool }
    BasicQosOk = "basic.qos-ok" (60, 11) {}
    BasicConsume<'a> = "basic.consume" (60, 20) -> BasicConsumeOk<'a> {
        ticket: u16, queue: ShortString<'a>, consumer_tag: ShortString<'a>, no_local: bool, no_ack: bool,
        exclusive: bool, no_wait: bool, arguments: Table<'a>
    }
    BasicConsumeOk<'a> = "basic.consume-ok" (60, 21) { consumer_tag: ShortString<'a> }
    BasicCancel<'a> = "basic.cancel" (60, 30) -> BasicCancelOk<'a> { consumer_tag: ShortString<'a>, no_wait: bool }
    BasicCancelOk<'a> = "basic.cancel-ok" (60, 31) { consumer_tag: ShortString<'a> }
    BasicPublish<'a> = "basic.publish" (60, 40) {
        ticket: u16, exchange: ShortString<'a>, routing_key: ShortString<'a>, mandatory: bool, immediate: bool
    }
    BasicReturn<'a> = "basic.return" (60, 50) {
        reply_code: u16, reply_text: ShortString<'a>, exchange: ShortString<'a>, routing_key: ShortString<'a>
    }
    BasicDeliver<'a> = "basic.deliver" (60, 60) {
        consumer_tag: ShortString<'a>, delivery_tag: u64, redelivered: bool, exchange: ShortString<'a>,
        routing_key: ShortString<'a>
    }
    BasicGet<'a> = "basic.get" (60, 70) { ticket: u16, queue: ShortString<'a>, no_ack: bool }
    BasicGetOk<'a> = "basic.get-ok" (60, 71) {
        delivery_tag: u64, redelivered: bool, exchange: ShortString<'a>, routing_key: ShortString<'a>,
        message_count: u32
    }
    BasicGetEmpty<'a> = "basic.get-empty" (60, 72) { cluster_id: ShortString<'a> }
    BasicAck = "basic.ack" (60, 80) { delivery_tag: u64, multiple: bool }
    BasicReject = "basic.reject" (60, 90) { delivery_tag: u64, requeue: bool }
    BasicRecoverAsync = "basic.recover-async" (60, 100) { requeue: bool }
    BasicRecover = "basic.recover" (60, 110) -> BasicRecoverOk { requeue: bool }
    BasicRecoverOk = "basic.recover-ok" (60, 111) {}
    BasicNack = "basic.nack" (60, 120) { delivery_tag: u64, multiple: bool, requeue: bool }

    TxSelect = "tx.select" (90, 10) -> TxSelectOk {}
    TxSelectOk = "tx.select-ok" (90, 11) {}
    TxCommit = "tx.commit" (90, 20) -> TxCommitOk {}
    TxCommitOk = "tx.commit-ok" (90, 21) {}
    TxRollback = "tx.rollback" (90, 30) -> TxRollbackOk {}
    TxRollbackOk = "tx.rollback-ok" (90, 31) {}

    ConfirmSelect = "confirm.select" (85, 10) -> ConfirmSelectOk { no_wait: bool }
    ConfirmSelectOk = "confirm.select-ok" (85, 11) {}
}
