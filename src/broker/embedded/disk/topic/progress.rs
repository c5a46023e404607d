//! How far one group is in one partition.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    log::{Entry, Log},
    pages::{Pages, Stretch},
    settled::Settled,
    trial::{Back, Trial},
};
use crate::{
    broker::embedded::{
        clock::{Now, Tick},
        delayed::Delayed,
        readers::ReaderId,
    },
    message::Message,
    store::Note,
};

/// Most messages of one partition that wait for their time beside what is read: beyond it those behind are held up.
const WAITING_MAX: usize = 256 * 1024;
/// Most messages that came back and are read from disk at a time.
const AGAIN_PAGE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The first offset that was never handed over.
    next: u64,
    settled: Settled,
    /// What comes from `next` on, where that is not in the log's tail.
    pages: Pages,
    /// Given back, to be delivered ahead of `next`.
    again: BTreeMap<u64, Back>,
    /// Given back, or published, for later. Does not hold up what is behind it.
    delayed: Delayed<Trial>,
    /// Messages are being read that came back.
    reading_again: bool,
    /// Deliveries that are out.
    out: usize,
    /// Who reads it, and who should: they differ while the one still has deliveries out, so that two readers never
    /// work on one partition at a time.
    owner: Option<ReaderId>,
    pub(super) wanted: Option<ReaderId>,
    /// `next` or `settled` is not as it was last submitted.
    pub(super) changed: bool,
}

/// What is to be delivered next.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) offset: u64,
    pub(super) message: Arc<Message>,
    pub(super) bytes: usize,
    pub(super) trial: Trial,
    /// It is not the next in order: its attempt is to be noted.
    pub(super) is_again: bool,
}

/// What is to be read from disk for a partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What comes next.
    Page(Stretch),
    /// What came back.
    Again(Vec<u64>),
}

/// A message that came back and was read again; `None`: it is not there any more.
pub(super) type Again = (u64, Option<Arc<Message>>);

impl Progress {
    /// Of a group that begins here.
    pub(super) fn starting_at(offset: u64) -> Self {
        Self { next: offset, settled: Settled::below(offset), ..Self::default() }
    }

    /// As the store has it: `handed` and the settled ones, and what is noted of the others.
    pub(super) fn restored(
        handed: u64,
        settled: &[u8],
        mut notes: BTreeMap<u64, Note>,
        log: &mut Log,
        now: Now,
    ) -> Self {
        // What cannot be read is not settled: at least once.
        let Some(settled) = Settled::decode(settled) else { return Self::starting_at(log.start()) };
        let mut progress = Self { next: handed.max(settled.gap()), settled, ..Self::default() };
        let open: Vec<u64> = progress.settled.missing(0..progress.next).collect();
        for offset in open {
            if offset < log.start() {
                log.keep(offset);
            }
            let (trial, due) = Trial::restored(notes.remove(&offset), now.unix);
            match due.filter(|due| *due > now.steady) {
                Some(due) => drop(progress.delayed.put(offset, now.at_steady(due), trial)),
                None => drop(progress.again.insert(offset, Back { trial, message: None })),
            }
        }
        progress
    }

    /// For the store: the first that was never handed over, and what of the others is settled.
    pub(super) fn submitted(&mut self) -> (u64, Vec<u8>) {
        self.changed = false;
        (self.next, self.settled.encode())
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
        while let Some((offset, trial)) = self.delayed.pop_due(now) {
            self.again.insert(offset, Back { trial, message: None });
        }
        let lost = log.start().saturating_sub(self.next);
        if lost > 0 {
            self.pass_to(log.start());
        }
        lost
    }

    /// How often the process ended while what comes next here was out.
    pub(super) fn next_crashes(&self) -> u32 {
        self.again.first_key_value().map_or(0, |(_, back)| back.trial.crashes)
    }

    /// Takes what is next, if it has at most that many bytes. Notes of messages that wait for their time go to `waits`.
    pub(super) fn take(
        &mut self,
        log: &Log,
        bytes_max: usize,
        now: Now,
        mut waits: impl FnMut(u64, Note),
    ) -> Option<Found> {
        if let Some(mut first) = self.again.first_entry() {
            let offset = *first.key();
            if fetch(first.get_mut(), offset, log)?.size() > bytes_max {
                return None;
            }
            let Back { trial, message } = first.remove();
            let message = message?;
            self.out += 1;
            return Some(Found { offset, bytes: message.size(), message, trial, is_again: true });
        }
        loop {
            let Entry { offset, message, bytes, waits: may_wait, .. } = self.peek(log)?;
            if may_wait && let Some(due) = message.not_before.and_then(|at| now.at_unix(at)) {
                if self.delayed.len() >= WAITING_MAX {
                    return None;
                }
                let mut trial = Trial::first();
                waits(offset, trial.note(false, message.not_before));
                self.delayed.put(offset, due, trial);
                self.step_over(offset);
                continue;
            }
            let bytes = bytes as usize;
            if bytes > bytes_max {
                return None;
            }
            self.step_over(offset);
            self.out += 1;
            return Some(Found { offset, message, bytes, trial: Trial::first(), is_again: false });
        }
    }

