//! Field tables: the typed arguments and headers of AMQP.

use std::borrow::Cow;
use std::collections::{btree_map, BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::codec::{BadNumber, Reader, WireError, WireResult, Writer, MAX_DEPTH};
use super::short_string::ShortString;

/// A value in a [`FieldTable`], of any type that RabbitMQ reads or writes.
///
/// `From` picks the type that fits the Rust value: `i32` becomes a signed 32-bit integer, `&str` a
/// long string, `Vec<u8>` binary data, and an array or `Vec` of other values an array. An integer
/// keeps its width: RabbitMQ compares arguments by value, but some plugins and clients compare them
/// by type. So do not compare a received integer with `==`, since its width is the sender's choice:
/// use [`as_i64`](Self::as_i64).
///
/// ```
/// use leveret::FieldValue;
///
/// assert_eq!(FieldValue::from("text").as_str(), Some("text"));
/// assert_eq!(FieldValue::from(vec![1, 2, 3].len()), FieldValue::I64(3));
/// assert_eq!(FieldValue::from(["a", "b"]).as_array().map(<[_]>::len), Some(2));
/// ```
///
/// See the [errata](https://www.rabbitmq.com/amqp-0-9-1-errata#section_3) for the type table.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum FieldValue {
    /// A boolean (`t`).
    Bool(bool),
    /// A signed 8-bit integer (`b`).
    I8(i8),
    /// An unsigned 8-bit integer (`B`).
    U8(u8),
    /// A signed 16-bit integer (`s`).
    I16(i16),
    /// An unsigned 16-bit integer (`u`).
    U16(u16),
    /// A signed 32-bit integer (`I`).
    I32(i32),
    /// An unsigned 32-bit integer (`i`).
    U32(u32),
    /// A signed 64-bit integer (`l`; this crate also reads `L` as one, as RabbitMQ does).
    I64(i64),
    /// An unsigned 64-bit integer, which AMQP does not have: it is sent as a signed 64-bit integer.
    /// A call that would send a number above [`i64::MAX`] fails. `From` makes this only of such
    /// numbers.
    U64(u64),
    /// A 32-bit float (`f`). A call that would send NaN or infinity fails, because RabbitMQ would
    /// close the connection.
    F32(f32),
    /// A 64-bit float (`d`). A call that would send NaN or infinity fails, as for
    /// [`FieldValue::F32`].
    F64(f64),
    /// A decimal (`D`): `value` divided by ten to the power of `scale`.
    Decimal {
        /// Number of digits after the decimal point.
        scale: u8,
        /// The digits.
        value: u32,
    },
    /// Text or arbitrary bytes (`S`); see [`FieldValue::as_str`].
    LongString(Vec<u8>),
    /// An array of values (`A`).
    Array(Vec<Self>),
    /// Seconds since 1970-01-01 00:00 UTC (`T`).
    Timestamp(u64),
    /// A table inside this one (`F`).
    Table(FieldTable),
    /// No value (`V`).
    Void,
    /// Binary data (`x`).
    ByteArray(Vec<u8>),
}

impl FieldValue {
    /// Returns the text of a [`FieldValue::LongString`], if it is valid UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::LongString(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Returns the bytes of a [`FieldValue::LongString`] or [`FieldValue::ByteArray`].
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::LongString(bytes) | Self::ByteArray(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the value of an integer of any width. `None` above [`i64::MAX`].
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        Some(match *self {
            Self::I8(value) => value.into(),
            Self::U8(value) => value.into(),
            Self::I16(value) => value.into(),
            Self::U16(value) => value.into(),
            Self::I32(value) => value.into(),
            Self::U32(value) => value.into(),
            Self::I64(value) => value,
            Self::U64(value) => return i64::try_from(value).ok(),
            _ => return None,
        })
    }

