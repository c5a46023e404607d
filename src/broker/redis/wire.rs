//! A message as the fields of an entry of a stream, and back. Nothing here talks to a server.
//!
//! Each property has a field of its own, and each header one that begins with `h:`. An entry of another program needs none of
//! them but `payload`: what is missing is as for any message, its id is made of its place, and fields that are not known
//! here are headers. What cannot be shown as text is base64, and says so in [`names::BINARY`].

use bytes::Bytes;
use redis::{Cmd, Value};
use uuid::{Uuid, fmt::Hyphenated};

use crate::{
    codec::{bytes::to_base64url, cloud_events::Attributes, extra},
    message::{Headers, Message, MessageId, PRIORITY_MAX, PRIORITY_NORMAL, UnixMs},
};

/// Names of fields.
pub(super) mod names {
    pub(in crate::broker::redis) const ID: &str = "id";
    pub(in crate::broker::redis) const KIND: &str = "type";
    pub(in crate::broker::redis) const PAYLOAD: &str = "payload";
    pub(in crate::broker::redis) const TIMESTAMP: &str = "timestamp";
    pub(in crate::broker::redis) const PRIORITY: &str = "priority";
    pub(in crate::broker::redis) const KEY: &str = "key";
    pub(in crate::broker::redis) const CONTENT_TYPE: &str = "content-type";
    pub(in crate::broker::redis) const CORRELATION_ID: &str = "correlation-id";
    pub(in crate::broker::redis) const REPLY_TO: &str = "reply-to";
    pub(in crate::broker::redis) const NOT_BEFORE: &str = "not-before";
    pub(in crate::broker::redis) const EXPIRES_AT: &str = "expires-at";
    pub(in crate::broker::redis) const RETRIES_MAX: &str = "retries-max";
    pub(in crate::broker::redis) const TRANSIENT: &str = "transient";
    pub(in crate::broker::redis) const EXTRA: &str = "extra";
    /// Before the name of a header.
    pub(in crate::broker::redis) const HEADER: &str = "h:";
    /// The header that names fields of another program whose values are base64 here.
    pub(in crate::broker::redis) const BINARY: &str = "x-helix-redis-binary";
}

/// Names and values, ready to be sent.
#[derive(Default)]
pub(super) struct Fields {
    /// Where each ends in `bytes`.
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl Fields {
    fn put(&mut self, name: &str, value: &[u8]) {
        self.bytes.extend_from_slice(name.as_bytes());
        self.ends.push(self.bytes.len());
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len());
    }

    fn number(&mut self, name: &str, value: u64) {
        self.put(name, value.to_string().as_bytes());
    }

    /// How many names and values there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Adds all of them to a command.
    pub(super) fn add_to(&self, command: &mut Cmd) {
        let mut start = 0;
        for end in &self.ends {
            command.arg(self.bytes.get(start..*end).unwrap_or_default());
            start = *end;
        }
    }
}

/// What is published.
pub(super) fn outgoing(message: &Message) -> Fields {
    let mut fields = Fields::default();
    fields.bytes.reserve(message.size() + 128);
    let mut buffer = [0; Hyphenated::LENGTH];
    fields.put(names::ID, message.id.as_str(&mut buffer).as_bytes());
    fields.put(names::KIND, message.kind.as_bytes());
    fields.number(names::TIMESTAMP, message.timestamp);
    fields.put(names::PAYLOAD, &message.payload);
    if message.priority != PRIORITY_NORMAL {
        fields.number(names::PRIORITY, message.priority.into());
    }
    if let Some(key) = &message.key {
        fields.put(names::KEY, key);
    }
    let texts = [
        (names::CONTENT_TYPE, &message.content_type),
        (names::CORRELATION_ID, &message.correlation_id),
        (names::REPLY_TO, &message.reply_to),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            fields.put(name, text.as_bytes());
        }
    }
    let numbers = [
        (names::NOT_BEFORE, message.not_before),
        (names::EXPIRES_AT, message.expires_at),
        (names::RETRIES_MAX, message.retries_max.map(u64::from)),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            fields.number(name, number);
        }
    }
    if message.transient {
        fields.put(names::TRANSIENT, b"1");
    }
    if let Some(extra) = message.extra.as_deref().and_then(|extra| extra::write(extra, &Attributes::default())) {
        fields.put(names::EXTRA, extra.as_bytes());
    }
    for (name, value) in message.headers.iter() {
        fields.put(&format!("{}{name}", names::HEADER), value.as_bytes());
    }
    fields
}