    /// What should be read now; it counts as begun.
    pub(super) fn wanted_from_disk(&mut self, log: &Log) -> impl Iterator<Item = Wanted> + use<> {
        let page = self.pages.wanted(self.next, log).map(Wanted::Page);
        let mut again = None;
        if !self.reading_again {
            let offsets = missing(self.again.iter(), log);
            self.reading_again = !offsets.is_empty();
            again = self.reading_again.then_some(Wanted::Again(offsets));
        }
        page.into_iter().chain(again)
    }

    /// A page was read. Whether it had been asked for.
    pub(super) fn put_page(&mut self, stretch: Stretch, page: Option<Vec<Entry>>) -> bool {
        self.pages.put(stretch, page)
    }

    /// What came back was read; what is not there any more, nobody can handle. Gives those.
    pub(super) fn put_again(&mut self, read: Option<Vec<Again>>) -> Vec<(u64, Trial)> {
        self.reading_again = false;
        let mut gone = Vec::new();
        for (offset, message) in read.into_iter().flatten() {
            match message {
                Some(message) => {
                    if let Some(back) = self.again.get_mut(&offset) {
                        back.message.get_or_insert(message);
                    }
                }
                None => gone.extend(self.again.remove(&offset).map(|back| (offset, back.trial))),
            }
        }
        for (offset, _) in &gone {
            self.settled.insert(*offset);
            self.changed = true;
        }
        gone
    }

    /// A delivery ended, and the message with it.
    pub(super) fn settle(&mut self, offset: u64) {
        self.out = self.out.saturating_sub(1);
        self.settled.insert(offset);
        self.changed = true;
    }

    /// A delivery ended, and the message is to come again. Whether it is due before everything else that waits here,
    /// or at once.
    pub(super) fn come_back(&mut self, offset: u64, trial: Trial, message: Arc<Message>, due: Option<Tick>) -> bool {
        self.out = self.out.saturating_sub(1);
        match due {
            Some(due) => self.delayed.put(offset, due, trial),
            None => {
                self.again.insert(offset, Back { trial, message: Some(message) });
                true
            }
        }
    }

    /// Nobody reads here: what was read for somebody is not needed.
    pub(super) fn rest(&mut self) {
        self.pages.clear();
        self.again.values_mut().for_each(|back| back.message = None);
    }

    pub(super) fn first_due(&self) -> Option<Tick> {
        self.delayed.first_due()
    }

    /// Those between these bounds that were handed over and are not settled, in order.
    pub(super) fn open(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        self.settled.missing(start..end.min(self.next))
    }

    /// How many gaps there are in what is settled.
    pub(super) fn gaps(&self) -> usize {
        self.settled.runs()
    }

    pub(super) fn delayed(&self) -> usize {
        self.delayed.len()
    }

    /// How many messages this group has not settled; counts offsets that no message has until they are passed.
    pub(super) fn lag(&self, log: &Log) -> u64 {
        log.end().saturating_sub(self.next.max(log.start())) + (self.out + self.again.len() + self.delayed.len()) as u64
    }

    /// A copy of the next entry; offsets before it that no message has are passed over.
    fn peek(&mut self, log: &Log) -> Option<Entry> {
        let mut next = self.next;
        let found = self.pages.peek(&mut next, log).cloned();
        if next > self.next {
            self.pass_to(next);
        }
        found
    }

    fn step_over(&mut self, offset: u64) {
        self.next = offset + 1;
        self.changed = true;
    }

    fn pass_to(&mut self, next: u64) {
        self.settled.insert_all(self.next..next);
        self.next = next;
        self.changed = true;
    }
}

/// The message of one that came back, if it is in memory.
fn fetch<'a>(back: &'a mut Back, offset: u64, log: &Log) -> Option<&'a Arc<Message>> {
    if back.message.is_none() {
        back.message = log.newest_at(offset).map(|entry| Arc::clone(&entry.message));
    }
    back.message.as_ref()
}

