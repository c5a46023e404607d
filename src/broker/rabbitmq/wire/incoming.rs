//! From AMQP to a message.

use bytes::Bytes;
use lapin::{BasicProperties, types::AMQPValue};

use super::{
    Facts,
    beside::{self, Beside},
    cloud_events, death, id, names, order, value,
};
use crate::{
    codec::extra,
    message::{Headers, Message, MessageId, PRIORITY_MAX, PRIORITY_NORMAL, Text, UnixMs},
};

/// A publisher that gives milliseconds where AMQP wants seconds is common, and this many seconds are the year 5138.
const MILLISECONDS_MIN: u64 = 100_000_000_000;

/// The message that a delivery carries, and what it says beside that.
///
/// `exchange` and `routing_key` are where it was published to, `now` is the caller's clock reading: an `expiration` counts
/// from it. A message without a timestamp has 0, which is the same on every delivery, where the time of the delivery
/// would not be; who wants to know when it came has the clock.
pub(in crate::broker::rabbitmq) fn incoming(
    properties: BasicProperties,
    payload: Bytes,
    exchange: &str,
    routing_key: &str,
    now: UnixMs,
) -> (Message, Facts) {
    let mut message = Message { payload, ..Message::default() };
    let mut parts = Parts::default();
    headers(&properties, &mut message, &mut parts);
    let Parts { mut beside, mut facts, id: long_id, has_attributes, timestamp: exact, .. } = parts;
    facts.attempt = facts.attempt.max(1);

    text(&mut message.kind, properties.kind().as_ref());
    optional_text(&mut message.content_type, properties.content_type().as_ref());
    optional_text(&mut message.correlation_id, properties.correlation_id().as_ref());
    optional_text(&mut message.reply_to, properties.reply_to().as_ref());
    if properties.kind().as_ref().is_some_and(|kind| kind.as_str().is_empty()) {
        beside.keep(beside::KIND, properties.kind().as_ref());
    }
    match *properties.priority() {
        Some(priority) => {
            message.priority = priority.min(PRIORITY_MAX);
            if priority > PRIORITY_MAX {
                beside.keep_value(beside::PRIORITY, AMQPValue::ShortShortUInt(priority));
            }
        }
        None => {
            message.priority = PRIORITY_NORMAL;
            beside.no_priority = true;
        }
    }
    match *properties.delivery_mode() {
        Some(2) => {}
        Some(1) => message.transient = true,
        Some(other) => {
            message.transient = true;
            beside.keep_value(beside::DELIVERY_MODE, AMQPValue::ShortShortUInt(other));
        }
        None => {
            message.transient = true;
            beside.no_delivery_mode = true;
        }
    }
    match (*properties.timestamp(), exact) {
        (_, Some(exact)) => message.timestamp = exact,
        (Some(seconds), None) => {
            message.timestamp = milliseconds(seconds);
            if seconds == 0 || seconds >= MILLISECONDS_MIN {
                beside.keep_value(beside::TIMESTAMP, AMQPValue::Timestamp(seconds));
            }
        }
        (None, None) => {}
    }
    if message.expires_at.is_none() {
        let left: Option<u64> = properties.expiration().as_ref().and_then(|left| left.as_str().parse().ok());
        message.expires_at = left.map(|left| now.saturating_add(left));
    }
    beside.keep(beside::APP_ID, properties.app_id().as_ref());
    beside.keep(beside::CLUSTER_ID, properties.cluster_id().as_ref());
    beside.keep(beside::CONTENT_ENCODING, properties.content_encoding().as_ref());
    beside.keep(beside::USER_ID, properties.user_id().as_ref());

    let mut own_id = match properties.message_id() {
        Some(id) if !id.as_str().is_empty() => Some(MessageId::parse(id.as_str())),
        _ => long_id,
    };
    if has_attributes {
        own_id = own_id.or_else(|| cloud_event(&mut message, properties.timestamp().is_none()));
    }
    message.id = own_id
        .unwrap_or_else(|| id::derive(&properties, &message.payload, (exchange, routing_key), facts.stream_offset));
    if let Some(beside) = beside.write() {
        message.headers.append(names::AMQP, &beside);
    }
    (message, facts)
}

/// What headers say that is not for handlers, or not yet.
#[derive(Default)]
struct Parts {
    facts: Facts,
    beside: Beside,
    id: Option<MessageId>,
    timestamp: Option<UnixMs>,
    order: Option<String>,
    more: Vec<(String, String)>,
    /// Whether some are attributes of a CloudEvent.
    has_attributes: bool,
}

