//! Values of messages in the formats of `serde`.
//!
//! A value is written as the format's own value of the same meaning, so that a table in a
//! configuration file looks as expected. Types that formats such as JSON lack are a map with one
//! entry, whose name begins with `!`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::expiration::Expiration;
use super::short_string::ShortString;
use super::value::{FieldTable, FieldValue};

const TAG: &str = "!";
const TIMESTAMP: &str = "!timestamp";
const DECIMAL: &str = "!decimal";
const BYTES: &str = "!bytes";
const LONG_STRING: &str = "!longstr";
/// How `serde_json` shows numbers, if its feature `arbitrary_precision` is on.
const NUMBER: &str = "$serde_json::private::Number";
/// A table with a name that looks like one of these tags.
const TABLE: &str = "!table";

fn tagged<S: Serializer>(
    serializer: S,
    tag: &str,
    value: &(impl Serialize + ?Sized),
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(tag, value)?;
    map.end()
}

fn looks_tagged(table: &FieldTable) -> bool {
    table.keys().any(is_tag)
}

fn is_tag(name: &ShortString) -> bool {
    name.as_bytes().starts_with(TAG.as_bytes()) || *name == NUMBER
}

/// Integers keep their value, and get the width `i32` or `i64` when they are read. Floats become
/// `f64`. Timestamps, decimals, binary data, and strings that are not UTF-8 are maps such as
/// `{"!timestamp": 1700000000}`.
impl Serialize for FieldValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::I8(value) => serializer.serialize_i8(*value),
            Self::U8(value) => serializer.serialize_u8(*value),
            Self::I16(value) => serializer.serialize_i16(*value),
            Self::U16(value) => serializer.serialize_u16(*value),
            Self::I32(value) => serializer.serialize_i32(*value),
            Self::U32(value) => serializer.serialize_u32(*value),
            Self::I64(value) => serializer.serialize_i64(*value),
            Self::U64(value) => serializer.serialize_u64(*value),
            Self::F32(value) => serializer.serialize_f32(*value),
            Self::F64(value) => serializer.serialize_f64(*value),
            Self::Decimal { scale, value } => tagged(serializer, DECIMAL, &(scale, value)),
            Self::LongString(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => serializer.serialize_str(text),
                Err(_) => tagged(serializer, LONG_STRING, bytes),
            },
            Self::Array(values) => values.serialize(serializer),
            Self::Timestamp(seconds) => tagged(serializer, TIMESTAMP, seconds),
            Self::Table(table) if looks_tagged(table) => tagged(serializer, TABLE, table),
            Self::Table(table) => table.serialize(serializer),
            Self::Void => serializer.serialize_unit(),
            Self::ByteArray(bytes) => tagged(serializer, BYTES, bytes),
        }
    }
}

impl<'de> Deserialize<'de> for FieldValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = FieldValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of a field table")
    }

    fn visit_bool<E>(self, value: bool) -> Result<FieldValue, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<FieldValue, E> {
        Ok(i32::try_from(value).map_or(FieldValue::I64(value), FieldValue::I32))
    }

    fn visit_u64<E>(self, value: u64) -> Result<FieldValue, E> {
        Ok(i32::try_from(value).map_or_else(|_| value.into(), FieldValue::I32))
    }

    fn visit_f64<E>(self, value: f64) -> Result<FieldValue, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<FieldValue, E> {
        Ok(text.into())
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<FieldValue, E> {
        Ok(bytes.into())
    }

    fn visit_unit<E>(self) -> Result<FieldValue, E> {
        Ok(FieldValue::Void)
    }

    fn visit_none<E>(self) -> Result<FieldValue, E> {
        Ok(FieldValue::Void)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<FieldValue, D::Error> {
        FieldValue::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<FieldValue, A::Error> {
        let mut array = Vec::new();
        while let Some(value) = values.next_element()? {
            array.push(value);
        }
        Ok(FieldValue::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<FieldValue, A::Error> {
        let mut table = FieldTable::new();
        while let Some(name) = entries.next_key::<ShortString>()? {
            if !is_tag(&name) {
                table.insert(name, entries.next_value::<FieldValue>()?);
                continue;
            }
            let value = read_tagged(&name, &mut entries)?;
            if !table.is_empty() || entries.next_key::<ShortString>()?.is_some() {
                return Err(de::Error::custom("a value with a tag has only one entry"));
            }
            return Ok(value);
        }
        Ok(FieldValue::Table(table))
    }
}

fn read_tagged<'de, A: MapAccess<'de>>(
    tag: &ShortString,
    entries: &mut A,
) -> Result<FieldValue, A::Error> {
    Ok(match tag.as_str().unwrap_or_default() {
        NUMBER => number(&entries.next_value::<String>()?)?,
        TIMESTAMP => FieldValue::Timestamp(entries.next_value()?),
        DECIMAL => {
            let (scale, value) = entries.next_value()?;
            FieldValue::Decimal { scale, value }
        }
        BYTES => FieldValue::ByteArray(entries.next_value()?),
        LONG_STRING => FieldValue::LongString(entries.next_value()?),
        TABLE => FieldValue::Table(entries.next_value()?),
        _ => return Err(de::Error::custom(format!("unknown tag {tag:?}"))),
    })
}

fn number<E: de::Error>(text: &str) -> Result<FieldValue, E> {
    if let Ok(integer) = text.parse() {
        return ValueVisitor.visit_i64(integer);
    }
    if let Ok(integer) = text.parse() {
        return ValueVisitor.visit_u64(integer);
    }
    match text.parse() {
        Ok(float) if f64::is_finite(float) => ValueVisitor.visit_f64(float),
        _ => Err(E::custom("a number that does not fit")),
    }
}

/// A map. A name that is not UTF-8 is bytes, which some formats such as JSON refuse as a name.
impl Serialize for FieldTable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for FieldTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = BTreeMap::<ShortString, FieldValue>::deserialize(deserializer)?;
        Ok(values.into_iter().collect())
    }
}

/// Text if it is UTF-8, otherwise bytes.
impl Serialize for ShortString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.serialize_bytes(self.as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for ShortString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShortStringVisitor)
    }
}

