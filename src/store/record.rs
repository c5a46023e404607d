//! What of a message has no column of its own, as bytes: written once by whoever publishes, read when the message comes
//! back from disk.
//!
//! One byte for the form, two for which fields follow, one for the priority; then those fields, each text after its
//! length; then eight bytes that are a sum over all of these and the payload, as SQLite has none over its pages. Numbers
//! are LEB128. A later form gets another first byte, and this one stays readable.

use bytes::Bytes;
use compact_str::CompactString;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::message::{Extra, Headers, Message, MessageId, UnixMs};

/// The first byte.
const FORM: u8 = 1;
/// The last bytes.
const SUM: usize = 8;

/// Which fields follow, in this order.
mod field {
    pub(super) const HEADERS: u16 = 1;
    pub(super) const KEY: u16 = 1 << 1;
    pub(super) const CONTENT_TYPE: u16 = 1 << 2;
    pub(super) const CORRELATION_ID: u16 = 1 << 3;
    pub(super) const REPLY_TO: u16 = 1 << 4;
    pub(super) const NOT_BEFORE: u16 = 1 << 5;
    pub(super) const EXPIRES_AT: u16 = 1 << 6;
    pub(super) const RETRIES_MAX: u16 = 1 << 7;
    pub(super) const TRANSIENT: u16 = 1 << 8;
    pub(super) const ORIGIN: u16 = 1 << 9;
    pub(super) const SUBJECT: u16 = 1 << 10;
    pub(super) const DATA_SCHEMA: u16 = 1 << 11;
    pub(super) const PARENT_TASK_ID: u16 = 1 << 12;
    pub(super) const TRACE_ID: u16 = 1 << 13;
    pub(super) const UNKNOWN: u16 = 1 << 14;
    /// There is an `Extra`, whatever is in it.
    pub(super) const EXTRA: u16 = 1 << 15;
}

/// The columns that a message has in the database beside the rest.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) id: MessageId,
    pub(super) kind: CompactString,
    pub(super) timestamp: UnixMs,
    pub(super) payload: Bytes,
}

/// Not what [`encode`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// A later version wrote it.
    #[error("it has a form that this version does not know")]
    Form,
    /// It ends too early, or has text that is none.
    #[error("it is cut off, or is not what was written")]
    Broken,
    /// Its sum is another: the disk, or somebody, has changed it.
    #[error("its bytes are not those that were written")]
    Changed,
}

/// What has no column of its own.
#[must_use]
pub fn encode(message: &Message) -> Vec<u8> {
    // Few messages have more than headers, and each length takes one byte mostly.
    let mut rest = Vec::with_capacity(24 + message.size() - message.payload.len() + 2 * message.headers.len());
    rest.extend_from_slice(&[FORM, 0, 0, message.priority]);
    let mut fields = 0;
    if !message.headers.is_empty() {
        fields |= field::HEADERS;
        put_number(&mut rest, message.headers.len() as u64);
        for (name, value) in message.headers.iter() {
            put(&mut rest, name.as_bytes());
            put(&mut rest, value.as_bytes());
        }
    }
    let mut bytes = |field: u16, value: Option<&[u8]>| {
        if let Some(value) = value {
            fields |= field;
            put(&mut rest, value);
        }
    };
    bytes(field::KEY, message.key.as_deref());
    bytes(field::CONTENT_TYPE, message.content_type.as_deref().map(str::as_bytes));
    bytes(field::CORRELATION_ID, message.correlation_id.as_deref().map(str::as_bytes));
    bytes(field::REPLY_TO, message.reply_to.as_deref().map(str::as_bytes));
    let numbers = [
        (field::NOT_BEFORE, message.not_before),
        (field::EXPIRES_AT, message.expires_at),
        (field::RETRIES_MAX, message.retries_max.map(u64::from)),
    ];
    for (field, number) in numbers {
        if let Some(number) = number {
            fields |= field;
            put_number(&mut rest, number);
        }
    }
    if message.transient {
        fields |= field::TRANSIENT;
    }
    if let Some(extra) = &message.extra {
        fields |= field::EXTRA | put_extra(&mut rest, extra);
    }
    if let Some(place) = rest.get_mut(1..3) {
        place.copy_from_slice(&fields.to_le_bytes());
    }
    let sum = sum(&rest, &message.payload);
    rest.extend_from_slice(&sum);
    rest
}

