//! The seam to messaging systems. In: messages to publish, addresses to read. Out: deliveries, each owed one
//! settlement. What happens between a delivery and its settlement is not decided here.
//!
//! One folder a system. They differ only in what [`Capabilities`] says; nothing outside this folder asks which
//! system it talks to, and one conformance suite (`tests/brokers`) runs on all of them.
//!
//! Start at [`Broker`], then [`Subscription`] and [`Deliveries`].

mod commit;
mod counted;
mod delivery;
pub mod embedded;
mod error;
pub mod guarded;
mod joined;
#[cfg(feature = "kafka")]
pub mod kafka;
mod queueless;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(feature = "redis")]
pub mod redis;
mod room;
mod system;
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
mod tls;
pub mod topology;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;

pub use counted::Counted;
pub use delivery::{Count, Deliveries, Delivery, Settler, Tag};
pub use error::{BrokerError, PublishError, PublishFailures, TransactionError};
pub use guarded::{GuardSettings, Guarded};
pub use joined::{Joined, JoinedSystem};
pub use queueless::{QUEUE_PARTITIONS, QUEUE_RETENTION, Queueless};
pub use system::{BrokerStatus, Circuit, ConnectionState, SpoolStats, System};

use crate::message::{Address, Message, Position, UnixMs};

/// What a system can do. The conformance suite demands exactly what is claimed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Capabilities {
    /// A confirmed publish survives a crash of the system.
    pub durable: bool,
    /// Queues: lower numbers wait for higher ones.
    pub priority: bool,
    /// Honours [`Message::not_before`] on its own.
    pub delay: bool,
    /// Honours [`Message::expires_at`] on its own: an expired message is still delivered, marked by its time, or
    /// [evicted](Broker::evict), so that the engine can dead-letter it; it never disappears.
    pub expiry: bool,
    /// Topics: a log with partitions, and groups that remember where in it they are and may begin anywhere. Without, a topic
    /// is one sequence, and a group gets what is published from its first subscription on.
    pub log: bool,
    /// Topics: messages can be read again from a place or a time.
    pub replay: bool,
    /// Counts deliveries itself, crashes of the consumer included.
    pub delivery_count: bool,
    /// Topics: can publish and settle in one transaction ([`Deliveries::transact`]).
    pub transactions: bool,
    /// Topics: what is kept in order.
    pub ordering: Ordering,
    /// Can be read without consuming ([`Broker::browse`]).
    pub browse: bool,
    /// Longest payload with headers, in bytes, that it takes.
    pub message_bytes_max: usize,
}

/// What a system keeps in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// Nothing.
    None,
    /// A queue by arrival (within one priority), a topic within each partition.
    Arrival,
}

/// A messaging system, connected.
///
/// Every method may be called from any number of tasks at once. None of them retries: the caller decides.
#[async_trait]
pub trait Broker: Send + Sync + Debug {
    /// The name routes and metrics use for it.
    fn name(&self) -> &str;

    /// The name of the system that has this queue or topic: another one, where several stand behind this broker.
    fn name_of(&self, address: &Address) -> Arc<str> {
        let _ = address;
        self.name().into()
    }

    /// The same address without its system, where that is the one that has all of its kind.
    fn plain(&self, address: &Address) -> Address {
        address.clone()
    }

    /// What it can do. Constant for the life of the connection.
    fn capabilities(&self) -> Capabilities;

    /// Publishes messages to one place, in this order, and returns when all are confirmed or known to have failed.
    /// What is confirmed is kept by the system as durably as it claims.
    ///
    /// # Errors
    /// Names the messages that were *not* confirmed, by their place in `messages`; all others are. One whose fate
    /// is unknown (a broken connection) counts as failed, and may be there: publishing it again under the same id
    /// makes a visible duplicate.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped half-way, any of the messages may or may not be published.
    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures>;

    /// Makes what is missing, and compares what is there. Never deletes and never changes an existing one.
    ///
    /// # Errors
    /// [`BrokerError::Mismatch`] names each setting that differs: change the configuration or the system.
    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError>;

    /// Starts reading. Several subscriptions to one queue compete for its messages; several with one group share a
    /// topic's partitions.
    ///
    /// # Errors
    /// [`BrokerError::NotFound`]: declare it first. [`BrokerError::Unreachable`]: back off and try again.
    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError>;

