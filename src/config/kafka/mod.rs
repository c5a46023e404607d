//! Kafka's section: how it is reached (`reach`), how it is used, which topics it has (`topics`), and what else its client
//! library is told (`extra`).

mod extra;
mod reach;
mod topics;

use super::{
    Backend, DeadLetters,
    finding::Origin,
    kind::{self, Kind, Wrong},
    limits::WAIT_MS,
    section::{Given, Section},
    words::quoted,
};
use crate::{
    broker::{
        kafka::{
            Settings,
            settings::{Acks, Assignment, Compression, Format, GroupProtocol, OffsetReset},
        },
        topology,
    },
    message::{Address, NAME_BYTES_MAX},
};

/// Longest times that the client library takes, in milliseconds. Source: librdkafka, CONFIGURATION.md.
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Messages that it takes before they are sent. Source: the same, `queue.buffering.max.messages`.
const IN_FLIGHT_MAX: usize = 10_000_000;
/// Sizes of messages. Source: the same, `message.max.bytes`.
const MESSAGE_BYTES: std::ops::RangeInclusive<u64> = 1000..=1_000_000_000;
/// What is fetched ahead: with less, no message of usual size fits.
const FETCH_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;

/// What the section says.
pub(super) struct Read {
    pub(super) settings: Settings,
    /// The group of routes that name none, and who says so.
    pub(super) group: (String, Origin),
    /// Where dead letters of topics, and of queues that are topics there, go, and who says so.
    pub(super) dead_letters: DeadLetters<(Address, Origin)>,
}

/// Why nothing can be published in a transaction, and what to do.
pub(super) fn no_transactions(settings: &Settings) -> Option<(&'static str, &'static str)> {
    if !settings.idempotent {
        Some(("kafka.idempotent is false", "set kafka.idempotent to true"))
    } else if settings.publish_timeout > settings.transaction_timeout {
        let problem = "kafka.publish_timeout is longer than kafka.transaction_timeout";
        Some((problem, "make kafka.transaction_timeout the longer one"))
    } else {
        None
    }
}

/// Kafka as it is without any configuration: the standard topics.
#[must_use]
pub fn standard() -> Settings {
    topics::standard()
}

/// Reads it. `standard`: whether it has the standard topics where it does not say so. `group` is that of the environment or
/// the default.
pub(super) fn read(
    section: &mut Section<'_, '_, '_>,
    backend: Option<Backend>,
    standard: bool,
    group: (String, Origin),
) -> Read {
    let mut settings = Settings::default();
    if let Some(other @ (Backend::Inmemory | Backend::Rabbitmq | Backend::Redis)) = backend {
        let (path, origin) = (section.path.clone(), section.origin());
        let problem = format!("is not used: messaging.backend is {}, so everything is there", other.as_str());
        section.reader.warn(origin, &path, problem, "unset messaging.backend to use it");
    }
    reach::read(section, &mut settings);
    let time = kind::time;
    let up_to_an_hour = || time(1..=HOUR_MS);
    settings.connect_timeout = section.value("connect_timeout", &time(1000..=*WAIT_MS.end()), settings.connect_timeout);
    settings.reconnect_delay_max = section.value("reconnect_delay", &time(50..=HOUR_MS), settings.reconnect_delay_max);
    settings.metadata_interval = section.value("metadata_interval", &time(1000..=HOUR_MS), settings.metadata_interval);
    publishing(section, &mut settings);
    let group = consuming(section, &mut settings, group);
    settings.stalled_after = section.value("stalled_after", &time(1000..=*WAIT_MS.end()), settings.stalled_after);
    settings.lag_max = section.bound("lag_max", &kind::integer(1..=u64::MAX), settings.lag_max);
    settings.statistics_interval =
        section.value("statistics_interval", &time(100..=HOUR_MS), settings.statistics_interval);
    settings.revoke_wait = section.value("revoke_wait", &time(0..=HOUR_MS), settings.revoke_wait);
    settings.commit_interval = section.value("commit_interval", &up_to_an_hour(), settings.commit_interval);
    settings.commit_messages_max =
        section.value("commit_messages_max", &kind::integer(1..=u64::from(u32::MAX)), settings.commit_messages_max);
    let dead_letters = dead_letters(section);
    topics::read(section, &mut settings, backend == Some(Backend::Kafka), standard);
    extra::read(section, &mut settings);
    Read { settings, group, dead_letters }
}

