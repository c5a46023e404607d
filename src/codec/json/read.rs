//! JSON to message.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{
    JsonError, SHORT_BYTES_MAX, TEXT_BYTES_MAX,
    fields::{Field, Fields, Pairs, kind},
};
use crate::{
    codec::{bytes::from_base64, time::from_rfc3339},
    message::{
        Extra, Headers, ID_BYTES_MAX, Kind, Message, MessageId, PRIORITY_MAX, PRIORITY_NORMAL, Text, UnixMs, header,
    },
};

/// How a Go program writes a time that was not set.
const GO_ZERO_TIME: &str = "0001-01-01T00:00:00Z";
/// Numbers below this are no milliseconds that anybody means: as seconds they reach to the year 5138.
const MILLISECONDS_MIN: u64 = 100_000_000_000;

/// A message that was read, and what was changed on the way in, to be counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The message.
    pub message: Message,
    /// Its priority was out of range.
    pub priority_clamped: bool,
    /// Headers that only the engine may set, and that were dropped.
    pub headers_dropped: usize,
}

/// Reads one message: a task for a queue, an event for a topic. Both shapes' names are understood in either place. What
/// is left out gets its default: a new id, `now` as its timestamp, ordinary priority. A timestamp in the future is
/// taken as given.
///
/// # Errors
/// [`JsonError`] names the field and what would be right.
pub fn read(text: &[u8], shape: Kind, now: UnixMs, bytes_max: usize) -> Result<Read, JsonError> {
    let mut fields = Fields::parse(text)?;
    let cloud_event = cloud_event(&mut fields)?;
    let mut message = Message { priority: PRIORITY_NORMAL, timestamp: now, ..Message::default() };
    message.id = id(&mut fields, now)?;
    message.kind = text_of(&mut fields, &["type"], SHORT_BYTES_MAX)?.unwrap_or_default();
    message.content_type =
        text_of(&mut fields, &["content_type", "data_content_type", "datacontenttype"], SHORT_BYTES_MAX)?;
    message.payload = payload(&mut fields, cloud_event, message.content_type.as_deref())?;
    let (priority, priority_clamped) = priority(&mut fields)?;
    message.priority = priority;
    if let Some(timestamp) = time(&mut fields, &["created_at", "timestamp", "time"])? {
        message.timestamp = timestamp;
    }
    message.not_before = time(&mut fields, &["scheduled_at"])?;
    message.expires_at = time(&mut fields, &["deadline", "expiration"])?;
    message.retries_max = retries_max(&mut fields)?;
    message.transient = transient(&mut fields)?;
    message.key = key(&mut fields)?;
    message.correlation_id = text_of(&mut fields, &["correlation_id"], SHORT_BYTES_MAX)?;
    message.reply_to = text_of(&mut fields, &["reply_to"], SHORT_BYTES_MAX)?;
    let headers_dropped = headers(&mut fields, &mut message.headers)?;
    let mut extra = Extra {
        origin: text_of(&mut fields, &["source"], TEXT_BYTES_MAX)?,
        subject: text_of(&mut fields, &["subject"], TEXT_BYTES_MAX)?,
        data_schema: text_of(&mut fields, &["data_schema", "dataschema"], TEXT_BYTES_MAX)?,
        parent_task_id: text_of(&mut fields, &["parent_task_id"], ID_BYTES_MAX)?,
        trace_id: text_of(&mut fields, &["trace_id"], TEXT_BYTES_MAX)?,
        unknown: Map::new(),
    };
    if shape == Kind::Topic {
        // Where an event was read says nothing about where it is published.
        drop((fields.take_or_null("partition"), fields.take_or_null("offset")));
    }
    let unknown_bytes = unknown(fields, &mut extra.unknown)?;
    if extra != Extra::default() {
        message.extra = Some(Box::new(extra));
    }
    message.headers.check()?;
    let bytes = message.size() + unknown_bytes;
    if bytes > bytes_max {
        return Err(JsonError::TooLarge { bytes, max: bytes_max });
    }
    Ok(Read { message, priority_clamped, headers_dropped })
}

/// Whether it calls itself a CloudEvent, which then has all that one must have.
fn cloud_event(fields: &mut Fields<'_>) -> Result<bool, JsonError> {
    let Some(version) = fields.take(&["specversion"])? else { return Ok(false) };
    if version.text()? != "1.0" {
        let problem = format!("is {}", version.value.get());
        return Err(version.wrong(problem, "CloudEvents are read in version \"1.0\""));
    }
    for name in ["id", "source", "type"] {
        if !fields.has(name) {
            return Err(JsonError::field(
                name,
                "is missing",
                "a CloudEvent has id, source and type, none of them empty",
            ));
        }
    }
    Ok(true)
}

