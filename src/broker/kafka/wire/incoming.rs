//! From Kafka to a message.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use uuid::Uuid;

use super::{Copy, Incoming, beside::Beside, cloud_events, names};
use crate::{
    codec::extra,
    message::{FailedAttempt, Headers, Message, MessageId, PRIORITY_MAX, PRIORITY_NORMAL, Text, UnixMs},
};

/// The message that a record carries, and what it says beside that.
pub(in crate::broker::kafka) fn incoming<M: rdkafka::Message>(record: &M) -> Incoming {
    let mut parts = Parts::default();
    let mut message = Message {
        payload: record.payload().map_or_else(Bytes::new, Bytes::copy_from_slice),
        key: record.key().map(Bytes::copy_from_slice),
        timestamp: record.timestamp().to_millis().and_then(|at| UnixMs::try_from(at).ok()).unwrap_or(0),
        priority: PRIORITY_NORMAL,
        ..Message::default()
    };
    let mut poison = record.headers().and_then(|headers| read_headers(headers, &mut message, &mut parts).err());
    if parts.is_structured && record.payload().is_some() {
        match cloud_events::parse(&message.payload, message.timestamp) {
            Ok(event) => parts.take_event(event, &mut message),
            Err(error) => {
                let text = format!("its content type says that it is a CloudEvent in JSON, and it is not: {error}");
                poison = poison.or(Some(text));
            }
        }
    } else if parts.has_attributes {
        parts.take_attributes(&mut message);
    }
    message.id = parts.id.take().unwrap_or_else(|| derived_id(record));
    if let Some(timestamp) = parts.timestamp {
        message.timestamp = timestamp;
    }
    if record.payload().is_none() {
        message.headers.append(names::TOMBSTONE, "true");
    }
    if let Some(beside) = parts.beside.write() {
        message.headers.append(names::BESIDE, &beside);
    }
    Incoming { message, copy: parts.copy.and_then(|copy| copy.finish()), poison }
}

/// Made of the record's place, so the same on every delivery; sorts by the record's time.
fn derived_id(record: &impl rdkafka::Message) -> MessageId {
    let time = record.timestamp().to_millis().and_then(|at| u128::try_from(at).ok()).unwrap_or(0);
    let partition = u128::try_from(record.partition()).unwrap_or(0) & 0xffff;
    let offset = u128::try_from(record.offset()).unwrap_or(0) & u128::from(u64::MAX);
    let place = Uuid::from_u128((time << 80) | (partition << 64) | offset);
    MessageId::Uuid(place).derive(record.topic(), usize::try_from(record.partition()).unwrap_or(0))
}

/// What headers say that is not for handlers, or not yet.
#[derive(Default)]
struct Parts {
    id: Option<MessageId>,
    timestamp: Option<UnixMs>,
    beside: Beside,
    /// Whether some are attributes of a CloudEvent.
    has_attributes: bool,
    /// Whether the value is a CloudEvent as a whole.
    is_structured: bool,
    copy: Option<Box<CopyParts>>,
}

#[derive(Default)]
struct CopyParts {
    topic: Option<Box<str>>,
    partition: Option<u64>,
    offset: Option<u64>,
    group: Option<Box<str>>,
    attempt: Option<u64>,
    due: Option<u64>,
    failures: Vec<FailedAttempt>,
}

fn read_headers(
    given: &impl rdkafka::message::Headers,
    message: &mut Message,
    parts: &mut Parts,
) -> Result<(), String> {
    let count = given.count();
    // Enough for most names and values; text grows by itself where it is not.
    message.headers = Headers::with_capacity(count * 32);
    let mut done = 0;
    // The client library panics on a name that is no UTF-8, which anybody may send.
    let read = catch_unwind(AssertUnwindSafe(|| {
        while let Some(header) = given.try_get(done) {
            read_header(header.key, header.value, message, parts);
            done += 1;
        }
    }));
    read.map_err(|_| format!("the name of its header {} of {count} is not UTF-8", done + 1))
}

fn read_header(name: &str, value: Option<&[u8]>, message: &mut Message, parts: &mut Parts) {
    let text = value.and_then(|value| std::str::from_utf8(value).ok());
    if names::is_apart(name) {
        if let Some(text) = text {
            apart(name, text, message, parts);
        }
        return;
    }
    if names::is_unsent(name) {
        // It says something of a record only where we have written it there.
        return;
    }
    parts.has_attributes |= cloud_events::is_attribute(name);
    let Some(text) = text else { return parts.beside.append(&mut message.headers, name, value) };
    if name == names::FOREIGN_CONTENT_TYPE {
        if cloud_events::is_structured(text) {
            parts.is_structured = true;
            return;
        }
        if message.content_type.is_none() {
            message.content_type = Some(text.into());
        }
    }
    message.headers.append(name, text);
}

