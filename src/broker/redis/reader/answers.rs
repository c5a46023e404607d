//! What the server answers a reader, as items.

use redis::Value;

use super::{
    super::{
        place::Known,
        reply::{Reply, Walk},
        wire,
    },
    session::Session,
    work::{Entry, Item},
};
use crate::message::{FailedAttempt, Kind, Message, Position, ReasonCode, UnixMs, now_ms};

/// What looking after a place came to.
#[derive(Debug)]
pub(super) struct Tended {
    /// The server's clock.
    pub(super) now: UnixMs,
    /// When the next is due.
    pub(super) next_due: Option<UnixMs>,
    /// The last id of the stream that says that something happened.
    pub(super) bell: String,
    /// How many wait for their time, and when that was.
    pub(super) delayed: (i64, i64),
    pub(super) items: Vec<Item>,
    /// Whether there is what may have ended another process.
    pub(super) has_suspects: bool,
    /// Whether the only item is such.
    pub(super) is_suspect: bool,
}

impl Session {
    /// What came of a look after what is not new.
    pub(super) fn tended(&self, answer: Value) -> Option<Tended> {
        let Value::Array(parts) = answer else { return None };
        let [
            Value::Int(now),
            Value::Int(next_due),
            Value::BulkString(bell),
            Value::Int(delayed),
            Value::Int(at),
            Value::Array(taken),
            Value::Int(suspects),
        ] = <[Value; 7]>::try_from(parts).ok()?
        else {
            return None;
        };
        Some(Tended {
            now: u64::try_from(now).unwrap_or(0),
            next_due: u64::try_from(next_due).ok(),
            bell: String::from_utf8(bell).ok()?,
            delayed: (delayed, at),
            items: self.claimed(taken),
            has_suspects: suspects > 0,
            is_suspect: suspects == 2,
        })
    }

    /// Deliveries as scripts give them.
    pub(in crate::broker::redis) fn claimed(&self, taken: Vec<Value>) -> Vec<Item> {
        taken.into_iter().filter_map(|one| self.claimed_one(one)).collect()
    }

    fn claimed_one(&self, taken: Value) -> Option<Item> {
        let Value::Array(parts) = taken else { return None };
        let [
            Value::BulkString(stream),
            Value::Int(count),
            Value::BulkString(id),
            Value::Array(fields),
            Value::BulkString(notes),
        ] = <[Value; 5]>::try_from(parts).ok()?
        else {
            return None;
        };
        let place = self.streams.iter().position(|name| name.as_bytes() == stream)?;
        let entry = (u8::try_from(place).ok()?, wire::EntryId::parse(&id)?);
        let message = wire::incoming_of(&fields, &self.place.address.name, entry.1);
        let mut item = self.item(entry, message, u32::try_from(count).unwrap_or(u32::MAX).max(1));
        item.has_notes = !notes.is_empty();
        item.failures = serde_json::from_slice(&notes).unwrap_or_default();
        // Whoever had it then never said what became of it.
        let said = item.failures.last().map_or(0, |failure| failure.attempt);
        let now = now_ms();
        for attempt in (said + 1..item.count).take(crate::message::FAILURES_MAX) {
            let text = format!("not settled within its lease of {:?}, or whoever had it has ended", self.lease);
            let failure = FailedAttempt { attempt, at: now, code: ReasonCode::Timeout, text };
            crate::message::remember(&mut item.failures, failure);
        }
        Some(item)
    }

    /// What is new, with the highest level that may have more.
    pub(super) fn read(&self, reply: &Reply, count: usize) -> (Vec<Item>, Option<usize>) {
        let (mut items, mut full) = (Vec::new(), None);
        let mut walk = reply.walk();
        for _ in 0..walk.array().unwrap_or(0) {
            if self.read_stream(&mut walk, count, &mut items, &mut full).is_none() {
                tracing::error!(source = %self.place.address, "Redis answered otherwise than it should");
                break;
            }
        }
        (items, full)
    }

    fn read_stream(
        &self,
        walk: &mut Walk<'_>,
        count: usize,
        items: &mut Vec<Item>,
        full: &mut Option<usize>,
    ) -> Option<()> {
        walk.array()?;
        let key = walk.text()?;
        let name = key.get(self.place.base.len() + 1..)?;
        let place = self.streams.iter().position(|known| known.as_bytes() == name)?;
        let level = u8::try_from(place).ok()?;
        let entries = walk.array()?;
        if entries >= count {
            *full = Some(full.map_or(place, |other| other.min(place)));
        }
        for _ in 0..entries {
            walk.array()?;
            let id = wire::EntryId::parse(walk.text()?)?;
            let values = walk.array()?;
            let fields = std::iter::from_fn(|| Some((walk.text()?, walk.text()?))).take(values / 2);
            let message = wire::incoming(fields, values / 2, &self.place.address.name, id);
            items.push(self.item((level, id), message, 1));
        }
        Some(())
    }

    fn item(&self, entry: Entry, mut message: Message, count: u32) -> Item {
        let (_, id) = entry;
        let Known { ttl, .. } = self.place.known();
        let is_topic = self.place.address.kind == Kind::Topic;
        if let Some(ttl) = ttl.filter(|_| !is_topic) {
            let ends = id.ms.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
            message.expires_at = Some(message.expires_at.map_or(ends, |own| own.min(ends)));
        }
        let position = is_topic.then(|| Position { partition: 0, offset: id.ms.saturating_sub(1) });
        Item { entry, message: message.into(), count, failures: Vec::new(), has_notes: false, position }
    }
}
