//! A consumer group: its readers, which partitions each reads, what they have out, and its progress. What of that is to
//! be on disk goes out as changes; a group without a name keeps nothing there.

use std::{sync::Arc, time::Duration};

use super::{
    log::Log,
    progress::{Found, Progress, Wanted},
    trial::Trial,
};
use crate::{
    broker::{
        BatchMax, Count, Delivery, Position, Tag,
        embedded::{
            clock::{Now, Tick},
            disk::suspects,
            leases::Leases,
            readers::{ReaderId, Readers, Wakes},
        },
    },
    message::{FailedAttempt, Message, Settlement},
    store::{Change, GroupId},
};

/// Gaps in what is settled that are written down with every settlement.
const GAPS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: Arc<str>,
    /// `None`: nothing of it is on disk.
    stored: Option<GroupId>,
    pub(super) readers: Readers,
    progress: Vec<Progress>,
    leases: Leases<Place>,
    /// Where the next batch begins, so that no partition waits for another to run dry.
    turn: usize,
    /// One that ended the process more than once is out: no other such may be.
    sole_out: bool,
    /// To be submitted with the progress, in this order.
    changes: Vec<Change>,
    /// What was settled is on its way to the disk, and took long to write down.
    pub(super) flushing: bool,
    /// Messages that retention took before this group had read them.
    pub(super) lost: u64,
}

/// What a delivery that is out is of.
#[derive(Debug)]
struct Place {
    partition: u32,
    offset: u64,
    trial: Trial,
    message: Arc<Message>,
}

impl Group {
    pub(super) fn new(name: Arc<str>, stored: Option<GroupId>, progress: Vec<Progress>, lease: Duration) -> Self {
        Self {
            name,
            stored,
            readers: Readers::default(),
            progress,
            leases: Leases::new(lease),
            turn: 0,
            sole_out: false,
            changes: Vec::new(),
            flushing: false,
            lost: 0,
        }
    }

    /// Whether what it does is to be on disk.
    pub(super) fn is_stored(&self) -> bool {
        self.stored.is_some()
    }

    /// Shares the partitions among those who are there; all of them look at what is now theirs.
    pub(super) fn share_out(&mut self, wakes: &mut Wakes) {
        let readers: Vec<ReaderId> = self.readers.present().collect();
        let mut turns = readers.iter().copied().cycle();
        for progress in &mut self.progress {
            progress.wanted = turns.next();
            if progress.wanted.is_none() {
                progress.rest();
            }
        }
        wakes.extend(self.readers.all());
    }

    /// Whom to wake when these partitions have something new.
    pub(super) fn wake_for(&self, partitions: &[bool], wakes: &mut Wakes) {
        for reader in self.readers.present() {
            let concerned = |(progress, touched): (&Progress, &bool)| *touched && progress.wanted == Some(reader);
            if self.progress.iter().zip(partitions).any(concerned) {
                wakes.extend(self.readers.wake(reader));
            }
        }
    }

    /// Hands over what is there, each partition in order, what was given back first. Nothing of it may be worked on
    /// before the changes that [`Group::take_changes`] then gives are on disk. `ahead`: the reader has not asked for it
    /// yet; nothing that may have ended the process is handed over so, nor what comes behind it. Gives also when to look
    /// again, should there be nothing.
    pub(super) fn take(
        &mut self,
        reader: ReaderId,
        ahead: bool,
        logs: &[Log],
        max: BatchMax,
        now: Now,
        wakes: &mut Wakes,
    ) -> (Vec<Delivery>, Tick) {
        self.lapse(logs, now, wakes);
        let count = self.readers.room(reader).min(max.count.max(1));
        let mut items = Vec::new();
        let mut bytes_left = max.bytes;
        let mut until = self.leases.check_at(now);
        let partitions = self.progress.len();
        let turn = self.turn;
        for partition in (0..partitions).map(|step| (turn + step) % partitions) {
            let (Some(progress), Some(log)) = (self.progress.get_mut(partition), logs.get(partition)) else { continue };
            if !progress.is_open_to(reader) {
                continue;
            }
            self.lost += progress.refresh(log, now.tick);
            while items.len() < count {
                let Some(progress) = self.progress.get_mut(partition) else { break };
                let crashes = progress.next_crashes();
                let is_early = suspects::is_alone(crashes) && (ahead || !items.is_empty());
                if is_early || (suspects::is_sole(crashes) && self.sole_out) {
                    // It is its turn soon, and what is behind it must not overtake it.
                    break;
                }
                let bytes_max = if items.is_empty() { usize::MAX } else { bytes_left };
                let (stored, changes) = (self.stored, &mut self.changes);
                let found = progress.take(log, bytes_max, now, |offset, note| {
                    let retry = |group| Change::Retry { group, partition: log.id, offset, note: Some(note) };
                    changes.extend(stored.map(retry));
                });
                let Some(found) = found else { break };
                if items.is_empty() {
                    self.turn = (partition + 1) % partitions;
                }
                bytes_left = bytes_left.saturating_sub(found.bytes);
                items.push(self.hand_over(found, partition as u32, log, reader, now));
                if suspects::is_alone(crashes) {
                    self.readers.took(reader, items.len());
                    return (items, until);
                }
            }
            // Those that were just set aside are among them.
            let due = self.progress.get(partition).and_then(Progress::first_due);
            until = due.map_or(until, |due| due.min(until));
        }
        self.readers.took(reader, items.len());
        (items, until)
    }