    /// Hands over what a queue is to keep no longer, whether anybody reads it or not: what has expired at the head of
    /// each priority, and, with [`Overflow::DeadLetterOldest`], the oldest of the lowest priority as far as they are
    /// beyond its limits. None, where there is nothing of the kind: it is never waited for. Each is owed a settlement,
    /// as any delivery.
    ///
    /// # Errors
    /// [`BrokerError::NotFound`]: there is no such queue (any more). [`BrokerError::Unreachable`]: try again later.
    ///
    /// # Cancel safety
    /// Cancel safe: what is not returned stays.
    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        let _ = (from, max);
        Ok(Deliveries::none())
    }

    /// Reads messages without consuming them: for people, never for the flow.
    ///
    /// # Errors
    /// [`BrokerError::Unsupported`] where [`Capabilities::browse`] is false.
    async fn browse(&self, request: Browse) -> Result<Page, BrokerError>;

    /// What is there now: for health, depth metrics and `doctor`. Answers from memory; never waits on the network.
    fn stats(&self) -> Vec<AddressStats>;

    /// How it is doing, for health and for whoever must end the engine. Cheap: answers from memory.
    fn status(&self) -> BrokerStatus {
        BrokerStatus::Ready
    }

    /// Where its connections are, for people. Cheap: answers from memory.
    fn connection(&self) -> ConnectionState {
        ConnectionState::Ready
    }

    /// Has the system give any answer, over what publishes to it: for whoever would know whether it is well while nobody
    /// publishes. Nothing changes there. The caller bounds how long it waits.
    ///
    /// # Errors
    /// [`BrokerError::Lost`]: there was none, and why.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn answers(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    /// Whether what is published there is taken now, for whoever would rather wait than fail. `None`: always, as far as
    /// can be said.
    fn circuit(&self, to: &Address) -> Option<watch::Receiver<Circuit>> {
        let _ = to;
        None
    }

    /// The systems behind this broker, one by one, for people: itself, unless several are joined.
    fn systems(&self) -> Vec<System> {
        vec![System {
            name: self.name().to_owned(),
            status: self.status(),
            state: self.connection(),
            circuit: Circuit::Closed,
            spool: None,
            is_durable: self.capabilities().durable,
        }]
    }

    /// Ends every subscription and connection in good order. Deliveries that are out go back.
    async fn close(&self);
}

/// A queue or topic, as the operator wants it.
#[derive(Clone, Debug, PartialEq)]
pub enum Declaration {
    /// See [`QueueSettings`].
    Queue(Arc<str>, QueueSettings),
    /// See [`TopicSettings`].
    Topic(Arc<str>, TopicSettings),
}

impl Declaration {
    /// Of what.
    #[must_use]
    pub fn address(&self) -> Address {
        match self {
            Self::Queue(name, _) => Address::queue(Arc::clone(name)),
            Self::Topic(name, _) => Address::topic(Arc::clone(name)),
        }
    }

    /// Where it keeps its messages.
    #[must_use]
    pub fn storage(&self) -> Storage {
        match self {
            Self::Queue(_, settings) => settings.storage,
            Self::Topic(_, settings) => settings.storage,
        }
    }
}

/// Where a queue or topic keeps its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// In the memory of the system. Gone when it ends.
    #[default]
    Memory,
    /// On disk: what is confirmed survives a crash of the system.
    Disk,
}

/// Settings of a queue.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct QueueSettings {
    /// Where its messages are kept.
    pub storage: Storage,
    /// Highest priority kept apart, 0 (none) to 10; a message above it counts as it.
    pub priority_max: u8,
    /// How long a message may wait before it is expired. `None`: for ever.
    pub ttl: Option<Duration>,
    /// Most messages, waiting and delayed together. `None`: no limit but the memory's.
    pub length_max: Option<u64>,
    /// Most bytes of waiting and delayed messages.
    pub bytes_max: Option<u64>,
    /// What happens to a publish beyond them.
    pub overflow: Overflow,
    /// How long a delivery may stay unsettled without a sign of life before it goes back.
    pub lease: Duration,
    /// Whether it is for whoever declares it alone, and may go when they go: for answers.
    pub exclusive: bool,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            storage: Storage::default(),
            priority_max: crate::message::PRIORITY_MAX,
            ttl: None,
            length_max: None,
            bytes_max: None,
            overflow: Overflow::RejectPublish,
            lease: Duration::from_secs(30),
            exclusive: false,
        }
    }
}

/// What a full queue does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The publisher gets an error and keeps the message. Nothing is lost.
    #[default]
    RejectPublish,
    /// The oldest message of the lowest priority is dropped and counted. Only for queues whose messages may be lost.
    DropOldest,
    /// The message is taken, and the oldest of the lowest priority leaves for the dead letters, through the engine
    /// ([`Broker::evict`]). Beyond twice the limit the publisher gets an error.
    DeadLetterOldest,
}

/// Settings of a topic.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TopicSettings {
    /// Where its messages, and the progress of its groups, are kept.
    pub storage: Storage,
    /// Into how many parts it is divided by key; at least 1.
    pub partitions: u32,
    /// How long messages are kept. `None`: for ever.
    pub retention: Option<Duration>,
    /// How many bytes a partition keeps; the oldest go first. `None`: no limit but the memory's.
    pub retention_bytes: Option<u64>,
    /// How long a delivery may stay unsettled without a sign of life before it goes back.
    pub lease: Duration,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            storage: Storage::default(),
            partitions: 4,
            retention: Some(Duration::from_secs(7 * 24 * 3600)),
            retention_bytes: None,
            lease: Duration::from_secs(30),
        }
    }
}