/// One header of ours.
fn apart(name: &str, text: &str, message: &mut Message, parts: &mut Parts) {
    let number = || text.parse::<u64>().ok();
    match name {
        names::ID => parts.id = Some(text).filter(|id| !id.is_empty()).map(MessageId::parse),
        names::KIND => message.kind = text.into(),
        names::PRIORITY => {
            message.priority = number().map_or(PRIORITY_NORMAL, |given| given.min(PRIORITY_MAX.into()) as u8);
        }
        names::CONTENT_TYPE => message.content_type = Some(text.into()),
        names::CORRELATION_ID => message.correlation_id = Some(text.into()),
        names::REPLY_TO => message.reply_to = Some(text.into()),
        names::TIMESTAMP => parts.timestamp = number(),
        names::NOT_BEFORE => message.not_before = number(),
        names::EXPIRES_AT => message.expires_at = number(),
        names::RETRIES_MAX => message.retries_max = number().and_then(|retries| retries.try_into().ok()),
        names::DELIVERY_MODE => message.transient = text == "transient",
        names::EXTRA => message.extra = extra::read(text),
        names::MORE => {
            let pairs: Vec<(String, String)> = serde_json::from_str(text).unwrap_or_default();
            for (name, value) in pairs.iter().filter(|(name, _)| !names::is_apart(name)) {
                message.headers.append(name, value);
            }
        }
        _ => parts.copy.get_or_insert_default().read(name, text),
    }
}

impl CopyParts {
    fn read(&mut self, name: &str, text: &str) {
        let number = || text.parse::<u64>().ok();
        match name {
            names::RETRY_TOPIC => self.topic = Some(text.into()),
            names::RETRY_PARTITION => self.partition = number(),
            names::RETRY_OFFSET => self.offset = number(),
            names::RETRY_GROUP => self.group = Some(text.into()),
            names::ATTEMPT => self.attempt = number(),
            names::DUE => self.due = number(),
            names::FAILURES => self.failures = serde_json::from_str(text).unwrap_or_default(),
            _ => {}
        }
    }

    /// A copy says all of it, but the failures.
    fn finish(self) -> Option<Copy> {
        Some(Copy {
            topic: self.topic?.into(),
            partition: self.partition?.try_into().ok()?,
            offset: self.offset?,
            group: self.group?.into(),
            attempt: u32::try_from(self.attempt?).ok()?.max(1),
            due: self.due?,
            failures: self.failures,
        })
    }
}

impl Parts {
    /// Takes from an event that was a document what headers of ours do not say.
    fn take_event(&mut self, event: Message, message: &mut Message) {
        self.id = self.id.take().or(Some(event.id));
        message.payload = event.payload;
        message.timestamp = event.timestamp;
        if message.kind.is_empty() {
            message.kind = event.kind;
        }
        message.content_type = message.content_type.take().or(event.content_type);
        message.correlation_id = message.correlation_id.take().or(event.correlation_id);
        message.reply_to = message.reply_to.take().or(event.reply_to);
        message.key = message.key.take().or(event.key);
        message.not_before = message.not_before.or(event.not_before);
        message.expires_at = message.expires_at.or(event.expires_at);
        message.retries_max = message.retries_max.or(event.retries_max);
        if message.priority == PRIORITY_NORMAL {
            message.priority = event.priority;
        }
        message.transient |= event.transient;
        for (name, value) in event.headers.iter() {
            message.headers.append(name, value);
        }
        match (&mut message.extra, event.extra) {
            (None, other) => message.extra = other,
            (Some(_), None) => {}
            (Some(extra), Some(other)) => {
                extra.origin = extra.origin.take().or(other.origin);
                extra.subject = extra.subject.take().or(other.subject);
                extra.data_schema = extra.data_schema.take().or(other.data_schema);
                for (name, value) in other.unknown {
                    extra.unknown.entry(name).or_insert(value);
                }
            }
        }
    }

    /// Takes from a CloudEvent's attributes what headers of ours do not say.
    fn take_attributes(&mut self, message: &mut Message) {
        let event = cloud_events::read(&message.headers);
        let kind = event.kind.filter(|_| message.kind.is_empty()).map(Text::from);
        let time = event.time;
        self.id = self.id.take().or_else(|| event.id.map(MessageId::parse));
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
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Header;

    use super::*;

    /// As the client library: it panics when it is asked for a name that is no text.
    struct Broken;

    impl rdkafka::message::Headers for Broken {
        fn count(&self) -> usize {
            3
        }

        fn try_get(&self, place: usize) -> Option<Header<'_, &[u8]>> {
            let name: &[u8] = if place == 1 { b"\xff" } else { b"a" };
            Some(Header { key: std::str::from_utf8(name).unwrap(), value: Some(b"1") })
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_poison_and_what_is_before_it_is_read() {
        let (mut message, mut parts) = (Message::default(), Parts::default());
        let read = read_headers(&Broken, &mut message, &mut parts);
        assert_eq!(read, Err("the name of its header 2 of 3 is not UTF-8".to_owned()));
        assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("a", "1")]);
    }
}