    /// What should be read from disk for that reader; it counts as begun.
    pub(super) fn wanted_from_disk(&mut self, reader: ReaderId, logs: &[Log]) -> Vec<(usize, Wanted)> {
        let own = |(_, (progress, _)): &(usize, (&mut Progress, &Log))| progress.wanted == Some(reader);
        let own = self.progress.iter_mut().zip(logs).enumerate().filter(own);
        own.flat_map(|(partition, (progress, log))| {
            progress.wanted_from_disk(log).map(move |wanted| (partition, wanted))
        })
        .collect()
    }

    /// Something was read for a partition; `what` takes it, and gives those that are not there any more.
    pub(super) fn put(
        &mut self,
        partition: usize,
        log: &mut Log,
        wakes: &mut Wakes,
        what: impl FnOnce(&mut Progress) -> Vec<(u64, Trial)>,
    ) {
        let Some(progress) = self.progress.get_mut(partition) else { return };
        let gone = what(progress);
        wakes.extend(progress.wanted.and_then(|reader| self.readers.wake(reader)));
        for (offset, trial) in gone {
            self.lost += 1;
            self.forget_rows(offset, trial.has_note, log);
        }
    }

    /// Carries out settlements; those that come after their lease ran out find nothing to do. Gives how many were
    /// dead letters.
    pub(super) fn settle(
        &mut self,
        reader: ReaderId,
        settled: impl IntoIterator<Item = (Tag, Settlement)>,
        logs: &mut [Log],
        now: Now,
        wakes: &mut Wakes,
    ) -> u64 {
        let (mut ended, mut dead_letters) = (0, 0);
        for (tag, how) in settled {
            let Some(out) = self.leases.take(tag) else { continue };
            let mut place = out.what;
            ended += 1;
            match how {
                Settlement::Accept => self.forget(&place, logs, wakes),
                Settlement::DeadLetter { .. } => {
                    dead_letters += 1;
                    self.forget(&place, logs, wakes);
                }
                Settlement::Redeliver { after, failure } => {
                    place.trial.tries.failed(*failure);
                    // It was tried to its end: the process would not have ended with it.
                    self.ended(&place, wakes);
                    place.trial.crashes = 0;
                    self.come_back(place, after, logs, now, wakes);
                }
                Settlement::Release { after } => {
                    self.ended(&place, wakes);
                    self.come_back(place, after, logs, now, wakes);
                }
            }
        }
        wakes.extend(self.readers.ended(reader, ended));
        dead_letters
    }

    /// Another attempt begins on one that is out. Whether that is to be on disk first.
    pub(super) fn count_attempt(&mut self, tag: Tag, failure: FailedAttempt, logs: &[Log], now: Now) -> bool {
        let (Some(place), stored) = (self.leases.get_mut(tag, now), self.stored) else { return false };
        place.trial.tries.failed(failure);
        let (Some(group), Some(log)) = (stored, logs.get(place.partition as usize)) else { return false };
        let (offset, note) = (place.offset, Some(place.trial.note(true, None)));
        self.changes.push(Change::Retry { group, partition: log.id, offset, note });
        true
    }

    /// Everything that is out comes back.
    pub(super) fn recall(&mut self, logs: &[Log], now: Now, wakes: &mut Wakes) {
        for out in self.leases.drain() {
            self.ended(&out.what, wakes);
            self.come_back(out.what, Duration::ZERO, logs, now, wakes);
        }
    }

