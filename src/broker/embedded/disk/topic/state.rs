//! What a topic on disk holds, and every change to it. Pure: readings of the clock and what was read come in; what is to
//! be written, to be read and to be woken goes out as data.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tokio::sync::Notify;

use super::{
    effects::{Batch, Effects, Follow, Found, Read},
    group::Group,
    log::{Entry, Log},
    progress::Progress,
    retention::Retention,
};
use crate::{
    broker::{
        AddressStats, BatchMax, Delivery, Tag, TopicSettings,
        embedded::{
            clock::{Now, Tick},
            readers::{ReaderId, Wakes},
            topic::partition,
        },
    },
    message::{Address, FailedAttempt, Message, Settlement},
    store::{Change, GroupId, PartitionId, StoreError, StoredGroup, StoredTopic},
};

/// Messages without a key that follow each other into one partition before the next one's turn.
const STICKY: usize = 256;

/// The topic behind its lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) address: Address,
    pub(super) settings: TopicSettings,
    pub(super) logs: Vec<Log>,
    pub(super) closed: bool,
    /// The disk could not be read; told to one reader.
    unread: Option<Arc<StoreError>>,
    pub(super) groups: Vec<(GroupKey, Group)>,
    pub(super) retention: Vec<Retention>,
    last_group: GroupKey,
    last_reader: ReaderId,
    /// Where messages without a key go now, and how many have gone there.
    sticky: (u32, usize),
    /// Losses of groups that are gone.
    dropped: u64,
    dead_lettered: u64,
}

/// Names a group; never used twice.
pub(super) type GroupKey = u32;

/// One message to publish, what of it has no column of its own, and its size.
#[derive(Debug)]
pub(super) struct New {
    pub(super) message: Arc<Message>,
    pub(super) rest: Vec<u8>,
    pub(super) bytes: u32,
}

/// What was found for a reader.
#[derive(Debug)]
pub(super) enum Taken {
    /// These, once the changes are on disk; where there are none, at once.
    Some(Vec<Delivery>, Vec<Change>),
    /// Nothing for now: look again at `until`, or when woken.
    Nothing {
        until: Tick,
    },
    Failed(Arc<StoreError>),
    Ended,
}

impl State {
    pub(super) fn new(stored: &StoredTopic, groups: &[StoredGroup], settings: TopicSettings, now: Now) -> Self {
        let mut state = Self {
            address: Address::topic(Arc::clone(&stored.name)),
            logs: stored.partitions.iter().map(Log::new).collect(),
            retention: stored.partitions.iter().map(|_| Retention::default()).collect(),
            settings: TopicSettings { partitions: stored.partitions.len() as u32, ..settings },
            closed: false,
            unread: None,
            groups: Vec::new(),
            last_group: 0,
            last_reader: 0,
            sticky: (0, 0),
            dropped: 0,
            dead_lettered: 0,
        };
        for group in groups.iter().filter(|group| group.topic == stored.id) {
            state.restore(group, now);
        }
        state
    }

    /// Gives each message its offset, and what is to be written.
    pub(super) fn place(&mut self, messages: Vec<New>, now: Now) -> (Vec<Change>, Vec<(usize, Entry)>) {
        let mut changes = Vec::with_capacity(messages.len());
        let mut entries = Vec::with_capacity(messages.len());
        self.logs.iter_mut().for_each(Log::begin);
        for New { message, rest, bytes } in messages {
            let partition = match &message.key {
                Some(key) => partition::of_key(key, self.settings.partitions),
                None => self.sticky_partition(),
            } as usize;
            let Some(log) = self.logs.get_mut(partition) else { continue };
            let (offset, appended, waits) = (log.reserve(), now.steady, message.not_before.is_some());
            entries.push((partition, Entry { offset, message: Arc::clone(&message), bytes, appended, waits }));
            changes.push(Change::Append { partition: log.id, offset, message, rest, bytes, appended });
        }
        // The next batch goes elsewhere.
        if self.sticky.1 > 0 {
            self.sticky = (self.sticky.0.wrapping_add(1), 0);
        }
        (changes, entries)
    }

    /// What was placed is safe, and becomes visible; `None`: it was refused.
    pub(super) fn placed(&mut self, entries: Option<Vec<(usize, Entry)>>, now: Now, out: &mut Effects) {
        let mut touched = vec![false; self.logs.len()];
        for (partition, entry) in entries.into_iter().flatten() {
            if let (Some(log), Some(touched)) = (self.logs.get_mut(partition), touched.get_mut(partition)) {
                log.append(entry);
                *touched = true;
            }
        }
        self.logs.iter_mut().for_each(Log::decided);
        // Before the tail is cut: what goes at once is known by its size.
        self.retain(now, out);
        self.logs.iter_mut().for_each(Log::trim);
        for (_, group) in &self.groups {
            group.wake_for(&touched, &mut out.wakes);
        }
    }

