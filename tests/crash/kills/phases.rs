//! What the engine is in the middle of when it is killed.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Attempts that every route makes.
pub(crate) const ATTEMPTS_MAX: u64 = 4;
/// What is kept of the topic `retention`.
pub(crate) const RETENTION_BYTES: usize = 256 << 10;

/// One kind of traffic.
pub(crate) struct Phase {
    /// Also the queue or topic, and the beginning of each id.
    pub(crate) name: &'static str,
    pub(crate) to: To,
    /// Most messages in one request, and in one life of the engine.
    pub(crate) batch_max: u64,
    pub(crate) round_max: u64,
    /// Plugin files are replaced meanwhile.
    pub(crate) reloads: bool,
    /// What a message has beside its id, of this publisher.
    fill: fn(&mut Random, u64, &mut Map<String, Value>),
    /// How many messages each publisher has tried to send; each has a connection and a thread of its own.
    pub(crate) attempted: Vec<AtomicU64>,
}

/// Where it publishes, and so what has to become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// A queue that nothing reads.
    Kept,
    /// A queue with a handler.
    Queue,
    /// A topic with a handler.
    Topic,
    /// A topic that keeps the latest only.
    Brief,
}

pub(crate) fn all() -> Vec<Phase> {
    let phase =
        |name, to, publishers, batch_max, round_max, fill: fn(&mut Random, u64, &mut Map<String, Value>)| Phase {
            name,
            to,
            batch_max,
            round_max,
            reloads: name == "reload",
            fill,
            attempted: (0..publishers).map(|_| AtomicU64::new(0)).collect(),
        };
    vec![
        phase("publish", To::Kept, 4, 64, 2000, |random, _, message| {
            message.insert("priority".into(), random.between(0, 11).into());
            message.insert("payload".into(), "x".repeat(random.between(0, 2000) as usize).into());
        }),
        phase("handle", To::Queue, 3, 64, 1500, |random, _, message| {
            message.insert("priority".into(), random.between(0, 11).into());
            message.insert("headers".into(), json!({"quiet": "1"}));
        }),
        // Delays of their own, too: what is waited for survives as well.
        phase("retries", To::Queue, 2, 8, 150, |random, _, message| {
            message.insert("headers".into(), json!({"fail-attempts": random.between(0, 6).to_string()}));
            if random.once_in(4) {
                let at = helixmq::message::now_ms() + random.between(0, 500);
                message.insert("scheduled_at".into(), at.into());
            }
        }),
        phase("settle", To::Queue, 2, 16, 200, |random, _, message| {
            let ends = if random.once_in(4) { "trap" } else { "reject" };
            message.insert("headers".into(), json!({"ends": ends, "quiet": "1"}));
        }),
        phase("reload", To::Queue, 2, 32, 800, |_, _, message| {
            message.insert("headers".into(), json!({"quiet": "1"}));
        }),
        phase("topic", To::Topic, 2, 8, 200, |random, _, message| {
            message.insert("key".into(), random.between(0, 16).to_string().into());
            message.insert("headers".into(), json!({"fail-attempts": random.between(0, 2).to_string()}));
        }),
        // One key a publisher, so that the numbers in ids tell the order.
        phase("ordered", To::Topic, 4, 8, 200, |random, publisher, message| {
            message.insert("key".into(), publisher.to_string().into());
            let fails = if random.once_in(16) { random.between(1, 6) } else { 0 };
            message.insert("headers".into(), json!({"fail-attempts": fails.to_string(), "quiet": "1"}));
        }),
        // Large, waiting on disk until a later life, and gone again: pages become free, and are given back.
        phase("shrink", To::Queue, 2, 8, 100, |random, _, message| {
            let length = random.between(5_000, 40_000) as usize;
            let text: String = random.bytes(length).iter().map(|byte| format!("{byte:02x}")).collect();
            message.insert("payload".into(), text.into());
            message.insert("headers".into(), json!({"quiet": "1"}));
            let at = helixmq::message::now_ms() + random.between(0, 4000);
            message.insert("scheduled_at".into(), at.into());
        }),
        phase("retention", To::Brief, 1, 32, 800, |random, _, message| {
            message.insert("data".into(), "x".repeat(random.between(500, 4000) as usize).into());
        }),
    ]
}

