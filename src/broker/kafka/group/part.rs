//! One partition that is ours: what was fetched of it, what is out, what waits for its time, and how far it is done.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::progress::{Commit, Progress};
use crate::{
    broker::{BatchMax, Count, Delivery},
    message::{FailedAttempt, Message, Position, UnixMs},
};

/// Bits of a tag that are the offset; those above say of which assignment. An assignment that comes a million later has the
/// same number.
const OFFSET_BITS: u32 = 44;

/// Names one assignment of one partition.
pub(super) type PartId = u32;

/// A message that may be handed out.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) message: Arc<Message>,
    /// Where it lies in this partition.
    pub(super) offset: u64,
    /// Where the engine is told that it lies: of a copy in the retry topic, the original's place.
    pub(super) position: Position,
    pub(super) attempt: u32,
    pub(super) count: Count,
    pub(super) failures: Vec<FailedAttempt>,
    /// Not to be handed out before.
    pub(super) due: Option<UnixMs>,
    /// It is of no interest here: done as soon as it has come.
    pub(super) skip: bool,
}

/// A partition that is ours.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) id: PartId,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) progress: Progress,
    /// What the server has committed, as far as we know; `None`: something else.
    pub(super) committed: Option<Commit>,
    /// Nothing is handed out any more: it goes to another member.
    pub(super) leaving: bool,
    /// Handed out.
    pub(super) out: usize,
    /// Bytes of what waits here.
    pub(super) bytes: usize,
    /// Begin and end of the partition on the server, as far as is known.
    pub(super) low: u64,
    pub(super) end: u64,
    /// Where the client library fetches next: behind what is no message, such as the end of a transaction.
    pub(super) fetches: u64,
    /// Where reading began, until it is known whether something in front of the first message was lost.
    pub(super) expected: Option<u64>,
    /// Why it cannot be read on until somebody decides.
    pub(super) stuck: Option<String>,
    /// Fetched, and never handed out.
    ready: VecDeque<Ready>,
    /// Given back: ahead of those.
    again: BTreeMap<u64, Ready>,
    /// Those whose time has not come, by when.
    later: BinaryHeap<Reverse<(Instant, u64)>>,
    waiting: HashMap<u64, Ready>,
}

/// Of which assignment a delivery is, and where it lies there.
pub(super) fn named(tag: u64) -> (PartId, u64) {
    (u32::try_from(tag >> OFFSET_BITS).unwrap_or_default(), tag & ((1 << OFFSET_BITS) - 1))
}

/// Assignments are numbered so that the number fits a tag.
pub(super) fn id_after(id: PartId) -> PartId {
    (id + 1) & ((1 << (64 - OFFSET_BITS)) - 1)
}

impl Part {
    pub(super) fn new(id: PartId, topic: Arc<str>, partition: i32, at: Option<u64>, committed: Option<Commit>) -> Self {
        let metadata = committed.as_ref().map(|commit| commit.metadata.clone()).unwrap_or_default();
        Self {
            id,
            topic,
            partition,
            progress: Progress::begin(at, &metadata),
            committed,
            leaving: false,
            out: 0,
            bytes: 0,
            low: 0,
            fetches: 0,
            end: at.unwrap_or_default(),
            expected: at,
            stuck: None,
            ready: VecDeque::new(),
            again: BTreeMap::new(),
            later: BinaryHeap::new(),
            waiting: HashMap::new(),
        }
    }

