//! CloudEvents in a record. Source: CloudEvents 1.0, Kafka Protocol Binding, section 3.

use serde_json::{Map, Value, value::RawValue};

pub(super) use crate::codec::cloud_events::{Attributes, says};
use crate::{
    codec::{bytes::to_base64, cloud_events, json, time::rfc3339},
    message::{Headers, Kind, Message, UnixMs},
};

/// What the headers of attributes begin with, in binary mode.
pub(super) const PREFIX: &str = "ce_";
/// The media type of structured mode.
pub(super) const STRUCTURED: &str = "application/cloudevents+json";
/// An event has to have a source; this one stands for none.
pub(super) const NO_SOURCE: &str = "/helixmq";
/// An event has to have a type; this one stands for none.
pub(super) const NO_TYPE: &str = "helixmq.message";

/// Whether the header is an attribute.
pub(super) fn is_attribute(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Reads them; where a name is given twice the first holds. What stands for none is none.
pub(super) fn read(headers: &Headers) -> Attributes<'_> {
    let mut event = cloud_events::read(headers, |name| name.strip_prefix(PREFIX));
    event.source = event.source.filter(|source| *source != NO_SOURCE);
    event.kind = event.kind.filter(|kind| *kind != NO_TYPE);
    event
}

/// Whether a content type says that the value is an event as a whole. Parameters may follow, in any case.
pub(super) fn is_structured(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case(STRUCTURED)
}

/// Whether an attribute is written from what a message has a place for.
pub(super) fn has_a_place(attribute: &str) -> bool {
    matches!(attribute, "specversion" | "id" | "type" | "source" | "subject" | "dataschema" | "time")
}

/// Whether it can be the name of an attribute. Source: CloudEvents 1.0, "Naming Conventions".
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The value of an attribute as text; `None` for what no attribute can be.
pub(super) fn attribute_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

/// The attributes that a message has a place for, under their names in the specification.
pub(super) fn attributes(message: &Message) -> Vec<(&'static str, String)> {
    let extra = message.extra.as_deref();
    let origin = extra.and_then(|extra| extra.origin.as_deref()).filter(|origin| !origin.is_empty());
    let kind = if message.kind.is_empty() { NO_TYPE } else { &message.kind };
    let mut attributes = vec![
        ("specversion", "1.0".to_owned()),
        ("id", message.id.to_string()),
        ("source", origin.unwrap_or(NO_SOURCE).to_owned()),
        ("type", kind.to_owned()),
    ];
    let optional = [
        ("subject", extra.and_then(|extra| extra.subject.as_deref())),
        ("dataschema", extra.and_then(|extra| extra.data_schema.as_deref())),
    ];
    attributes.extend(
        optional.into_iter().filter_map(|(name, text)| Some((name, text.filter(|text| !text.is_empty())?.to_owned()))),
    );
    let as_it_came =
        message.headers.get("ce_time").filter(|text| crate::codec::time::from_rfc3339(text) == Some(message.timestamp));
    let time = as_it_came.map(str::to_owned).or_else(|| rfc3339(message.timestamp).filter(|_| message.timestamp > 0));
    attributes.extend(time.map(|time| ("time", time)));
    attributes
}

/// The event as one JSON document; `None` where it would not be read as it is, by us: binary mode has no such limits.
pub(super) fn document(message: &Message) -> Option<Vec<u8>> {
    let mut fields = Map::new();
    for (name, value) in message.headers.iter() {
        if let Some(name) = name.strip_prefix(PREFIX).filter(|name| is_name(name)) {
            fields.insert(name.to_owned(), Value::from(value));
        }
    }
    let unknown = message.extra.iter().flat_map(|extra| &extra.unknown);
    for (name, value) in unknown.filter(|(name, value)| is_name(name) && attribute_text(value).is_some()) {
        fields.insert(name.clone(), value.clone());
    }
    for (name, value) in attributes(message) {
        fields.insert(name.to_owned(), Value::from(value));
    }
    if let Some(content_type) = &message.content_type {
        fields.insert("datacontenttype".to_owned(), Value::from(content_type.as_str()));
    }
    fields.remove("data");
    fields.remove("data_base64");
    let mut document = serde_json::to_vec(&fields).ok()?;
    if !message.payload.is_empty() {
        // In front of the closing brace: there always are attributes.
        document.pop();
        match is_json(message) {
            true => {
                document.extend_from_slice(br#","data":"#);
                document.extend_from_slice(&message.payload);
            }
            false => {
                document.extend_from_slice(br#","data_base64":"#);
                document.extend(serde_json::to_vec(&to_base64(&message.payload)).ok()?);
            }
        }
        document.push(b'}');
    }
    let reads_back = parse(&document, 0).is_ok_and(|read| {
        read.payload == message.payload && read.id == message.id && read.kind == message.kind && read.headers.is_empty()
    });
    reads_back.then_some(document)
}

/// Whether the payload can stand in a document as it is, and will be read as it is: nothing around the value.
fn is_json(message: &Message) -> bool {
    let is_said = message.content_type.as_deref().is_none_or(|content_type| {
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media_type.ends_with("/json") || media_type.ends_with("+json")
    });
    let raw: Option<&RawValue> = serde_json::from_slice(&message.payload).ok();
    // Text in quotes would be read as the text itself.
    is_said && raw.is_some_and(|raw| raw.get().len() == message.payload.len() && raw.get().starts_with(['{', '[']))
}

/// An event that is a document, as a message.
pub(super) fn parse(value: &[u8], now: UnixMs) -> Result<Message, String> {
    #[derive(serde::Deserialize)]
    struct Version<'a> {
        #[serde(borrow)]
        specversion: Option<&'a RawValue>,
    }
    // With it, it has an id of its own, too.
    let version =
        serde_json::from_slice::<Version<'_>>(value).map_err(|error| format!("not a JSON object: {error}"))?;
    if version.specversion.is_none() {
        return Err("\"specversion\" is missing".to_owned());
    }
    let mut message = json::read(value, Kind::Topic, now, usize::MAX).map_err(|error| error.to_string())?.message;
    if message.kind == NO_TYPE {
        message.kind = Default::default();
    }
    if let Some(mut extra) = message.extra.take() {
        extra.origin = extra.origin.filter(|origin| origin != NO_SOURCE);
        message.extra = (*extra != Default::default()).then_some(extra);
    }
    Ok(message)
}
