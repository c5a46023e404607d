//! Reading as a member of a group. One thread for each subscription fetches ([`poller`]); what it has, what is out and what is
//! done is shared with the engine behind one lock ([`share`], [`part`]); how far a partition is done is kept by offset
//! ([`progress`]) and committed with what is done above the first gap ([`done`]). The client library tells of partitions that
//! come and go in [`context`]. [`settler`] is what the engine settles with, [`retries`] the copies in the retry topic,
//! [`transaction`] publishing and committing in one.
//!
//! Start at [`join`], then [`poller::Poller::run`].

mod context;
mod done;
mod meters;
mod part;
mod poller;
mod progress;
mod retries;
mod settler;
mod share;
mod stalls;
mod subscription;
mod transaction;

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use rdkafka::{
    ClientConfig, Offset,
    consumer::{BaseConsumer, Consumer},
};

use self::{context::GroupContext, meters::Meters, poller::Poller, share::Share};
use super::{
    client,
    condition::Condition,
    places::Places,
    settings::{Assignment, GroupProtocol, OffsetReset, Settings},
    starts::{self, Starts},
    wire,
};
use crate::{
    broker::{BrokerError, Start},
    message::ReasonCode,
};

pub(super) use self::{
    part::PartFigures,
    subscription::{GroupSubscription, NoLease},
};

/// What a member of a group reads.
#[derive(Debug)]
pub(super) struct Reading {
    /// Names it among all.
    id: u64,
    /// What was asked for: a topic or a pattern.
    place: Arc<str>,
    group: Arc<str>,
    /// Whether `place` is a pattern.
    is_pattern: bool,
    /// Where partitions begin in which the group has no place yet; those that are not here begin by `begin`.
    starts: OnceLock<Starts>,
    begin: Start,
    /// Of which source these are the copies that wait: only of those is the retry topic read.
    copies_of: Option<Arc<Reading>>,
    /// Whether progress is committed by transactions, too: a plain commit must not come in between.
    transacts: AtomicBool,
    /// Whether the group has given it something, be it no partition, and it has not lost that since.
    joined: AtomicBool,
    /// Whether servers have said that it may not read, and it has not read since.
    barred: AtomicBool,
    meters: Meters,
}

/// What may be wrong with a subscription. Each kind begins and ends by itself.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// It does not get on: seen from outside, again and again.
    Pace,
    /// The servers do not let it read, until something comes.
    Rights,
    /// Where it was is gone, until partitions are given out anew.
    Place,
}

/// How a subscription is doing, for people.
pub(super) trait GroupReading: Send + Sync + std::fmt::Debug {
    /// Names it.
    fn id(&self) -> u64;
    /// What it reads, and as which group.
    fn source(&self) -> (Arc<str>, Arc<str>);
    /// How far it is.
    fn figures(&self) -> Figures;
}

/// How a subscription is doing.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) parts: Vec<PartFigures>,
    pub(super) out: u64,
    pub(super) delayed: u64,
    pub(super) dead_lettered: u64,
    pub(super) dropped: u64,
}

