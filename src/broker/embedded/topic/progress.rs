//! How far one group is in one partition.

use std::{collections::BTreeMap, sync::Arc};

use super::{log::Log, window::Window};
use crate::{
    broker::embedded::{
        clock::{Now, Tick},
        delayed::Delayed,
        readers::ReaderId,
        tries::Tries,
    },
    message::Message,
};

#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The first offset that was never handed over.
    next: u64,
    settled: Window,
    /// Given back, to be delivered ahead of `next`.
    again: BTreeMap<u64, Tries>,
    /// Given back, or published, for later. Does not hold up what is behind it.
    delayed: Delayed<Tries>,
    /// Messages that retention has taken from the log, and this group has not settled.
    kept: BTreeMap<u64, Arc<Message>>,
    /// Deliveries that are out.
    out: usize,
    /// Who reads it, and who should: they differ while the one still has deliveries out, so that two readers never
    /// work on one partition at a time.
    owner: Option<ReaderId>,
    pub(super) wanted: Option<ReaderId>,
}

/// What is to be delivered next.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) offset: u64,
    pub(super) message: Arc<Message>,
    pub(super) bytes: usize,
    pub(super) tries: Tries,
}

impl Progress {
    pub(super) fn starting_at(offset: u64) -> Self {
        Self { next: offset, settled: Window::starting_at(offset), ..Self::default() }
    }

    /// Whether that reader may take from here now; if so, it is the one who does.
    pub(super) fn is_open_to(&mut self, reader: ReaderId) -> bool {
        if self.wanted != Some(reader) || (self.out > 0 && self.owner != Some(reader)) {
            return false;
        }
        self.owner = Some(reader);
        true
    }

    /// Whom to tell once the last delivery has ended that kept another reader waiting.
    pub(super) fn handed_on(&self) -> Option<ReaderId> {
        self.wanted.filter(|_| self.out == 0 && self.owner != self.wanted)
    }

    /// Brings up what is due, and passes over what retention took before it was read. Gives how many were lost.
    pub(super) fn refresh(&mut self, log: &Log, now: Tick) -> u64 {
        while let Some((offset, tries)) = self.delayed.pop_due(now) {
            self.again.insert(offset, tries);
        }
        let lost = log.start().saturating_sub(self.next);
        if lost > 0 {
            self.settled.settle_all(self.next..log.start());
            self.next = log.start();
        }
        lost
    }

    /// Takes what is next, if it has at most that many bytes.
    pub(super) fn take(&mut self, log: &Log, bytes_max: usize, now: Now) -> Option<Found> {
        if !self.again.is_empty()
            && let Some(found) = self.take_again(log, bytes_max)
        {
            return found;
        }
        loop {
            let offset = self.next;
            let entry = log.get(offset)?;
            let bytes = entry.bytes as usize;
            if entry.waits
                && let Some(due) = entry.message.not_before.and_then(|at| now.at_unix(at))
            {
                self.delayed.put(offset, due, Tries::first());
                self.next += 1;
                continue;
            }
            if bytes > bytes_max {
                return None;
            }
            self.next += 1;
            self.out += 1;
            return Some(Found { offset, message: Arc::clone(&entry.message), bytes, tries: Tries::first() });
        }
    }

    /// The outer `None`: nothing was given back. The inner: it has too many bytes.
    fn take_again(&mut self, log: &Log, bytes_max: usize) -> Option<Option<Found>> {
        let (&offset, _) = self.again.first_key_value()?;
        let message = match log.get(offset) {
            Some(entry) => &entry.message,
            None => self.kept.get(&offset)?,
        };
        let bytes = message.size();
        if bytes > bytes_max {
            return Some(None);
        }
        let message = Arc::clone(message);
        let tries = self.again.remove(&offset)?;
        self.out += 1;
        Some(Some(Found { offset, message, bytes, tries }))
    }

    /// A delivery ended, and the message with it.
    pub(super) fn settle(&mut self, offset: u64) {
        self.out = self.out.saturating_sub(1);
        self.settled.settle(offset);
        if !self.kept.is_empty() {
            self.kept.remove(&offset);
        }
    }

    /// A delivery ended, and the message is to come again. Whether it is due before everything else that waits here,
    /// or at once.
    pub(super) fn come_back(&mut self, offset: u64, tries: Tries, due: Tick, now: Tick) -> bool {
        self.out = self.out.saturating_sub(1);
        if due > now {
            return self.delayed.put(offset, due, tries);
        }
        self.again.insert(offset, tries);
        true
    }

    pub(super) fn first_due(&self) -> Option<Tick> {
        self.delayed.first_due()
    }

    /// Retention takes this message: keeps it if it was handed over and is not settled yet.
    pub(super) fn keep(&mut self, offset: u64, message: &Arc<Message>) {
        if offset < self.next && !self.settled.is_settled(offset) {
            self.kept.insert(offset, Arc::clone(message));
        }
    }

    pub(super) fn delayed(&self) -> usize {
        self.delayed.len()
    }

    /// How many messages this group has not settled.
    pub(super) fn lag(&self, log: &Log) -> u64 {
        log.end() - self.next.max(log.start()) + (self.out + self.again.len() + self.delayed.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::embedded::topic::log::Entry;

    const NOW: Now = Now { tick: 0, unix: 0, steady: 0 };

    fn log_of(count: u64) -> Log {
        let mut log = Log::default();
        for appended in 0..count {
            log.append(Entry { message: Arc::default(), appended, bytes: 1, waits: false });
        }
        log
    }

    fn forget_oldest(log: &mut Log, progress: &mut Progress, count: usize) {
        for _ in 0..count {
            let (offset, entry) = log.pop().unwrap();
            progress.keep(offset, &entry.message);
        }
    }

    #[test]
    fn remembers_nothing_of_what_is_settled_or_lost() {
        let (mut log, mut progress) = (log_of(10_000), Progress::starting_at(0));
        let taken: Vec<u64> = (0..1000).map(|_| progress.take(&log, 1, NOW).unwrap().offset).collect();
        taken.iter().rev().skip(10).for_each(|offset| progress.settle(*offset));
        forget_oldest(&mut log, &mut progress, 9000);
        assert_eq!(progress.kept.keys().copied().collect::<Vec<_>>(), (990..1000).collect::<Vec<_>>());
        assert_eq!(progress.refresh(&log, 0), 8000);
        taken.iter().rev().take(10).for_each(|offset| progress.settle(*offset));
        assert!(progress.kept.is_empty());
        assert!((0..9000).all(|offset| progress.settled.is_settled(offset)) && !progress.settled.is_settled(9000));
        assert_eq!(progress.lag(&log), 1000);
    }

    #[test]
    fn delivers_what_came_back_though_retention_took_it() {
        let (mut log, mut progress) = (log_of(10), Progress::starting_at(0));
        let found = progress.take(&log, 1, NOW).unwrap();
        forget_oldest(&mut log, &mut progress, 5);
        progress.come_back(found.offset, found.tries, 0, 0);
        progress.refresh(&log, 0);
        let order: Vec<u64> = std::iter::from_fn(|| progress.take(&log, 1, NOW)).map(|found| found.offset).collect();
        assert_eq!(order, [0, 5, 6, 7, 8, 9]);
    }
}
