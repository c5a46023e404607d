//! The embedded broker's section: what is declared, and what holds for the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    broker::{Declaration, Overflow, QueueSettings, TopicSettings, topology},
    message::{Address, Kind as AddressKind, PRIORITY_MAX},
};

/// Most partitions of a topic.
const PARTITIONS_MAX: u32 = 1024;
/// How long leases may be, in milliseconds: shorter ones would end while a healthy engine works.
const LEASE_MS: std::ops::RangeInclusive<u64> = 100..=24 * 60 * 60 * 1000;
/// Times that messages wait or are kept.
const KEEP_MS: std::ops::RangeInclusive<u64> = 1..=100 * 365 * 24 * 60 * 60 * 1000;

/// Also who names the dead letter queue.
pub(super) fn read(section: &mut Section<'_, '_, '_>) -> (Embedded, Origin) {
    let default = Embedded::default();
    let auto_create = section.value("auto_create", &kind::flag(), default.auto_create);
    let standard_topology = section.value("standard_topology", &kind::flag(), true);
    let message_bytes_max = section.value("message_bytes_max", &kind::bytes(MESSAGE_BYTES), default.message_bytes_max);
    let dead_letter = section.value("dead_letter", &kind::dead_letter(), default.dead_letter);
    let dead_letter_origin =
        if section.has("dead_letter") { section.origin_of("dead_letter") } else { Origin::Default };
    let queue_defaults = section.section("queue_defaults", |section| queue(section, &default.queue_defaults));
    let topic_defaults = section.section("topic_defaults", |section| topic(section, &default.topic_defaults));
    let mut declarations =
        if standard_topology { topology::declarations(&queue_defaults, &topic_defaults) } else { Vec::new() };
    let standard: BTreeMap<Address, usize> =
        declarations.iter().enumerate().map(|(place, declaration)| (address(declaration), place)).collect();
    // One with the name of a standard one takes its place, and what it does not name from it.
    section.named("queues", |name, origin, section| {
        let place = standard.get(&Address::queue(name)).and_then(|place| declarations.get_mut(*place));
        match place {
            Some(Declaration::Queue(_, settings)) => *settings = queue(section, settings),
            _ => {
                let settings = queue(section, &queue_defaults);
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
    (
        Embedded { auto_create, declarations, queue_defaults, topic_defaults, message_bytes_max, dead_letter },
        dead_letter_origin,
    )
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
        priority_max: section.value("priority_max", &kind::integer(0..=PRIORITY_MAX), base.priority_max),
        ttl: section.bound("ttl_ms", &kind::millis(KEEP_MS), base.ttl),
        length_max: section.bound("length_max", &kind::integer(1..=u64::MAX), base.length_max),
        bytes_max: section.bound("bytes_max", &kind::bytes(1..=u64::MAX), base.bytes_max),
        overflow: section.value("overflow", &overflow(), base.overflow),
        lease: section.value("lease_ms", &kind::millis(LEASE_MS), base.lease),
    }
}

fn overflow() -> Kind<Overflow> {
    let words = &[("reject-publish", Overflow::RejectPublish), ("drop-oldest", Overflow::DropOldest)];
    kind::choice(words, |overflow| {
        match overflow {
            Overflow::RejectPublish => "reject-publish",
            Overflow::DropOldest => "drop-oldest",
        }
        .to_owned()
    })
}

fn topic(section: &mut Section<'_, '_, '_>, base: &TopicSettings) -> TopicSettings {
    TopicSettings {
        partitions: section.value("partitions", &kind::integer(1..=PARTITIONS_MAX), base.partitions),
        retention: section.bound("retention_ms", &kind::millis(KEEP_MS), base.retention),
        retention_bytes: section.bound("retention_bytes_max", &kind::bytes(1..=u64::MAX), base.retention_bytes),
        lease: section.value("lease_ms", &kind::millis(LEASE_MS), base.lease),
    }
}