impl Reading {
    pub(super) fn new(place: Arc<str>, group: Arc<str>, begin: Start, starts: Option<Starts>) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            id: LAST.fetch_add(1, Relaxed),
            is_pattern: is_pattern(&place),
            meters: Meters::new(&place, &group),
            place,
            group,
            starts: starts.map(OnceLock::from).unwrap_or_default(),
            begin,
            copies_of: None,
            transacts: AtomicBool::new(false),
            joined: AtomicBool::new(false),
            barred: AtomicBool::new(false),
        }
    }

    /// What a trouble of it is called: others may read the same topic as another group.
    fn trouble(&self, kind: Trouble) -> Arc<str> {
        format!("{} as {}: {kind:?}", self.place, self.group).into()
    }

    /// Where a partition begins in which the group has no place. Asks a server, where none could be asked before.
    fn start(&self, consumer: &BaseConsumer<GroupContext>, topic: &str, partition: i32) -> Offset {
        if self.starts.get().is_none() {
            match starts::ask(consumer, &self.place, self.begin) {
                // Somebody else cannot have been faster: only this thread asks.
                Ok(found) => drop(self.starts.set(found)),
                Err(error) => tracing::warn!("where to begin in {} could not be found out: {error}", self.place),
            }
        }
        let starts = self.starts.get();
        match starts.and_then(|starts| starts.get(&(topic.into(), partition))) {
            Some(offset) => Offset::Offset(*offset),
            None if starts.is_none() && self.begin == Start::Latest => Offset::End,
            // A partition that was not there when reading began: all of it is new.
            None => Offset::Beginning,
        }
    }

    /// The name of a topic, shared where it is the only one.
    fn name_of(&self, topic: &str) -> Arc<str> {
        if *self.place == *topic { Arc::clone(&self.place) } else { topic.into() }
    }

    /// Whether a copy in the retry topic is one of these.
    fn wants(&self, copy: &wire::Copy) -> bool {
        self.copies_of.as_ref().is_some_and(|of| {
            *of.group == *copy.group
                && if of.is_pattern { matches(&of.place, &copy.topic) } else { *of.place == *copy.topic }
        })
    }
}

/// Whether a name stands for several topics.
pub(super) fn is_pattern(name: &str) -> bool {
    name.contains(['*', '#'])
}

/// Whether a topic is one of a pattern's. `*` is one word, `#` any number of them, as in AMQP.
pub(super) fn matches(pattern: &str, topic: &str) -> bool {
    fn words(pattern: &[&str], topic: &[&str]) -> bool {
        match pattern.split_first() {
            None => topic.is_empty(),
            Some((&"#", rest)) => (0..=topic.len()).any(|skip| words(rest, topic.get(skip..).unwrap_or_default())),
            Some((word, rest)) => topic
                .split_first()
                .is_some_and(|(first, others)| (*word == "*" || word == first) && words(rest, others)),
        }
    }
    words(&pattern.split('.').collect::<Vec<_>>(), &topic.split('.').collect::<Vec<_>>())
}

/// The same as the regular expression that Kafka wants; it begins with `^`, by which the client library knows it.
fn expression(pattern: &str) -> String {
    let mut text = String::from("^");
    for (place, word) in pattern.split('.').enumerate() {
        match (word, place) {
            // Any number of words: none of them brings its dot.
            ("#", 0) => text.push_str("([^.]+(\\.[^.]+)*)?"),
            ("#", _) => text.push_str("(\\.[^.]+)*"),
            (word, place) => {
                if place > 0 {
                    text.push_str("\\.");
                }
                text.push_str(if word == "*" { "[^.]+" } else { word });
            }
        }
    }
    text.push('$');
    // A leading `#` may be none of the words: then the dot behind it goes, too.
    text.replacen("^([^.]+(\\.[^.]+)*)?\\.", "^([^.]+\\.)*", 1)
}

/// What all members are made with.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) settings: Arc<Settings>,
    pub(super) condition: Arc<Condition>,
    pub(super) places: Arc<Places>,
}

/// What is kept of a subscription besides its handle.
struct Member {
    context: Arc<GroupContext>,
    /// For transactions, which need to know what the group thinks of us.
    consumer: Weak<BaseConsumer<GroupContext>>,
    thread: thread::JoinHandle<()>,
}