    /// Returns the value of an integer of any width. `None` below zero.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U64(value) => Some(value),
            _ => u64::try_from(self.as_i64()?).ok(),
        }
    }

    /// Returns the value of a [`FieldValue::Bool`].
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the value of a float of any width, or of an integer, which a peer may send instead.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            Self::U64(value) => Some(value as f64),
            _ => Some(self.as_i64()? as f64),
        }
    }

    /// Returns the seconds of a [`FieldValue::Timestamp`].
    #[must_use]
    pub fn as_timestamp(&self) -> Option<u64> {
        match *self {
            Self::Timestamp(seconds) => Some(seconds),
            _ => None,
        }
    }

    /// Returns the table of a [`FieldValue::Table`].
    #[must_use]
    pub fn as_table(&self) -> Option<&FieldTable> {
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Returns the values of a [`FieldValue::Array`].
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// Shows long strings as text if they are UTF-8, and numbers as Rust literals of their type.
impl fmt::Debug for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::I8(value) => write!(f, "{value}_i8"),
            Self::U8(value) => write!(f, "{value}_u8"),
            Self::I16(value) => write!(f, "{value}_i16"),
            Self::U16(value) => write!(f, "{value}_u16"),
            Self::I32(value) => value.fmt(f),
            Self::U32(value) => write!(f, "{value}_u32"),
            Self::I64(value) => write!(f, "{value}_i64"),
            Self::U64(value) => write!(f, "{value}_u64"),
            Self::F32(value) => write!(f, "{value:?}_f32"),
            Self::F64(value) => value.fmt(f),
            Self::Decimal { scale, value } => write!(f, "{value}e-{scale}"),
            Self::LongString(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => text.fmt(f),
                Err(_) => bytes.fmt(f),
            },
            Self::Array(values) => values.fmt(f),
            Self::Timestamp(seconds) => write!(f, "Timestamp({seconds})"),
            Self::Table(table) => table.fmt(f),
            Self::Void => f.write_str("Void"),
            Self::ByteArray(bytes) => write!(f, "ByteArray({bytes:?})"),
        }
    }
}

macro_rules! from {
    ($($type:ty => |$value:ident| $made:expr;)*) => {
        $(impl From<$type> for FieldValue {
            fn from($value: $type) -> Self {
                $made
            }
        })*
    };
}

from! {
    bool => |value| Self::Bool(value);
    i8 => |value| Self::I8(value);
    u8 => |value| Self::U8(value);
    i16 => |value| Self::I16(value);
    u16 => |value| Self::U16(value);
    i32 => |value| Self::I32(value);
    u32 => |value| Self::U32(value);
    i64 => |value| Self::I64(value);
    u64 => |value| i64::try_from(value).map_or(Self::U64(value), Self::I64);
    isize => |value| Self::I64(value as i64);
    usize => |value| Self::from(value as u64);
    f32 => |value| Self::F32(value);
    f64 => |value| Self::F64(value);
    &str => |value| Self::LongString(value.as_bytes().to_vec());
    &String => |value| Self::from(value.as_str());
    String => |value| Self::LongString(value.into_bytes());
    Cow<'_, str> => |value| Self::from(value.into_owned());
    &ShortString => |value| Self::LongString(value.as_bytes().to_vec());
    ShortString => |value| Self::LongString(value.into_bytes());
    Vec<u8> => |value| Self::ByteArray(value);
    &[u8] => |value| Self::ByteArray(value.to_vec());
    FieldTable => |value| Self::Table(value);
    SystemTime => |value| Self::Timestamp(
        value.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
    );
    &Self => |value| value.clone();
}

impl<const N: usize> From<&[u8; N]> for FieldValue {
    fn from(value: &[u8; N]) -> Self {
        Self::ByteArray(value.to_vec())
    }
}

impl<const N: usize> From<[u8; N]> for FieldValue {
    fn from(value: [u8; N]) -> Self {
        Self::ByteArray(value.to_vec())
    }
}

/// Bytes become binary data (above); everything else becomes an array.
macro_rules! from_several {
    ($($type:ty),*) => {
        $(
            impl From<Vec<$type>> for FieldValue {
                fn from(values: Vec<$type>) -> Self {
                    values.into_iter().collect()
                }
            }

            impl From<&[$type]> for FieldValue {
                fn from(values: &[$type]) -> Self {
                    values.iter().cloned().collect()
                }
            }

            impl<const N: usize> From<&[$type; N]> for FieldValue {
                fn from(values: &[$type; N]) -> Self {
                    values.as_slice().into()
                }
            }

            impl<const N: usize> From<[$type; N]> for FieldValue {
                fn from(values: [$type; N]) -> Self {
                    values.into_iter().collect()
                }
            }
        )*
    };
}

