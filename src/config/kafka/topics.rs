//! Topics: the standard ones, and the operator's over and beside them.

use std::{collections::BTreeMap, sync::Arc};

use super::super::{
    embedded::{KEEP_MS, PARTITIONS_MAX},
    finding::Origin,
    kind,
    section::Section,
    tree::Value,
    words::{join, quoted},
};
use crate::{
    broker::{
        QUEUE_PARTITIONS, QUEUE_RETENTION,
        kafka::{Settings, settings::TopicPlan},
        topology,
    },
    message::{Address, Kind as AddressKind},
};

/// Parts of a topic of the operator's that does not say.
const PARTITIONS: u32 = 3;
/// Most copies. Source: Kafka, which counts them in 16 bits.
const COPIES_MAX: u16 = i16::MAX.unsigned_abs();

/// Settings of topics that are keys of ours.
const KEYS: &[(&str, &str)] = &[
    ("retention.ms", "retention"),
    ("retention.bytes", "retention_bytes"),
    ("min.insync.replicas", "min_insync_replicas"),
];
/// As Kafka writes that there is no limit.
const UNLIMITED: &str = "-1";

/// Reads it into `settings`. `queues`: whether queues are there too, each as a topic.
pub(super) fn read(section: &mut Section<'_, '_, '_>, settings: &mut Settings, queues: bool, standard: bool) {
    let prefix = section.optional("topic_prefix", &kind::address_name(AddressKind::Topic), "-");
    let copies = || kind::integer(1..=COPIES_MAX);
    settings.replication_factor =
        section.optional("replication_factor", &copies(), "- (the servers' default)").map(|given| given.value);
    let in_sync =
        section.optional("min_insync_replicas", &copies(), "- (the servers' default)").map(|given| given.value);
    let standard = section.value("standard_topology", &kind::flag(), standard);
    settings.auto_create = section.value("auto_create", &kind::flag(), settings.auto_create);
    settings.accept_differences = section.value("accept_differences", &kind::flag(), settings.accept_differences);
    let retry = Address::topic(Arc::clone(&settings.retry_topic));
    settings.retry_topic = section.value("retry_topic", &kind::address_name(AddressKind::Topic), retry).name;

    let base = TopicPlan { partitions: PARTITIONS, min_insync_replicas: in_sync, ..TopicPlan::default() };
    let mut all = BTreeMap::new();
    if standard {
        add_standard(&mut all, &base, &settings.retry_topic, queues);
    }
    if let Some(prefix) = &prefix {
        for (name, partitions) in topology::PREFIXED_TOPICS {
            let name = format!("{}.{name}", prefix.value.name);
            all.insert(name.into(), TopicPlan { partitions: *partitions, ..base.clone() });
        }
    }
    let listed = section.ask("topics", "settings under each name, or a list of them with `name`", "- (none)");
    if listed.is_some_and(|node| matches!(node.value, Value::List(_))) {
        section.list("topics", |section| {
            let Some(name) = section.required("name", &kind::address_name(AddressKind::Topic)) else { return };
            let plan = topic(section, all.get(&name.value.name).unwrap_or(&base), settings);
            all.insert(name.value.name, plan);
        });
    } else {
        section.named("topics", |name, origin, section| {
            let plan = topic(section, all.get(name).unwrap_or(&base), settings);
            if let Some(name) = checked(section, name, origin) {
                all.insert(name, plan);
            }
        });
    }
    if let (Some(copies), Some(in_sync)) = (settings.replication_factor, in_sync)
        && in_sync > copies
    {
        super::refuse(section, "min_insync_replicas", too_few(copies), "make it the smaller one");
    }
    settings.topics = all;
}

/// What every installation has, without any configuration.
pub(super) fn standard() -> Settings {
    let mut settings = Settings::default();
    let base = TopicPlan { partitions: PARTITIONS, ..TopicPlan::default() };
    add_standard(&mut settings.topics, &base, &settings.retry_topic, false);
    settings
}

fn too_few(copies: u16) -> String {
    format!("is more than there are copies ({copies}): nothing could ever be published")
}