struct ShortStringVisitor;

impl<'de> Visitor<'de> for ShortStringVisitor {
    type Value = ShortString;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text or bytes")
    }

    fn visit_str<E>(self, text: &str) -> Result<ShortString, E> {
        Ok(text.into())
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<ShortString, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<ShortString, A::Error> {
        let mut bytes: Vec<u8> = Vec::new();
        while let Some(byte) = values.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

/// The property's text.
impl Serialize for Expiration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Expiration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Milliseconds {
            Number(u64),
            Text(ShortString),
        }
        Ok(match Milliseconds::deserialize(deserializer)? {
            Milliseconds::Number(number) => number.into(),
            Milliseconds::Text(text) => text.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::wire::properties::Properties;

    fn round_trip(value: &FieldValue) -> (String, FieldValue) {
        let json = serde_json::to_string(value).unwrap();
        let back = serde_json::from_str(&json).unwrap();
        (json, back)
    }

    #[test]
    fn values_look_natural_and_come_back() {
        let nested = FieldTable::new().with("deep", vec!["x", "y"]);
        let table = |name: &str| FieldValue::Table(FieldTable::new().with(name, 1));
        let cases = [
            (true.into(), "true"),
            (5.into(), "5"),
            (FieldValue::I64(1 << 40), "1099511627776"),
            (u64::MAX.into(), "18446744073709551615"),
            (0.5.into(), "0.5"),
            ("text".into(), r#""text""#),
            (FieldValue::Void, "null"),
            (FieldValue::from([1, 2]), "[1,2]"),
            (nested.into(), r#"{"deep":["x","y"]}"#),
            (FieldValue::Timestamp(7), r#"{"!timestamp":7}"#),
            (
                FieldValue::Decimal {
                    scale: 2,
                    value: 314,
                },
                r#"{"!decimal":[2,314]}"#,
            ),
            (FieldValue::from(b"\x00\xff"), r#"{"!bytes":[0,255]}"#),
            (FieldValue::LongString(vec![0xff]), r#"{"!longstr":[255]}"#),
            (table("!timestamp"), r#"{"!table":{"!timestamp":1}}"#),
            (
                table(NUMBER),
                r#"{"!table":{"$serde_json::private::Number":1}}"#,
            ),
        ];
        for (value, json) in cases {
            assert_eq!(round_trip(&value), (json.to_owned(), value));
        }
        // The width is not kept.
        assert_eq!(round_trip(&7_u8.into()), ("7".to_owned(), 7.into()));
        assert_eq!(round_trip(&7_i64.into()).1, FieldValue::I32(7));
    }

    #[test]
    fn numbers_of_arbitrary_precision_are_numbers() {
        for (text, value) in [
            ("0.1", 0.1.into()),
            ("-7", (-7).into()),
            ("1099511627776", FieldValue::I64(1 << 40)),
            ("18446744073709551615", u64::MAX.into()),
            ("1e3", 1000.0.into()),
        ] {
            let json = format!(r#"{{"$serde_json::private::Number":"{text}"}}"#);
            assert_eq!(serde_json::from_str::<FieldValue>(&json).unwrap(), value);
        }
    }

    #[test]
    fn what_only_looks_like_a_value_is_refused() {
        for json in [
            r#"{"!unknown":1}"#,
            r#"{"!bytes":"x"}"#,
            r#"{"!timestamp":1,"more":2}"#,
            r#"{"more":2,"!timestamp":1}"#,
            r#"{"$serde_json::private::Number":"inf"}"#,
        ] {
            serde_json::from_str::<FieldValue>(json).unwrap_err();
        }
        let odd = FieldTable::new().with(b"\xff", 1);
        serde_json::to_string(&odd).unwrap_err();
    }

    #[test]
    fn properties_are_an_object_of_what_is_set() {
        let properties = Properties::default()
            .message_type("order")
            .expiration(5_u64)
            .message_id(b"\xff")
            .header("attempt", 2)
            .sent_at(SystemTime::UNIX_EPOCH);
        let json = serde_json::to_string(&properties).unwrap();
        let expected = r#"{"headers":{"attempt":2},"expiration":"5","message_id":[255],"timestamp":0,"type":"order"}"#;
        assert_eq!(json, expected);
        assert_eq!(
            serde_json::from_str::<Properties>(&json).unwrap(),
            properties
        );
        let number: Properties = serde_json::from_str(r#"{"expiration":5}"#).unwrap();
        assert_eq!(number, Properties::default().expiration("5"));
        serde_json::from_str::<Properties>(r#"{"mesage_id":"1"}"#).unwrap_err();
        assert_eq!(
            serde_json::from_str::<Properties>("{}").unwrap(),
            Properties::default()
        );
    }
}
