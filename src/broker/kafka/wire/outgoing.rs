//! From a message to Kafka.

use std::borrow::Cow;

use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value;

use super::{
    Copy, Record,
    beside::Beside,
    cloud_events::{self, Attributes, says},
    names,
};
use crate::{
    broker::kafka::settings::Format,
    codec::extra,
    message::{FAILURES_MAX, FailedAttempt, Message, PRIORITY_NORMAL, UnixMs, header, now_ms},
};

/// Times further ahead are refused by servers. Source: Kafka, `message.timestamp.after.max.ms`, whose default is an hour.
const AHEAD_MAX_MS: u64 = 5 * 60 * 1000;

/// The record under which a message is published; `copy` is given for one that waits for its next attempt, which is
/// always written in our own format.
pub(in crate::broker::kafka) fn outgoing(message: &Message, format: Format, copy: Option<&Copy>) -> Record {
    let format = if copy.is_some() { Format::Native } else { format };
    // Few of them are more than plain headers and four of ours.
    let mut headers = Out(OwnedHeaders::new_with_capacity(message.headers.len() + 4));
    let is_tombstone = message.payload.is_empty() && message.headers.get(names::TOMBSTONE).is_some();
    let document = match format {
        Format::CloudEventsStructured if !is_tombstone => cloud_events::document(message),
        _ => None,
    };
    let shape = match (format, &document) {
        (Format::Native, _) => Shape::Native,
        (_, None) => Shape::Binary,
        (_, Some(_)) => Shape::Structured,
    };
    let sent = headers.plain(message, shape, copy.is_some());
    let event = match shape {
        Shape::Native if sent.has_attributes => cloud_events::read(&message.headers),
        Shape::Native => Attributes::default(),
        Shape::Binary | Shape::Structured => headers.event(message, shape),
    };
    headers.properties(message, &event, shape, sent.content_type);
    let timestamp = headers.timestamp(message, &event, copy.is_some());
    if let Some(copy) = copy {
        headers.copy(copy);
    }
    Record {
        key: message.key.clone(),
        value: (!is_tombstone).then(|| document.map_or_else(|| message.payload.clone(), Into::into)),
        headers: headers.0,
        timestamp,
        partition: if copy.is_some() { None } else { sent.partition },
    }
}

/// How a record is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Native,
    Binary,
    Structured,
}

/// What the publisher's headers said to us.
struct Sent<'a> {
    has_attributes: bool,
    content_type: Option<&'a str>,
    partition: Option<i32>,
}

struct Out(OwnedHeaders);

impl Out {
    fn put(&mut self, name: &str, value: Option<&[u8]>) {
        self.0 = std::mem::take(&mut self.0).insert(Header { key: name, value });
    }

    fn text(&mut self, name: &str, value: &str) {
        self.put(name, Some(value.as_bytes()));
    }

    fn number(&mut self, name: &str, value: u64) {
        self.text(name, &value.to_string());
    }

