//! Which topics and groups are known here, and how they are doing: for people. Answers from memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::group::{GroupReading, PartFigures};
use crate::{broker::AddressStats, message::Address};

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Begin and end of partitions.
    ends: BTreeMap<Arc<str>, BTreeMap<i32, (u64, u64)>>,
    /// How far groups are in partitions that nobody here reads any more, by the name of their source.
    left: HashMap<(Arc<str>, Arc<str>), Vec<PartFigures>>,
    readings: Vec<Arc<dyn GroupReading>>,
    dead_lettered: HashMap<Arc<str>, u64>,
    dropped: HashMap<Arc<str>, u64>,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A topic is used here.
    pub(super) fn known(&self, topic: &str) {
        let mut known = self.lock();
        if !known.ends.contains_key(topic) {
            known.ends.insert(topic.into(), BTreeMap::new());
        }
    }

    /// The topics that are used here.
    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        self.lock().ends.keys().cloned().collect()
    }

    /// Where a partition begins and ends.
    pub(super) fn seen(&self, topic: &str, partition: i32, low: u64, end: u64) {
        let mut known = self.lock();
        let partitions = match known.ends.get_mut(topic) {
            Some(partitions) => partitions,
            None => known.ends.entry(topic.into()).or_default(),
        };
        let known = partitions.entry(partition).or_insert((low, end));
        *known = (known.0.max(low), known.1.max(end));
    }

    /// What the server says of a whole topic: everything else was of one that is gone.
    pub(super) fn counted(&self, topic: &str, partitions: BTreeMap<i32, (u64, u64)>) {
        self.lock().ends.insert(topic.into(), partitions);
    }

    /// A subscription begins.
    pub(super) fn begun(&self, reading: Arc<dyn GroupReading>) {
        self.lock().readings.push(reading);
    }

    /// A partition goes; how far it is stays known.
    pub(super) fn left(&self, source: &Arc<str>, group: &Arc<str>, part: PartFigures) {
        let mut known = self.lock();
        let left = known.left.entry((Arc::clone(source), Arc::clone(group))).or_default();
        left.retain(|other| (&other.topic, other.partition) != (&part.topic, part.partition));
        left.push(part);
    }

    /// A subscription has ended.
    pub(super) fn ended(&self, reading: &dyn GroupReading, name: &str) {
        let figures = reading.figures();
        let mut known = self.lock();
        known.readings.retain(|other| other.id() != reading.id());
        *known.dead_lettered.entry(name.into()).or_default() += figures.dead_lettered;
        *known.dropped.entry(name.into()).or_default() += figures.dropped;
    }

    /// What there is in each topic.
    pub(super) fn stats(&self) -> Vec<AddressStats> {
        // Its own locks are taken one after the other, never one inside the other.
        let readings: Vec<Arc<dyn GroupReading>> = self.lock().readings.clone();
        let figures: Vec<_> = readings.iter().map(|reading| (reading.source(), reading.figures())).collect();
        let known = self.lock();
        let mut all: BTreeMap<Arc<str>, AddressStats> = BTreeMap::new();
        for (topic, partitions) in &known.ends {
            let stats = stats_of(&mut all, topic);
            stats.ready = partitions.values().map(|(low, end)| end.saturating_sub(*low)).sum();
        }
        let mut groups: BTreeMap<(Arc<str>, Arc<str>), Behind> = BTreeMap::new();
        let end = |part: &PartFigures| {
            let seen = known.ends.get(&part.topic).and_then(|partitions| partitions.get(&part.partition));
            seen.map_or(part.end, |(_, end)| part.end.max(*end))
        };
        let mut count = |source: &Arc<str>, group: &Arc<str>, part: &PartFigures| {
            let behind = end(part).saturating_sub(part.gap).saturating_sub(part.above);
            let parts = groups.entry((Arc::clone(source), Arc::clone(group))).or_default();
            parts.insert((Arc::clone(&part.topic), part.partition), behind);
        };
        for ((source, group), parts) in &known.left {
            parts.iter().for_each(|part| count(source, group, part));
        }
        for ((source, group), figures) in &figures {
            figures.parts.iter().for_each(|part| count(source, group, part));
            let stats = stats_of(&mut all, source);
            stats.unsettled += figures.out;
            stats.delayed += figures.delayed;
            stats.dead_lettered += figures.dead_lettered;
            stats.dropped += figures.dropped;
        }
        for ((source, group), parts) in groups {
            stats_of(&mut all, &source).lag.push((group, parts.values().sum()));
        }
        for (source, count) in &known.dead_lettered {
            stats_of(&mut all, source).dead_lettered += count;
        }
        for (source, count) in &known.dropped {
            stats_of(&mut all, source).dropped += count;
        }
        all.into_values().collect()
    }
}

/// How many messages are not done, by topic and partition.
type Behind = BTreeMap<(Arc<str>, i32), u64>;

fn stats_of<'a>(all: &'a mut BTreeMap<Arc<str>, AddressStats>, name: &Arc<str>) -> &'a mut AddressStats {
    all.entry(Arc::clone(name)).or_insert_with(|| AddressStats {
        address: Address::topic(Arc::clone(name)),
        ready: 0,
        delayed: 0,
        unsettled: 0,
        bytes: 0,
        lag: Vec::new(),
        dropped: 0,
        dead_lettered: 0,
    })
}