/// Joins a group, and fetches for it. Returns before the group has said what is ours.
///
/// # Errors
/// [`BrokerError::Refused`]: the client library will not have the settings, or there is no thread.
fn join(common: &Common, reading: Arc<Reading>, topics: &[&str], prefetch: usize) -> Result<Member, BrokerError> {
    let settings = &common.settings;
    let share = Arc::new(Share::new(prefetch, reading.is_pattern, settings.commit_messages_max));
    let context = GroupContext {
        reading: Arc::clone(&reading),
        settings: Arc::clone(settings),
        condition: Arc::clone(&common.condition),
        share: Arc::clone(&share),
        places: Arc::clone(&common.places),
        consumer: OnceLock::new(),
    };
    let mut consumer: BaseConsumer<GroupContext> =
        config(settings, &reading).create_with_context(context).map_err(|error| client::refused(&error))?;
    consumer.set_nonempty_callback(move || share.wake());
    consumer.subscribe(topics).map_err(|error| client::refused(&error))?;
    let context = Arc::clone(consumer.context());
    let poller = Poller::new(consumer, Arc::clone(&context));
    let consumer = poller.consumer();
    let name = format!("kafka {}", reading.place);
    let thread = thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || poller.run());
    let thread = thread.map_err(|error| BrokerError::Refused {
        reason: format!("no thread to read {}: {error}; raise the limit on threads", reading.place),
        code: ReasonCode::SubscribeFailed,
    })?;
    common.places.begun(Arc::clone(&context) as Arc<dyn GroupReading>);
    Ok(Member { context, consumer, thread })
}

/// What a member of a group is configured with, beside what all clients are.
fn config(settings: &Settings, reading: &Reading) -> ClientConfig {
    let mut config = client::config(settings);
    let ms = |time: std::time::Duration| time.as_millis().to_string();
    config
        .set("group.id", &*reading.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("max.poll.interval.ms", ms(settings.poll_interval_max.max(settings.session_timeout)))
        .set("queued.max.messages.kbytes", (settings.fetch_bytes_max >> 10).max(1).to_string())
        .set("fetch.wait.max.ms", ms(settings.fetch_wait))
        // How long a partition is left alone whose queue was full: a second by default, in which all of it is handled.
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.error.backoff.ms", "100")
        .set(
            "auto.offset.reset",
            match settings.offset_reset {
                OffsetReset::Earliest => "earliest",
                OffsetReset::Latest => "latest",
                OffsetReset::None => "error",
            },
        );
    if let Some(id) = &settings.group_instance_id {
        // One for each source: they are members of their own.
        config.set("group.instance.id", format!("{id}.{}", reading.place.replace(['*', '#'], "_")));
    }
    match settings.group_protocol {
        GroupProtocol::Consumer => {
            config.set("group.protocol", "consumer");
        }
        GroupProtocol::Classic => {
            let strategy = match settings.assignment {
                Assignment::CooperativeSticky => "cooperative-sticky",
                Assignment::Range => "range",
                Assignment::RoundRobin => "roundrobin",
            };
            config
                .set("partition.assignment.strategy", strategy)
                .set("session.timeout.ms", ms(settings.session_timeout))
                .set("heartbeat.interval.ms", ms(settings.heartbeat_interval));
        }
    }
    for (name, value) in &settings.extra {
        config.set(name, value);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_the_same_to_us_and_to_kafka() {
        let topics = ["a", "a.b", "a.b.c", "b.c", "a.x.c", "x", "a.b.c.d", "ab"];
        for (pattern, wanted) in [
            ("a.*", vec!["a.b"]),
            ("a.#", vec!["a", "a.b", "a.b.c", "a.x.c", "a.b.c.d"]),
            ("#", topics.to_vec()),
            ("*", vec!["a", "x", "ab"]),
            ("#.c", vec!["a.b.c", "b.c", "a.x.c"]),
            ("a.#.c", vec!["a.b.c", "a.x.c"]),
            ("a.*.c", vec!["a.b.c", "a.x.c"]),
            ("a.b", vec!["a.b"]),
        ] {
            let ours: Vec<&str> = topics.into_iter().filter(|topic| matches(pattern, topic)).collect();
            assert_eq!(ours, wanted, "{pattern}");
        }
        for (pattern, text) in [
            ("a.*", r"^a\.[^.]+$"),
            ("a.#", r"^a(\.[^.]+)*$"),
            ("#", r"^([^.]+(\.[^.]+)*)?$"),
            ("#.c", r"^([^.]+\.)*c$"),
            ("a.#.c", r"^a(\.[^.]+)*\.c$"),
        ] {
            assert_eq!(expression(pattern), text);
        }
    }
}