    /// Messages that wait here.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.again.len() + self.waiting.len()
    }

    /// Those whose time has not come.
    pub(super) fn delayed(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a message lies in front of those that came before it: their log is gone. Its topic was made anew, or cut off
    /// by servers that lost the rest.
    pub(super) fn goes_back(&self, offset: u64) -> bool {
        self.progress.next().is_some_and(|next| offset < next)
    }

    /// Another log begins under this name. What is out of the one before is of no interest any more.
    pub(super) fn begin_anew(&mut self, id: PartId, offset: u64) {
        let (topic, partition) = (Arc::clone(&self.topic), self.partition);
        *self = Self { expected: None, ..Self::new(id, topic, partition, Some(offset), None) };
    }

    /// A message has come from the server.
    pub(super) fn fetched(&mut self, ready: Ready, now: Now) {
        self.stuck = None;
        self.end = self.end.max(ready.offset + 1);
        if !self.progress.fetched(ready.offset) {
            return;
        }
        if ready.skip {
            return self.progress.done(ready.offset);
        }
        self.bytes += ready.message.size();
        match ready.due.filter(|due| *due > now.unix) {
            Some(due) => self.wait(ready, now.tick + Duration::from_millis(due - now.unix)),
            None => self.ready.push_back(ready),
        }
    }

    fn wait(&mut self, ready: Ready, due: Instant) {
        self.later.push(Reverse((due, ready.offset)));
        self.waiting.insert(ready.offset, ready);
    }

    /// A delivery was given back, for now or for later.
    pub(super) fn returned(&mut self, ready: Ready, after: Duration, now: Now) {
        self.bytes += ready.message.size();
        if after.is_zero() {
            self.again.insert(ready.offset, ready);
        } else {
            self.wait(ready, now.tick + after);
        }
    }

    /// When the first of those is due whose time has not come.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.peek().map(|Reverse((due, _))| *due)
    }

    /// Whether there is something to hand out.
    pub(super) fn has_some(&mut self, now: Instant) -> bool {
        while let Some(Reverse((due, offset))) = self.later.peek().copied()
            && due <= now
        {
            self.later.pop();
            if let Some(ready) = self.waiting.remove(&offset) {
                self.again.insert(offset, ready);
            }
        }
        !self.leaving && self.again.len() + self.ready.len() > 0
    }

    /// Hands out, up to `max` and at least one, into `into`; `bytes` is what is left of a batch.
    pub(super) fn take(
        &mut self,
        max: BatchMax,
        bytes: &mut usize,
        named: Option<&Arc<str>>,
        into: &mut Vec<Delivery>,
    ) {
        for _ in 0..max.count {
            let next = match self.again.first_key_value() {
                Some((_, ready)) => ready,
                None => match self.ready.front() {
                    Some(ready) => ready,
                    None => break,
                },
            };
            let size = next.message.size();
            if size > *bytes && !into.is_empty() {
                *bytes = 0;
                break;
            }
            let Some(ready) = self.again.pop_first().map(|(_, ready)| ready).or_else(|| self.ready.pop_front()) else {
                break;
            };
            *bytes = bytes.saturating_sub(size);
            self.bytes = self.bytes.saturating_sub(size);
            self.out += 1;
            into.push(Delivery {
                tag: (u64::from(self.id) << OFFSET_BITS) | ready.offset,
                message: ready.message,
                attempt: ready.attempt,
                count: ready.count,
                topic: named.cloned(),
                position: Some(ready.position),
                failures: ready.failures,
            });
        }
    }

    /// Forgets what waits: it goes to another member, or comes again.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
        self.ready.clear();
        self.again.clear();
        self.later.clear();
        self.waiting.clear();
        self.bytes = 0;
    }

    /// Whether there is more on the server than has come.
    pub(super) fn is_behind(&self) -> bool {
        self.end > self.fetches.max(self.progress.next().unwrap_or_default()) && self.len() == 0
    }

    /// How many messages are not done.
    pub(super) fn lag(&self) -> u64 {
        self.figures().lag()
    }

    /// How far it is, for people.
    pub(super) fn figures(&self) -> PartFigures {
        let next = self.progress.next().unwrap_or(self.low);
        let gap = self.progress.gap().unwrap_or(self.low);
        let (gap, next) =
            if self.progress.open() == 0 { (gap.max(self.fetches), next.max(self.fetches)) } else { (gap, next) };
        let above = next.saturating_sub(gap).saturating_sub(self.progress.open() as u64);
        PartFigures {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            gap,
            above: above + self.progress.done_ahead(),
            end: self.end,
        }
    }

    /// What is to be committed, where the server does not know it yet.
    pub(super) fn uncommitted(&self) -> Option<Commit> {
        self.progress.commit().filter(|commit| self.committed.as_ref() != Some(commit))
    }
}

/// How far a partition is, for people.
#[derive(Clone, Debug)]
pub(in crate::broker::kafka) struct PartFigures {
    pub(in crate::broker::kafka) topic: Arc<str>,
    pub(in crate::broker::kafka) partition: i32,
    /// The first that is not done.
    pub(in crate::broker::kafka) gap: u64,
    /// How many are done above it.
    pub(in crate::broker::kafka) above: u64,
    /// Behind the last that is there, as far as is known.
    pub(in crate::broker::kafka) end: u64,
}

impl PartFigures {
    /// How many are not done.
    pub(in crate::broker::kafka) fn lag(&self) -> u64 {
        self.end.saturating_sub(self.gap).saturating_sub(self.above)
    }
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) tick: Instant,
    pub(super) unix: UnixMs,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { tick: Instant::now(), unix: crate::message::now_ms() }
    }
}