fn publishing(section: &mut Section<'_, '_, '_>, settings: &mut Settings) {
    settings.compression = section.value("compression", &compression(), settings.compression);
    settings.required_acks = section.value("required_acks", &acks(), settings.required_acks);
    settings.idempotent = section.value("idempotent", &kind::flag(), settings.idempotent);
    settings.linger = section.value("linger", &kind::time(0..=60_000), settings.linger);
    settings.in_flight_max = section.value("in_flight_max", &kind::integer(1..=IN_FLIGHT_MAX), settings.in_flight_max);
    settings.publish_timeout =
        section.value("publish_timeout", &kind::time(100..=*WAIT_MS.end()), settings.publish_timeout);
    settings.message_bytes_max =
        section.value("message_bytes_max", &kind::bytes(MESSAGE_BYTES), settings.message_bytes_max);
    settings.format = section.value("format", &format(), settings.format);
    settings.transactional_id = section
        .optional("transactional_id", &id("a name, unique among engines"), "- (made up at start)")
        .map(|given| given.value);
    settings.transaction_timeout =
        section.value("transaction_timeout", &kind::time(1000..=HOUR_MS), settings.transaction_timeout);
    if settings.idempotent && settings.required_acks != Acks::All {
        let problem = "needs required_acks: all: what the leader alone has may be lost and sent again";
        let fix = "write required_acks: all, or idempotent: false, where a message may be kept twice or lost";
        refuse(section, "idempotent", problem, fix);
    }
    if settings.required_acks == Acks::None {
        let (path, origin) = (section.path_of("required_acks"), section.origin_of("required_acks"));
        let problem = "a message that is lost on its way is lost for good, and nobody is told";
        section.reader.warn(origin, &path, problem, "write all");
    }
    if settings.linger >= settings.publish_timeout {
        refuse(section, "linger", "is not shorter than publish_timeout: nothing would be sent in time", "write 1ms");
    }
}

fn consuming(
    section: &mut Section<'_, '_, '_>,
    settings: &mut Settings,
    (default, said_by): (String, Origin),
) -> (String, Origin) {
    let written = section.unshown("group_id", &kind::name(), topology::GROUP);
    let group = match written {
        Some(written) if !matches!(said_by, Origin::Environment(_)) => (written.value, written.origin),
        _ => (default, said_by),
    };
    let path = section.path_of("group_id");
    section.reader.show(&path, group.0.clone(), group.1.clone());

    settings.group_protocol = section.value("group_protocol", &group_protocol(), settings.group_protocol);
    let assignment = decided_here(section, "assignment", &assignment(), "cooperative-sticky", settings);
    let session = decided_here(section, "session_timeout", &kind::time(1..=HOUR_MS), "30s", settings);
    let heartbeat = decided_here(section, "heartbeat_interval", &kind::time(1..=HOUR_MS), "3s", settings);
    let take = |given: Option<Given<_>>, default| given.map_or(default, |given| given.value);
    settings.assignment = assignment.map_or(settings.assignment, |given| given.value);
    settings.session_timeout = take(session, settings.session_timeout);
    settings.heartbeat_interval = take(heartbeat, settings.heartbeat_interval);
    settings.poll_interval_max =
        section.value("poll_interval_max", &kind::time(1..=*WAIT_MS.end()), settings.poll_interval_max);
    settings.group_instance_id = section
        .optional("group_instance_id", &id("a name, unique in the group"), "- (a new member at each start)")
        .map(|given| given.value);
    settings.offset_reset = section.value("offset_reset", &offset_reset(), settings.offset_reset);
    settings.fetch_bytes_max = section.value("fetch_bytes_max", &kind::bytes(FETCH_BYTES), settings.fetch_bytes_max);
    settings.fetch_wait = section.value("fetch_wait", &kind::time(0..=300_000), settings.fetch_wait);
    if settings.group_protocol == GroupProtocol::Classic {
        check_times(section, settings);
    }
    group
}

/// What the members of a group decide, unless the servers do.
fn decided_here<T>(
    section: &mut Section<'_, '_, '_>,
    key: &'static str,
    kind: &Kind<T>,
    documented: &str,
    settings: &Settings,
) -> Option<Given<T>> {
    let given = section.optional(key, kind, documented)?;
    if settings.group_protocol == GroupProtocol::Consumer {
        let problem = "is for the servers to decide where group_protocol is consumer";
        let path = section.path_of(key);
        let fix = "remove it, or write group_protocol: classic";
        section.reader.refuse(given.origin.clone(), &path, problem, fix);
    }
    Some(given)
}

