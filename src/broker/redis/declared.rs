//! What the engine declares, as keys on the server, and what differs from what is there.

use std::{collections::BTreeMap, time::Duration};

use redis::Value;

use super::{
    errors,
    link::Up,
    place::{GROUP, Known, Place},
    scripts,
    settings::Settings,
};
use crate::{
    broker::{BrokerError, Declaration, Overflow, QueueSettings, TopicSettings, embedded::declare::Settings as _},
    message::PRIORITY_MAX,
};

/// Refuses what cannot work.
pub(super) fn check(declaration: &Declaration) -> Result<(), BrokerError> {
    match declaration {
        Declaration::Queue(_, settings) => settings.check(),
        Declaration::Topic(_, settings) => settings.check(),
    }
}

/// What is known of it before the server was asked.
pub(super) fn known(declaration: &Declaration) -> Known {
    match declaration {
        Declaration::Queue(_, queue) => Known {
            priority_max: queue.priority_max,
            ttl: queue.ttl,
            counts_bytes: queue.bytes_max.is_some(),
            lease: queue.lease,
        },
        Declaration::Topic(_, topic) => Known { priority_max: 0, ttl: None, counts_bytes: false, lease: topic.lease },
    }
}

/// Makes what is missing, and compares what is there.
///
/// # Errors
/// As [`Broker::declare`](crate::broker::Broker::declare).
pub(super) async fn declare(
    up: &Up,
    declaration: &Declaration,
    place: &Place,
    settings: &Settings,
) -> Result<(), BrokerError> {
    place.learn(known(declaration));
    let (kind, wanted) = wanted(declaration);
    let answer = up
        .run(&scripts::DECLARE, |command| {
            command.arg(&place.base).arg(kind).arg(GROUP).arg(wanted.len() * 2);
            for (name, value) in &wanted {
                command.arg(*name).arg(value);
            }
            command.arg(made(declaration, place));
        })
        .await;
    let there = fields(answer.map_err(|error| errors::seam(settings, &error))?);
    let differences = compare(&there, declaration);
    learn(place, &there, settings);
    if differences.is_empty() {
        return Ok(());
    }
    if settings.accept_differences {
        tracing::warn!("{} is not as configured: {}", place.address, differences.join(", "));
        return Ok(());
    }
    Err(BrokerError::Mismatch { address: place.address.clone(), differences })
}

/// What it is, and its settings as the server keeps them.
pub(super) fn wanted(declaration: &Declaration) -> (&'static str, Vec<(&'static str, String)>) {
    match declaration {
        Declaration::Queue(_, queue) => ("queue", of_queue(queue)),
        Declaration::Topic(_, topic) => ("topic", of_topic(topic)),
    }
}

/// Names of the streams that are made with it. Those of what is delayed, and of topics, come with the first message.
pub(super) fn made(declaration: &Declaration, place: &Place) -> Vec<String> {
    match declaration {
        Declaration::Queue(..) => place.streams().into_iter().filter(|name| !name.starts_with('d')).collect(),
        Declaration::Topic(..) => Vec::new(),
    }
}

/// In what it differs from what is there; `None`: it is not there. Makes nothing.
///
/// # Errors
/// As [`Up::ask`].
pub(super) async fn differences(
    up: &Up,
    declaration: &Declaration,
    place: &Place,
) -> Result<Option<Vec<String>>, redis::RedisError> {
    let mut command = redis::cmd("HGETALL");
    command.arg(&place.base);
    let there = fields(up.ask(&command).await?);
    Ok(there.contains_key("kind").then(|| compare(&there, declaration)))
}

fn compare(there: &BTreeMap<String, String>, declaration: &Declaration) -> Vec<String> {
    match declaration {
        Declaration::Queue(_, wanted) => queue_of(there, wanted).differences(wanted),
        Declaration::Topic(_, wanted) => topic_of(there, wanted).differences(wanted),
    }
}