fn add_standard(all: &mut BTreeMap<Arc<str>, TopicPlan>, base: &TopicPlan, retry_topic: &Arc<str>, queues: bool) {
    let plan = |partitions, retention| TopicPlan { partitions, retention: Some(retention), ..base.clone() };
    for topic in topology::TOPICS {
        let name = if topic.name == topology::RETRY_TOPIC { Arc::clone(retry_topic) } else { topic.name.into() };
        all.insert(name, plan(topic.partitions, topic.retention));
    }
    if queues {
        // What waits too long is gone: its retention is no shorter than that of any topic of events.
        for queue in topology::QUEUES.iter().filter(|queue| !queue.rung) {
            all.insert(queue.name.into(), plan(QUEUE_PARTITIONS, queue.ttl.max(QUEUE_RETENTION)));
        }
    }
}

fn topic(section: &mut Section<'_, '_, '_>, base: &TopicPlan, settings: &Settings) -> TopicPlan {
    let copies = || kind::integer(1..=COPIES_MAX);
    // Servers know no shorter time.
    let retention = 1000..=*KEEP_MS.end();
    let mut plan = TopicPlan {
        partitions: section.value("partitions", &kind::integer(1..=PARTITIONS_MAX), base.partitions),
        replication_factor: section
            .optional("replication_factor", &copies(), "- (kafka.replication_factor)")
            .map(|given| given.value)
            .or(base.replication_factor),
        retention: section
            .optional("retention", &kind::time(retention), "- (the servers' default)")
            .map(|given| given.value)
            .or(base.retention),
        retention_bytes: section
            .optional("retention_bytes", &kind::bytes(1..=u64::MAX), "- (the servers' default)")
            .map(|given| given.value)
            .or(base.retention_bytes),
        min_insync_replicas: section
            .optional("min_insync_replicas", &copies(), "- (kafka.min_insync_replicas)")
            .map(|given| given.value)
            .or(base.min_insync_replicas),
        config: base.config.clone(),
    };
    config(section, &mut plan);
    let copies = plan.replication_factor.or(settings.replication_factor);
    if let (Some(copies), Some(in_sync)) = (copies, plan.min_insync_replicas)
        && in_sync > copies
        && (section.has("min_insync_replicas") || section.has("replication_factor"))
    {
        super::refuse(section, "min_insync_replicas", too_few(copies), "make it the smaller one");
    }
    plan
}

fn config(section: &mut Section<'_, '_, '_>, plan: &mut TopicPlan) {
    section.ask("config", "a value for each setting, as Kafka names it", "- (none)");
    let path = section.path_of("config");
    for entry in section.map("config") {
        let (path, origin) = (join(&path, &entry.key), section.reader.origin(entry.place));
        let Some(given) = section.reader.one(&path, &entry.node, &kind::text()) else { continue };
        let own = KEYS.iter().find(|(setting, _)| *setting == entry.key);
        match own {
            // What a time or a size cannot say.
            Some(("retention.ms", _)) if given.value == UNLIMITED && !section.has("retention") => plan.retention = None,
            Some(("retention.bytes", _)) if given.value == UNLIMITED && !section.has("retention_bytes") => {
                plan.retention_bytes = None;
            }
            Some((_, key)) => {
                let fix = format!("write {key}: beside config");
                section.reader.refuse(origin, &path, "has a key of its own", fix);
                continue;
            }
            None => {}
        }
        section.reader.show(&path, given.value.clone(), given.origin);
        plan.config.insert(entry.key.clone(), given.value);
    }
}

fn checked(section: &mut Section<'_, '_, '_>, name: &str, origin: Origin) -> Option<Arc<str>> {
    match Address::checked(AddressKind::Topic, name) {
        Ok(address) if name.starts_with("__") => {
            let problem = format!("{} begins with __, as only Kafka's own do", quoted(&address.name));
            let path = section.path.clone();
            section.reader.refuse(origin, &path, problem, "choose another name");
            None
        }
        Ok(address) => Some(address.name),
        Err(error) => {
            let (wrong, path) = (kind::address_wrong(&error), section.path.clone());
            section.reader.refuse(origin, &path, wrong.problem, wrong.fix);
            None
        }
    }
}
