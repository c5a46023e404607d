//! The messages of one priority in the order of arrival: those at its head in memory, the others on disk.
//!
//! What is committed is told to the lane after the commit, and pages are read from what is committed, so each may come
//! before the other. `cursor` says what has been dealt with, and `cold` is a sum that both add to.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::item::Item;
use crate::store::{LaneId, QueueKey};

/// Most messages, and about how many bytes of them, that wait in memory.
const WINDOW: usize = 16 * 1024;
const WINDOW_BYTES: usize = 16 << 20;
/// About how many bytes wait in memory for all queues of a store together. Beyond, a lane has at most a page.
const MEMORY_MAX: usize = 64 << 20;
/// What is read at a time.
pub(super) const PAGE: usize = 1000;
pub(super) const PAGE_BYTES: usize = 2 << 20;
/// What is in memory, and read, where nobody reads: enough to see what has expired.
const UNREAD: usize = 64;

/// Bytes of messages that wait in memory, over all queues of a store.
#[derive(Debug, Default)]
pub(in crate::broker::embedded) struct Memory(AtomicUsize);

impl Memory {
    fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= MEMORY_MAX
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: LaneId,
    /// In memory, never given back; in order.
    fresh: VecDeque<Item>,
    fresh_bytes: usize,
    memory: Arc<Memory>,
    /// Given back, or due after a delay: few, and mostly older than everything in `fresh`.
    returned: BTreeMap<u64, Item>,
    /// Everything up to this sequence is in memory, out, waiting for its time, or gone.
    cursor: u64,
    /// How many lie beyond the cursor, on disk only. Below zero for the moment between a page that brought a message
    /// and the word that it was committed.
    cold: i64,
    /// A page is being read: how many lay there when it was asked for.
    loading: Option<i64>,
    /// Up to which sequence everything was handed over at least once; and where that was when the store was opened.
    pub(super) handed: u64,
    pub(super) handed_before: u64,
}

impl Lane {
    /// As it was found on disk: `cold` messages, of which those up to `handed` had been handed over.
    pub(super) fn new(id: LaneId, cold: u64, handed: u64, memory: Arc<Memory>) -> Self {
        Self {
            id,
            fresh: VecDeque::new(),
            fresh_bytes: 0,
            memory,
            returned: BTreeMap::new(),
            cursor: 0,
            cold: i64::try_from(cold).unwrap_or(i64::MAX),
            loading: None,
            handed,
            handed_before: handed,
        }
    }

    /// How many could be delivered.
    pub(super) fn len(&self) -> u64 {
        (self.fresh.len() + self.returned.len()) as u64 + u64::try_from(self.cold).unwrap_or(0)
    }

    /// Takes the newest, just committed; keeps it in memory where all before it are, and there is room.
    pub(super) fn arrived(&mut self, item: Item, is_read: bool) {
        let count_max = if is_read { WINDOW } else { UNREAD };
        let full = self.fresh.len() >= count_max || self.fresh_bytes >= WINDOW_BYTES || self.memory.is_full();
        if self.loading.is_some() || self.cold != 0 || full || item.key.sequence() <= self.cursor {
            self.cold += 1;
            return;
        }
        self.cursor = item.key.sequence();
        self.push(item);
    }

    /// Whether a page should be read now, behind which sequence, and how many messages; it counts as begun.
    pub(super) fn page_wanted(&mut self, is_read: bool) -> Option<(u64, usize)> {
        let low = match is_read && !self.memory.is_full() {
            true => self.fresh.len() < WINDOW / 2 && self.fresh_bytes < WINDOW_BYTES / 2,
            false => self.fresh.is_empty(),
        };
        let wanted = self.loading.is_none() && self.cold > 0 && low;
        wanted.then(|| {
            self.loading = Some(self.cold);
            (self.cursor, if is_read { PAGE } else { UNREAD })
        })
    }

    /// Takes a page; `passed_over` are the keys of what could not be read.
    pub(super) fn loaded(&mut self, items: impl Iterator<Item = Item>, passed_over: &[QueueKey]) {
        let asked = self.loading.take().unwrap_or_default();
        let before = self.cold;
        for key in passed_over {
            self.cold -= 1;
            self.cursor = self.cursor.max(key.sequence());
        }
        for item in items {
            self.cold -= 1;
            self.cursor = self.cursor.max(item.key.sequence());
            self.push(item);
        }
        if self.cold == before && asked > 0 {
            tracing::error!(lane = ?self.id, missing = asked, "messages are counted and not there: see `store check`");
            self.cold -= asked;
        }
    }

    /// A page could not be read.
    pub(super) fn not_loaded(&mut self) {
        self.loading = None;
    }

    /// Puts one back where its arrival says.
    pub(super) fn give_back(&mut self, item: Item) {
        self.returned.insert(item.key.sequence(), item);
    }

    /// The oldest that is in memory.
    pub(super) fn front(&self) -> Option<&Item> {
        if self.returned_is_older() {
            self.returned.first_key_value().map(|(_, item)| item)
        } else {
            self.fresh.front()
        }
    }

    /// Takes the oldest that is in memory.
    pub(super) fn pop(&mut self) -> Option<Item> {
        if self.returned_is_older() {
            return self.returned.pop_first().map(|(_, item)| item);
        }
        let item = self.fresh.pop_front()?;
        self.fresh_bytes = self.fresh_bytes.saturating_sub(item.bytes as usize);
        self.memory.0.fetch_sub(item.bytes as usize, Ordering::Relaxed);
        if self.fresh.is_empty() && self.fresh.capacity() > PAGE * 2 {
            self.fresh = VecDeque::new();
        }
        Some(item)
    }

    fn push(&mut self, item: Item) {
        self.fresh_bytes += item.bytes as usize;
        self.memory.0.fetch_add(item.bytes as usize, Ordering::Relaxed);
        self.fresh.push_back(item);
    }

    fn returned_is_older(&self) -> bool {
        let Some((returned, _)) = self.returned.first_key_value() else { return false };
        self.fresh.front().is_none_or(|fresh| *returned < fresh.key.sequence())
    }
}