/// If the first of these is not in memory: it and others behind it that are not.
fn missing<'a>(backs: impl Iterator<Item = (&'a u64, &'a Back)>, log: &Log) -> Vec<u64> {
    let is_missing = |(offset, back): &(&u64, &Back)| back.message.is_none() && log.newest_at(**offset).is_none();
    let mut backs = backs.take(AGAIN_PAGE).peekable();
    match backs.peek() {
        Some(first) if is_missing(first) => backs.filter(is_missing).map(|(offset, _)| *offset).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::log::tests::{append, log_of},
        *,
    };

    const NOW: Now = Now { tick: 0, unix: 0, steady: 0 };

    fn take(progress: &mut Progress, log: &Log) -> Option<Found> {
        progress.take(log, usize::MAX, NOW, |_, _| {})
    }

    #[test]
    fn remembers_only_what_is_not_settled() {
        let (mut log, mut progress) = (log_of(2000), Progress::starting_at(0));
        let taken: Vec<u64> = (0..1000).map(|_| take(&mut progress, &log).unwrap().offset).collect();
        taken.iter().rev().skip(10).for_each(|offset| progress.settle(*offset));
        assert_eq!(progress.open(0, 2000).collect::<Vec<_>>(), (990..1000).collect::<Vec<_>>());
        assert_eq!((0..1800).map(|_| log.pop()).sum::<u64>(), 1800);
        assert_eq!((progress.refresh(&log, 0), progress.lag(&log)), (800, 210));
        taken.iter().rev().take(10).for_each(|offset| progress.settle(*offset));
        assert_eq!((progress.submitted(), progress.lag(&log)), ((1800, Settled::below(1800).encode()), 200));
    }

    #[test]
    fn a_restart_brings_back_what_was_open_as_it_was_noted() {
        let mut log = log_of(20);
        let mut settled = Settled::below(3);
        settled.insert_all(5..8);
        // 3 and 8 have no note, 4 was out, 9 waits, 10 was given back, 11 waits for what has passed.
        let note = |attempt, out, crashes, due| Note { attempt, out, crashes, due, failures: Vec::new() };
        let notes = BTreeMap::from([
            (4, note(3, true, 1, None)),
            (9, note(2, false, 0, Some(5000))),
            (10, note(4, false, 0, None)),
            (11, note(1, false, 0, Some(1))),
            (6, note(9, true, 9, None)),
        ]);
        let now = Now { tick: 0, unix: 1000, steady: 1000 };
        let mut progress = Progress::restored(12, &settled.encode(), notes, &mut log, now);
        let known = |back: &Back| (back.trial.tries.attempt(), back.trial.crashes, back.trial.tries.failures().len());
        let again: Vec<_> = progress.again.iter().map(|(offset, back)| (*offset, known(back))).collect();
        let out = [(3, (2, 1, 1)), (4, (4, 2, 1)), (8, (2, 1, 1))];
        assert!(again.into_iter().eq(out.into_iter().chain([(10, (4, 0, 0)), (11, (1, 0, 0))])));
        assert_eq!((progress.delayed(), progress.lag(&log)), (1, 8 + 6));
        let order: Vec<u64> = std::iter::from_fn(|| take(&mut progress, &log)).map(|found| found.offset).collect();
        assert!(order.into_iter().eq([3, 4, 8, 10, 11].into_iter().chain(12..20)));
    }

    #[test]
    fn settled_ones_that_cannot_be_read_are_delivered_again() {
        let mut log = log_of(20);
        let mut progress = Progress::restored(12, &[0xff], BTreeMap::new(), &mut log, NOW);
        assert_eq!(take(&mut progress, &log).unwrap().offset, 0);
    }

    #[test]
    fn what_came_back_is_read_again_and_comes_first() {
        let (mut log, mut progress) = (log_of(10), Progress::starting_at(0));
        let first = take(&mut progress, &log).unwrap();
        let second = take(&mut progress, &log).unwrap();
        for found in [first, second] {
            progress.come_back(found.offset, found.trial, found.message, Some(7));
        }
        append(&mut log, 5000);
        log.trim();
        progress.refresh(&log, 7);
        assert!(take(&mut progress, &log).is_none(), "nothing behind it before it is read");
        let wanted: Vec<Wanted> = progress.wanted_from_disk(&log).collect();
        let page = Stretch { from: 2, end: log.tail_start() };
        assert_eq!(wanted, [Wanted::Page(page), Wanted::Again(vec![0, 1])]);
        assert_eq!(progress.wanted_from_disk(&log).count(), 0, "once");
        let gone = progress.put_again(Some(vec![(0, None), (1, Some(Arc::default()))]));
        assert_eq!(gone.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [0]);
        assert_eq!(take(&mut progress, &log).unwrap().offset, 1);
        assert_eq!(progress.open(0, 10).collect::<Vec<_>>(), [1]);
    }
}
