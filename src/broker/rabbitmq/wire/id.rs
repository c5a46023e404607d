//! The id of a message that came without one.

use bytes::Bytes;
use lapin::BasicProperties;
use xxhash_rust::xxh3::Xxh3;

use super::{names, value};
use crate::message::MessageId;

/// An id made of all that the publisher said and where to: the same on every delivery, whatever the server wrote to it
/// meanwhile. Two messages that say the same to the same have the same; in a stream their places tell them apart.
pub(super) fn derive(
    properties: &BasicProperties,
    payload: &Bytes,
    (exchange, routing_key): (&str, &str),
    stream_offset: Option<u64>,
) -> MessageId {
    let mut hasher = Xxh3::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(exchange.as_bytes());
    add(routing_key.as_bytes());
    add(payload);
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    for text in texts {
        add(text.as_ref().map_or("", |text| text.as_str()).as_bytes());
    }
    let numbers = [
        (*properties.timestamp()).unwrap_or_default(),
        properties.priority().map_or(0, u64::from),
        properties.delivery_mode().map_or(0, u64::from),
        stream_offset.map_or(0, |offset| offset + 1),
    ];
    for number in numbers {
        add(&number.to_le_bytes());
    }
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if !names::is_apart(name.as_str()) && name.as_str() != names::DEATH {
            add(name.as_str().as_bytes());
            add(&value::value_bytes(value).unwrap_or_default());
        }
    }
    MessageId::Text(format!("{:032x}", hasher.digest128()).into()).derive("amqp", 0)
}