    /// The publisher's own, in their order.
    fn plain<'a>(&mut self, message: &'a Message, shape: Shape, is_copy: bool) -> Sent<'a> {
        let mut sent = Sent { has_attributes: false, content_type: None, partition: None };
        let beside = message.headers.get(names::BESIDE).map(Beside::read);
        let mut more = Vec::new();
        for (place, (name, text)) in message.headers.iter().enumerate() {
            if names::is_apart(name) || names::is_unsent(name) {
                continue;
            }
            if name == names::PARTITION && !is_copy && sent.partition.is_none() {
                sent.partition = text.parse().ok().filter(|partition| *partition >= 0);
                if sent.partition.is_some() {
                    continue;
                }
            }
            match shape {
                Shape::Native => sent.has_attributes |= cloud_events::is_attribute(name),
                Shape::Binary if name.strip_prefix(cloud_events::PREFIX).is_some_and(cloud_events::has_a_place) => {
                    continue;
                }
                Shape::Structured if name.strip_prefix(cloud_events::PREFIX).is_some_and(cloud_events::is_name) => {
                    continue;
                }
                _ => {}
            }
            if name == names::FOREIGN_CONTENT_TYPE {
                if shape != Shape::Native {
                    continue;
                }
                sent.content_type = sent.content_type.or(Some(text));
            }
            if name.contains('\0') {
                more.push(Value::from([name, text].as_slice()));
                continue;
            }
            let value = match &beside {
                None => Some(Cow::Borrowed(text.as_bytes())),
                Some(beside) => {
                    let before = message.headers.iter().take(place).filter(|(other, _)| *other == name).count();
                    beside.value(name, before, text)
                }
            };
            self.put(name, value.as_deref());
        }
        if !more.is_empty() {
            self.text(names::MORE, &Value::from(more).to_string());
        }
        sent
    }

    /// What makes it a CloudEvent. Answers what the attributes say of the message.
    fn event<'a>(&mut self, message: &'a Message, shape: Shape) -> Attributes<'a> {
        let extra = message.extra.as_deref();
        if shape == Shape::Structured {
            self.text(names::FOREIGN_CONTENT_TYPE, cloud_events::STRUCTURED);
        } else {
            for (name, value) in cloud_events::attributes(message) {
                self.text(&format!("{}{name}", cloud_events::PREFIX), &value);
            }
            for (name, value) in extra.into_iter().flat_map(|extra| &extra.unknown) {
                let name_is_free = cloud_events::is_name(name) && !cloud_events::has_a_place(name);
                let header = format!("{}{name}", cloud_events::PREFIX);
                if let Some(text) = cloud_events::attribute_text(value)
                    && name_is_free
                    && message.headers.get(&header).is_none()
                {
                    self.text(&header, &text);
                }
            }
            if let Some(content_type) = &message.content_type {
                self.text(names::FOREIGN_CONTENT_TYPE, content_type);
            }
        }
        let text =
            |text: Option<&'a crate::message::Text>| text.map(|text| text.as_str()).filter(|text| !text.is_empty());
        Attributes {
            kind: text(Some(&message.kind)),
            source: text(extra.and_then(|extra| extra.origin.as_ref())),
            subject: text(extra.and_then(|extra| extra.subject.as_ref())),
            data_schema: text(extra.and_then(|extra| extra.data_schema.as_ref())),
            ..Attributes::default()
        }
    }

    /// What the message has a place for, and the record has not.
    fn properties(&mut self, message: &Message, event: &Attributes<'_>, shape: Shape, content_type: Option<&str>) {
        if shape == Shape::Native {
            let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
            let id = message.id.as_str(&mut buffer);
            if event.id != Some(id) {
                self.text(names::ID, id);
            }
            if let Some(given) = message.content_type.as_deref().filter(|given| content_type != Some(*given)) {
                self.text(names::CONTENT_TYPE, given);
            }
        }
        if !message.kind.is_empty() && !says(event.kind, Some(&message.kind)) {
            self.text(names::KIND, &message.kind);
        }
        if message.priority != PRIORITY_NORMAL {
            self.number(names::PRIORITY, message.priority.into());
        }
        let texts = [(names::CORRELATION_ID, &message.correlation_id), (names::REPLY_TO, &message.reply_to)];
        for (name, text) in texts {
            if let Some(text) = text {
                self.text(name, text);
            }
        }
        let numbers = [
            (names::NOT_BEFORE, message.not_before),
            (names::EXPIRES_AT, message.expires_at),
            (names::RETRIES_MAX, message.retries_max.map(u64::from)),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                self.number(name, number);
            }
        }
        if message.transient {
            self.text(names::DELIVERY_MODE, "transient");
        }
        if let Some(extra) = message.extra.as_deref().and_then(|given| extra::write(given, event)) {
            self.text(names::EXTRA, &extra);
        }
    }

    /// The record's time, beside which the message's is a header where they differ. Servers refuse what is far ahead, and
    /// delete by it what is old: neither must happen to what we keep on somebody's behalf.
    fn timestamp(&mut self, message: &Message, event: &Attributes<'_>, is_copy: bool) -> i64 {
        let at = message.timestamp;
        let is_ours = is_copy || message.headers.get(header::DEAD_CODE).is_some();
        let fits = |at: UnixMs| at <= now_ms().saturating_add(AHEAD_MAX_MS);
        match i64::try_from(at) {
            Ok(own) if own > 0 && !is_ours && fits(at) => {
                if event.time.is_some_and(|time| time != at) {
                    self.number(names::TIMESTAMP, at);
                }
                own
            }
            _ => {
                self.number(names::TIMESTAMP, at);
                0
            }
        }
    }

    fn copy(&mut self, copy: &Copy) {
        self.text(names::RETRY_TOPIC, &copy.topic);
        self.number(names::RETRY_PARTITION, copy.partition.into());
        self.number(names::RETRY_OFFSET, copy.offset);
        self.text(names::RETRY_GROUP, &copy.group);
        self.number(names::ATTEMPT, copy.attempt.into());
        self.number(names::DUE, copy.due);
        if let Some(failures) = failures(&copy.failures) {
            self.text(names::FAILURES, &failures);
        }
    }
}

fn failures(failures: &[FailedAttempt]) -> Option<String> {
    let skipped = failures.len().saturating_sub(FAILURES_MAX);
    let first = failures.iter().take(usize::from(skipped > 0));
    let kept: Vec<_> = first.chain(failures.iter().skip(if skipped > 0 { skipped + 1 } else { 0 })).collect();
    if kept.is_empty() { None } else { serde_json::to_string(&kept).ok() }
}
