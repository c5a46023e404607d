//! Message to JSON.

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};
use serde_json::value::RawValue;

use crate::{
    codec::{bytes::to_base64, time::rfc3339},
    message::{Headers, Kind, Message, Position, UnixMs},
};

/// A message as the JSON object of its shape.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The message.
    pub message: &'a Message,
    /// Task or event: which names its fields have.
    pub shape: Kind,
    /// Events: where it was read.
    pub position: Option<Position>,
    /// Whether white space around and between the tokens of a payload that is JSON must stay as it is.
    pub exact: bool,
}

/// The message as JSON, from which [`read`](super::read()) makes the same message again; headers of the engine's own
/// excepted.
///
/// # Errors
/// Never for a message that fits into memory.
pub fn write(message: &Message, shape: Kind) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&View { message, shape, position: None, exact: true })
}

/// The message as JSON on one line, for those who read line by line: line breaks in its payload, between the tokens of
/// JSON, become spaces.
///
/// # Errors
/// Never for a message that fits into memory.
pub fn write_line(
    message: &Message,
    shape: Kind,
    position: Option<Position>,
    into: &mut Vec<u8>,
) -> serde_json::Result<()> {
    let start = into.len();
    serde_json::to_writer(&mut *into, &View { message, shape, position, exact: false })?;
    // Inside of text they are escaped: what is left stands between tokens of the payload.
    for byte in into.iter_mut().skip(start).filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    into.push(b'\n');
    Ok(())
}

impl Serialize for View<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { message, shape, .. } = self;
        let mut fields = Entries { map: serializer.serialize_map(None)? };
        let names = Names::of(*shape);
        let extra = message.extra.as_deref();
        fields.text("id", Some(&message.id.to_string()))?;
        fields.text("type", Some(message.kind.as_str()).filter(|kind| !kind.is_empty()))?;
        fields.text("source", extra.and_then(|extra| extra.origin.as_deref()))?;
        fields.text("subject", extra.and_then(|extra| extra.subject.as_deref()))?;
        fields.payload(&names, &message.payload, self.exact)?;
        fields.text(names.content_type, message.content_type.as_deref())?;
        fields.text("data_schema", extra.and_then(|extra| extra.data_schema.as_deref()))?;
        match message.key.as_deref().map(|key| (key, std::str::from_utf8(key))) {
            None => {}
            Some((_, Ok(key))) => fields.text("key", Some(key))?,
            Some((key, Err(_))) => fields.text("key_base64", Some(&to_base64(key)))?,
        }
        fields.map.serialize_entry("priority", &message.priority)?;
        fields.time(names.timestamp, Some(message.timestamp))?;
        fields.time("scheduled_at", message.not_before)?;
        fields.time(names.expires_at, message.expires_at)?;
        if let Some(retries) = message.retries_max {
            fields.map.serialize_entry("max_retries", &retries)?;
        }
        fields.text("delivery_mode", message.transient.then_some("transient"))?;
        if !message.headers.is_empty() {
            fields.map.serialize_entry("headers", &HeadersView(&message.headers))?;
        }
        fields.text("trace_id", extra.and_then(|extra| extra.trace_id.as_deref()))?;
        fields.text("correlation_id", message.correlation_id.as_deref())?;
        fields.text("reply_to", message.reply_to.as_deref())?;
        fields.text("parent_task_id", extra.and_then(|extra| extra.parent_task_id.as_deref()))?;
        if let Some(Position { partition, offset }) = self.position {
            fields.map.serialize_entry("partition", &partition)?;
            fields.map.serialize_entry("offset", &offset)?;
        }
        for (name, value) in extra.into_iter().flat_map(|extra| &extra.unknown) {
            // A message that was read from a queue and written to a topic may hold them.
            if self.position.is_none() || !matches!(name.as_str(), "partition" | "offset") {
                fields.map.serialize_entry(name, value)?;
            }
        }
        fields.map.end()
    }
}

/// The names that differ between tasks and events.
struct Names {
    payload: &'static str,
    payload_base64: &'static str,
    payload_text: &'static str,
    content_type: &'static str,
    timestamp: &'static str,
    expires_at: &'static str,
}

impl Names {
    const fn of(shape: Kind) -> Self {
        match shape {
            Kind::Queue => Self {
                payload: "payload",
                payload_base64: "payload_base64",
                payload_text: "payload_text",
                content_type: "content_type",
                timestamp: "created_at",
                expires_at: "deadline",
            },
            Kind::Topic => Self {
                payload: "data",
                payload_base64: "data_base64",
                payload_text: "data_text",
                content_type: "data_content_type",
                timestamp: "timestamp",
                expires_at: "expiration",
            },
        }
    }
}

struct Entries<M> {
    map: M,
}

impl<M: SerializeMap> Entries<M> {
    fn text(&mut self, name: &'static str, value: Option<&str>) -> Result<(), M::Error> {
        value.map_or(Ok(()), |value| self.map.serialize_entry(name, value))
    }

    /// As RFC 3339 as far as that reaches.
    fn time(&mut self, name: &'static str, at: Option<UnixMs>) -> Result<(), M::Error> {
        let Some(at) = at else { return Ok(()) };
        match rfc3339(at) {
            Some(text) => self.map.serialize_entry(name, &text),
            None => self.map.serialize_entry(name, &at),
        }
    }

    fn payload(&mut self, names: &Names, payload: &[u8], exact: bool) -> Result<(), M::Error> {
        if payload.is_empty() {
            return Ok(());
        }
        let json: Option<&RawValue> = is_plain(payload).then(|| serde_json::from_slice(payload).ok()).flatten();
        // Only the value itself is written back; white space around it would be lost.
        if let Some(json) = json.filter(|json| !exact || json.get().len() == payload.len()) {
            return self.map.serialize_entry(names.payload, json);
        }
        match std::str::from_utf8(payload) {
            Ok(text) => self.map.serialize_entry(names.payload_text, text),
            Err(_) => self.map.serialize_entry(names.payload_base64, &to_base64(payload)),
        }
    }
}

/// Whether every reader of JSON can be expected to take it as a part of a document: not nested too deep (many stop at
/// 128), and without escapes for half a character, which are no text.
fn is_plain(payload: &[u8]) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in payload {
        match (in_text, *byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_text = false,
            (false, b'"') => in_text = true,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return false;
        }
    }
    !payload.windows(2).any(|two| two == b"\\u") || serde_json::from_slice::<serde_json::Value>(payload).is_ok()
}

/// How deep a payload may be nested to be written as JSON inside a document.
const DEPTH_MAX: usize = 100;

/// An object where every name is there once, a list of pairs otherwise: nothing is lost either way.
struct HeadersView<'a>(&'a Headers);

impl Serialize for HeadersView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let pairs = self.0.iter();
        let repeats = pairs
            .clone()
            .enumerate()
            .any(|(place, (name, _))| pairs.clone().take(place).any(|(other, _)| other == name));
        if repeats {
            let mut list = serializer.serialize_seq(Some(pairs.len()))?;
            for pair in pairs {
                list.serialize_element(&pair)?;
            }
            list.end()
        } else {
            serializer.collect_map(pairs)
        }
    }
}
