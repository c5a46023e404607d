//! The words that every other module uses: a message, its headers, the attempts made on it, how a handler
//! ended and what the broker is told. Nothing here does I/O or knows a broker, a file or WebAssembly.
//!
//! Start at [`Message`], then [`Outcome`] (what a handler answered) and [`Settlement`] (what becomes of it).

mod address;
mod attempt;
mod headers;
mod id;
mod outcome;
mod random;
mod reason;
mod secret;
mod settlement;

use bytes::Bytes;
use serde_json::{Map, Value};

pub use address::{Address, AddressError, Kind, NAME_BYTES_MAX, Position, SYSTEM_BYTES_MAX};
pub use attempt::{FAILURES_MAX, FailedAttempt, remember};
pub use compact_str::CompactString as Text;
pub use headers::{HEADER_BYTES_MAX, HEADERS_MAX, Headers, HeadersError};
pub use id::{ID_BYTES_MAX, MessageId};
pub use outcome::{Failure, FailureKind, HandlerIdentity, Outbound, Outcome};
pub use random::{random, random64};
pub use reason::ReasonCode;
pub use secret::Secret;
pub use settlement::Settlement;

/// Priority of a message that names none. Source: SPEC §1, "named levels".
pub const PRIORITY_NORMAL: u8 = 5;
/// Highest priority; a greater one is clamped to it and counted.
pub const PRIORITY_MAX: u8 = 10;

/// Names of the engine's own headers, as they travel on every broker.
pub mod header {
    /// Everything that begins like this belongs to the engine; a handler cannot set it.
    pub const OWN_PREFIX: &str = "x-helix-";
    /// How many handlers' results this message descends from. See [`super::Message::hops`].
    pub const HOPS: &str = "x-helix-hops";
    /// Reason code of a dead letter: a message that has it is one.
    pub const DEAD_CODE: &str = "x-helix-dead-code";
    /// W3C Trace Context.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C Trace Context, vendor part.
    pub const TRACESTATE: &str = "tracestate";

    /// Whether only the engine may set it: what guests and publishers send under such a name is dropped.
    #[must_use]
    pub fn is_own(name: &str) -> bool {
        name.starts_with(OWN_PREFIX) || name == "x-death"
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type UnixMs = u64;

/// A message as it was published. Nothing changes it after that; brokers and handlers share it behind an `Arc`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The same on every attempt and every copy: duplicates show by it.
    pub id: MessageId,
    /// The kind of message, dotted (`order.created`); routes match on it. Empty: none given.
    pub kind: Text,
    /// The body, untouched.
    pub payload: Bytes,
    /// The publisher's headers in their order, the engine's own among them.
    pub headers: Headers,
    /// When it was first published; set once and kept by retries, dead letters and replays.
    pub timestamp: UnixMs,
    /// 0 to [`PRIORITY_MAX`]; brokers without priorities ignore it.
    pub priority: u8,
    /// What orders and partitions. `None` and empty differ, as on Kafka.
    pub key: Option<Bytes>,
    /// A media type.
    pub content_type: Option<Text>,
    /// Relates it to another message.
    pub correlation_id: Option<Text>,
    /// Where an answer is expected.
    pub reply_to: Option<Text>,
    /// Not delivered before (a task's `scheduled_at`, a delay).
    pub not_before: Option<UnixMs>,
    /// Not handled at or after: it is dead-lettered as expired.
    pub expires_at: Option<UnixMs>,
    /// Retries after the first attempt that the publisher asks for; `None` leaves it to the route.
    pub retries_max: Option<u32>,
    /// Whether a durable broker must keep it over a restart. `false`: persistent (the default).
    pub transient: bool,
    /// What few messages have. Boxed so that the others do not pay for it.
    pub extra: Option<Box<Extra>>,
}

/// The rarer properties of tasks and events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extra {
    /// Event: who says so (CloudEvents `source`).
    pub origin: Option<Text>,
    /// Event: about what (CloudEvents `subject`).
    pub subject: Option<Text>,
    /// Event: where the payload's shape is described (CloudEvents `dataschema`).
    pub data_schema: Option<Text>,
    /// Task: the task that this one is a part of.
    pub parent_task_id: Option<Text>,
    /// The publisher's own trace id, where it is not in `traceparent`.
    pub trace_id: Option<Text>,
    /// Fields of the JSON form that have no place here; written back as they came.
    pub unknown: Map<String, Value>,
}

impl Message {
    /// A message with a new id, ordinary priority and everything else empty.
    ///
    /// `now` is the caller's clock reading, so that a batch reads the clock once.
    #[must_use]
    pub fn new(kind: impl Into<Text>, payload: impl Into<Bytes>, now: UnixMs) -> Self {
        Self {
            id: MessageId::generate(now),
            kind: kind.into(),
            payload: payload.into(),
            timestamp: now,
            priority: PRIORITY_NORMAL,
            ..Self::default()
        }
    }

    /// How many handlers' results this message descends from: 0 for one that was published from outside.
    #[must_use]
    pub fn hops(&self) -> u32 {
        self.headers.get(header::HOPS).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Whether the engine made it of a message that is there: a result of a handler, or a dead letter.
    #[must_use]
    pub fn is_follow_up(&self) -> bool {
        self.hops() > 0 || self.headers.get(header::DEAD_CODE).is_some()
    }

    /// Bytes it takes towards limits on size: payload, headers and key.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payload.len() + self.headers.size() + self.key.as_ref().map_or(0, Bytes::len)
    }

    /// The trace this message belongs to: from `traceparent`, else as the publisher named it.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        self.headers
            .get(header::TRACEPARENT)
            .and_then(|parent| parent.split('-').nth(1))
            .or_else(|| self.extra.as_ref().and_then(|extra| extra.trace_id.as_deref()))
    }

    /// Where an answer is expected, as an address: a bare name means a queue.
    #[must_use]
    pub fn reply_address(&self) -> Option<Address> {
        let reply_to = self.reply_to.as_ref()?;
        reply_to.parse().or_else(|_| Address::checked(Kind::Queue, reply_to)).ok()
    }

    /// The rarer properties, made on first use.
    pub fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Whether it may no longer be handled at `now`.
    #[must_use]
    pub fn expired(&self, now: UnixMs) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// The wall clock in milliseconds. Read it once a batch and hand the reading on.
#[must_use]
pub fn now_ms() -> UnixMs {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