impl Phase {
    /// Where it publishes.
    pub(crate) fn path(&self) -> String {
        match self.to {
            To::Kept | To::Queue => format!("/v1/messaging/tasks/{}", self.name),
            To::Topic | To::Brief => format!("/v1/messaging/events/{}", self.name),
        }
    }

    /// The next few messages of a publisher, a line each, and their ids. A number is used once, whatever becomes of it.
    pub(crate) fn lines(&self, publisher: usize, count: u64, random: &mut Random) -> String {
        let first = self.attempted[publisher].fetch_add(count, Ordering::SeqCst);
        let mut lines = String::new();
        for number in first..first + count {
            let mut message = Map::new();
            message.insert("id".into(), format!("{}.{publisher}.{number}", self.name).into());
            message.insert("type".into(), "crash.test".into());
            (self.fill)(random, publisher as u64, &mut message);
            lines += &Value::Object(message).to_string();
            lines.push('\n');
        }
        lines
    }

    /// The publisher and number in an id of this phase, if a message of that id was ever sent.
    pub(crate) fn sent(&self, id: &str) -> Option<(usize, u64)> {
        let (publisher, number) = id.strip_prefix(self.name)?.strip_prefix('.')?.split_once('.')?;
        let (publisher, number): (usize, u64) = (publisher.parse().ok()?, number.parse().ok()?);
        (number < self.attempted.get(publisher)?.load(Ordering::SeqCst)).then_some((publisher, number))
    }
}

/// The configuration: one queue or topic and one route for each phase.
pub(crate) fn configuration(storage: &str) -> String {
    let mut text = format!(
        "embedded:\n  standard_topology: false\n  dead_letter: dead\n{storage}  queues:\n    dead: {{}}\n    handled: {{}}\n    \
         publish: {{}}\n    handle: {{}}\n    retries: {{}}\n    settle: {{}}\n    reload: {{}}\n    shrink: {{}}\n  topics:\n    \
         runs: {{partitions: 1, retention_ms: null}}\n    topic: {{partitions: 4, retention_ms: null}}\n    \
         ordered: {{partitions: 2, retention_ms: null}}\n    \
         retention: {{partitions: 1, retention_ms: null, retention_bytes_max: {RETENTION_BYTES}}}\nroutes:\n"
    );
    for phase in all() {
        let (source, handler) = match phase.to {
            To::Queue => ("queue", if phase.reloads { "reloaded" } else { "witness" }),
            To::Topic => ("topic", "witness-event"),
            To::Kept | To::Brief => continue,
        };
        let order = if phase.name == "ordered" { "key" } else { "none" };
        // Where most fail on purpose that is no outage behind the handler; where few do it must not be taken for one.
        let outage = if matches!(phase.name, "retries" | "topic") { "outage: {failures_max: 0}, " } else { "" };
        text += &format!(
            "  - {{name: {name}, {source}: {name}, handler: {handler}, order: {order}, concurrency: 2, \
             destinations: {{out: 'queue:handled', runs: 'topic:runs'}}, \
             {outage}retry: {{attempts_max: {ATTEMPTS_MAX}, delay_ms: 10, delay_max_ms: 100}}, \
             crash_budget: {{failures_max: 1000000}}}}\n",
            name = phase.name,
        );
    }
    text
}

#[test]
fn an_id_tells_whether_it_was_ever_sent() {
    let phase = all().remove(0);
    let lines = phase.lines(1, 3, &mut Random::new(1));
    assert_eq!(lines.lines().count(), 3);
    assert_eq!(phase.sent("publish.1.2"), Some((1, 2)));
    for never in ["publish.1.3", "publish.0.0", "publish.9.0", "handle.1.0", "publish.1", "publish.1.x"] {
        assert_eq!(phase.sent(never), None, "{never}");
    }
}
