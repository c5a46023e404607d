//! What one reader holds: what waits to be handed out, what is out, and what the server is still to be told. Nothing here
//! waits or talks to a server.
//!
//! What is given back untried is handed out again from here; only what others may have instead goes over the server.

use std::{collections::BTreeMap, mem, time::Duration};

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::{
    super::wire::EntryId,
    work::{Back, Done, Entry, Item, To, Waiter, Work},
};
use crate::{
    broker::{BatchMax, Delivery, Tag},
    message::{FailedAttempt, Settlement, remember},
};

#[cfg(test)]
mod tests;

/// Where it waits: by level, then by arrival.
type Turn = (u8, EntryId, u8);

#[derive(Debug)]
struct Out {
    entry: Entry,
    count: u32,
    size: usize,
    has_notes: bool,
    since: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    prefetch: usize,
    /// Streams of one level.
    per_level: u8,
    waiting: BTreeMap<Turn, Item>,
    waiting_bytes: usize,
    out: FxHashMap<Tag, Out>,
    /// All of it, with what the server is still to be told; `None`: it waits.
    held: FxHashMap<Entry, Option<Tag>>,
    /// What was out when another process ended, and may be what ended it: nothing else is handed out while it is held.
    suspect: Option<Entry>,
    next_tag: Tag,
    work: Work,
    /// What the server is being told: how much of it is done, and how much comes again.
    telling: (usize, usize),
    /// Somebody asked for something since the last fetch.
    pub(super) was_asked: bool,
    /// When that was.
    pub(super) asked_at: Instant,
    /// Somebody waits.
    pub(super) is_waited_for: bool,
    /// Hands out nothing any more: what comes back is for others.
    pub(super) has_ended: bool,
    pub(super) is_closed: bool,
}

/// What settlements came to.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) back: usize,
    pub(super) dead: u64,
}

impl State {
    pub(super) fn new(prefetch: usize, per_level: u8) -> Self {
        Self {
            prefetch: prefetch.max(1),
            per_level,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            out: FxHashMap::default(),
            held: FxHashMap::default(),
            suspect: None,
            next_tag: 1,
            work: Work::default(),
            telling: (0, 0),
            was_asked: false,
            asked_at: Instant::now(),
            is_waited_for: false,
            has_ended: false,
            is_closed: false,
        }
    }

    /// How many more may be fetched, by whoever tells the server first what is done.
    pub(super) fn room(&self) -> usize {
        let held = self.held.len().saturating_sub(self.telling.0);
        if self.has_ended || self.suspect().is_some() { 0 } else { self.prefetch.saturating_sub(held) }
    }

    pub(super) fn prefetch(&self) -> usize {
        self.prefetch
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What is to be handed out alone, until it has ended.
    pub(super) fn suspect(&self) -> Option<Entry> {
        self.suspect.filter(|entry| self.held.contains_key(entry))
    }

    /// This may have ended another process.
    pub(super) fn suspects(&mut self, entry: Entry) {
        self.suspect = Some(entry);
    }

    /// Nothing is held, or nothing but what is out.
    pub(super) fn is_empty(&self, but_out: bool) -> bool {
        self.held.len() == if but_out { self.out.len() } else { 0 }
    }

    /// Whether somebody wants more than is here: who does not ask gets nothing that others could have.
    pub(super) fn is_wanted(&self) -> bool {
        self.was_asked || self.is_waited_for
    }

    pub(super) fn has_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether there is something that the server does not know yet.
    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty() || self.telling != (0, 0)
    }

    fn wait(&mut self, item: Item) {
        self.held.insert(item.entry, None);
        self.waiting_bytes += item.message.size();
        self.waiting.insert(self.turn(item.entry), item);
    }

    fn turn(&self, (stream, id): Entry) -> Turn {
        (stream / self.per_level, id, stream)
    }

    /// Something came from the server. What is here already does not come a second time.
    pub(super) fn arrived(&mut self, item: Item) {
        match self.held.get(&item.entry) {
            None => self.wait(item),
            // Its lease ran out while it waited.
            Some(None) => {
                if let Some(waiting) = self.waiting.get_mut(&self.turn(item.entry)) {
                    waiting.count = waiting.count.max(item.count);
                }
            }
            Some(Some(tag)) => {
                if let Some(out) = self.out.get_mut(tag) {
                    out.count = out.count.max(item.count);
                }
            }
        }
    }

    /// It came too early: nobody gets it before its time.
    pub(super) fn too_early(&mut self, item: &Item, after: Duration) {
        self.held.insert(item.entry, None);
        let count_then = item.count.saturating_sub(1);
        self.work.back.push(Back {
            entry: item.entry,
            count: item.count,
            count_then,
            to: To::Later(after),
            failures: None,
        });
    }