from_several! {
    bool, i8, i16, u16, i32, u32, i64, u64, isize, usize, f32, f64, &str, String, FieldTable,
    SystemTime, FieldValue
}

/// Collects values into an array.
impl<V: Into<Self>> FromIterator<V> for FieldValue {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Self {
        Self::Array(values.into_iter().map(Into::into).collect())
    }
}

/// Named values: the `arguments` of declarations and the `headers` of messages.
///
/// Names are unique and sorted. A call that would send a name longer than 255 bytes fails.
///
/// ```
/// use leveret::FieldTable;
///
/// let arguments = FieldTable::new()
///     .with("x-message-ttl", 60_000)
///     .with("x-dead-letter-exchange", "dead");
/// assert_eq!(arguments.get("x-message-ttl").and_then(|ttl| ttl.as_i64()), Some(60_000));
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct FieldTable {
    values: BTreeMap<ShortString, FieldValue>,
}

impl FieldTable {
    /// Creates an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value, and returns the table. Replaces an earlier value of the same name.
    #[must_use]
    pub fn with(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.insert(name, value);
        self
    }

    /// Adds a value, and returns the value that it replaces.
    pub fn insert(
        &mut self,
        name: impl Into<ShortString>,
        value: impl Into<FieldValue>,
    ) -> Option<FieldValue> {
        self.values.insert(name.into(), value.into())
    }

    /// Returns the value with this name.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&FieldValue> {
        self.values.get(name.as_ref())
    }

    /// Returns the value with this name, to change it.
    pub fn get_mut(&mut self, name: impl AsRef<[u8]>) -> Option<&mut FieldValue> {
        self.values.get_mut(name.as_ref())
    }

    /// Returns true if the table has a value with this name.
    pub fn contains_key(&self, name: impl AsRef<[u8]>) -> bool {
        self.values.contains_key(name.as_ref())
    }

    /// Removes and returns the value with this name.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) -> Option<FieldValue> {
        self.values.remove(name.as_ref())
    }

    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns true if the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Iterates over all names, sorted.
    pub fn keys(&self) -> btree_map::Keys<'_, ShortString, FieldValue> {
        self.values.keys()
    }

    /// Iterates over all values, sorted by name.
    pub fn values(&self) -> btree_map::Values<'_, ShortString, FieldValue> {
        self.values.values()
    }

    /// Iterates over all names and values, sorted by name.
    pub fn iter(&self) -> btree_map::Iter<'_, ShortString, FieldValue> {
        self.values.iter()
    }
}

impl fmt::Debug for FieldTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.values.fmt(f)
    }
}

impl<N: Into<ShortString>, V: Into<FieldValue>> FromIterator<(N, V)> for FieldTable {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(values: I) -> Self {
        let mut table = Self::new();
        table.extend(values);
        table
    }
}

impl<N: Into<ShortString>, V: Into<FieldValue>> Extend<(N, V)> for FieldTable {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, values: I) {
        let values = values.into_iter();
        self.values
            .extend(values.map(|(name, value)| (name.into(), value.into())));
    }
}

impl<N: Into<ShortString>, V: Into<FieldValue>, const L: usize> From<[(N, V); L]> for FieldTable {
    fn from(values: [(N, V); L]) -> Self {
        values.into_iter().collect()
    }
}

macro_rules! from_maps {
    ($($map:ident),*) => {
        $(impl<N: Into<ShortString>, V: Into<FieldValue>> From<$map<N, V>> for FieldTable {
            fn from(values: $map<N, V>) -> Self {
                values.into_iter().collect()
            }
        })*
    };
}

from_maps!(BTreeMap, HashMap);

