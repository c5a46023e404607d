//! The embedded broker's section: what is declared, and what holds for the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use super::{
    Embedded,
    finding::Origin,
    kind::{self, Kind},
    limits::MESSAGE_BYTES,
    section::Section,
};
use crate::{
    broker::{Declaration, Overflow, QueueSettings, Storage, TopicSettings, embedded::DiskSettings, topology},
    message::{Address, Kind as AddressKind, PRIORITY_MAX},
};

/// Most partitions of a topic.
pub(super) const PARTITIONS_MAX: u32 = 1024;
/// How long leases may be, in milliseconds: shorter ones would end while a healthy engine works.
const LEASE_MS: std::ops::RangeInclusive<u64> = 100..=24 * 60 * 60 * 1000;
/// Times that messages wait or are kept.
pub(super) const KEEP_MS: std::ops::RangeInclusive<u64> = 1..=100 * 365 * 24 * 60 * 60 * 1000;

/// What the file system must have free at least: what the store still writes while publishers are refused.
const FREE_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=u64::MAX;
/// What the store keeps: with less, one large message fills it.
const STORE_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=u64::MAX;

/// Also who names the dead letter queue.
pub(super) fn read(section: &mut Section<'_, '_, '_>, data_directory: &Path) -> (Embedded, Origin) {
    let default = Embedded::default();
    let auto_create = section.value("auto_create", &kind::flag(), default.auto_create);
    let standard_topology = section.value("standard_topology", &kind::flag(), true);
    let message_bytes_max = section.value("message_bytes_max", &kind::bytes(MESSAGE_BYTES), default.message_bytes_max);
    let dead_letter = section.value("dead_letter", &kind::dead_letter(), default.dead_letter);
    let dead_letter_origin =
        if section.has("dead_letter") { section.origin_of("dead_letter") } else { Origin::Default };
    let storage = section.value("storage", &storage(), Storage::default());
    let disk = section.section("disk", |section| disk(section, default.disk, data_directory));
    let queue_base = QueueSettings { storage, ..default.queue_defaults };
    let topic_base = TopicSettings { storage, ..default.topic_defaults };
    let queue_defaults = section.section("queue_defaults", |section| queue(section, &queue_base));
    let topic_defaults = section.section("topic_defaults", |section| topic(section, &topic_base));
    let mut declarations =
        if standard_topology { topology::declarations(&queue_defaults, &topic_defaults) } else { Vec::new() };
    let standard: BTreeMap<Address, usize> =
        declarations.iter().enumerate().map(|(place, declaration)| (address(declaration), place)).collect();
    // One with the name of a standard one takes its place, and what it does not name from it.
    section.named("queues", |name, origin, section| {
        let place = standard.get(&Address::queue(name)).and_then(|place| declarations.get_mut(*place));
        match place {
            Some(Declaration::Queue(_, settings)) => {
                *settings = queue(section, settings);
                warn_of_no_limit(section, settings);
            }
            _ => {
                let settings = queue(section, &queue_defaults);
                warn_of_no_limit(section, &settings);
                let name = checked(section, AddressKind::Queue, name, origin);
                declarations.extend(name.map(|name| Declaration::Queue(name, settings)));
            }
        }
    });
    section.named("topics", |name, origin, section| {
        let place = standard.get(&Address::topic(name)).and_then(|place| declarations.get_mut(*place));
        match place {
            Some(Declaration::Topic(_, settings)) => *settings = topic(section, settings),
            _ => {
                let settings = topic(section, &topic_defaults);
                let name = checked(section, AddressKind::Topic, name, origin);
                declarations.extend(name.map(|name| Declaration::Topic(name, settings)));
            }
        }
    });
    let embedded =
        Embedded { auto_create, declarations, queue_defaults, topic_defaults, message_bytes_max, dead_letter, disk };
    refuse_circle(section, &embedded);
    (embedded, dead_letter_origin)
}

/// A queue without limits is never too full.
fn warn_of_no_limit(section: &mut Section<'_, '_, '_>, settings: &QueueSettings) {
    if section.has("overflow") && settings.length_max.is_none() && settings.bytes_max.is_none() {
        let (path, origin) = (section.path_of("overflow"), section.origin_of("overflow"));
        section.reader.warn(origin, &path, "has no effect on a queue without limits", "add length_max or bytes_max");
    }
}

