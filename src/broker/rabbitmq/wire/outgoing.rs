//! From a message to AMQP.

use std::collections::BTreeMap;

use super::{
    Copy,
    beside::{self, Beside, short},
    cloud_events::{self, says},
    death, names, order, value,
};
use crate::{
    codec::extra,
    message::{FailedAttempt, Message, PRIORITY_MAX, PRIORITY_NORMAL, UnixMs},
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, ShortString},
};

/// The server refuses a longer time to live, in milliseconds, and with it the channel. Source: RabbitMQ, "Time-To-Live
/// and Expiration"; `rabbit_misc:check_expiry`.
const EXPIRATION_MAX: u64 = u32::MAX as u64;
/// From here on whole seconds would be read as milliseconds.
const TIMESTAMP_MAX: UnixMs = 100_000_000_000_000;
/// Most failed attempts that a copy says, the first and the last ones.
const FAILURES_MAX: usize = crate::message::FAILURES_MAX;

type Table = BTreeMap<ShortString, AMQPValue>;

/// The properties under which a message is published; `copy` is given for one that waits for its next attempt. `now`
/// is the caller's clock reading, for the time that is left to it.
pub(in crate::broker::rabbitmq) fn outgoing(message: &Message, copy: Option<Copy<'_>>, now: UnixMs) -> BasicProperties {
    let mut table = Table::new();
    let mut beside = match message.headers.get(names::AMQP) {
        Some(text) => Beside::read(text),
        None => Beside::default(),
    };
    let has_attributes = headers(message, copy.is_some(), &mut beside, &mut table);
    let event = if has_attributes { cloud_events::read(&message.headers) } else { Default::default() };

    let mut properties = BasicProperties::default();
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = message.id.as_str(&mut buffer);
    if event.id != Some(id) {
        match short(id) {
            Some(id) => properties = properties.with_message_id(id),
            None => put(&mut table, names::ID, value::from_text(id)),
        }
    }
    let kind_is_empty = beside.take(beside::KIND).is_some();
    if !message.kind.is_empty() && !says(event.kind, Some(&message.kind)) {
        match short(&message.kind) {
            Some(kind) => properties = properties.with_type(kind),
            None => put(&mut table, names::KIND, value::from_text(&message.kind)),
        }
    } else if kind_is_empty {
        properties = properties.with_type(ShortString::default());
    }
    if let Some(text) = &message.content_type {
        match short(text) {
            Some(text) => properties = properties.with_content_type(text),
            None => put(&mut table, names::CONTENT_TYPE, value::from_text(text)),
        }
    }
    if let Some(text) = &message.correlation_id {
        match short(text) {
            Some(text) => properties = properties.with_correlation_id(text),
            None => put(&mut table, names::CORRELATION_ID, value::from_text(text)),
        }
    }
    if let Some(text) = &message.reply_to {
        match short(text) {
            Some(text) => properties = properties.with_reply_to(text),
            None => put(&mut table, names::REPLY_TO, value::from_text(text)),
        }
    }
    properties = importance(message, &mut beside, properties);
    properties = times(message, copy.is_some(), now, &event, (&mut beside, &mut table), properties);
    if let Some(text) = beside.take(beside::APP_ID) {
        properties = properties.with_app_id(text);
    }
    if let Some(text) = beside.take(beside::CLUSTER_ID) {
        properties = properties.with_cluster_id(text);
    }
    if let Some(text) = beside.take(beside::CONTENT_ENCODING) {
        properties = properties.with_content_encoding(text);
    }
    if let Some(key) = &message.key {
        put(&mut table, names::KEY, AMQPValue::LongString(key.to_vec().into()));
    }
    if let Some(retries) = message.retries_max {
        put(&mut table, names::RETRIES_MAX, value::from_number(retries.into()));
    }
    if let Some(extra) = message.extra.as_deref().and_then(|given| extra::write(given, &event)) {
        put(&mut table, names::EXTRA, value::from_text(&extra));
    }
    if let Some(copy) = copy {
        put(&mut table, names::ATTEMPT, value::from_number(copy.attempt.into()));
        if let Some(failures) = write_failures(copy.failures) {
            put(&mut table, names::FAILURES, value::from_text(&failures));
        }
    }
    // What could not be said goes on beside it.
    if let Some(rest) = beside.write() {
        put(&mut table, names::AMQP, value::from_text(&rest));
    }
    if table.is_empty() { properties } else { properties.with_headers(FieldTable::from(table)) }
}

/// How many bytes the content header takes, which has to fit into one frame: the server ends the connection otherwise.
pub(in crate::broker::rabbitmq) fn header_bytes(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.iter().filter_map(|text| text.as_ref()).map(|text| 1 + text.as_str().len()).sum();
    // Frame header and end, class, weight, length, flags, delivery mode, priority, timestamp.
    const FIXED: usize = 8 + 14 + 10;
    FIXED + texts + properties.headers().as_ref().map_or(0, table_bytes)
}

