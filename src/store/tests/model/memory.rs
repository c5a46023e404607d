//! The maps.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{prelude::*, sample::Index};

use super::Step;
use crate::{
    message::{Message, UnixMs},
    store::{
        Change, GroupId, LANE_LATER, LaneId, LedgerKey, Mark, MarkKey, Note, Noted, PartitionId, PlaceId, QueueKey,
        Store, record,
        tests::support::{ask, message},
    },
};

/// What a store should hold.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    queue: PlaceId,
    group: GroupId,
    /// Used up, whatever became of them.
    sequence: u64,
    messages: BTreeMap<QueueKey, (Arc<Message>, Option<Note>)>,
    handed: BTreeMap<LaneId, u64>,
    partitions: Vec<Partition>,
    progress: BTreeMap<PartitionId, u64>,
    retries: BTreeMap<(PartitionId, u64), Note>,
    ledger: BTreeMap<u8, Note>,
    marks: BTreeMap<u8, Mark>,
}

#[derive(Clone, Debug)]
struct Partition {
    id: PartitionId,
    start: u64,
    end: u64,
    messages: BTreeMap<u64, (Arc<Message>, UnixMs)>,
}

impl Memory {
    pub(super) fn new(store: &Store) -> Self {
        let queue = store.create_queue("queue").unwrap();
        let (topic, partitions) = store.create_topic("topic", 3).unwrap();
        let partition = |id| Partition { id, start: 0, end: 0, messages: BTreeMap::new() };
        Self {
            queue,
            group: store.create_group(topic, "group").unwrap(),
            sequence: 0,
            messages: BTreeMap::new(),
            handed: BTreeMap::new(),
            partitions: partitions.into_iter().map(partition).collect(),
            progress: BTreeMap::new(),
            retries: BTreeMap::new(),
            ledger: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }

    /// As it was before; what was used up of sequences stays so.
    pub(super) fn undo(&mut self, before: &Self) {
        *self = Self { sequence: self.sequence, ..before.clone() };
    }

    /// Does it here, and says what to submit for it.
    pub(super) fn apply(&mut self, step: &Step) -> Vec<Change> {
        match step {
            Step::Put { lane, text, due, count } => (0..*count).map(|_| self.put(*lane, text, *due)).collect(),
            Step::Remove { which } => self.key(which).into_iter().map(|key| self.remove(key)).collect(),
            Step::RemoveSome { first, named, backwards } => {
                let Some(first) = self.key(first) else { return Vec::new() };
                let neighbours = self.messages.range(first..).zip(named);
                let mut keys: Vec<_> = neighbours.filter(|(_, named)| **named).map(|((key, _), _)| *key).collect();
                if *backwards {
                    keys.reverse();
                }
                keys.into_iter().map(|key| self.remove(key)).collect()
            }
            Step::Note { which, out, due } => {
                let Some(key) = self.key(which) else { return Vec::new() };
                let noted = self.noted(key);
                let note = Note { attempt: 2, out: *out, crashes: 1, due: *due, failures: Vec::new() };
                self.messages.entry(key).and_modify(|(_, old)| *old = Some(note.clone()));
                vec![Change::Note { key, note, noted }]
            }
            Step::Handed { lane } => {
                let lane = LaneId::new(self.queue, *lane);
                let range = lane.key(0)..=lane.key(u64::MAX);
                let Some(key) = self.messages.range(range).next_back().map(|(key, _)| *key) else { return Vec::new() };
                let handed = self.handed.entry(lane).or_default();
                *handed = key.sequence().max(*handed);
                vec![Change::Handed(key)]
            }
            Step::Attempts { message, noted } => {
                let note = noted.then(|| Note { attempt: 3, ..Note::default() });
                self.ledger.remove(message);
                self.ledger.extend(note.clone().map(|note| (*message, note)));
                vec![Change::Attempts { of: ledger_key(*message), note }]
            }
            Step::Mark { partition, mark } => {
                let mark = mark.map(|(low, high)| Mark { low, high });
                self.marks.remove(partition);
                self.marks.extend(mark.map(|mark| (*partition, mark)));
                vec![Change::Mark { of: mark_key(*partition), mark }]
            }
            step => self.apply_to_topic(step),
        }
    }

    fn apply_to_topic(&mut self, step: &Step) -> Vec<Change> {
        match step {
            Step::Append { partition, timestamp, count } => {
                let partition = &mut self.partitions[*partition];
                let append = |place| {
                    let message = Arc::new(Message { timestamp: *timestamp, ..(*message("event")).clone() });
                    let (offset, appended) = (partition.end, partition.end + place);
                    partition.end += 1;
                    partition.messages.insert(offset, (Arc::clone(&message), appended));
                    let (rest, bytes) = (record::encode(&message), message.size() as u32);
                    Change::Append { partition: partition.id, offset, message, rest, bytes, appended }
                };
                (0..*count).map(append).collect()
            }
            Step::Forget { partition, count, keep } => {
                let partition = &mut self.partitions[*partition];
                let (start, end) = (partition.start, (partition.start + count).min(partition.end));
                if start == end {
                    return Vec::new();
                }
                let offsets: Vec<_> = (start..end).collect();
                let mut keep: Vec<_> = keep.iter().map(|index| *index.get(&offsets)).collect();
                keep.sort_unstable();
                keep.dedup();
                let bytes = partition.messages.range(start..end).map(|(_, (message, _))| message.size() as u64).sum();
                let id = partition.id;
                partition.start = end;
                let retries = &self.retries;
                keep.extend(offsets.iter().filter(|offset| retries.contains_key(&(id, **offset))));
                keep.sort_unstable();
                keep.dedup();
                partition.messages.retain(|offset, _| !(start..end).contains(offset) || keep.contains(offset));
                vec![Change::Forget { partition: id, start, end, bytes, keep }]
            }
            Step::Unkeep { which } => {
                let retries = &self.retries;
                let kept = |partition: &Partition| {
                    let offsets =
                        partition.messages.range(..partition.start).map(|(offset, _)| (partition.id, *offset));
                    offsets.filter(|place| !retries.contains_key(place)).collect::<Vec<_>>()
                };
                let kept: Vec<_> = self.partitions.iter().flat_map(kept).collect();
                if kept.is_empty() {
                    return Vec::new();
                }
                let (partition, offset) = *which.get(&kept);
                self.partitions.iter_mut().filter(|there| there.id == partition).for_each(|there| {
                    there.messages.remove(&offset);
                });
                vec![Change::Unkeep { partition, offset }]
            }
            Step::Progress { partition, handed } => {
                let partition = &self.partitions[*partition];
                let handed = *handed.min(&partition.end);
                self.progress.insert(partition.id, handed);
                let settled = handed.to_le_bytes().to_vec();
                vec![Change::Progress { group: self.group, partition: partition.id, handed, settled }]
            }
            Step::Retry { partition, which, noted } => {
                let partition = &self.partitions[*partition];
                if partition.messages.is_empty() {
                    return Vec::new();
                }
                let offsets: Vec<_> = partition.messages.keys().copied().collect();
                let (id, offset) = (partition.id, *which.get(&offsets));
                let note = noted.then(|| Note { attempt: 4, due: Some(9), ..Note::default() });
                self.retries.remove(&(id, offset));
                self.retries.extend(note.clone().map(|note| ((id, offset), note)));
                vec![Change::Retry { group: self.group, partition: id, offset, note }]
            }
            _ => Vec::new(),
        }
    }

    /// All that can be asked.
    pub(super) fn compare(&self, store: &Store) -> Result<(), TestCaseError> {
        let catalog = store.catalog().unwrap();
        let queue = &catalog.queues[0];
        prop_assert!(queue.sequence_next > self.messages.keys().map(|key| key.sequence()).max().unwrap_or(0));
        for lane in (0..16).map(|lane| LaneId::new(self.queue, lane)) {
            let there: Vec<_> = self.messages.range(lane.key(0)..=lane.key(u64::MAX)).collect();
            let waits = |note: &Option<Note>| note.as_ref().is_some_and(|note| note.due.is_some());
            let bytes: usize = there.iter().map(|(_, (message, _))| message.size()).sum();
            let waiting = there.iter().filter(|(_, (_, note))| waits(note)).count();
            let handed = self.handed.get(&lane).copied().unwrap_or(0);
            let sums = queue.lanes.iter().find(|found| found.lane == lane);
            let sums = sums.map_or((0, 0, 0, 0), |sums| (sums.count, sums.bytes, sums.waiting, sums.handed));
            prop_assert_eq!(sums, (there.len() as u64, bytes as u64, waiting as u64, handed));
            let page = ask(store, move |reader| reader.queue_page(lane, 0, 1000, usize::MAX).map(|page| page.messages));
            let page: Vec<_> = page.into_iter().map(|found| (found.key, (found.message, found.note))).collect();
            let ready = there.into_iter().filter(|(_, (_, note))| !waits(note));
            prop_assert_eq!(page, ready.map(|(key, message)| (*key, message.clone())).collect::<Vec<_>>());
        }
        let queue = self.queue;
        let waiting = ask(store, move |reader| reader.queue_later(queue, None, 1000));
        let due = |(key, (_, note)): (&QueueKey, &(_, Option<Note>))| Some((note.as_ref()?.due?, *key));
        let mut wanted: Vec<_> = self.messages.iter().filter_map(due).collect();
        wanted.sort_unstable();
        prop_assert_eq!(waiting, wanted);
        self.compare_topic(store)
    }

    fn compare_topic(&self, store: &Store) -> Result<(), TestCaseError> {
        let catalog = store.catalog().unwrap();
        for (wanted, found) in self.partitions.iter().zip(&catalog.topics[0].partitions) {
            let bytes =
                wanted.messages.range(wanted.start..).map(|(_, (message, _))| message.size() as u64).sum::<u64>();
            prop_assert_eq!((found.start, found.end, found.bytes), (wanted.start, wanted.end, bytes));
            let id = wanted.id;
            let page = ask(store, move |reader| reader.log_page(id, 0, u64::MAX, usize::MAX, usize::MAX));
            let page: Vec<_> = page.into_iter().map(|found| (found.offset, (found.message, found.appended))).collect();
            prop_assert_eq!(page, wanted.messages.clone().into_iter().collect::<Vec<_>>());
            for at in [0, 50, 99] {
                let start = wanted.start;
                let since = ask(store, move |reader| reader.log_since(id, start, at));
                let first = wanted.messages.range(start..).find(|(_, (message, _))| message.timestamp >= at);
                prop_assert_eq!(since, first.map(|(offset, _)| *offset), "since {}", at);
            }
        }
        let group = &catalog.groups[0];
        let progress: Vec<_> =
            self.progress.iter().map(|(id, handed)| (*id, *handed, handed.to_le_bytes().to_vec())).collect();
        prop_assert_eq!(&group.progress, &progress);
        let retries: Vec<_> = self.retries.iter().map(|((id, offset), note)| (*id, *offset, note.clone())).collect();
        prop_assert_eq!(&group.retries, &retries);
        for message in 0..3 {
            let found = ask(store, move |reader| reader.attempts(&ledger_key(message)));
            prop_assert_eq!(found.as_ref(), self.ledger.get(&message));
        }
        let marks = ask(store, |reader| reader.marks("kafka/topic:orders/engine"));
        let wanted: Vec<_> = self.marks.iter().map(|(partition, mark)| (mark_key(*partition), *mark)).collect();
        prop_assert_eq!(marks, wanted);
        Ok(())
    }

    fn key(&self, which: &Index) -> Option<QueueKey> {
        let keys: Vec<_> = self.messages.keys().copied().collect();
        (!keys.is_empty()).then(|| *which.get(&keys))
    }

    fn noted(&self, key: QueueKey) -> Noted {
        match self.messages.get(&key).and_then(|(_, note)| note.as_ref()) {
            None => Noted::Nothing,
            Some(Note { due: Some(_), .. }) => Noted::Later,
            Some(_) => Noted::Something,
        }
    }

    fn put(&mut self, lane: u8, text: &str, due: Option<UnixMs>) -> Change {
        self.sequence += 1;
        let lane = if due.is_some() { LANE_LATER } else { lane };
        let key = LaneId::new(self.queue, lane).key(self.sequence);
        let message = message(text);
        let note = due.map(|due| Note { attempt: 1, due: Some(due), ..Note::default() });
        self.messages.insert(key, (Arc::clone(&message), note));
        let (rest, bytes) = (record::encode(&message), message.size() as u32);
        Change::Put { key, message, rest, bytes, due }
    }

    fn remove(&mut self, key: QueueKey) -> Change {
        let noted = self.noted(key);
        let bytes = self.messages.remove(&key).map_or(0, |(message, _)| message.size() as u32);
        Change::Remove { key, bytes, noted }
    }
}

fn ledger_key(message: u8) -> LedgerKey {
    LedgerKey { place: "rabbitmq/queue:orders".into(), message: message.to_string() }
}

fn mark_key(partition: u8) -> MarkKey {
    MarkKey { place: "kafka/topic:orders/engine".into(), topic: None, partition: partition.into() }
}