    /// The named group, if there is one.
    pub(super) fn group_named(&self, name: &str) -> Option<GroupKey> {
        self.groups.iter().find(|(_, group)| !name.is_empty() && *group.name == *name).map(|(key, _)| *key)
    }

    /// Adds a group that begins at these offsets.
    pub(super) fn add_group(&mut self, name: &Arc<str>, stored: Option<GroupId>, starts: &[u64]) -> GroupKey {
        let bounds = |(start, log): (&u64, &Log)| Progress::starting_at((*start).clamp(log.start(), log.end()));
        let progress = starts.iter().zip(&self.logs).map(bounds).collect();
        let mut group = Group::new(Arc::clone(name), stored, progress, self.settings.lease);
        group.all_changed();
        self.push_group(group)
    }

    /// Where a new group begins, for the disk.
    pub(super) fn begin_group(&mut self, key: GroupKey) -> Vec<Change> {
        let found = self.groups.iter_mut().find(|(id, _)| *id == key);
        found.map_or_else(Vec::new, |(_, group)| group.take_changes(&self.logs))
    }

    pub(super) fn join(
        &mut self,
        group: GroupKey,
        prefetch: usize,
        wake: Arc<Notify>,
        wakes: &mut Wakes,
    ) -> Option<ReaderId> {
        self.last_reader = self.last_reader.wrapping_add(1);
        let reader = self.last_reader;
        let group = self.group_mut(group)?;
        group.readers.join(reader, prefetch, wake);
        group.share_out(wakes);
        Some(reader)
    }

    pub(super) fn leave(&mut self, key: GroupKey, reader: ReaderId, out: &mut Effects) {
        let Some(left) = self.group_mut(key) else { return };
        left.readers.leave(reader);
        left.share_out(&mut out.wakes);
        if !left.is_stored() {
            self.dropped += left.lost;
            self.groups.retain(|(id, _)| *id != key);
        }
    }

    pub(super) fn take(
        &mut self,
        key: GroupKey,
        reader: ReaderId,
        ahead: bool,
        max: BatchMax,
        now: Now,
        out: &mut Effects,
    ) -> Taken {
        let found = self.groups.iter_mut().find(|(id, _)| *id == key).filter(|_| !self.closed);
        let Some((_, group)) = found else { return Taken::Ended };
        if let Some(error) = self.unread.take() {
            return Taken::Failed(error);
        }
        let (items, until) = group.take(reader, ahead, &self.logs, max, now, &mut out.wakes);
        for (partition, wanted) in group.wanted_from_disk(reader, &self.logs) {
            let Some(log) = self.logs.get(partition) else { continue };
            out.reads.push(Read::Ahead { group: key, partition, id: log.id, wanted });
        }
        if items.is_empty() {
            flush(key, group, &self.logs, out);
            return Taken::Nothing { until };
        }
        Taken::Some(items, group.take_changes(&self.logs))
    }

    /// What was asked for was read.
    pub(super) fn put(&mut self, group: GroupKey, partition: usize, read: Found, out: &mut Effects) {
        if let Some(error) = read.error() {
            self.unread = Some(Arc::clone(error));
        }
        let found = self.groups.iter_mut().find(|(id, _)| *id == group);
        let (Some((_, group)), Some(log)) = (found, self.logs.get_mut(partition)) else { return };
        group.put(partition, log, &mut out.wakes, |progress| match read {
            Found::Page(stretch, page) => {
                progress.put_page(stretch, page.ok());
                Vec::new()
            }
            Found::Again(read) => progress.put_again(read.ok()),
        });
    }

    pub(super) fn settle(
        &mut self,
        key: GroupKey,
        reader: ReaderId,
        settled: impl IntoIterator<Item = (Tag, Settlement)>,
        now: Now,
        out: &mut Effects,
    ) {
        if let Some((_, group)) = self.groups.iter_mut().find(|(id, _)| *id == key) {
            self.dead_lettered += group.settle(reader, settled, &mut self.logs, now, &mut out.wakes);
            flush(key, group, &self.logs, out);
        }
    }

