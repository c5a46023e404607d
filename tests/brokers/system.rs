//! What a system must offer to be tested, and what the tests are written with.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        AddressStats, BatchMax, Broker, BrokerError, Browse, BrowseAt, Capabilities, Declaration, Deliveries,
        KeepAlive, Page, PublishFailures, QueueSettings, Start, Storage, Subscribe, Subscription, TopicSettings,
    },
    message::{Address, FailedAttempt, Message, ReasonCode, Settlement, now_ms},
};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

/// Longer than anything that should happen takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for what should not happen.
pub(crate) const QUIET: Duration = Duration::from_millis(200);
/// No bound of its own.
pub(crate) const ALL: BatchMax = BatchMax { count: usize::MAX, bytes: usize::MAX };

/// A messaging system under test.
#[async_trait]
pub(crate) trait System: Send + Sync {
    /// A connection to it. What the suite declares there has names of its own.
    async fn connect(&self) -> Arc<dyn Broker>;

    /// The same, which makes what was not declared; `None` where that is the server's decision.
    async fn connect_creating(&self) -> Option<Arc<dyn Broker>>;

    /// Where queues and topics of the suite are kept.
    fn storage(&self) -> Storage {
        Storage::Memory
    }

    /// What stands for so much time: less where time cannot be moved on.
    fn span(&self, time: Duration) -> Duration {
        time
    }

    /// A lease that runs out in the middle of things, and not before anything can be done with it.
    fn short_lease(&self) -> Duration {
        Duration::from_millis(20)
    }

    /// Lets time pass.
    async fn pass(&self, span: Duration) {
        tokio::time::advance(span).await;
    }

    /// Closes it in good order, and connects again.
    async fn restart(&self, broker: Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        drop(broker);
        None
    }

    /// What somebody would find who connects after the system was killed at this moment, with everything out that is out
    /// now; the broker itself goes on. `None` where that cannot be had.
    async fn after_a_kill(&self, broker: &Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        let _ = broker;
        None
    }

    /// What it does not claim to do, by the names in [`At::claims`] and [`At::does`]. Written down, so that nothing is skipped unseen.
    fn unclaimed(&self) -> &'static [&'static str];
}

/// A broker to test, with helpers.
pub(crate) struct At {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) storage: Storage,
    unclaimed: &'static [&'static str],
}

/// A subscription with helpers.
pub(crate) struct Reader(pub(crate) Box<dyn Subscription>);

impl At {
    pub(crate) async fn new(system: &dyn System) -> Self {
        Self::on(system, system.connect().await)
    }

    pub(crate) async fn creating(system: &dyn System) -> Option<Self> {
        Some(Self::on(system, system.connect_creating().await?))
    }

    /// The same helpers for another connection.
    pub(crate) fn on(system: &dyn System, broker: Arc<dyn Broker>) -> Self {
        Self { broker, storage: system.storage(), unclaimed: system.unclaimed() }
    }

    /// Whether the guarantee applies. What is claimed must not be listed as unclaimed, and the other way round.
    pub(crate) fn claims(&self, name: &'static str, claimed: impl FnOnce(Capabilities) -> bool) -> bool {
        let claimed = claimed(self.broker.capabilities());
        assert_eq!(claimed, !self.unclaimed.contains(&name), "the list of what is unclaimed is wrong about {name}");
        claimed
    }

    /// Whether the guarantee applies, where nothing in its capabilities says so.
    pub(crate) fn does(&self, name: &'static str) -> bool {
        !self.unclaimed.contains(&name)
    }

    /// A new queue; `None` where there are none.
    pub(crate) async fn queue(&self, settings: QueueSettings) -> Option<Address> {
        let name = fresh_name();
        let settings = QueueSettings { storage: self.storage, ..settings };
        let made = self.broker.declare(&[Declaration::Queue(Arc::clone(&name), settings)]).await;
        self.made(made, "queues").then(|| Address::queue(name))
    }

    /// A new topic; `None` where there are none.
    pub(crate) async fn topic(&self, settings: TopicSettings) -> Option<Address> {
        if !self.claims("topics", |can| can.log) {
            return None;
        }
        let name = fresh_name();
        let settings = TopicSettings { storage: self.storage, ..settings };
        let made = self.broker.declare(&[Declaration::Topic(Arc::clone(&name), settings)]).await;
        made.unwrap();
        Some(Address::topic(name))
    }

    /// A new topic with so many partitions.
    pub(crate) async fn topic_of(&self, partitions: u32) -> Option<Address> {
        self.topic(TopicSettings { partitions, ..TopicSettings::default() }).await
    }

    /// A queue and a topic of one partition, as far as there are any.
    pub(crate) async fn one_of_each(&self, lease: Duration) -> Vec<Address> {
        let queue = self.queue(QueueSettings { lease, ..QueueSettings::default() }).await;
        let topic = self.topic(TopicSettings { partitions: 1, lease, ..TopicSettings::default() }).await;
        queue.into_iter().chain(topic).collect()
    }

    pub(crate) async fn publish(&self, to: &Address, messages: impl IntoIterator<Item = Message>) {
        self.try_publish(to, messages).await.unwrap();
    }

