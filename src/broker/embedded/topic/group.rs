//! A consumer group: its readers, which partitions each reads, what they have out, and its progress.

use std::{sync::Arc, time::Duration};

use super::{log::Log, progress::Progress};
use crate::{
    broker::{
        BatchMax, Count, Delivery, Position, Tag,
        embedded::{
            clock::{Now, Tick},
            leases::Leases,
            readers::{ReaderId, Readers, Wakes},
            tries::Tries,
        },
    },
    message::{FailedAttempt, Message, Settlement},
};

#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: Arc<str>,
    pub(super) readers: Readers,
    progress: Vec<Progress>,
    leases: Leases<Place>,
    /// Where the next batch begins, so that no partition waits for another to run dry.
    turn: usize,
    /// Messages that retention took before this group had read them.
    pub(super) lost: u64,
}

/// What a delivery that is out is of.
#[derive(Debug)]
struct Place {
    partition: u32,
    offset: u64,
    tries: Tries,
}

/// What [`Group::take`] found.
#[derive(Debug)]
pub(super) enum Taken {
    Some(Vec<Delivery>),
    /// Nothing for now: look again at `until`, or when woken.
    Nothing {
        until: Tick,
    },
    Ended,
}

impl Group {
    pub(super) fn new(name: Arc<str>, starts: impl Iterator<Item = u64>, lease: Duration) -> Self {
        Self {
            name,
            readers: Readers::default(),
            progress: starts.map(Progress::starting_at).collect(),
            leases: Leases::new(lease),
            turn: 0,
            lost: 0,
        }
    }

    /// Shares the partitions among those who are there; all of them look at what is now theirs.
    pub(super) fn share_out(&mut self, wakes: &mut Wakes) {
        let readers: Vec<ReaderId> = self.readers.present().collect();
        let mut turns = readers.iter().copied().cycle();
        for progress in &mut self.progress {
            progress.wanted = turns.next();
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

    /// Hands over what is there, each partition in order, what was given back first.
    pub(super) fn take(&mut self, reader: ReaderId, logs: &[Log], max: BatchMax, now: Now, wakes: &mut Wakes) -> Taken {
        self.lapse(now, wakes);
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
                let bytes_max = if items.is_empty() { usize::MAX } else { bytes_left };
                let Some(found) = progress.take(log, bytes_max, now) else { break };
                if items.is_empty() {
                    items.reserve(count.min(usize::try_from(log.end() - found.offset).unwrap_or(count)));
                    self.turn = (partition + 1) % partitions;
                }
                bytes_left = bytes_left.saturating_sub(found.bytes);
                let (attempt, failures) = (found.tries.attempt(), found.tries.failures());
                let partition = partition as u32;
                let place = Place { partition, offset: found.offset, tries: found.tries };
                let tag = self.leases.put(place, reader, now);
                let position = Some(Position { partition, offset: found.offset });
                items.push(Delivery {
                    message: found.message,
                    tag,
                    attempt,
                    count: Count::Exact,
                    topic: None,
                    position,
                    failures,
                });
            }
            until = progress.first_due().map_or(until, |due| due.min(until));
        }
        if items.is_empty() {
            return Taken::Nothing { until };
        }
        self.readers.took(reader, items.len());
        Taken::Some(items)
    }

    /// Carries out settlements; those that come after their lease ran out find nothing to do. Gives how many were
    /// dead letters.
    pub(super) fn settle(
        &mut self,
        reader: ReaderId,
        settled: impl IntoIterator<Item = (Tag, Settlement)>,
        now: Now,
        wakes: &mut Wakes,
    ) -> u64 {
        let (mut ended, mut dead_letters) = (0, 0);
        for (tag, how) in settled {
            let Some(out) = self.leases.take(tag) else { continue };
            ended += 1;
            match how {
                Settlement::Accept => self.forget(&out.what, wakes),
                Settlement::DeadLetter { .. } => {
                    dead_letters += 1;
                    self.forget(&out.what, wakes);
                }
                Settlement::Redeliver { after, failure } => {
                    let mut place = out.what;
                    place.tries.failed(*failure);
                    self.come_back(place, now.after(after), now, wakes);
                }
                Settlement::Release { after } => self.come_back(out.what, now.after(after), now, wakes),
            }
        }
        wakes.extend(self.readers.ended(reader, ended));
        dead_letters
    }

    pub(super) fn count_attempt(&mut self, tag: Tag, failure: FailedAttempt, now: Now) {
        if let Some(place) = self.leases.get_mut(tag, now) {
            place.tries.failed(failure);
        }
    }

    /// Everything that is out comes back.
    pub(super) fn recall(&mut self, now: Now, wakes: &mut Wakes) {
        for out in self.leases.drain() {
            self.come_back(out.what, now.tick, now, wakes);
        }
    }

    /// Retention is about to take this entry.
    pub(super) fn keep(&mut self, partition: usize, offset: u64, message: &Arc<Message>) {
        if let Some(progress) = self.progress.get_mut(partition) {
            progress.keep(offset, message);
        }
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

    fn forget(&mut self, place: &Place, wakes: &mut Wakes) {
        let Some(progress) = self.progress.get_mut(place.partition as usize) else { return };
        progress.settle(place.offset);
        if let Some(next) = progress.handed_on() {
            wakes.extend(self.readers.wake(next));
        }
    }

    fn come_back(&mut self, place: Place, due: Tick, now: Now, wakes: &mut Wakes) {
        let Some(progress) = self.progress.get_mut(place.partition as usize) else { return };
        let earlier = progress.come_back(place.offset, place.tries, due, now.tick);
        // Who has no room now looks at all of it when it has.
        if let Some(reader) = progress.wanted.filter(|_| earlier || progress.handed_on().is_some()) {
            wakes.extend(self.readers.wake(reader));
        }
    }

    /// A lease that ran out is an attempt that failed.
    fn lapse(&mut self, now: Now, wakes: &mut Wakes) {
        for mut out in self.leases.lapsed(&self.readers, now) {
            let failure = self.leases.failure(out.what.tries.attempt(), now);
            out.what.tries.failed(failure);
            wakes.extend(self.readers.ended(out.reader, 1));
            self.come_back(out.what, now.tick, now, wakes);
        }
    }
}