fn table_bytes(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| 1 + name.as_str().len() + value_bytes(value)).sum::<usize>()
}

fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::FieldTable(table) => table_bytes(table),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_bytes).sum::<usize>(),
        _ => 8,
    }
}

fn put(table: &mut Table, name: &str, value: AMQPValue) {
    if let Some(name) = short(name) {
        table.insert(name, value);
    }
}

/// The message's headers, each as the value that it came as where it still says the same. Answers whether some are
/// attributes of a CloudEvent.
fn headers(message: &Message, is_copy: bool, beside: &mut Beside, table: &mut Table) -> bool {
    let mut has_attributes = false;
    let mut apart = Vec::new();
    // What is sent, in its order, and whether it is in the list behind the table.
    let mut sent: smallvec::SmallVec<[(&str, bool); 16]> = smallvec::SmallVec::new();
    let mut came_as = std::mem::take(&mut beside.headers);
    for (name, text) in message.headers.iter() {
        if names::is_apart(name) {
            continue;
        }
        has_attributes |= cloud_events::is_attribute(name);
        let came_as = came_as.remove(name).filter(|value| value::text(value) == text);
        let key = short(name).filter(|name| !table.contains_key(name));
        let value = if name == names::DEATH {
            match came_as {
                Some(deaths) if is_copy => {
                    if let Some(deaths) = death::without_waiting(&deaths) {
                        beside.keep_value(beside::DEATHS, deaths);
                    }
                    continue;
                }
                // The server expects its own kind of value under that name.
                other => other,
            }
        } else if names::routes_copies(name) {
            if let (Some(name), Some(value)) = (short(name), came_as) {
                beside.headers.insert(name, value);
            }
            None
        } else {
            Some(came_as.unwrap_or_else(|| value::from_text(text)))
        };
        match (key, value) {
            (Some(key), Some(value)) => {
                table.insert(key, value);
                sent.push((name, false));
            }
            _ => {
                apart.push(value::from_text(name));
                apart.push(value::from_text(text));
                sent.push((name, true));
            }
        }
    }
    if let Some(order) = order::write(&sent) {
        put(table, names::ORDER, value::from_text(&order));
    }
    if !apart.is_empty() {
        put(table, names::MORE, AMQPValue::FieldArray(FieldArray::from(apart)));
    }
    has_attributes
}

/// Priority, and whether it has to be kept.
fn importance(message: &Message, beside: &mut Beside, mut properties: BasicProperties) -> BasicProperties {
    let higher = beside.take_number(beside::PRIORITY).and_then(|priority| u8::try_from(priority).ok());
    if !(std::mem::take(&mut beside.no_priority) && message.priority == PRIORITY_NORMAL) {
        let higher = higher.filter(|higher| message.priority == PRIORITY_MAX && *higher > PRIORITY_MAX);
        properties = properties.with_priority(higher.unwrap_or(message.priority));
    }
    let other = beside.take_number(beside::DELIVERY_MODE).and_then(|mode| u8::try_from(mode).ok());
    let none = std::mem::take(&mut beside.no_delivery_mode);
    match message.transient {
        true if none => properties,
        true => properties.with_delivery_mode(other.unwrap_or(1)),
        false => properties.with_delivery_mode(2),
    }
}

/// When it was published, may be handled, and may not any more.
fn times(
    message: &Message,
    is_copy: bool,
    now: UnixMs,
    event: &cloud_events::Attributes<'_>,
    (beside, table): (&mut Beside, &mut Table),
    mut properties: BasicProperties,
) -> BasicProperties {
    let at = message.timestamp;
    match beside.take_number(beside::TIMESTAMP) {
        // As it was written: 0, or milliseconds.
        Some(written) if written == at => properties = properties.with_timestamp(written),
        _ if at == 0 || event.time == Some(at) => {}
        _ => {
            properties = properties.with_timestamp(at / 1000);
            if !at.is_multiple_of(1000) || at >= TIMESTAMP_MAX {
                put(table, names::TIMESTAMP, value::from_number(at));
            }
        }
    }
    if let Some(at) = message.not_before {
        put(table, names::NOT_BEFORE, value::from_number(at));
    }
    if let Some(at) = message.expires_at {
        let left = at.saturating_sub(now);
        if !is_copy && left <= EXPIRATION_MAX {
            properties = properties.with_expiration(ShortString::from(left.to_string()));
        }
        put(table, names::EXPIRES_AT, value::from_number(at));
    }
    properties
}

fn write_failures(failures: &[FailedAttempt]) -> Option<String> {
    let skipped = failures.len().saturating_sub(FAILURES_MAX);
    let first = failures.iter().take(usize::from(skipped > 0));
    let kept: Vec<_> = first.chain(failures.iter().skip(if skipped > 0 { skipped + 1 } else { 0 })).collect();
    if kept.is_empty() { None } else { serde_json::to_string(&kept).ok() }
}