/// What leaves a queue that is too long becomes a dead letter. Dead letters that leave theirs would come back to it.
fn refuse_circle(section: &mut Section<'_, '_, '_>, embedded: &Embedded) {
    let to = &embedded.dead_letter;
    let overflow = match embedded.declarations.iter().find(|declaration| address(declaration) == *to) {
        Some(Declaration::Queue(_, settings)) => settings.overflow,
        None if to.kind == AddressKind::Queue => embedded.queue_defaults.overflow,
        _ => return,
    };
    if overflow == Overflow::DeadLetterOldest {
        let (path, origin) = (section.path_of("dead_letter"), section.origin_of("dead_letter"));
        let problem = format!("{to} has overflow: dead-letter-oldest, which would send its dead letters to itself");
        let fix = format!("set overflow: reject-publish for {} under embedded.queues", to.name);
        section.reader.refuse(origin, &path, problem, fix);
    }
}

fn disk(section: &mut Section<'_, '_, '_>, default: DiskSettings, data_directory: &Path) -> DiskSettings {
    let disk = DiskSettings {
        directory: section.value("directory", &kind::path(), default.directory),
        free_min: section.value("free_min", &kind::bytes(FREE_BYTES), default.free_min),
        bytes_max: section.bound("bytes_max", &kind::bytes(STORE_BYTES), default.bytes_max),
    };
    let (path, origin) = (section.path_of("directory"), section.origin_of("directory"));
    let wrong = if same(data_directory, &disk.directory) {
        Some("is engine.data_directory as well")
    } else if disk.directory.exists() && !disk.directory.is_dir() {
        Some("is not a directory")
    } else {
        None
    };
    if let Some(problem) = wrong {
        let fix = "name a directory for the store alone, as /var/lib/helixmq/store; it is made where it is missing";
        section.reader.refuse(origin, &path, problem, fix);
    }
    disk
}

/// Whether both name one directory, as far as can be said of those that may not be there yet.
fn same(a: &Path, b: &Path) -> bool {
    a.components().eq(b.components()) || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Everything that is declared.
pub(super) fn declared(embedded: &Embedded) -> BTreeSet<Address> {
    embedded.declarations.iter().map(address).collect()
}

fn address(declaration: &Declaration) -> Address {
    match declaration {
        Declaration::Queue(name, _) => Address::queue(Arc::clone(name)),
        Declaration::Topic(name, _) => Address::topic(Arc::clone(name)),
    }
}

fn checked(section: &mut Section<'_, '_, '_>, kind: AddressKind, name: &str, origin: Origin) -> Option<Arc<str>> {
    match Address::checked(kind, name) {
        Ok(address) => Some(address.name),
        Err(error) => {
            let wrong = kind::address_wrong(&error);
            let path = section.path.clone();
            section.reader.refuse(origin, &path, wrong.problem, wrong.fix);
            None
        }
    }
}

fn queue(section: &mut Section<'_, '_, '_>, base: &QueueSettings) -> QueueSettings {
    QueueSettings {
        storage: section.value("storage", &storage(), base.storage),
        priority_max: section.value("priority_max", &kind::integer(0..=PRIORITY_MAX), base.priority_max),
        ttl: section.bound("ttl_ms", &kind::millis(KEEP_MS), base.ttl),
        length_max: section.bound("length_max", &kind::integer(1..=u64::MAX), base.length_max),
        bytes_max: section.bound("bytes_max", &kind::bytes(1..=u64::MAX), base.bytes_max),
        overflow: section.value("overflow", &overflow(), base.overflow),
        lease: section.value("lease_ms", &kind::millis(LEASE_MS), base.lease),
        exclusive: base.exclusive,
    }
}

fn storage() -> Kind<Storage> {
    kind::choice(&[("memory", Storage::Memory), ("disk", Storage::Disk)], |storage| {
        match storage {
            Storage::Memory => "memory",
            Storage::Disk => "disk",
        }
        .to_owned()
    })
}

pub(super) fn overflow() -> Kind<Overflow> {
    let words = &[
        ("reject-publish", Overflow::RejectPublish),
        ("drop-oldest", Overflow::DropOldest),
        ("dead-letter-oldest", Overflow::DeadLetterOldest),
    ];
    kind::choice(words, |overflow| {
        match overflow {
            Overflow::RejectPublish => "reject-publish",
            Overflow::DropOldest => "drop-oldest",
            Overflow::DeadLetterOldest => "dead-letter-oldest",
        }
        .to_owned()
    })
}

fn topic(section: &mut Section<'_, '_, '_>, base: &TopicSettings) -> TopicSettings {
    TopicSettings {
        storage: section.value("storage", &storage(), base.storage),
        partitions: section.value("partitions", &kind::integer(1..=PARTITIONS_MAX), base.partitions),
        retention: section.bound("retention_ms", &kind::millis(KEEP_MS), base.retention),
        retention_bytes: section.bound("retention_bytes_max", &kind::bytes(1..=u64::MAX), base.retention_bytes),
        lease: section.value("lease_ms", &kind::millis(LEASE_MS), base.lease),
    }
}