    /// What is to be on disk before the attempt may begin; nothing: it may.
    pub(super) fn count_attempt(&mut self, key: GroupKey, tag: Tag, failure: FailedAttempt, now: Now) -> Vec<Change> {
        let Some((_, group)) = self.groups.iter_mut().find(|(id, _)| *id == key) else { return Vec::new() };
        let counted = group.count_attempt(tag, failure, &self.logs, now);
        if counted { group.take_changes(&self.logs) } else { Vec::new() }
    }

    /// What a group submitted on its own is safe.
    pub(super) fn flushed(&mut self, key: GroupKey, out: &mut Effects) {
        if let Some((_, group)) = self.groups.iter_mut().find(|(id, _)| *id == key) {
            group.flushing = false;
            flush(key, group, &self.logs, out);
        }
    }

    pub(super) fn renew(&mut self, group: GroupKey, reader: ReaderId, now: Now) {
        if let Some(group) = self.group_mut(group) {
            group.readers.renew(reader, now);
        }
    }

    /// Ends it: what is out comes back as the attempt it was, nothing goes in or out any more.
    pub(super) fn close(&mut self, now: Now, out: &mut Effects) {
        self.closed = true;
        for (_, group) in &mut self.groups {
            group.recall(&self.logs, now, &mut out.wakes);
            out.wakes.extend(group.readers.all());
            let changes = group.take_changes(&self.logs);
            if !changes.is_empty() {
                out.batches.push(Batch { changes, follow: Follow::Nothing });
            }
        }
    }

    pub(super) fn adopt(&mut self, settings: TopicSettings) {
        let partitions = self.settings.partitions;
        self.settings = TopicSettings { partitions, ..settings };
        for (_, group) in &mut self.groups {
            group.adopt(self.settings.lease);
        }
    }

    pub(super) fn stats(&mut self, now: Now) -> AddressStats {
        for (_, group) in &mut self.groups {
            group.refresh(&self.logs, now);
        }
        let groups = || self.groups.iter().map(|(_, group)| group);
        AddressStats {
            address: self.address.clone(),
            ready: self.kept(),
            delayed: groups().map(Group::delayed).sum(),
            unsettled: groups().map(Group::out).sum(),
            bytes: self.logs.iter().map(Log::bytes).sum(),
            lag: groups().map(|group| (Arc::clone(&group.name), group.lag(&self.logs))).collect(),
            dropped: self.dropped + groups().map(|group| group.lost).sum::<u64>(),
            dead_lettered: self.dead_lettered,
        }
    }

    /// How many messages there are; counts offsets that no message has.
    pub(super) fn kept(&self) -> u64 {
        self.logs.iter().map(|log| log.end() - log.start()).sum()
    }

    fn restore(&mut self, stored: &StoredGroup, now: Now) {
        let mut notes: HashMap<PartitionId, BTreeMap<u64, _>> = HashMap::new();
        for (partition, offset, note) in &stored.retries {
            notes.entry(*partition).or_default().insert(*offset, note.clone());
        }
        let progress =
            self.logs.iter_mut().map(|log| match stored.progress.iter().find(|(partition, ..)| *partition == log.id) {
                Some((_, handed, settled)) => {
                    Progress::restored(*handed, settled, notes.remove(&log.id).unwrap_or_default(), log, now)
                }
                None => Progress::starting_at(log.start()),
            });
        let progress = progress.collect();
        self.push_group(Group::new(Arc::clone(&stored.name), Some(stored.id), progress, self.settings.lease));
    }

    fn push_group(&mut self, group: Group) -> GroupKey {
        self.last_group = self.last_group.wrapping_add(1);
        self.groups.push((self.last_group, group));
        self.last_group
    }

    fn group_mut(&mut self, group: GroupKey) -> Option<&mut Group> {
        self.groups.iter_mut().find(|(id, _)| *id == group).map(|(_, group)| group)
    }

    fn sticky_partition(&mut self) -> u32 {
        let (turn, count) = self.sticky;
        self.sticky = if count + 1 >= STICKY { (turn.wrapping_add(1), 0) } else { (turn, count + 1) };
        turn % self.settings.partitions.max(1)
    }
}

/// Submits what a group has to be on disk. Where that takes long to write down, one batch at a time: what is settled
/// meanwhile goes together with the next.
fn flush(key: GroupKey, group: &mut Group, logs: &[Log], out: &mut Effects) {
    let heavy = group.is_heavy();
    if heavy && group.flushing {
        return;
    }
    let changes = group.take_changes(logs);
    if !changes.is_empty() {
        group.flushing |= heavy;
        let follow = if heavy { Follow::Flushed(key) } else { Follow::Nothing };
        out.batches.push(Batch { changes, follow });
    }
}