impl<N: Into<ShortString>, V: Into<FieldValue>> From<Vec<(N, V)>> for FieldTable {
    fn from(values: Vec<(N, V)>) -> Self {
        values.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a FieldTable {
    type Item = (&'a ShortString, &'a FieldValue);
    type IntoIter = btree_map::Iter<'a, ShortString, FieldValue>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for FieldTable {
    type Item = (ShortString, FieldValue);
    type IntoIter = btree_map::IntoIter<ShortString, FieldValue>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.into_iter()
    }
}

const TABLE: &str = "a field table";
const ARRAY: &str = "a field array";
const VALUE: &str = "a field value";

pub(crate) fn read_table(reader: &mut Reader<'_>, depth: usize) -> WireResult<FieldTable> {
    if depth > MAX_DEPTH {
        return Err(WireError::TooDeep);
    }
    let mut inner = Reader::new(reader.long_bytes(TABLE)?);
    let mut table = FieldTable::new();
    while !inner.is_empty() {
        let name = inner.short_bytes(TABLE)?;
        let value = read_value(&mut inner, depth)?;
        table.insert(name, value);
    }
    Ok(table)
}

fn read_array(reader: &mut Reader<'_>, depth: usize) -> WireResult<Vec<FieldValue>> {
    if depth > MAX_DEPTH {
        return Err(WireError::TooDeep);
    }
    let mut inner = Reader::new(reader.long_bytes(ARRAY)?);
    let mut values = Vec::new();
    while !inner.is_empty() {
        values.push(read_value(&mut inner, depth)?);
    }
    Ok(values)
}

fn read_value(reader: &mut Reader<'_>, depth: usize) -> WireResult<FieldValue> {
    let tag = reader.u8(VALUE)?;
    // Casts to a signed type of the same width keep the bits, as the type tags demand.
    Ok(match tag {
        b't' => FieldValue::Bool(reader.u8(VALUE)? != 0),
        b'b' => FieldValue::I8(reader.u8(VALUE)? as i8),
        b'B' => FieldValue::U8(reader.u8(VALUE)?),
        b's' => FieldValue::I16(reader.u16(VALUE)? as i16),
        b'u' => FieldValue::U16(reader.u16(VALUE)?),
        b'I' => FieldValue::I32(reader.u32(VALUE)? as i32),
        b'i' => FieldValue::U32(reader.u32(VALUE)?),
        b'l' | b'L' => FieldValue::I64(reader.u64(VALUE)? as i64),
        b'f' => FieldValue::F32(f32::from_bits(reader.u32(VALUE)?)),
        b'd' => FieldValue::F64(f64::from_bits(reader.u64(VALUE)?)),
        b'D' => FieldValue::Decimal {
            scale: reader.u8(VALUE)?,
            value: reader.u32(VALUE)?,
        },
        b'S' => FieldValue::LongString(reader.long_bytes(VALUE)?.to_vec()),
        b'x' => FieldValue::ByteArray(reader.long_bytes(VALUE)?.to_vec()),
        b'T' => FieldValue::Timestamp(reader.u64(VALUE)?),
        b'A' => FieldValue::Array(read_array(reader, depth + 1)?),
        b'F' => FieldValue::Table(read_table(reader, depth + 1)?),
        b'V' => FieldValue::Void,
        unknown => return Err(WireError::UnknownValueType(unknown)),
    })
}

impl Writer<'_> {
    pub(crate) fn table(&mut self, value: &FieldTable, field: &'static str) -> WireResult<()> {
        write_table(self, value, field, 0)
    }
}

pub(crate) fn write_table(
    writer: &mut Writer<'_>,
    table: &FieldTable,
    field: &'static str,
    depth: usize,
) -> WireResult<()> {
    if depth > MAX_DEPTH {
        return Err(WireError::TooDeep);
    }
    writer.with_length(field, |writer| {
        for (name, value) in &table.values {
            writer.short_bytes(name.as_bytes(), "a name in a field table")?;
            write_value(writer, value, field, depth).map_err(|error| match depth {
                0 => error.inside(format_args!("{} {name:?}", entry_of(field))),
                _ => error.inside(format_args!("[{name:?}]")),
            })?;
        }
        Ok(())
    })
}