/// Looks whether a queue or topic is there, and learns how it is. Its group, where it is a queue's, is there too.
///
/// # Errors
/// As [`Up::ask`].
pub(super) async fn find(up: &Up, place: &Place, settings: &Settings) -> Result<bool, redis::RedisError> {
    let mut command = redis::cmd("HGETALL");
    command.arg(&place.base);
    let there = fields(up.ask(&command).await?);
    let is_there = there.contains_key("kind");
    if is_there {
        learn(place, &there, settings);
    }
    Ok(is_there)
}

fn learn(place: &Place, there: &BTreeMap<String, String>, settings: &Settings) {
    let number = |name: &str| there.get(name).and_then(|text| text.parse::<u64>().ok());
    place.learn(Known {
        priority_max: number("priority_max")
            .and_then(|max| u8::try_from(max).ok())
            .unwrap_or(PRIORITY_MAX)
            .min(PRIORITY_MAX),
        ttl: number("ttl").map(Duration::from_millis),
        counts_bytes: number("bytes_max").is_some(),
        lease: number("lease").map_or(settings.lease, Duration::from_millis),
    });
}

fn fields(answer: Value) -> BTreeMap<String, String> {
    let text = |value: Value| match value {
        Value::BulkString(text) => String::from_utf8(text).unwrap_or_default(),
        _ => String::new(),
    };
    let mut there = BTreeMap::new();
    if let Ok(pairs) = answer.into_map_iter() {
        there.extend(pairs.map(|(name, value)| (text(name), text(value))));
    }
    there
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}

fn or_empty<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn of_queue(queue: &QueueSettings) -> Vec<(&'static str, String)> {
    vec![
        ("priority_max", queue.priority_max.to_string()),
        ("ttl", queue.ttl.map_or_else(String::new, millis)),
        ("length_max", or_empty(queue.length_max)),
        ("bytes_max", or_empty(queue.bytes_max)),
        ("overflow", word(queue.overflow).to_owned()),
        ("lease", millis(queue.lease)),
        ("exclusive", if queue.exclusive { "1".to_owned() } else { String::new() }),
    ]
}

fn of_topic(topic: &TopicSettings) -> Vec<(&'static str, String)> {
    vec![
        ("retention", topic.retention.map_or_else(String::new, millis)),
        ("retention_bytes", or_empty(topic.retention_bytes)),
        ("lease", millis(topic.lease)),
    ]
}

fn word(overflow: Overflow) -> &'static str {
    match overflow {
        Overflow::RejectPublish => "reject-publish",
        Overflow::DropOldest => "drop-oldest",
        Overflow::DeadLetterOldest => "dead-letter-oldest",
    }
}

/// As it is there. Where messages are kept is the server's affair, so it does not differ.
fn queue_of(there: &BTreeMap<String, String>, wanted: &QueueSettings) -> QueueSettings {
    let number = |name: &str| there.get(name).and_then(|text| text.parse::<u64>().ok());
    let overflow = there.get("overflow").map_or("", String::as_str);
    let all = [Overflow::RejectPublish, Overflow::DropOldest, Overflow::DeadLetterOldest];
    QueueSettings {
        storage: wanted.storage,
        priority_max: number("priority_max").and_then(|max| u8::try_from(max).ok()).unwrap_or(PRIORITY_MAX),
        ttl: number("ttl").map(Duration::from_millis),
        length_max: number("length_max"),
        bytes_max: number("bytes_max"),
        overflow: all.into_iter().find(|one| word(*one) == overflow).unwrap_or_default(),
        lease: number("lease").map_or(wanted.lease, Duration::from_millis),
        exclusive: wanted.exclusive,
    }
}

/// As it is there. It is one sequence, whatever was asked for.
fn topic_of(there: &BTreeMap<String, String>, wanted: &TopicSettings) -> TopicSettings {
    let number = |name: &str| there.get(name).and_then(|text| text.parse::<u64>().ok());
    TopicSettings {
        storage: wanted.storage,
        partitions: wanted.partitions,
        retention: number("retention").map(Duration::from_millis),
        retention_bytes: number("retention_bytes"),
        lease: number("lease").map_or(wanted.lease, Duration::from_millis),
    }
}