/// Over what has no column, and the payload.
fn sum(rest: &[u8], payload: &[u8]) -> [u8; SUM] {
    xxh3_64_with_seed(payload, xxh3_64(rest)).to_le_bytes()
}

/// Says which fields it wrote.
fn put_extra(rest: &mut Vec<u8>, extra: &Extra) -> u16 {
    let mut fields = 0;
    let texts = [
        (field::ORIGIN, &extra.origin),
        (field::SUBJECT, &extra.subject),
        (field::DATA_SCHEMA, &extra.data_schema),
        (field::PARENT_TASK_ID, &extra.parent_task_id),
        (field::TRACE_ID, &extra.trace_id),
    ];
    for (field, text) in texts {
        if let Some(text) = text {
            fields |= field;
            put(rest, text.as_bytes());
        }
    }
    // Maps with text as keys always have a JSON form.
    if let Some(json) = serde_json::to_vec(&extra.unknown).ok().filter(|_| !extra.unknown.is_empty()) {
        fields |= field::UNKNOWN;
        put(rest, &json);
    }
    fields
}

fn put(rest: &mut Vec<u8>, bytes: &[u8]) {
    put_number(rest, bytes.len() as u64);
    rest.extend_from_slice(bytes);
}

fn put_number(rest: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        rest.push(number as u8 | 0x80);
        number >>= 7;
    }
    rest.push(number as u8);
}

/// The message again.
pub(super) fn decode(columns: Columns, rest: &[u8]) -> Result<Message, RecordError> {
    let (rest, written) = rest.split_last_chunk::<SUM>().ok_or(RecordError::Broken)?;
    let is_same = sum(rest, &columns.payload) == *written;
    let (fields, priority, rest) = match rest {
        [FORM, low, high, priority, rest @ ..] => (u16::from_le_bytes([*low, *high]), *priority, rest),
        [FORM, ..] | [] => return Err(RecordError::Broken),
        _ => return Err(RecordError::Form),
    };
    if !is_same {
        return Err(RecordError::Changed);
    }
    let mut rest = Rest { left: rest, fields };
    let headers = if rest.has(field::HEADERS) {
        let count = rest.number()?;
        let mut headers = Headers::with_capacity(rest.left.len().min(1024));
        for _ in 0..count {
            headers.append(rest.text()?, rest.text()?);
        }
        headers
    } else {
        Headers::default()
    };
    let message = Message {
        id: columns.id,
        kind: columns.kind,
        payload: columns.payload,
        timestamp: columns.timestamp,
        headers,
        priority,
        key: if rest.has(field::KEY) { Some(Bytes::copy_from_slice(rest.bytes()?)) } else { None },
        content_type: rest.optional_text(field::CONTENT_TYPE)?,
        correlation_id: rest.optional_text(field::CORRELATION_ID)?,
        reply_to: rest.optional_text(field::REPLY_TO)?,
        not_before: rest.optional_number(field::NOT_BEFORE)?,
        expires_at: rest.optional_number(field::EXPIRES_AT)?,
        retries_max: match rest.optional_number(field::RETRIES_MAX)? {
            Some(retries) => Some(u32::try_from(retries).map_err(|_| RecordError::Broken)?),
            None => None,
        },
        transient: rest.has(field::TRANSIENT),
        extra: if rest.has(field::EXTRA) { Some(Box::new(rest.extra()?)) } else { None },
    };
    if rest.left.is_empty() { Ok(message) } else { Err(RecordError::Broken) }
}

/// What is still to be read.
struct Rest<'a> {
    left: &'a [u8],
    fields: u16,
}

impl<'a> Rest<'a> {
    fn has(&self, field: u16) -> bool {
        self.fields & field != 0
    }