fn headers(properties: &BasicProperties, message: &mut Message, parts: &mut Parts) {
    let Some(table) = properties.headers() else { return };
    let table = table.inner();
    // Enough for most names and values; text grows by itself where it is not.
    let mut headers = Headers::with_capacity(table.len() * 32);
    // Read first: it says what those behind it in the alphabet are.
    if let Some(text) = table.get(names::AMQP).and_then(value::plain) {
        parts.beside = Beside::read(text);
    }
    let earlier = parts.beside.take_value(beside::DEATHS);
    // Of a copy it is not the publisher's.
    let is_copy = table.contains_key(names::ATTEMPT);
    for (name, value) in table {
        let name = name.as_str();
        if is_copy && name == names::DEATH {
            continue;
        }
        if names::is_apart(name) {
            apart(name, value, message, parts);
            continue;
        }
        parts.has_attributes |= cloud_events::is_attribute(name);
        match value::plain(value) {
            Some(text) => headers.append(name, text),
            None => {
                headers.append(name, &value::text(value));
                if let Some(name) = beside::short(name) {
                    parts.beside.headers.insert(name, value.clone());
                }
            }
        }
    }
    for (name, value) in &parts.more {
        headers.append(name, value);
    }
    message.headers = match &parts.order {
        Some(order) => order::restore(headers, order),
        None => headers,
    };
    let deaths = if is_copy { death::joined(table.get(names::DEATH), earlier) } else { None };
    if let (Some(deaths), Some(name)) = (deaths, beside::short(names::DEATH)) {
        message.headers.append(names::DEATH, &value::text(&deaths));
        parts.beside.headers.insert(name, deaths);
    }
}

/// One header of ours, or of the server's.
fn apart(name: &str, given: &AMQPValue, message: &mut Message, parts: &mut Parts) {
    let number = || value::number(given);
    let text = || value::plain(given);
    match name {
        names::ATTEMPT => parts.facts.attempt = number().and_then(|attempt| attempt.try_into().ok()).unwrap_or(1),
        names::FAILURES => {
            parts.facts.failures = text().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        }
        names::DELIVERY_COUNT => parts.facts.delivery_count = number(),
        names::ACQUIRED_COUNT => parts.facts.acquired_count = number(),
        names::STREAM_OFFSET => parts.facts.stream_offset = number(),
        names::TIMESTAMP => parts.timestamp = number(),
        names::NOT_BEFORE => message.not_before = number(),
        names::EXPIRES_AT => message.expires_at = number(),
        names::RETRIES_MAX => message.retries_max = number().and_then(|retries| retries.try_into().ok()),
        names::KEY => {
            message.key = match given {
                AMQPValue::LongString(key) => Some(Bytes::copy_from_slice(key.as_bytes())),
                AMQPValue::ByteArray(key) => Some(Bytes::copy_from_slice(key.as_slice())),
                _ => None,
            }
        }
        names::EXTRA => message.extra = text().and_then(extra::read),
        names::ORDER => parts.order = text().map(str::to_owned),
        names::MORE => parts.more = more(given),
        names::ID => parts.id = text().filter(|id| !id.is_empty()).map(MessageId::parse),
        names::KIND => message.kind = text().unwrap_or_default().into(),
        names::CONTENT_TYPE => message.content_type = text().map(Text::from),
        names::CORRELATION_ID => message.correlation_id = text().map(Text::from),
        names::REPLY_TO => message.reply_to = text().map(Text::from),
        _ => {}
    }
}

/// Names and values in turn.
fn more(given: &AMQPValue) -> Vec<(String, String)> {
    let AMQPValue::FieldArray(values) = given else { return Vec::new() };
    let pairs = values.as_slice().chunks_exact(2).filter_map(|pair| match pair {
        [name, value] => Some((value::plain(name)?.to_owned(), value::plain(value)?.to_owned())),
        _ => None,
    });
    pairs.filter(|(name, _)| !names::is_apart(name)).collect()
}

/// Takes from a CloudEvent's attributes what AMQP's own properties do not say, and answers the id.
fn cloud_event(message: &mut Message, timeless: bool) -> Option<MessageId> {
    let event = cloud_events::read(&message.headers);
    let id = event.id.map(MessageId::parse);
    let kind = event.kind.filter(|_| message.kind.is_empty()).map(Text::from);
    let time = event.time.filter(|_| timeless && message.timestamp == 0);
    let [origin, subject, data_schema] =
        [event.source, event.subject, event.data_schema].map(|text| text.map(Text::from));
    if let Some(kind) = kind {
        message.kind = kind;
    }
    if let Some(time) = time {
        message.timestamp = time;
    }
    if origin.is_some() || subject.is_some() || data_schema.is_some() {
        let extra = message.extra_mut();
        extra.origin = extra.origin.take().or(origin);
        extra.subject = extra.subject.take().or(subject);
        extra.data_schema = extra.data_schema.take().or(data_schema);
    }
    id
}

fn milliseconds(seconds: u64) -> UnixMs {
    if seconds >= MILLISECONDS_MIN { seconds } else { seconds * 1000 }
}

fn text(place: &mut Text, property: Option<&lapin::types::ShortString>) {
    if let Some(property) = property {
        *place = property.as_str().into();
    }
}

fn optional_text(place: &mut Option<Text>, property: Option<&lapin::types::ShortString>) {
    if let Some(property) = property {
        *place = Some(property.as_str().into());
    }
}