/// The message of an entry that lies at `id` of `place`, of its names and values, about so many.
pub(super) fn incoming<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    count: usize,
    place: &str,
    id: EntryId,
) -> Message {
    let mut message = Message { priority: PRIORITY_NORMAL, timestamp: id.ms, ..Message::default() };
    let (mut own_id, mut binary) = (None, Vec::new());
    // Enough for most names and values; text grows by itself where it is not.
    message.headers = Headers::with_capacity(count.saturating_sub(4) * 32);
    for (name, value) in fields {
        match name {
            // A copy: an answer has many messages, and none is to keep the others in memory.
            b"payload" => message.payload = Bytes::copy_from_slice(value),
            b"key" => message.key = Some(Bytes::copy_from_slice(value)),
            name => {
                let name = String::from_utf8_lossy(name);
                match std::str::from_utf8(value) {
                    Ok(text) => own_id = own_id.or(property(&name, text, &mut message)),
                    Err(_) => {
                        let name = name.strip_prefix(names::HEADER).unwrap_or(&name);
                        message.headers.append(name, &to_base64url(value));
                        binary.push(name.to_owned());
                    }
                }
            }
        }
    }
    if !binary.is_empty() {
        message.headers.append(names::BINARY, &binary.join(","));
    }
    message.id = own_id.unwrap_or_else(|| {
        let place_of = Uuid::from_u128((u128::from(id.ms) << 80) | u128::from(id.seq));
        MessageId::Uuid(place_of).derive(place, 0)
    });
    message
}

/// The same, as the client library has them. What is no text of the server's is passed over.
pub(super) fn incoming_of(fields: &[Value], place: &str, id: EntryId) -> Message {
    let pairs = fields.chunks_exact(2).filter_map(|pair| match pair {
        [Value::BulkString(name), Value::BulkString(value)] => Some((name.as_slice(), value.as_slice())),
        _ => None,
    });
    incoming(pairs, fields.len() / 2, place, id)
}

/// One field. Answers the id, if it is that.
fn property(name: &str, text: &str, message: &mut Message) -> Option<MessageId> {
    let number = || text.parse::<u64>().ok();
    match name {
        names::ID if !text.is_empty() => return Some(MessageId::parse(text)),
        names::ID => {}
        names::KIND => message.kind = text.into(),
        names::TIMESTAMP => message.timestamp = number().unwrap_or(message.timestamp),
        names::PRIORITY => {
            let given = number().map(|given| given.min(PRIORITY_MAX.into()));
            message.priority = given.and_then(|given| u8::try_from(given).ok()).unwrap_or(PRIORITY_NORMAL);
        }
        names::CONTENT_TYPE => message.content_type = Some(text.into()),
        names::CORRELATION_ID => message.correlation_id = Some(text.into()),
        names::REPLY_TO => message.reply_to = Some(text.into()),
        names::NOT_BEFORE => message.not_before = number(),
        names::EXPIRES_AT => message.expires_at = number(),
        names::RETRIES_MAX => message.retries_max = number().and_then(|retries| retries.try_into().ok()),
        names::TRANSIENT => message.transient = true,
        names::EXTRA => message.extra = extra::read(text),
        name => message.headers.append(name.strip_prefix(names::HEADER).unwrap_or(name), text),
    }
    None
}

/// Where an entry lies in its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EntryId {
    /// When it was added, in queues; the number in topics.
    pub(super) ms: UnixMs,
    /// What tells it from others.
    pub(super) seq: u64,
}

impl EntryId {
    /// Of what the server says.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (ms, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self { ms: ms.parse().ok()?, seq: seq.parse().ok()? })
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Text;

    fn read(fields: &Fields) -> Vec<Value> {
        let mut start = 0;
        let values = fields.ends.iter().map(|end| {
            let value = fields.bytes[start..*end].to_vec();
            start = *end;
            Value::BulkString(value)
        });
        values.collect()
    }

    proptest! {
        #[test]
        fn a_message_reads_back_as_it_was_written(
            payload: Vec<u8>, key: Option<Vec<u8>>, headers: Vec<(String, String)>, priority in 0..=10_u8,
            not_before: Option<u64>, retries_max: Option<u32>, transient: bool, reply_to: Option<String>, subject: Option<String>,
        ) {
            let mut message = Message::new("kind", payload, 1_700_000_000_000);
            message.key = key.map(Bytes::from);
            message.headers = headers.iter().collect::<Vec<_>>().iter().map(|(name, value)| (name, value)).collect();
            (message.priority, message.not_before, message.retries_max, message.transient) =
                (priority, not_before, retries_max, transient);
            message.reply_to = reply_to.map(Text::from);
            if let Some(subject) = subject {
                message.extra_mut().subject = Some(subject.into());
            }
            let same = incoming_of(&read(&outgoing(&message)), "queue", EntryId { ms: 1, seq: 1 });
            prop_assert_eq!(same, message);
        }
    }

    #[test]
    fn what_another_program_added_has_the_same_id_each_time() {
        let fields = ["payload", "hello", "tenant", "acme"].map(|text| Value::BulkString(text.into()));
        let id = EntryId { ms: 1_700_000_000_000, seq: 3 };
        let (one, again) = (incoming_of(&fields, "queue", id), incoming_of(&fields, "queue", id));
        assert_eq!(one, again);
        assert_eq!((one.timestamp, &*one.payload), (id.ms, b"hello".as_slice()));
        assert_eq!(one.headers.get("tenant"), Some("acme"));
        assert_ne!(one.id, incoming_of(&fields, "other", id).id);
    }

    #[test]
    fn what_is_no_text_is_said_to_be_none() {
        let fields = vec![Value::BulkString("blob".into()), Value::BulkString(vec![0xff, 0])];
        let message = incoming_of(&fields, "queue", EntryId::default());
        assert_eq!(message.headers.get("blob"), Some("_wA"));
        assert_eq!(message.headers.get(names::BINARY), Some("blob"));
    }
}
