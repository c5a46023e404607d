//! Queues, topics and channels: the standard ones, and the operator's over and beside them.

use std::{collections::BTreeSet, sync::Arc};

use super::super::{
    Backend,
    embedded::{KEEP_MS, overflow},
    finding::Origin,
    kind,
    section::Section,
    tree::Value,
    words::quoted,
};
use crate::{
    broker::{Declaration, Overflow, QueueSettings, Storage, TopicSettings, redis::Settings, topology},
    message::{Address, Kind as AddressKind, PRIORITY_MAX},
};

/// How long leases may be, in milliseconds: shorter ones would end while a healthy engine works.
pub(super) const LEASE_MS: std::ops::RangeInclusive<u64> = 100..=24 * 60 * 60 * 1000;

/// Reads it into `settings`. `standard`: whether the standard topology is there unless it is said.
pub(super) fn read(section: &mut Section<'_, '_, '_>, settings: &mut Settings, standard: bool, dead_letter: &Address) {
    let (queue_base, topic_base) = bases(settings);
    if section.value("standard_topology", &kind::flag(), standard) {
        add_standard(settings);
    }
    // Whoever has a name of its own has none of them, unless it is said.
    let is_here = standard && dead_letter.system.as_deref().is_none_or(|system| *system == *Backend::Redis.name());
    if is_here && dead_letter.kind == AddressKind::Queue {
        settings.queues.entry(Arc::clone(&dead_letter.name)).or_insert_with(|| queue_base.clone());
    }
    section.named("queues", |name, origin, section| {
        let queue = queue(section, settings.queues.get(name).unwrap_or(&queue_base));
        if let Some(name) = checked(section, AddressKind::Queue, name, origin) {
            settings.queues.insert(name, queue);
        }
    });
    let mut own_topics = BTreeSet::new();
    section.named("topics", |name, origin, section| {
        let topic = topic(section, settings.topics.get(name).unwrap_or(&topic_base));
        if let Some(name) = checked(section, AddressKind::Topic, name, origin) {
            own_topics.insert(Arc::clone(&name));
            settings.topics.insert(name, topic);
        }
    });
    settings.channels = channels(section, &own_topics);
    settings.topics.retain(|name, _| !settings.channels.contains(name));
    refuse_circle(section, settings, dead_letter);
}

/// Settings of queues and topics that say nothing. A server keeps all in memory, and writes it to disk as it is configured.
fn bases(settings: &Settings) -> (QueueSettings, TopicSettings) {
    let (storage, lease) = (Storage::Disk, settings.lease);
    let topic = TopicSettings { storage, partitions: 1, lease, ..TopicSettings::default() };
    (QueueSettings { storage, lease, ..QueueSettings::default() }, topic)
}

/// What every installation has.
pub(super) fn add_standard(settings: &mut Settings) {
    let (queue_base, topic_base) = bases(settings);
    for declaration in topology::declarations(&queue_base, &topic_base) {
        match declaration {
            Declaration::Queue(name, queue) => drop(settings.queues.insert(name, queue)),
            // Each is one sequence.
            Declaration::Topic(name, topic) => {
                settings.topics.insert(name, TopicSettings { partitions: 1, ..topic });
            }
        }
    }
}

fn queue(section: &mut Section<'_, '_, '_>, base: &QueueSettings) -> QueueSettings {
    let queue = QueueSettings {
        storage: base.storage,
        priority_max: section.value("priority_max", &kind::integer(0..=PRIORITY_MAX), base.priority_max),
        ttl: section.bound("ttl_ms", &kind::millis(KEEP_MS), base.ttl),
        length_max: section.bound("length_max", &kind::integer(1..=u64::MAX), base.length_max),
        bytes_max: section.bound("bytes_max", &kind::bytes(1..=u64::MAX), base.bytes_max),
        overflow: section.value("overflow", &overflow(), base.overflow),
        lease: section.value("lease_ms", &kind::millis(LEASE_MS), base.lease),
        exclusive: base.exclusive,
    };
    if section.has("overflow") && queue.length_max.is_none() && queue.bytes_max.is_none() {
        let (path, origin) = (section.path_of("overflow"), section.origin_of("overflow"));
        section.reader.warn(origin, &path, "has no effect on a queue without limits", "add length_max or bytes_max");
    }
    queue
}

fn topic(section: &mut Section<'_, '_, '_>, base: &TopicSettings) -> TopicSettings {
    let fix = "remove it: every topic of Redis is one sequence";
    section.forbid("partitions", "is not for Redis, whose topics are not divided", fix);
    TopicSettings {
        storage: base.storage,
        partitions: base.partitions,
        retention: section.bound("retention_ms", &kind::millis(KEEP_MS), base.retention),
        retention_bytes: section.bound("retention_bytes_max", &kind::bytes(1..=u64::MAX), base.retention_bytes),
        lease: section.value("lease_ms", &kind::millis(LEASE_MS), base.lease),
    }
}

/// Topics that are Pub/Sub channels. None of them is a topic with settings.
fn channels(section: &mut Section<'_, '_, '_>, topics: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
    let node = section.ask("channels", "a list of names of topics", "- (none)");
    let (path, origin) = (section.path_of("channels"), section.origin_of("channels"));
    let items = match node.map(|node| &node.value) {
        None => return BTreeSet::new(),
        Some(Value::List(items)) => items,
        Some(_) => {
            section.reader.refuse(origin, &path, "is not a list of names", "write [name, name]");
            return BTreeSet::new();
        }
    };
    let kind = kind::address_name(AddressKind::Topic);
    let mut channels = BTreeSet::new();
    for (place, item) in items.iter().enumerate() {
        let path = format!("{path}[{place}]");
        let Some(given) = section.reader.one(&path, item, &kind) else { continue };
        let name = given.value.name;
        if topics.contains(&name) {
            let problem = format!("{} is under topics, too", quoted(&name));
            let fix = "keep one of the two: a topic keeps its messages, a channel keeps none";
            section.reader.refuse(given.origin, &path, problem, fix);
        } else {
            section.reader.show(&path, name.to_string(), given.origin);
            channels.insert(name);
        }
    }
    channels
}

/// What leaves a queue that is too long becomes a dead letter. Dead letters that leave theirs would come back to it.
fn refuse_circle(section: &mut Section<'_, '_, '_>, settings: &Settings, to: &Address) {
    let queue = settings.queues.get(&to.name).filter(|_| to.kind == AddressKind::Queue);
    if queue.is_some_and(|queue| queue.overflow == Overflow::DeadLetterOldest) {
        let (path, origin) = (section.path_of("queues"), section.origin_of("queues"));
        let problem = format!("{to} has overflow: dead-letter-oldest, which would send its dead letters to itself");
        section.reader.refuse(origin, &path, problem, format!("set overflow: reject-publish for {}", to.name));
    }
}

fn checked(section: &mut Section<'_, '_, '_>, kind: AddressKind, name: &str, origin: Origin) -> Option<Arc<str>> {
    match Address::checked(kind, name) {
        Ok(address) => Some(address.name),
        Err(error) => {
            let (wrong, path) = (kind::address_wrong(&error), section.path.clone());
            section.reader.refuse(origin, &path, wrong.problem, wrong.fix);
            None
        }
    }
}