    /// It is not for this reader's group at all.
    pub(super) fn passed_over(&mut self, item: &Item) {
        self.held.insert(item.entry, None);
        self.work.done.push(Done { entry: item.entry, size: item.message.size(), has_notes: item.has_notes });
    }

    /// The next to be handed out.
    pub(super) fn take(&mut self, max: BatchMax, now: Instant) -> Vec<Delivery> {
        let count = max.count.min(self.prefetch.saturating_sub(self.out.len())).min(self.waiting.len());
        let (mut taken, mut bytes) = (Vec::with_capacity(count), 0_usize);
        let alone = self.suspect().map(|entry| self.turn(entry));
        while taken.len() < count {
            let Some(turn) = alone.or_else(|| self.waiting.keys().next().copied()) else { break };
            // One that is to be alone may be out.
            let Some(size) = self.waiting.get(&turn).map(|item| item.message.size()) else { break };
            bytes = bytes.saturating_add(size);
            if bytes > max.bytes && !taken.is_empty() {
                break;
            }
            let Some(item) = self.waiting.remove(&turn) else { break };
            self.waiting_bytes -= size;
            taken.push(self.hand_out(item, now));
        }
        taken
    }

    /// It is out from now on.
    pub(super) fn hand_out(&mut self, item: Item, now: Instant) -> Delivery {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.held.insert(item.entry, Some(tag));
        let size = item.message.size();
        let out = Out { entry: item.entry, count: item.count, size, has_notes: item.has_notes, since: now };
        self.out.insert(tag, out);
        Delivery {
            message: item.message,
            tag,
            attempt: item.count,
            topic: None,
            position: item.position,
            count: Default::default(),
            failures: item.failures,
        }
    }

    /// What becomes of what is out. What is not out any more is passed over.
    pub(super) fn settle(&mut self, settled: Vec<(Delivery, Settlement)>) -> Settled {
        let mut came_to = Settled::default();
        for (delivery, how) in settled {
            let Some(out) = self.out.remove(&delivery.tag) else { continue };
            came_to.back += 1;
            // Held until the server knows.
            self.held.insert(out.entry, None);
            match how {
                Settlement::Accept => self.done(&out),
                Settlement::DeadLetter { .. } => {
                    came_to.dead += 1;
                    self.done(&out);
                }
                Settlement::Release { after } if after.is_zero() => self.release(out, delivery),
                Settlement::Release { after } => {
                    let count_then = out.count.saturating_sub(1);
                    self.back(&out, count_then, To::Later(after), None);
                }
                Settlement::Redeliver { after, failure } => {
                    let mut failures = delivery.failures.clone();
                    remember(&mut failures, *failure);
                    if !after.is_zero() {
                        self.back(&out, out.count, To::Later(after), Some(failures));
                    } else if self.has_ended {
                        self.back(&out, out.count, To::Anyone, Some(failures));
                    } else {
                        let count = out.count.saturating_add(1);
                        let item = item(&out, delivery, count, failures.clone());
                        self.back(&out, count, To::Me(Box::new(Item { has_notes: true, ..item })), Some(failures));
                    }
                }
            }
        }
        came_to
    }

    /// Takes back what nobody settled.
    pub(super) fn give_back(&mut self, released: Vec<Delivery>) -> usize {
        let mut count = 0;
        for delivery in released {
            let Some(out) = self.out.remove(&delivery.tag) else { continue };
            count += 1;
            self.release(out, delivery);
        }
        count
    }

    fn release(&mut self, out: Out, delivery: Delivery) {
        if self.has_ended {
            let count_then = out.count.saturating_sub(1);
            self.held.insert(out.entry, None);
            return self.back(&out, count_then, To::Anyone, None);
        }
        let failures = delivery.failures.clone();
        let item = item(&out, delivery, out.count, failures);
        self.wait(item);
    }

    fn done(&mut self, out: &Out) {
        self.work.done.push(Done { entry: out.entry, size: out.size, has_notes: out.has_notes });
    }

    fn back(&mut self, out: &Out, count_then: u32, to: To, failures: Option<Vec<FailedAttempt>>) {
        self.work.back.push(Back { entry: out.entry, count: out.count, count_then, to, failures });
    }

    /// One that stays out is tried once more.
    pub(super) fn counted(&mut self, tag: Tag) {
        if let Some(out) = self.out.get_mut(&tag) {
            out.count = out.count.saturating_add(1);
            out.has_notes = true;
        }
    }

    /// What is out under that tag, with its count.
    pub(super) fn entry_of(&self, tag: Tag) -> Option<(Entry, u32)> {
        self.out.get(&tag).map(|out| (out.entry, out.count))
    }

    /// Adds somebody who waits until all that was said before is confirmed.
    pub(super) fn waits(&mut self, waiter: Waiter) {
        self.work.waiters.push(waiter);
    }

