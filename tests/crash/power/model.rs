//! Work for a store, each step of which follows from a seed, and what the store holds after each.

use std::{collections::BTreeMap, sync::Arc, sync::mpsc::sync_channel};

use helixmq::{
    message::{Message, MessageId, now_ms},
    store::{Change, GroupId, LaneId, Note, Noted, PartitionId, PlaceId, QueueKey, Reader, Store, StoreError, record},
};

use crate::random::Random;

/// So many steps the queue grows, to more than a write-ahead log keeps, then as many it shrinks, until the database does.
const TIDE: u64 = 80;
/// Messages that a partition holds before the older half is forgotten.
const LOG_MAX: u64 = 40;
const PARTITIONS: u32 = 2;
/// Most that is read at once: more than there ever is.
const ALL: usize = 10_000;

/// Where the work is done.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    queue: PlaceId,
    partitions: Vec<PartitionId>,
    group: GroupId,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// How many steps were made.
    pub(crate) steps: u64,
    /// By sequence: lane, what tells the message from all others, attempt that is noted.
    queue: BTreeMap<u64, (u8, u64, Option<u32>)>,
    /// For each partition where it begins, and what tells its messages from all others.
    logs: Vec<(u64, Vec<u64>)>,
    /// For each lane that was used: messages, bytes.
    sums: BTreeMap<u8, (u64, u64)>,
}

/// One step after the other.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) content: Content,
    sizes: BTreeMap<u64, u32>,
    log_sizes: Vec<Vec<u32>>,
    sequence: u64,
    random: Random,
    places: Places,
}

impl Places {
    /// Makes them, or finds them.
    pub(crate) fn make(store: &Store) -> Result<Self, StoreError> {
        let queue = store.create_queue("work")?;
        let (topic, partitions) = store.create_topic("events", PARTITIONS)?;
        let group = store.create_group(topic, "group")?;
        Ok(Self { queue, partitions, group })
    }
}

impl Model {
    pub(crate) fn new(seed: u64, places: Places) -> Self {
        let logs = vec![(0, Vec::new()); places.partitions.len()];
        Self {
            content: Content { logs, ..Content::default() },
            sizes: BTreeMap::new(),
            log_sizes: vec![Vec::new(); places.partitions.len()],
            sequence: 1,
            random: Random::new(seed),
            places,
        }
    }

    /// The next step, as a batch, which is made whole or not at all.
    pub(crate) fn step(&mut self) -> Vec<Change> {
        self.content.steps += 1;
        let mut changes = Vec::new();
        let (puts, removals) = if (self.content.steps / TIDE).is_multiple_of(2) { (24, 4) } else { (4, 30) };
        for _ in 0..self.random.between(0, puts) {
            changes.push(self.put());
        }
        for _ in 0..self.random.between(0, removals) {
            changes.extend(self.remove());
        }
        for _ in 0..self.random.between(0, 3) {
            changes.extend(self.note());
        }
        for _ in 0..self.random.between(0, 4) {
            changes.push(self.append());
        }
        changes.extend(self.forget());
        changes.push(Change::Progress {
            group: self.places.group,
            partition: self.places.partitions[0],
            handed: self.content.logs[0].0 + self.content.logs[0].1.len() as u64,
            settled: self.content.steps.to_le_bytes().to_vec(),
        });
        changes
    }

    fn message(&mut self) -> Arc<Message> {
        // Most fit into a page, some need a chain of them.
        let length =
            if self.random.once_in(2) { self.random.between(5_000, 60_000) } else { self.random.between(0, 900) };
        let number = self.random.next();
        let mut message = Message::new("power.test", self.random.bytes(length as usize), now_ms());
        message.id = MessageId::parse(&number.to_string());
        message.headers.append("number", &number.to_string());
        Arc::new(message)
    }

    fn put(&mut self) -> Change {
        let message = self.message();
        let (lane, sequence, bytes) = (self.random.between(0, 11) as u8, self.sequence, message.size() as u32);
        self.sequence += 1;
        self.content.queue.insert(sequence, (lane, sum(&message), None));
        self.sizes.insert(sequence, bytes);
        let sums = self.content.sums.entry(lane).or_default();
        *sums = (sums.0 + 1, sums.1 + u64::from(bytes));
        let rest = record::encode(&message);
        Change::Put { key: self.key(lane, sequence), message, rest, bytes, due: None }
    }

    fn key(&self, lane: u8, sequence: u64) -> QueueKey {
        LaneId::new(self.places.queue, lane).key(sequence)
    }

    /// Any message that is there; mostly an old one.
    fn any(&mut self) -> Option<u64> {
        let count = self.content.queue.len() as u64;
        let place = if self.random.once_in(3) { self.random.between(0, count.max(1)) } else { 0 };
        self.content.queue.keys().nth(place as usize).copied()
    }

    fn remove(&mut self) -> Option<Change> {
        let sequence = self.any()?;
        let (lane, _, note) = self.content.queue.remove(&sequence)?;
        let bytes = self.sizes.remove(&sequence)?;
        let sums = self.content.sums.get_mut(&lane)?;
        *sums = (sums.0 - 1, sums.1 - u64::from(bytes));
        let noted = if note.is_some() { Noted::Something } else { Noted::Nothing };
        Some(Change::Remove { key: self.key(lane, sequence), bytes, noted })
    }