    fn number(&mut self) -> Result<u64, RecordError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, left) = self.left.split_first().ok_or(RecordError::Broken)?;
            self.left = left;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(RecordError::Broken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let length = usize::try_from(self.number()?).map_err(|_| RecordError::Broken)?;
        let (bytes, left) = self.left.split_at_checked(length).ok_or(RecordError::Broken)?;
        self.left = left;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| RecordError::Broken)
    }

    fn optional_text(&mut self, field: u16) -> Result<Option<CompactString>, RecordError> {
        if self.has(field) { self.text().map(|text| Some(text.into())) } else { Ok(None) }
    }

    fn optional_number(&mut self, field: u16) -> Result<Option<u64>, RecordError> {
        if self.has(field) { self.number().map(Some) } else { Ok(None) }
    }

    fn extra(&mut self) -> Result<Extra, RecordError> {
        Ok(Extra {
            origin: self.optional_text(field::ORIGIN)?,
            subject: self.optional_text(field::SUBJECT)?,
            data_schema: self.optional_text(field::DATA_SCHEMA)?,
            parent_task_id: self.optional_text(field::PARENT_TASK_ID)?,
            trace_id: self.optional_text(field::TRACE_ID)?,
            unknown: if self.has(field::UNKNOWN) {
                serde_json::from_slice(self.bytes()?).map_err(|_| RecordError::Broken)?
            } else {
                serde_json::Map::new()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn columns(of: &Message) -> Columns {
        let Message { id, kind, timestamp, payload, .. } = of.clone();
        Columns { id, kind, timestamp, payload }
    }

    fn text() -> impl Strategy<Value = Option<CompactString>> {
        proptest::option::of("\\PC{0,40}".prop_map(CompactString::from))
    }

    fn extra() -> impl Strategy<Value = Option<Box<Extra>>> {
        let unknown = proptest::collection::vec(("[a-z]{1,4}", any::<i64>()), 0..3);
        proptest::option::of((text(), text(), text(), text(), text(), unknown).prop_map(
            |(origin, subject, data_schema, parent_task_id, trace_id, unknown)| {
                let unknown = unknown.into_iter().map(|(name, number)| (name, number.into())).collect();
                Box::new(Extra { origin, subject, data_schema, parent_task_id, trace_id, unknown })
            },
        ))
    }

    fn message() -> impl Strategy<Value = Message> {
        let headers = proptest::collection::vec(("\\PC{0,20}", "\\PC{0,200}"), 0..5);
        let key = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
        let numbers = (any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u32>>(), any::<bool>(), any::<u8>());
        (headers, key, text(), text(), text(), numbers, extra()).prop_map(
            |(headers, key, content_type, correlation_id, reply_to, numbers, extra)| {
                let (not_before, expires_at, retries_max, transient, priority) = numbers;
                Message {
                    headers: headers.into_iter().collect(),
                    key: key.map(Bytes::from),
                    content_type,
                    correlation_id,
                    reply_to,
                    not_before,
                    expires_at,
                    retries_max,
                    transient,
                    priority,
                    extra,
                    ..Message::new("order.created", "payload", 1)
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(message in message()) {
            let rest = encode(&message);
            prop_assert_eq!(decode(columns(&message), &rest), Ok(message));
        }

        #[test]
        fn what_is_cut_off_or_changed_never_panics(message in message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut rest = encode(&message);
            let at = at.index(rest.len());
            prop_assert!(decode(columns(&message), &rest[..at]).is_err());
            rest[at] = byte;
            decode(columns(&message), &rest).ok();
        }
    }

    #[test]
    fn a_plain_message_takes_four_bytes_and_its_sum() {
        let plain = encode(&Message::new("t", "p", 1));
        assert_eq!((plain.len(), &plain[..4]), (4 + SUM, [FORM, 0, 0, 5].as_slice()));
        assert_eq!(decode(columns(&Message::default()), &[9; 12]), Err(RecordError::Form));
    }

    #[test]
    fn a_byte_that_changed_is_noticed_wherever_it_is() {
        let mut message = Message::new("t", "a payload", 1);
        message.headers.append("name", "value");
        let rest = encode(&message);
        for place in 0..rest.len() {
            let mut changed = rest.clone();
            changed[place] ^= 0x10;
            assert!(decode(columns(&message), &changed).is_err(), "byte {place}");
        }
        let other = Columns { payload: "A payload".into(), ..columns(&message) };
        assert_eq!(decode(other, &rest), Err(RecordError::Changed));
    }
}