    /// What is to be on disk now, at once and in this order; nothing where all of it was given before.
    pub(super) fn take_changes(&mut self, logs: &[Log]) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.changes);
        let Some(group) = self.stored else { return Vec::new() };
        for (progress, log) in self.progress.iter_mut().zip(logs).filter(|(progress, _)| progress.changed) {
            let (handed, settled) = progress.submitted();
            changes.push(Change::Progress { group, partition: log.id, handed, settled });
        }
        changes
    }

    /// Whether its progress takes long to write down.
    pub(super) fn is_heavy(&self) -> bool {
        self.progress.iter().filter(|progress| progress.changed).map(Progress::gaps).sum::<usize>() > GAPS_MAX
    }

    /// Where the group is in each partition, for the disk.
    pub(super) fn all_changed(&mut self) {
        self.progress.iter_mut().for_each(|progress| progress.changed = true);
    }

    /// Messages of a partition between these bounds that retention must leave on disk.
    pub(super) fn open(&self, partition: usize, start: u64, end: u64) -> impl Iterator<Item = u64> {
        let progress = self.progress.get(partition).filter(|_| self.is_stored());
        progress.into_iter().flat_map(move |progress| progress.open(start, end))
    }

    /// Brings the count of what was lost up to date.
    pub(super) fn refresh(&mut self, logs: &[Log], now: Now) {
        for (progress, log) in self.progress.iter_mut().zip(logs) {
            self.lost += progress.refresh(log, now.tick);
        }
    }

    pub(super) fn out(&self) -> u64 {
        self.leases.len() as u64
    }

    pub(super) fn delayed(&self) -> u64 {
        self.progress.iter().map(Progress::delayed).sum::<usize>() as u64
    }

    pub(super) fn lag(&self, logs: &[Log]) -> u64 {
        self.progress.iter().zip(logs).map(|(progress, log)| progress.lag(log)).sum()
    }

    /// Takes another length for leases, where nothing is out.
    pub(super) fn adopt(&mut self, lease: Duration) {
        if self.leases.len() == 0 {
            self.leases = Leases::new(lease);
        }
    }

    fn hand_over(&mut self, found: Found, partition: u32, log: &Log, reader: ReaderId, now: Now) -> Delivery {
        let Found { offset, message, mut trial, is_again, .. } = found;
        self.sole_out |= suspects::is_sole(trial.crashes);
        if let Some(group) = self.stored.filter(|_| is_again) {
            let note = Some(trial.note(true, None));
            self.changes.push(Change::Retry { group, partition: log.id, offset, note });
        }
        let (attempt, failures) = (trial.tries.attempt(), trial.tries.failures());
        let place = Place { partition, offset, trial, message: Arc::clone(&message) };
        let tag = self.leases.put(place, reader, now);
        Delivery {
            message,
            tag,
            attempt,
            count: Count::Exact,
            topic: None,
            position: Some(Position { partition, offset }),
            failures,
        }
    }

    fn forget(&mut self, place: &Place, logs: &mut [Log], wakes: &mut Wakes) {
        self.ended(place, wakes);
        let partition = place.partition as usize;
        let (Some(progress), Some(log)) = (self.progress.get_mut(partition), logs.get_mut(partition)) else { return };
        progress.settle(place.offset);
        if let Some(next) = progress.handed_on() {
            wakes.extend(self.readers.wake(next));
        }
        self.forget_rows(place.offset, place.trial.has_note, log);
    }

    /// What the disk has of a settled message beside the progress. These go no earlier than the progress: a message
    /// without a note that is not settled would be on its first attempt.
    fn forget_rows(&mut self, offset: u64, has_note: bool, log: &mut Log) {
        let Some(group) = self.stored else { return };
        let partition = log.id;
        if has_note {
            self.changes.push(Change::Retry { group, partition, offset, note: None });
        }
        if log.unkeep(offset) {
            self.changes.push(Change::Unkeep { partition, offset });
        }
    }

    fn come_back(&mut self, mut place: Place, after: Duration, logs: &[Log], now: Now, wakes: &mut Wakes) {
        let partition = place.partition as usize;
        let (Some(progress), Some(log)) = (self.progress.get_mut(partition), logs.get(partition)) else { return };
        if let Some(group) = self.stored {
            let note = Some(place.trial.note(false, now.steady_after(after)));
            self.changes.push(Change::Retry { group, partition: log.id, offset: place.offset, note });
        }
        let due = (!after.is_zero()).then(|| now.after(after));
        let earlier = progress.come_back(place.offset, place.trial, place.message, due);
        // Who has no room now looks at all of it when it has.
        if let Some(reader) = progress.wanted.filter(|_| earlier || progress.handed_on().is_some()) {
            wakes.extend(self.readers.wake(reader));
        }
    }

    /// One that must be out alone is not any more: the next may be.
    fn ended(&mut self, place: &Place, wakes: &mut Wakes) {
        if suspects::is_sole(place.trial.crashes) {
            self.sole_out = false;
            wakes.extend(self.readers.all());
        }
    }

    /// A lease that ran out is an attempt that failed.
    fn lapse(&mut self, logs: &[Log], now: Now, wakes: &mut Wakes) {
        for mut out in self.leases.lapsed(&self.readers, now) {
            let failure = self.leases.failure(out.what.trial.tries.attempt(), now);
            out.what.trial.tries.failed(failure);
            wakes.extend(self.readers.ended(out.reader, 1));
            self.ended(&out.what, wakes);
            self.come_back(out.what, Duration::ZERO, logs, now, wakes);
        }
    }
}