/// What to read, and how much of it may be unsettled.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// Queue or topic; a topic's name may be a pattern (`helixagent.events.*`) where [`Capabilities::log`] has many topics
    /// for one group.
    pub from: Address,
    /// Topics: the group whose progress it shares. Empty: a group of its own that ends with the subscription, for
    /// readers who only look on. Ignored for queues.
    pub group: Arc<str>,
    /// Topics: where a group begins that has no progress yet.
    pub start: Start,
    /// Most deliveries unsettled at a time over this subscription.
    pub prefetch: usize,
    /// How many work on what it brings, at least 1: a system whose prefetch is configured for each worker takes so many
    /// times as much.
    pub workers: usize,
    /// Topics: where what is to come again later waits.
    pub aside: Aside,
}

/// Where what is to come again later waits, so that its partition goes on without it. Systems that delay by themselves
/// have their own way, and ignore it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aside {
    /// With its subscription, its place in the partition open: nothing is copied. It keeps its order where that is asked
    /// for, and its attempts are noted in the store of this engine.
    #[default]
    Local,
    /// As a copy in the retry topic, which says its attempt: its place in the partition is settled, and any engine of the
    /// group may have it next.
    Topic,
}

/// Where in a topic to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Start {
    /// The oldest message that is kept.
    #[default]
    Earliest,
    /// What is published from now on.
    Latest,
    /// The first message whose timestamp is not before this.
    Time(UnixMs),
    /// This offset, or the oldest kept after it, in every partition.
    Offset(u64),
}

/// How much one call of [`Subscription::next`] may bring.
#[derive(Clone, Copy, Debug)]
pub struct BatchMax {
    /// Deliveries, at least 1.
    pub count: usize,
    /// Bytes of payload, headers and keys. One message always fits.
    pub bytes: usize,
}

/// Where deliveries come from.
#[async_trait]
pub trait Subscription: Send + Debug {
    /// Waits until there is something, then brings what is there, at once: a batch is never waited for to fill.
    /// `None` once the subscription has ended. Deliveries of one partition, or of one priority of a queue, come in
    /// the order of arrival; one that was given back comes ahead of those behind it.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: back off and subscribe again; unsettled deliveries will come back.
    ///
    /// # Cancel safety
    /// Cancel safe: a delivery is either returned or kept for the next call.
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError>;

    /// Says that everything this subscription has out is still being worked on, so that its leases are kept. Call it
    /// more often than the lease. The handle outlives the subscription's borrow, so that another task can call it.
    fn keep_alive(&self) -> Arc<dyn KeepAlive>;
}

/// Keeps the leases of one subscription.
pub trait KeepAlive: Send + Sync + Debug {
    /// Everything that is out counts as just delivered. Never blocks on the network.
    fn renew(&self);

    /// How often to renew; `None` where the system needs no sign of life.
    fn every(&self) -> Option<Duration>;

    /// How many messages wait that this subscription would bring if it could, from memory; `None` where nothing is known
    /// beyond [`Broker::stats`].
    fn waiting(&self) -> Option<u64> {
        None
    }
}

/// What to show a person.
#[derive(Clone, Debug)]
pub struct Browse {
    /// Queue or topic.
    pub from: Address,
    /// Where to begin: a cursor of an earlier page, or a start.
    pub at: BrowseAt,
    /// Most messages in the page, at least 1.
    pub limit: usize,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrowseAt {
    /// A topic: as for a subscription. A queue: `Latest` is behind the newest, anything else the oldest.
    Start(Start),
    /// Behind the last message of an earlier page.
    Cursor(String),
}

/// Some of what is there.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In the order in which they would be read (queues: of arrival).
    pub items: Vec<Browsed>,
    /// Where the next page begins; also on the last one, so that a reader can follow.
    pub next: String,
    /// How many messages there are in all, including those that are out.
    pub total: u64,
}

/// One message, as it lies there.
#[derive(Clone, Debug)]
pub struct Browsed {
    /// The message.
    pub message: Arc<Message>,
    /// Where: partition and offset for topics.
    pub position: Option<Position>,
}

/// What is in one queue or topic.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AddressStats {
    /// Which one.
    pub address: Address,
    /// Messages that could be delivered now (topics: kept).
    pub ready: u64,
    /// Messages whose time has not come.
    pub delayed: u64,
    /// Deliveries that are out.
    pub unsettled: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Topics: for each group, how many messages it has not settled.
    pub lag: Vec<(Arc<str>, u64)>,
    /// Messages that were lost on purpose since the start: to [`Overflow::DropOldest`], or to a topic's retention
    /// before a group had read them (once a group). 0 where the system does not tell.
    pub dropped: u64,
    /// Deliveries settled as [`Settlement::DeadLetter`](crate::message::Settlement::DeadLetter) since the start.
    pub dead_lettered: u64,
}
