//! What a queue may hold, and what becomes of what is beyond: the publisher is refused, or the oldest is dropped, or it
//! leaves for the dead letters.

use std::sync::Arc;

use super::{
    effects::{Effects, Load},
    item::Item,
    lane::Lane,
    state::{EVICTOR, State},
};
use crate::{
    broker::{BatchMax, Count, Delivery, Overflow, PublishError, embedded::clock::Now},
    message::UnixMs,
};

/// Messages that wait for their time and are read at a time to be dropped.
const DROP_MAX: usize = 100;

impl State {
    /// Whether a message of that size may come in now.
    pub(super) fn admit(&self, size: usize, bytes_max: usize) -> Result<(), PublishError> {
        if self.closed {
            return Err(PublishError::Closed);
        }
        if size > bytes_max {
            return Err(PublishError::TooLarge { address: self.address.clone(), bytes: size, max: bytes_max });
        }
        let full = |limit: String| Err(PublishError::Full { address: self.address.clone(), limit });
        // What leaves for the dead letters takes a moment to do so.
        let (factor, bounded) = match self.settings.overflow {
            Overflow::RejectPublish => (1, true),
            Overflow::DeadLetterOldest => (2, true),
            Overflow::DropOldest => (1, false),
        };
        let (length, bytes) = (self.waiting(), self.bytes.saturating_sub(self.bytes_out) + size as u64);
        match (self.settings.length_max, self.settings.bytes_max) {
            (Some(max), _) if max == 0 || bounded && length >= max.saturating_mul(factor) => {
                full(format!("length_max {max}"))
            }
            (_, Some(max)) if size as u64 > max || bounded && bytes > max.saturating_mul(factor) => {
                full(format!("bytes_max {max}"))
            }
            _ => Ok(()),
        }
    }

    /// Those that count towards limits: all but those that are out.
    fn waiting(&self) -> u64 {
        self.count.saturating_sub(self.leases.len() as u64)
    }

    fn is_over(&self) -> bool {
        self.settings.length_max.is_some_and(|max| self.waiting() > max)
            || self.settings.bytes_max.is_some_and(|max| self.bytes.saturating_sub(self.bytes_out) > max)
    }

    fn overflows(&self) -> bool {
        self.settings.overflow == Overflow::DeadLetterOldest && self.is_over()
    }

    pub(super) fn drop_beyond_limits(&mut self, out: &mut Effects) {
        while self.drops() {
            let Some(lowest) = self.lanes.iter().position(|lane| lane.len() > 0) else {
                // Only where nothing could be delivered now does something that waits for its time go; it is read first.
                return out.loads.extend(self.later.due(UnixMs::MAX, DROP_MAX).map(Load::Due));
            };
            self.load(lowest, out);
            let Some(item) = self.lanes.get_mut(lowest).and_then(Lane::pop) else { return };
            self.drop_one(&item, out);
        }
    }

    /// Whether the oldest is to be dropped.
    pub(super) fn drops(&self) -> bool {
        self.settings.overflow == Overflow::DropOldest && self.is_over()
    }

    pub(super) fn drop_one(&mut self, item: &Item, out: &mut Effects) {
        self.remove(item, out);
        self.dropped += 1;
    }

    /// Messages at the head of each priority that have expired, and the oldest beyond the limits where they leave for
    /// the dead letters.
    pub(super) fn evict(&mut self, max: BatchMax, now: Now, out: &mut Effects) -> Vec<Delivery> {
        if self.closed {
            return Vec::new();
        }
        let mut items = Vec::new();
        self.lapse(now, out);
        self.bring_due(now, out);
        for priority in 0..self.lanes.len() {
            if self.lanes.get(priority).is_some_and(|lane| lane.front().is_none()) {
                self.load(priority, out);
            }
            while items.len() < max.count.max(1)
                && let Some(lane) = self.lanes.get_mut(priority)
                && (lane.front().is_some_and(|item| item.message.expired(now.unix))
                    || lane.len() > 0 && self.overflows())
                && let Some(mut item) = self.lanes.get_mut(priority).and_then(Lane::pop)
            {
                self.bytes_out += u64::from(item.bytes);
                // It is not handed to a handler: should the process end now, no attempt was made.
                out.changes.push(item.note(false));
                let (message, attempt, failures) =
                    (Arc::clone(&item.message), item.tries.attempt(), item.tries.failures());
                let tag = self.leases.put(item, EVICTOR, now);
                items.push(Delivery {
                    message,
                    tag,
                    attempt,
                    count: Count::Exact,
                    topic: None,
                    position: None,
                    failures,
                });
            }
        }
        self.readers.took(EVICTOR, items.len());
        items
    }
}
