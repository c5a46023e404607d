//! What is out: deliveries that are owed a settlement, each for the length of a lease.
//!
//! A tag is a place in a vector and a sequence number, so that settling looks nothing up and a settlement that comes
//! too late finds nothing. Leases have no timers of their own: they are looked through when the first could have run
//! out, which is about once a lease.

use std::time::Duration;

use super::{
    clock::{Now, Tick, nanos},
    readers::{ReaderId, Readers},
};
use crate::{
    broker::Tag,
    message::{FailedAttempt, ReasonCode},
};

/// Places kept while nothing is out.
const IDLE_CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Leases<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    sequence: u32,
    length: Duration,
    /// No lease runs out before this; `None` while nothing is out.
    check: Option<Tick>,
}

#[derive(Debug)]
struct Slot<T> {
    sequence: u32,
    out: Option<Out<T>>,
}

/// One delivery that is out.
#[derive(Debug)]
pub(super) struct Out<T> {
    pub(super) what: T,
    pub(super) reader: ReaderId,
    delivered: Tick,
}

impl<T> Leases<T> {
    pub(super) fn new(length: Duration) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), sequence: 0, length, check: None }
    }

    /// Another length holds from the next look on.
    pub(super) fn set_length(&mut self, length: Duration) {
        self.length = length;
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn put(&mut self, what: T, reader: ReaderId, now: Now) -> Tag {
        let ends = now.after(self.length);
        self.check = Some(self.check.map_or(ends, |check| check.min(ends)));
        // Over all places, not each: places can be given back to the allocator and still never repeat a tag soon.
        self.sequence = self.sequence.wrapping_add(1);
        let slot = Slot { sequence: self.sequence, out: Some(Out { what, reader, delivered: now.tick }) };
        let place = match self.free.pop() {
            Some(place) => {
                if let Some(old) = self.slots.get_mut(place as usize) {
                    *old = slot;
                }
                place
            }
            None => {
                self.slots.push(slot);
                // Bounded by the sum of all prefetches, far below 2^32.
                (self.slots.len() - 1) as u32
            }
        };
        Tag::from(self.sequence) << 32 | Tag::from(place)
    }

    /// Takes it back, unless it was taken back before.
    pub(super) fn take(&mut self, tag: Tag) -> Option<Out<T>> {
        let place = tag as u32;
        let slot = self.slots.get_mut(place as usize).filter(|slot| Tag::from(slot.sequence) == tag >> 32)?;
        let out = slot.out.take()?;
        self.free.push(place);
        if self.free.len() == self.slots.len() {
            self.none_left();
        }
        Some(out)
    }

    pub(super) fn get_mut(&mut self, tag: Tag, now: Now) -> Option<&mut T> {
        let slot = self.slots.get_mut(tag as u32 as usize).filter(|slot| Tag::from(slot.sequence) == tag >> 32)?;
        let out = slot.out.as_mut()?;
        out.delivered = now.tick;
        Some(&mut out.what)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.out.as_ref()).map(|out| &out.what)
    }

    /// When to look again for leases that ran out: no later than the first that is out now, or that anybody takes
    /// from now on, so that nobody who waits needs to be told about new ones.
    pub(super) fn check_at(&self, now: Now) -> Tick {
        self.check.unwrap_or_else(|| now.after(self.length))
    }

    /// Takes back those whose lease ran out.
    pub(super) fn lapsed(&mut self, readers: &Readers, now: Now) -> Vec<Out<T>> {
        let mut lapsed = Vec::new();
        if self.check.is_none_or(|check| now.tick < check) {
            return lapsed;
        }
        let length = nanos(self.length);
        let mut next = Tick::MAX;
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let Some(out) = &slot.out else { continue };
            let ends = out.delivered.max(readers.renewed(out.reader)).saturating_add(length);
            if ends > now.tick {
                next = next.min(ends);
            } else if let Some(out) = slot.out.take() {
                self.free.push(place as u32);
                lapsed.push(out);
            }
        }
        self.check = Some(next);
        if self.free.len() == self.slots.len() {
            self.none_left();
        }
        lapsed
    }

    /// Takes everything back.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Out<T>> + use<T> {
        self.free = Vec::new();
        self.check = None;
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.out)
    }

    /// The failure that a lapsed lease is.
    pub(super) fn failure(&self, attempt: u32, now: Now) -> FailedAttempt {
        FailedAttempt {
            attempt,
            at: now.unix,
            code: ReasonCode::Timeout,
            text: format!("not settled within its lease of {:?}", self.length),
        }
    }

    fn none_left(&mut self) {
        self.check = None;
        if self.slots.len() > IDLE_CAPACITY {
            self.slots = Vec::new();
            self.free = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tick: Tick) -> Now {
        Now { tick, unix: 0, steady: 0 }
    }

    #[test]
    fn a_tag_names_one_delivery_and_never_the_next_in_its_place() {
        let mut leases = Leases::new(Duration::from_nanos(10));
        let first = leases.put("first", 1, at(0));
        assert_eq!(leases.take(first).map(|out| out.what), Some("first"));
        let second = leases.put("second", 1, at(0));
        assert!(leases.take(first).is_none() && leases.get_mut(first, at(0)).is_none());
        assert_eq!(leases.lapsed(&Readers::default(), at(10)).len(), 1);
        assert!(leases.take(second).is_none());
        assert_eq!(leases.len(), 0);
    }

    #[test]
    fn gives_memory_back_when_nothing_is_out_and_tags_still_differ() {
        let mut leases = Leases::new(Duration::from_secs(1));
        let tags: Vec<Tag> = (0..10_000).map(|n| leases.put(n, 1, at(0))).collect();
        tags.iter().for_each(|tag| assert!(leases.take(*tag).is_some()));
        assert_eq!((leases.slots.capacity(), leases.free.capacity()), (0, 0));
        leases.put(0, 1, at(0));
        assert!(tags.iter().all(|tag| leases.take(*tag).is_none()));
    }
}