fn check_times(section: &mut Section<'_, '_, '_>, settings: &Settings) {
    let Settings { session_timeout, heartbeat_interval, poll_interval_max, .. } = settings;
    if heartbeat_interval >= session_timeout {
        let problem = format!("is not shorter than session_timeout ({session_timeout:?}): every member would be lost");
        refuse(section, "heartbeat_interval", problem, "write a third of session_timeout, or less");
    } else if *heartbeat_interval * 3 > *session_timeout {
        let (path, origin) = (section.path_of("heartbeat_interval"), section.origin_of("heartbeat_interval"));
        let problem = "is more than a third of session_timeout: one lost heartbeat may cost the membership";
        section.reader.warn(origin, &path, problem, "write a third of session_timeout, or less");
    }
    if poll_interval_max < session_timeout {
        let problem = format!("is shorter than session_timeout ({session_timeout:?})");
        refuse(section, "poll_interval_max", problem, "make it the longer one");
    }
}

fn refuse(section: &mut Section<'_, '_, '_>, key: &str, problem: impl Into<String>, fix: &str) {
    let (path, origin) = (section.path_of(key), section.origin_of(key));
    section.reader.refuse(origin, &path, problem, fix);
}

fn dead_letters(section: &mut Section<'_, '_, '_>) -> DeadLetters<(Address, Origin)> {
    let mut of = |key: &'static str, topic: &str| {
        let address = section.value(key, &kind::address(), Address::topic(topic));
        let origin = if section.has(key) { section.origin_of(key) } else { Origin::Default };
        (address, origin)
    };
    DeadLetters {
        events: of("dead_letter_events", topology::DEAD_LETTER_TOPIC),
        tasks: of("dead_letter_tasks", topology::DEAD_LETTER_TASKS_TOPIC),
    }
}

/// A name that servers take for anything.
fn id(takes: &'static str) -> Kind<String> {
    let read = move |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.chars().all(allowed) {
            let fix = format!("write 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-'");
            return Err(Wrong::new(format!("{} is not {takes}", quoted(text)), fix));
        }
        Ok(text.to_owned())
    };
    kind::parsed(takes, read, Clone::clone)
}

fn compression() -> Kind<Compression> {
    let words = &[
        ("lz4", Compression::Lz4),
        ("none", Compression::None),
        ("gzip", Compression::Gzip),
        ("snappy", Compression::Snappy),
        ("zstd", Compression::Zstd),
    ];
    kind::choice(words, |compression| format!("{compression:?}").to_ascii_lowercase())
}

/// In Kafka's words, or as numbers.
fn acks() -> Kind<Acks> {
    const TAKES: &str = "all, 1 (the leader) or 0 (none)";
    let read = |text: &str| match text {
        "all" | "-1" => Ok(Acks::All),
        "1" | "leader" => Ok(Acks::Leader),
        "0" | "none" => Ok(Acks::None),
        _ => Err(Wrong::new(format!("{} is not {TAKES}", quoted(text)), "write all, 1 or 0")),
    };
    kind::parsed(TAKES, read, |acks| {
        match acks {
            Acks::All => "all",
            Acks::Leader => "1",
            Acks::None => "0",
        }
        .to_owned()
    })
}

fn format() -> Kind<Format> {
    let words = &[
        ("native", Format::Native),
        ("cloudevents-binary", Format::CloudEventsBinary),
        ("cloudevents-structured", Format::CloudEventsStructured),
    ];
    kind::choice(words, |format| {
        match format {
            Format::Native => "native",
            Format::CloudEventsBinary => "cloudevents-binary",
            Format::CloudEventsStructured => "cloudevents-structured",
        }
        .to_owned()
    })
}

fn group_protocol() -> Kind<GroupProtocol> {
    let words = &[("classic", GroupProtocol::Classic), ("consumer", GroupProtocol::Consumer)];
    kind::choice(words, |protocol| format!("{protocol:?}").to_ascii_lowercase())
}

fn assignment() -> Kind<Assignment> {
    let words = &[
        ("cooperative-sticky", Assignment::CooperativeSticky),
        ("range", Assignment::Range),
        ("roundrobin", Assignment::RoundRobin),
    ];
    kind::choice(words, |assignment| {
        match assignment {
            Assignment::CooperativeSticky => "cooperative-sticky",
            Assignment::Range => "range",
            Assignment::RoundRobin => "roundrobin",
        }
        .to_owned()
    })
}

fn offset_reset() -> Kind<OffsetReset> {
    let words = &[("earliest", OffsetReset::Earliest), ("latest", OffsetReset::Latest), ("none", OffsetReset::None)];
    kind::choice(words, |reset| format!("{reset:?}").to_ascii_lowercase())
}