fn id(fields: &mut Fields<'_>, now: UnixMs) -> Result<MessageId, JsonError> {
    match fields.text(&["id"], ID_BYTES_MAX)? {
        None => Ok(MessageId::generate(now)),
        Some(text) if text.is_empty() => {
            Err(JsonError::field("id", "is empty", "write one, or leave it out and one is made"))
        }
        Some(text) => Ok(MessageId::parse(&text)),
    }
}

fn text_of(fields: &mut Fields<'_>, names: &[&str], bytes_max: usize) -> Result<Option<Text>, JsonError> {
    Ok(fields.text(names, bytes_max)?.map(Text::from))
}

/// The names under which a payload may come, and what stands there.
const PAYLOADS: &[(&str, Form)] = &[
    ("payload", Form::Json),
    ("data", Form::Json),
    ("payload_base64", Form::Base64),
    ("data_base64", Form::Base64),
    ("payload_text", Form::Text),
    ("data_text", Form::Text),
];

#[derive(Clone, Copy)]
enum Form {
    Json,
    Base64,
    Text,
}

fn payload(fields: &mut Fields<'_>, cloud_event: bool, content_type: Option<&str>) -> Result<Bytes, JsonError> {
    let mut found: Option<(Field<'_>, Form)> = None;
    for (name, form) in PAYLOADS {
        // `null` is a payload like any other; as base64 or text it is none.
        let given = fields.take_or_null(name).filter(|field| matches!(form, Form::Json) || field.value.get() != "null");
        let Some(field) = given else { continue };
        if let Some((other, _)) = &found {
            return Err(field.wrong(format!("and {:?} both give the payload", other.name), "keep one"));
        }
        found = Some((field, *form));
    }
    let Some((field, form)) = found else { return Ok(Bytes::new()) };
    Ok(match form {
        // Source: CloudEvents 1.0, JSON Event Format, section 3.1.1: text under a type that is not JSON is the data.
        Form::Json
            if cloud_event && content_type.is_some_and(|media| !is_json(media)) && kind(field.value) == "text" =>
        {
            field.text()?.into_owned().into()
        }
        Form::Json => Bytes::copy_from_slice(field.value.get().as_bytes()),
        Form::Text => field.text()?.into_owned().into(),
        Form::Base64 => match from_base64(&field.text()?) {
            Some(bytes) => bytes.into(),
            None => return Err(field.wrong("is not base64", "write the bytes in base64 as in RFC 4648, section 4")),
        },
    })
}

/// Whether a media type says that the bytes are JSON.
fn is_json(media: &str) -> bool {
    let essence = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

fn priority(fields: &mut Fields<'_>) -> Result<(u8, bool), JsonError> {
    const FIX: &str = "write a whole number from 0 to 10, or low (1), normal (5), high (8) or critical (10)";
    let Some(field) = fields.take(&["priority"])? else { return Ok((PRIORITY_NORMAL, false)) };
    let written = field.value.get();
    match kind(field.value) {
        "text" => match field.text()?.to_ascii_lowercase().as_str() {
            "low" => Ok((1, false)),
            "normal" => Ok((PRIORITY_NORMAL, false)),
            "high" => Ok((8, false)),
            "critical" => Ok((PRIORITY_MAX, false)),
            _ => Err(field.wrong(format!("is {}", shortened(written)), FIX)),
        },
        "a number" if !written.contains(['.', 'e', 'E']) => Ok(match written.parse::<i128>() {
            Ok(number) => match u8::try_from(number) {
                Ok(priority) if priority <= PRIORITY_MAX => (priority, false),
                _ => (if number < 0 { 0 } else { PRIORITY_MAX }, true),
            },
            // More digits than any number of ours.
            Err(_) => (if written.starts_with('-') { 0 } else { PRIORITY_MAX }, true),
        }),
        _ => Err(field.wrong(format!("is {}", shortened(written)), FIX)),
    }
}

fn time(fields: &mut Fields<'_>, names: &[&str]) -> Result<Option<UnixMs>, JsonError> {
    const FIX: &str = "write RFC 3339 such as \"2026-01-16T10:00:00Z\", or milliseconds since 1970";
    let Some(field) = fields.take(names)? else { return Ok(None) };
    let wrong = |problem: &str| Err(field.wrong(format!("is {}{problem}", shortened(field.value.get())), FIX));
    match kind(field.value) {
        "text" => match field.text()?.as_ref() {
            GO_ZERO_TIME => Ok(None),
            text => match from_rfc3339(text) {
                Some(at) => Ok(Some(at)),
                None => wrong(", which is no time since 1970"),
            },
        },
        "a number" => match field.value.get().parse::<u64>() {
            Ok(at) if at >= MILLISECONDS_MIN => Ok(Some(at)),
            Ok(_) => wrong(", which looks like seconds"),
            Err(_) => wrong(""),
        },
        _ => wrong(""),
    }
}

fn retries_max(fields: &mut Fields<'_>) -> Result<Option<u32>, JsonError> {
    let Some(field) = fields.take(&["max_retries"])? else { return Ok(None) };
    match field.value.get().parse() {
        Ok(retries) => Ok(Some(retries)),
        Err(_) => Err(field.wrong(format!("is {}", shortened(field.value.get())), "write a whole number, 0 or more")),
    }
}

fn transient(fields: &mut Fields<'_>) -> Result<bool, JsonError> {
    let Some(field) = fields.take(&["delivery_mode"])? else { return Ok(false) };
    // The numbers are those of AMQP 0-9-1.
    match field.value.get() {
        "\"persistent\"" | "2" => Ok(false),
        "\"transient\"" | "1" => Ok(true),
        other => Err(field.wrong(format!("is {}", shortened(other)), "write \"persistent\" or \"transient\"")),
    }
}

fn key(fields: &mut Fields<'_>) -> Result<Option<Bytes>, JsonError> {
    let text = fields.text(&["key"], TEXT_BYTES_MAX)?;
    let Some(field) = fields.take(&["key_base64"])? else {
        return Ok(text.map(|text| text.into_owned().into()));
    };
    if text.is_some() {
        return Err(field.wrong("and \"key\" both give the key", "keep one"));
    }
    match from_base64(&field.text()?) {
        Some(bytes) => Ok(Some(bytes.into())),
        None => Err(field.wrong("is not base64", "write the bytes in base64 as in RFC 4648, section 4")),
    }
}

/// Reads all headers; gives how many were dropped because they are not the publisher's to set.
fn headers(fields: &mut Fields<'_>, headers: &mut Headers) -> Result<usize, JsonError> {
    let mut dropped = 0;
    for name in ["headers", "metadata"] {
        let Some(field) = fields.take(&[name])? else { continue };
        let Ok(Pairs(pairs)) = serde_json::from_str(field.value.get()) else {
            let fix = "write an object with text under each name, or a list of pairs [\"name\", \"value\"]";
            return Err(field.wrong(format!("is {}", kind(field.value)), fix));
        };
        for (header_name, value) in pairs {
            if header::is_own(&header_name) {
                dropped += 1;
                continue;
            }
            let value = Field { name: Cow::Owned(format!("{name}.{header_name}")), value };
            match kind(value.value) {
                "text" => headers.append(&header_name, &value.text()?),
                "a number" | "true or false" => headers.append(&header_name, value.value.get()),
                other => return Err(value.wrong(format!("is {other}"), "headers are text; put it into the payload")),
            }
        }
    }
    for (name, bytes_max) in [(header::TRACEPARENT, SHORT_BYTES_MAX), (header::TRACESTATE, TEXT_BYTES_MAX)] {
        let Some(text) = fields.text(&[name], bytes_max)? else { continue };
        if name == header::TRACEPARENT && !is_traceparent(&text) {
            let fix = "write it as W3C Trace Context has it: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>";
            return Err(JsonError::field(name, format!("is {}", shortened(&text)), fix));
        }
        headers.set(name, &text);
    }
    Ok(dropped)
}

/// Source: W3C Trace Context, section 3.2.2; later versions may append to it.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut hex = |digits: usize| {
        parts.next().is_some_and(|part| {
            part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    hex(2) && hex(32) && hex(16) && hex(2)
}

/// Keeps what nobody knows; gives how many bytes it takes.
fn unknown(fields: Fields<'_>, into: &mut Map<String, Value>) -> Result<usize, JsonError> {
    let mut bytes = 0;
    for field in fields.into_rest() {
        let value = serde_json::from_str(field.value.get())
            .map_err(|error| field.wrong(format!("cannot be kept ({error})"), "put it into the payload"))?;
        bytes += field.name.len() + field.value.get().len();
        into.insert(field.name.into_owned(), value);
    }
    Ok(bytes)
}

/// What was written, short enough to be said.
fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(64) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
    }
}