    fn note(&mut self) -> Option<Change> {
        let sequence = self.any()?;
        let attempt = self.random.between(1, 100) as u32;
        let (lane, _, note) = self.content.queue.get_mut(&sequence)?;
        let lane = *lane;
        let noted = if note.replace(attempt).is_some() { Noted::Something } else { Noted::Nothing };
        let note = Note { attempt, out: true, ..Note::default() };
        Some(Change::Note { key: self.key(lane, sequence), note, noted })
    }

    fn append(&mut self) -> Change {
        let message = self.message();
        let place = self.random.between(0, u64::from(PARTITIONS)) as usize;
        let bytes = message.size() as u32;
        let (start, sums) = &mut self.content.logs[place];
        let offset = *start + sums.len() as u64;
        sums.push(sum(&message));
        self.log_sizes[place].push(bytes);
        let rest = record::encode(&message);
        Change::Append { partition: self.places.partitions[place], offset, message, rest, bytes, appended: now_ms() }
    }

    fn forget(&mut self) -> Option<Change> {
        let place = self.content.logs.iter().position(|(_, sums)| sums.len() as u64 > LOG_MAX)?;
        let (start, sums) = &mut self.content.logs[place];
        let count = sums.len() / 2;
        sums.drain(..count);
        let bytes = self.log_sizes[place].drain(..count).map(u64::from).sum();
        let before = *start;
        *start += count as u64;
        let partition = self.places.partitions[place];
        Some(Change::Forget { partition, start: before, end: *start, bytes, keep: Vec::new() })
    }
}

impl Content {
    /// What a store holds; `None` where there was no time even to make the places.
    pub(crate) fn read(store: &Store) -> Result<Option<Self>, StoreError> {
        let catalog = store.catalog()?;
        let (Some(queue), Some(topic), Some(group)) =
            (catalog.queues.first(), catalog.topics.first(), catalog.groups.first())
        else {
            return Ok(None);
        };
        let (place, partitions) = (queue.id, topic.partitions.clone());
        let read = ask(store, move |reader| {
            let messages = reader.queue_browse(place, 0, ALL)?;
            let logs = partitions.iter().map(|log| {
                let records = reader.log_page(log.id, log.start, log.end, ALL, usize::MAX)?;
                let bytes: u64 = records.iter().map(|record| u64::from(record.bytes)).sum();
                if !records.iter().map(|record| record.offset).eq(log.start..log.end) || bytes != log.bytes {
                    return Err(StoreError::Damaged { what: "a topic has a gap".to_owned() });
                }
                Ok((log.start, records.iter().map(|record| sum(&record.message)).collect()))
            });
            let logs = logs.collect::<Result<Vec<_>, StoreError>>()?;
            Ok((messages, logs))
        })?;
        let (messages, logs) = read;
        let mut content = Self { logs, ..Self::default() };
        for message in messages {
            let attempt = message.note.map(|note| note.attempt);
            let seen = (message.key.lane().lane(), sum(&message.message), attempt);
            content.queue.insert(message.key.sequence(), seen);
        }
        content.sums = queue.lanes.iter().map(|lane| (lane.lane.lane(), (lane.count, lane.bytes))).collect();
        if let Some((_, handed, settled)) = group.progress.first() {
            let steps = settled.as_slice().try_into().map(u64::from_le_bytes);
            // Both are of the same step.
            content.steps = match steps {
                Ok(steps) if *handed == content.logs[0].0 + content.logs[0].1.len() as u64 => steps,
                _ => return Err(StoreError::Damaged { what: "the progress of a group is not as it was".to_owned() }),
            };
        }
        Ok(Some(content))
    }

    /// Whether nothing differs but what messages say.
    pub(crate) fn has_the_same_rows(&self, wanted: &Self) -> bool {
        let rows = |content: &Self| {
            let mut rows = content.clone();
            rows.queue.values_mut().for_each(|(_, sum, _)| *sum = 0);
            rows.logs.iter_mut().for_each(|(_, sums)| sums.fill(0));
            rows
        };
        rows(self) == rows(wanted)
    }

    /// What differs, in words.
    pub(crate) fn difference(&self, wanted: &Self) -> Option<String> {
        if self == wanted {
            return None;
        }
        let lost: Vec<_> = wanted.queue.keys().filter(|key| !self.queue.contains_key(key)).collect();
        let back: Vec<_> = self.queue.keys().filter(|key| !wanted.queue.contains_key(key)).collect();
        let other: Vec<_> = self
            .queue
            .iter()
            .filter(|(key, what)| wanted.queue.get(key).is_some_and(|wanted| wanted != *what))
            .collect();
        Some(format!(
            "after step {}: lost {lost:?}, removed and back {back:?}, not as they were {other:?}, sums {:?} instead of {:?}, \
             topic as it was: {}",
            self.steps,
            self.sums,
            wanted.sums,
            self.logs == wanted.logs
        ))
    }
}

/// Asks a store and waits for the answer.
pub(crate) fn ask<T: Send + 'static>(
    store: &Store,
    question: impl FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (answer, answered) = sync_channel(1);
    store.read(question, move |result| answer.send(result).unwrap());
    answered.recv().expect("an answer")
}

/// Tells a message from all others.
fn sum(message: &Message) -> u64 {
    let mut bytes = message.payload.to_vec();
    bytes.extend_from_slice(message.id.to_string().as_bytes());
    bytes.extend_from_slice(message.headers.get("number").unwrap_or_default().as_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
