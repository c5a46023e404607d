//! Values of a header table: as text for handlers, and as the bytes that AMQP has for them.

use std::borrow::Cow;

use lapin::types::{
    AMQPValue, FieldTable,
    generation::{gen_field_table, gen_value},
    parsing::parse_field_table,
};
use serde_json::{Map, Value};

use super::super::transport::{LEVELS_MAX, table_is_readable};
use crate::codec::bytes::to_base64;

/// The value where it is nothing but text, and so says all by itself.
pub(super) fn plain(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        _ => None,
    }
}

/// The value as a handler sees it: numbers and booleans as they are written, tables and lists as JSON, bytes as base64.
/// Times stay numbers, in seconds, as other clients show them.
pub(super) fn text(value: &AMQPValue) -> Cow<'_, str> {
    match value {
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => Cow::Owned(to_base64(text.as_bytes())),
        },
        AMQPValue::ShortString(text) => Cow::Borrowed(text.as_str()),
        AMQPValue::Void => Cow::Borrowed(""),
        AMQPValue::Float(number) => Cow::Owned(number.to_string()),
        AMQPValue::Double(number) => Cow::Owned(number.to_string()),
        other => Cow::Owned(match json(other) {
            Value::String(text) => text,
            other => other.to_string(),
        }),
    }
}

/// The value as JSON. As deep as tables are let in, so calling itself is safe.
fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => Value::from(*flag),
        AMQPValue::ShortShortInt(number) => Value::from(*number),
        AMQPValue::ShortShortUInt(number) => Value::from(*number),
        AMQPValue::ShortInt(number) => Value::from(*number),
        AMQPValue::ShortUInt(number) => Value::from(*number),
        AMQPValue::LongInt(number) => Value::from(*number),
        AMQPValue::LongUInt(number) => Value::from(*number),
        AMQPValue::LongLongInt(number) => Value::from(*number),
        AMQPValue::Timestamp(seconds) => Value::from(*seconds),
        // What JSON has no number for is text: NaN, the infinities.
        AMQPValue::Float(number) => serde_json::Number::from_f64(f64::from(*number))
            .map_or_else(|| Value::from(number.to_string()), Value::Number),
        AMQPValue::Double(number) => {
            serde_json::Number::from_f64(*number).map_or_else(|| Value::from(number.to_string()), Value::Number)
        }
        AMQPValue::DecimalValue(decimal) => Value::from(decimal_text(decimal.scale, decimal.value)),
        AMQPValue::ShortString(text) => Value::from(text.as_str()),
        AMQPValue::LongString(_) => Value::from(text(value)),
        AMQPValue::ByteArray(bytes) => Value::from(to_base64(bytes.as_slice())),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => {
            let pairs = table.inner().iter().map(|(name, value)| (name.as_str().to_owned(), json(value)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        AMQPValue::Void => Value::Null,
    }
}

/// `12345` with a scale of 2 is `123.45`.
fn decimal_text(scale: u8, value: u32) -> String {
    let scale = usize::from(scale);
    let digits = format!("{value:0>width$}", width = scale + 1);
    match digits.split_at_checked(digits.len() - scale) {
        Some((whole, part)) if !part.is_empty() => format!("{whole}.{part}"),
        _ => digits,
    }
}

/// The value as a whole number that is not negative, if it is one, or text that says one.
pub(super) fn number(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::ShortShortInt(number) => u64::try_from(*number).ok(),
        AMQPValue::ShortShortUInt(number) => Some((*number).into()),
        AMQPValue::ShortInt(number) => u64::try_from(*number).ok(),
        AMQPValue::ShortUInt(number) => Some((*number).into()),
        AMQPValue::LongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::LongLongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::Timestamp(number) => Some(*number),
        other => plain(other)?.parse().ok(),
    }
}

/// A number as the widest type that every client reads.
pub(super) fn from_number(number: u64) -> AMQPValue {
    match i64::try_from(number) {
        Ok(number) => AMQPValue::LongLongInt(number),
        Err(_) => from_text(&number.to_string()),
    }
}

/// Text as a value.
pub(super) fn from_text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// The bytes that AMQP has for a value.
pub(super) fn value_bytes(value: &AMQPValue) -> Option<Vec<u8>> {
    Some(gen_value(value)(Vec::new().into()).ok()?.into_inner().0)
}

/// The bytes that AMQP has for a table.
pub(super) fn table_bytes(table: &FieldTable) -> Option<Vec<u8>> {
    Some(gen_field_table(table)(Vec::new().into()).ok()?.into_inner().0)
}

/// The table behind such bytes, which may have come from anywhere.
pub(super) fn table(bytes: &[u8]) -> Option<FieldTable> {
    // Within what is kept beside a message there are headers, and in those as many levels as were let in.
    let values = bytes.get(4..).filter(|values| table_is_readable(values, LEVELS_MAX + 2))?;
    if u32::try_from(values.len()).ok()?.to_be_bytes() != *bytes.first_chunk::<4>()? {
        return None;
    }
    parse_field_table(bytes).ok().map(|(_, table)| table)
}
