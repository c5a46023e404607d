//! More settings of the client library: any that has no key of its own and breaks nothing that is promised.

use super::super::{
    kind::{self, Wrong},
    section::Section,
    words::join,
};
use crate::broker::kafka::{Settings, settings::Acks};

/// Settings that are keys of ours. Names: librdkafka, CONFIGURATION.md, older names included.
const KEYS: &[(&str, &str)] = &[
    ("bootstrap.servers", "brokers"),
    ("metadata.broker.list", "brokers"),
    ("client.id", "client_id"),
    ("group.id", "group_id, or `group:` in a route"),
    ("group.protocol", "group_protocol"),
    ("group.instance.id", "group_instance_id"),
    ("partition.assignment.strategy", "assignment"),
    ("session.timeout.ms", "session_timeout"),
    ("heartbeat.interval.ms", "heartbeat_interval"),
    ("max.poll.interval.ms", "poll_interval_max"),
    ("auto.offset.reset", "offset_reset"),
    ("auto.commit.interval.ms", "commit_interval"),
    ("queued.max.messages.kbytes", "fetch_bytes_max"),
    ("fetch.wait.max.ms", "fetch_wait"),
    ("topic.metadata.refresh.interval.ms", "metadata_interval"),
    ("statistics.interval.ms", "statistics_interval"),
    ("reconnect.backoff.max.ms", "reconnect_delay"),
    ("socket.connection.setup.timeout.ms", "connect_timeout"),
    ("compression.codec", "compression"),
    ("compression.type", "compression"),
    ("acks", "required_acks"),
    ("request.required.acks", "required_acks"),
    ("enable.idempotence", "idempotent"),
    ("linger.ms", "linger"),
    ("queue.buffering.max.ms", "linger"),
    ("queue.buffering.max.messages", "in_flight_max"),
    ("delivery.timeout.ms", "publish_timeout"),
    ("message.timeout.ms", "publish_timeout"),
    ("message.max.bytes", "message_bytes_max"),
    ("transactional.id", "transactional_id"),
    ("transaction.timeout.ms", "transaction_timeout"),
    ("allow.auto.create.topics", "auto_create"),
    ("security.protocol", "tls and sasl"),
    ("sasl.mechanism", "sasl.mechanism"),
    ("sasl.mechanisms", "sasl.mechanism"),
    ("sasl.username", "sasl.username"),
    ("sasl.password", "sasl.password"),
    ("ssl.ca.location", "tls.ca_file"),
    ("ssl.certificate.location", "tls.cert_file"),
    ("ssl.key.location", "tls.key_file"),
    ("ssl.key.password", "tls.key_password"),
    ("enable.ssl.certificate.verification", "tls.verify_peer"),
];

/// Settings that would break what the engine promises, and what.
const REFUSED: &[(&str, &str)] = &[
    ("enable.auto.commit", "the engine commits what has been handled, and nothing else"),
    ("enable.auto.offset.store", "the engine commits what has been handled, and nothing else"),
    ("delivery.report.only.error", "the engine waits for each confirmation"),
    ("enable.partition.eof", "the engine takes no note of it"),
    ("enable.gapless.guarantee", "one message that cannot be sent would end all publishing"),
    ("produce.offset.report", "the engine needs to know where a message is"),
    ("plugin.library.paths", "code from elsewhere would run in the engine"),
];

/// Values that are secret, and would be shown.
const SECRET: [&str; 5] = ["password", "secret", ".pem", "jaas", "token"];

/// Messages in flight to a server whose order idempotence keeps. Source: librdkafka, `max.in.flight`.
const ORDERED_IN_FLIGHT_MAX: u32 = 5;

pub(super) fn read(section: &mut Section<'_, '_, '_>, settings: &mut Settings) {
    section.ask("extra", "a value for each setting, as librdkafka names it", "- (none)");
    let path = section.path_of("extra");
    for entry in section.map("extra") {
        let (path, origin) = (join(&path, &entry.key), section.reader.origin(entry.place));
        let Some(given) = section.reader.one(&path, &entry.node, &kind::text()) else { continue };
        match objection(&entry.key, &given.value, settings) {
            Some(wrong) => section.reader.refuse(origin, &path, wrong.problem, wrong.fix),
            None => {
                let shown = if given.from_environment { "***".to_owned() } else { given.value.clone() };
                section.reader.show(&path, shown, given.origin);
                settings.extra.insert(entry.key.clone(), given.value);
            }
        }
    }
}

/// Why a setting cannot be.
fn objection(name: &str, value: &str, settings: &Settings) -> Option<Wrong> {
    if let Some((_, key)) = KEYS.iter().find(|(setting, _)| *setting == name) {
        return Some(Wrong::new("has a key of its own", format!("write {key} under kafka")));
    }
    if let Some((_, why)) = REFUSED.iter().find(|(setting, _)| *setting == name) {
        return Some(Wrong::new(format!("cannot be set: {why}"), "remove it"));
    }
    if SECRET.iter().any(|word| name.contains(word)) {
        return Some(Wrong::new("is a secret, and what stands here is shown", "use `sasl:` or `tls:`"));
    }
    if name.ends_with("_cb") || matches!(name, "opaque" | "interceptors" | "default_topic_conf") {
        return Some(Wrong::new("is for programs, not for configurations", "remove it"));
    }
    match name {
        "isolation.level" if value != "read_committed" => {
            let problem = "would let handlers see what a transaction took back";
            Some(Wrong::new(problem, "remove it: read_committed is what holds"))
        }
        "max.in.flight" | "max.in.flight.requests.per.connection"
            if settings.idempotent && value.parse::<u32>().is_ok_and(|many| many > ORDERED_IN_FLIGHT_MAX) =>
        {
            let problem = format!("is more than {ORDERED_IN_FLIGHT_MAX}, beyond which idempotence keeps no order");
            Some(Wrong::new(problem, format!("write {ORDERED_IN_FLIGHT_MAX} or less, or idempotent: false")))
        }
        "message.send.max.retries" | "retries" if value == "0" && settings.required_acks == Acks::All => {
            let problem = "would give up what a moment's trouble holds up";
            Some(Wrong::new(problem, "remove it: publish_timeout says how long is tried"))
        }
        _ => None,
    }
}