    pub(crate) async fn try_publish(
        &self,
        to: &Address,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<(), PublishFailures> {
        self.broker.publish(to, messages.into_iter().map(Arc::new).collect()).await
    }

    /// Reads with no bound on what is out, from the beginning, in a group named `group`.
    pub(crate) async fn read(&self, from: &Address) -> Reader {
        self.read_at_most(from, 100_000).await
    }

    pub(crate) async fn read_at_most(&self, from: &Address, prefetch: usize) -> Reader {
        self.join(from, "group", Start::Earliest, prefetch).await
    }

    pub(crate) async fn read_from(&self, from: &Address, group: &str, start: Start) -> Reader {
        self.join(from, group, start, 100_000).await
    }

    pub(crate) async fn join(&self, from: &Address, group: &str, start: Start, prefetch: usize) -> Reader {
        let request = Subscribe {
            from: from.clone(),
            group: group.into(),
            start,
            prefetch,
            workers: prefetch,
            aside: Default::default(),
        };
        Reader(self.broker.subscribe(request).await.unwrap())
    }

    pub(crate) async fn browse(&self, from: &Address, at: BrowseAt, limit: usize) -> Result<Page, BrokerError> {
        self.broker.browse(Browse { from: from.clone(), at, limit }).await
    }

    pub(crate) async fn evict(&self, from: &Address, count: usize) -> Deliveries {
        self.broker.evict(from, BatchMax { count, ..ALL }).await.unwrap()
    }

    pub(crate) fn stats(&self, address: &Address) -> AddressStats {
        self.broker.stats().into_iter().find(|stats| stats.address == *address).unwrap()
    }

    /// Ready, delayed and unsettled.
    pub(crate) fn depth(&self, address: &Address) -> (u64, u64, u64) {
        let stats = self.stats(address);
        (stats.ready, stats.delayed, stats.unsettled)
    }

    fn made(&self, made: Result<(), BrokerError>, what: &'static str) -> bool {
        match made {
            Err(BrokerError::Unsupported { .. }) => {
                assert!(self.unclaimed.contains(&what), "{what} are refused, and not listed as unclaimed");
                false
            }
            made => {
                made.unwrap();
                assert!(!self.unclaimed.contains(&what), "{what} are listed as unclaimed, and made");
                true
            }
        }
    }
}

impl Reader {
    /// The next batch, whatever is there.
    pub(crate) async fn batch(&mut self, max: BatchMax) -> Deliveries {
        let next = timeout(PATIENCE, self.0.next(max)).await;
        next.expect("something in time").expect("a working subscription").expect("a subscription that goes on")
    }

    /// The next `count` deliveries, in as many batches as it takes.
    pub(crate) async fn take(&mut self, count: usize) -> Deliveries {
        let mut taken = self.batch(BatchMax { count, ..ALL }).await;
        while taken.len() < count {
            let more = self.batch(BatchMax { count: count - taken.len(), ..ALL }).await;
            taken.append(more).unwrap();
        }
        taken
    }

    /// Takes and accepts the next `count`.
    pub(crate) async fn consume(&mut self, count: usize) -> Vec<String> {
        let taken = self.take(count).await;
        let names = names(&taken);
        accept(taken).await;
        names
    }

    pub(crate) async fn expect_nothing(&mut self) {
        if let Ok(next) = timeout(QUIET, self.0.next(ALL)).await {
            panic!("nothing was due, and there came {next:?}");
        }
    }

    /// For the tests of leases: `None` where there are none.
    pub(crate) fn leased(&self, at: &At) -> Option<Arc<dyn KeepAlive>> {
        let keep_alive = self.0.keep_alive();
        at.claims("leases", |_| keep_alive.every().is_some()).then_some(keep_alive)
    }
}

/// A message that says its name.
pub(crate) fn message(name: impl Into<String>) -> Message {
    Message::new("test.message", name.into(), now_ms())
}

pub(crate) fn keyed(key: &str, name: impl Into<String>) -> Message {
    Message { key: Some(key.to_owned().into()), ..message(name) }
}

pub(crate) fn numbered(numbers: impl IntoIterator<Item = usize>) -> impl Iterator<Item = Message> {
    numbers.into_iter().map(|number| message(number.to_string()))
}

pub(crate) fn number_names(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

pub(crate) fn name(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

pub(crate) fn names(deliveries: &Deliveries) -> Vec<String> {
    deliveries.as_slice().iter().map(|delivery| name(&delivery.message)).collect()
}

pub(crate) fn attempts(deliveries: &Deliveries) -> Vec<u32> {
    deliveries.as_slice().iter().map(|delivery| delivery.attempt).collect()
}

pub(crate) async fn accept(deliveries: Deliveries) {
    settle(deliveries, Settlement::Accept).await;
}

/// Settles all the same way.
pub(crate) async fn settle(deliveries: Deliveries, how: Settlement) {
    let count = deliveries.len();
    deliveries.settle(vec![how; count]).await.unwrap();
}

pub(crate) fn failure(attempt: u32) -> FailedAttempt {
    FailedAttempt { attempt, at: now_ms(), code: ReasonCode::HandlerTimeout, text: format!("attempt {attempt} failed") }
}

pub(crate) fn redeliver(after: Duration, attempt: u32) -> Settlement {
    Settlement::Redeliver { after, failure: Box::new(failure(attempt)) }
}

/// Looks again until it is so, without a guess at how long that takes.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A repeatable source of chance.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 0 to `sides - 1`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }
}

/// The files of a directory as they are now.
pub(crate) fn copied(directory: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for file in std::fs::read_dir(directory).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

fn fresh_name() -> Arc<str> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("conformance.{}.{}.{}", std::process::id(), now_ms(), COUNT.fetch_add(1, Relaxed)).into()
}