fn write_value(
    writer: &mut Writer<'_>,
    value: &FieldValue,
    field: &'static str,
    depth: usize,
) -> WireResult<()> {
    let mut tag = |tag| writer.u8(tag);
    match value {
        FieldValue::Bool(value) => {
            tag(b't');
            writer.u8(u8::from(*value));
        }
        FieldValue::I8(value) => {
            tag(b'b');
            writer.u8(*value as u8);
        }
        FieldValue::U8(value) => {
            tag(b'B');
            writer.u8(*value);
        }
        FieldValue::I16(value) => {
            tag(b's');
            writer.u16(*value as u16);
        }
        FieldValue::U16(value) => {
            tag(b'u');
            writer.u16(*value);
        }
        FieldValue::I32(value) => {
            tag(b'I');
            writer.u32(*value as u32);
        }
        FieldValue::U32(value) => {
            tag(b'i');
            writer.u32(*value);
        }
        FieldValue::I64(value) => {
            tag(b'l');
            writer.u64(*value as u64);
        }
        FieldValue::U64(value) => {
            check_fits(*value)?;
            writer.u8(b'l');
            writer.u64(*value);
        }
        FieldValue::F32(value) => {
            check_finite((*value).into())?;
            writer.u8(b'f');
            writer.u32(value.to_bits());
        }
        FieldValue::F64(value) => {
            check_finite(*value)?;
            writer.u8(b'd');
            writer.u64(value.to_bits());
        }
        FieldValue::Decimal { scale, value } => {
            tag(b'D');
            writer.u8(*scale);
            writer.u32(*value);
        }
        FieldValue::LongString(bytes) => {
            tag(b'S');
            writer.long_bytes(bytes, field)?;
        }
        FieldValue::ByteArray(bytes) => {
            tag(b'x');
            writer.long_bytes(bytes, field)?;
        }
        FieldValue::Timestamp(seconds) => {
            tag(b'T');
            writer.u64(*seconds);
        }
        FieldValue::Array(values) => {
            tag(b'A');
            write_array(writer, values, field, depth + 1)?;
        }
        FieldValue::Table(table) => {
            tag(b'F');
            write_table(writer, table, field, depth + 1)?;
        }
        FieldValue::Void => tag(b'V'),
    }
    Ok(())
}

/// Refuses NaN and infinity: RabbitMQ closes the whole connection because of them, wherever they
/// are.
fn check_finite(value: f64) -> WireResult<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(bad_number(BadNumber::NotFinite(value)))
}

fn check_fits(value: u64) -> WireResult<()> {
    match i64::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(bad_number(BadNumber::TooLarge(value))),
    }
}

/// The tables and arrays around the number say where it is.
fn bad_number(number: BadNumber) -> WireError {
    let at = String::new();
    WireError::BadNumber { at, number }
}

/// How errors name an entry of the table in this field of a method.
fn entry_of(field: &'static str) -> &'static str {
    match field {
        "headers" => "header",
        "arguments" => "argument",
        "client_properties" => "client property",
        other => other,
    }
}

impl WireError {
    /// Prepends the table or array that contains the value.
    fn inside(self, container: fmt::Arguments<'_>) -> Self {
        match self {
            Self::BadNumber { at, number } => Self::BadNumber {
                at: format!("{container}{at}"),
                number,
            },
            other => other,
        }
    }
}

impl FieldTable {
    /// Whether all floats are finite, so that a broker can read the table.
    #[cfg(feature = "broker")]
    pub(crate) fn is_finite(&self) -> bool {
        self.values.values().all(FieldValue::is_finite)
    }
}

impl FieldValue {
    /// The recursion is safe: tables that were read have a limited depth.
    #[cfg(feature = "broker")]
    fn is_finite(&self) -> bool {
        match self {
            Self::F32(value) => value.is_finite(),
            Self::F64(value) => value.is_finite(),
            Self::Array(values) => values.iter().all(Self::is_finite),
            Self::Table(table) => table.is_finite(),
            _ => true,
        }
    }
}

fn write_array(
    writer: &mut Writer<'_>,
    values: &[FieldValue],
    field: &'static str,
    depth: usize,
) -> WireResult<()> {
    if depth > MAX_DEPTH {
        return Err(WireError::TooDeep);
    }
    writer.with_length(field, |writer| {
        values.iter().enumerate().try_for_each(|(index, value)| {
            write_value(writer, value, field, depth)
                .map_err(|error| error.inside(format_args!("[{index}]")))
        })
    })
}