    /// What the server is to be told now. What came of it is said by [`State::told`] or [`State::untold`].
    pub(super) fn work(&mut self) -> Work {
        let work = mem::take(&mut self.work);
        self.telling.0 += work.done.len();
        self.telling.1 += work.back.len();
        work
    }

    /// The server was not told: it is, next time.
    pub(super) fn untold(&mut self, mut work: Work) {
        self.telling.0 -= work.done.len();
        self.telling.1 -= work.back.len();
        work.done.append(&mut self.work.done);
        work.back.append(&mut self.work.back);
        work.waiters.append(&mut self.work.waiters);
        work.renews |= self.work.renews;
        self.work = work;
    }

    /// The server knows; or somebody else has it.
    pub(super) fn told(&mut self, done: &[Done], back: Vec<(Back, bool)>) {
        self.telling.0 -= done.len();
        self.telling.1 -= back.len();
        for one in done {
            self.held.remove(&one.entry);
        }
        for (one, was_ours) in back {
            self.held.remove(&one.entry);
            if let (To::Me(item), true) = (one.to, was_ours) {
                if self.has_ended {
                    let count_then = item.count.saturating_sub(1);
                    self.held.insert(item.entry, None);
                    self.work.back.push(Back {
                        entry: item.entry,
                        count: item.count,
                        count_then,
                        to: To::Anyone,
                        failures: None,
                    });
                } else {
                    self.wait(*item);
                }
            }
        }
    }

    /// Everything that is out is still being worked on.
    pub(super) fn renew(&mut self, now: Instant) {
        self.out.values_mut().for_each(|out| out.since = now);
        self.work.renews |= !self.out.is_empty();
    }

    /// What waits, and what is out and is being worked on: whose leases are to last.
    pub(super) fn leased(&self, with_out: bool) -> Vec<Entry> {
        let waiting = self.waiting.values().map(|item| item.entry);
        let out = self.out.values().filter(|_| with_out).map(|out| out.entry);
        waiting.chain(out).collect()
    }

    /// When the first lease of what is out ends.
    pub(super) fn first_end(&self, lease: Duration) -> Option<Instant> {
        self.out.values().map(|out| out.since + lease).min()
    }

    /// What was out too long is for anyone, as the next attempt. Answers how many that were.
    pub(super) fn run_out(&mut self, lease: Duration, now: Instant) -> usize {
        let ended: Vec<Out> = self.out.extract_if(|_, out| out.since + lease <= now).map(|(_, out)| out).collect();
        for out in &ended {
            self.held.insert(out.entry, None);
            self.back(out, out.count, To::Anyone, None);
        }
        ended.len()
    }

    /// Which of these somebody else may have by now.
    pub(super) fn lost(&self, deliveries: &[Delivery], lease: Duration, now: Instant) -> Vec<usize> {
        let is_lost = |delivery: &Delivery| self.out.get(&delivery.tag).is_none_or(|out| out.since + lease <= now);
        deliveries.iter().enumerate().filter(|(_, delivery)| is_lost(delivery)).map(|(place, _)| place).collect()
    }

    /// All that is held here.
    pub(super) fn held(&self) -> impl Iterator<Item = Entry> {
        self.held.keys().copied()
    }

    /// Somebody else has these: they do not wait here any more.
    pub(super) fn gone(&mut self, entries: &[Entry]) {
        for entry in entries {
            if self.held.get(entry) == Some(&None)
                && let Some(item) = self.waiting.remove(&self.turn(*entry))
            {
                self.waiting_bytes -= item.message.size();
                self.held.remove(&item.entry);
            }
        }
    }

    /// Hands out nothing any more: what waits is for others.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
        self.put_off();
    }

    /// Whether things wait that nobody has asked for since then.
    pub(super) fn is_left_alone(&self, since: Duration, now: Instant) -> bool {
        !self.is_waited_for && !self.waiting.is_empty() && self.asked_at + since <= now
    }

    /// What waits here is for others, as the same attempt.
    pub(super) fn put_off(&mut self) {
        self.was_asked = false;
        self.waiting_bytes = 0;
        for item in mem::take(&mut self.waiting).into_values() {
            let count_then = item.count.saturating_sub(1);
            self.work.back.push(Back {
                entry: item.entry,
                count: item.count,
                count_then,
                to: To::Anyone,
                failures: None,
            });
        }
    }

    /// Nothing is held any more, wherever it is. Answers how many were out.
    pub(super) fn close(&mut self) -> usize {
        self.is_closed = true;
        self.has_ended = true;
        let out = mem::take(&mut self.out).len();
        self.waiting.clear();
        out
    }
}

fn item(out: &Out, delivery: Delivery, count: u32, failures: Vec<FailedAttempt>) -> Item {
    Item {
        entry: out.entry,
        message: delivery.message,
        count,
        failures,
        has_notes: out.has_notes,
        position: delivery.position,
    }
}
