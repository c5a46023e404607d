//! Kafka behind the seam: the only folder that names its client library.
//!
//! Clients of that library report to one [`condition`]. Messages go out through [`publisher`], come in as a member of a group
//! ([`group`]) or without one ([`reader`]); [`wire`] knows what a message is as a record, [`topology`] what has to be there.
//! Everything that waits for a server does so on a thread of its own, never on the runtime.

pub(crate) mod baseline;
mod client;
mod condition;
mod group;
#[cfg(all(test, feature = "real-brokers"))]
mod live;
mod metadata;
mod patrol;
mod places;
mod publisher;
mod reader;
pub mod settings;
mod starts;
mod threads;
pub mod topology;
mod wire;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rdkafka::consumer::Consumer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{
    client::Query,
    condition::Condition,
    group::{Common, GroupSubscription, Reading},
    metadata::Topics,
    places::Places,
    publisher::Publisher,
    reader::AssignedSubscription,
    threads::Threads,
};
use super::{
    AddressStats, Broker, BrokerError, BrokerStatus, Browse, Capabilities, ConnectionState, Declaration, Ordering,
    Page, PublishError, PublishFailures, Subscribe, Subscription, TopicSettings,
};
use crate::message::{Address, Kind, Message};

pub use settings::{Settings, TopicPlan};

/// How long the first question may take. A server that does not answer is away; it is no reason to fail.
const FIRST: Duration = Duration::from_secs(5);
/// How long a later one may take.
const QUESTION: Duration = Duration::from_secs(5);

/// Kafka, connected or about to be. It has topics, and no queues.
#[derive(Debug)]
pub struct Kafka {
    name: String,
    shared: Arc<Shared>,
    threads: Threads,
    stop: CancellationToken,
    /// Looks around.
    tasks: Mutex<JoinSet<()>>,
}

/// What the parts of the adapter share.
#[derive(Debug)]
struct Shared {
    common: Common,
    topics: Arc<Topics>,
    publisher: Arc<Publisher>,
    /// What is to be made, or compared, once a server answers.
    pending: Mutex<Vec<(Arc<str>, TopicPlan)>>,
}

impl Kafka {
    /// Connects. A server that is away is no reason to fail: what is read and published waits until it is there.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: the servers will not have us: correct what it names.
    /// [`BrokerError::Mismatch`]: a topic is there, and not as configured.
    pub async fn connect(name: &str, settings: Settings) -> Result<Self, BrokerError> {
        let settings = Arc::new(settings);
        let condition = Arc::new(Condition::new(&settings.brokers));
        let places = Arc::new(Places::default());
        let query = Query::new(&settings, Arc::clone(&condition))?;
        let is_there = reach(&query, &condition, FIRST.min(settings.connect_timeout)).await?;
        let published = Arc::clone(&places);
        let topics = Arc::new(Topics::new(query, Arc::clone(&condition), QUESTION));
        let on_published = move |topic: &str, partition, end| published.seen(topic, partition, 0, end);
        let publisher =
            Publisher::start(&settings, Arc::clone(&condition), Arc::clone(&topics), Arc::new(on_published))?;
        let common = Common { settings, condition, places };
        let pending = common.settings.topics.iter().map(|(name, plan)| (Arc::clone(name), plan.clone())).collect();
        let shared = Arc::new(Shared { common, topics, publisher: Arc::new(publisher), pending: Mutex::new(pending) });
        if is_there {
            shared.declare_pending().await?;
        }
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(patrol::run(Arc::clone(&shared), stop.clone()));
        Ok(Self { name: name.to_owned(), shared, threads: Threads::default(), stop, tasks: Mutex::new(tasks) })
    }

    /// Connects once, and leaves: whether a server is there, and will have us.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub async fn probe(settings: &Settings) -> Result<(), String> {
        let condition = Arc::new(Condition::new(&settings.brokers));
        let query = Query::new(settings, Arc::clone(&condition)).map_err(|error| error.to_string())?;
        match reach(&query, &condition, settings.connect_timeout.min(FIRST * 2)).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(condition.why_away().unwrap_or_else(|| format!("no answer from {}", condition.endpoint())))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Asks until somebody answers; false: nobody does.
async fn reach(query: &Query, condition: &Arc<Condition>, at_most: Duration) -> Result<bool, BrokerError> {
    let heard = Arc::clone(condition);
    let answered = query
        .ask(move |consumer| {
            let until = std::time::Instant::now() + at_most;
            loop {
                if consumer.fetch_metadata(Some("__consumer_offsets"), Duration::from_millis(500)).is_ok() {
                    return true;
                }
                // Why not is heard by polling.
                client::serve(consumer);
                if heard.why_refused().is_some() || std::time::Instant::now() >= until {
                    return false;
                }
            }
        })
        .await?;
    if answered {
        condition.is_up();
        return Ok(true);
    }
    match condition.why_refused() {
        Some(refusal) => Err(BrokerError::Refused { reason: refusal.reason, code: refusal.code }),
        None => {
            condition.is_unanswered();
            Ok(false)
        }
    }
}

impl Shared {
    /// What could not be made, or compared, before; it stays to be until it is.
    async fn declare_pending(&self) -> Result<(), BrokerError> {
        let wanted = self.pending().clone();
        if wanted.is_empty() {
            return Ok(());
        }
        self.declare(wanted.clone()).await?;
        self.pending().retain(|one| !wanted.contains(one));
        Ok(())
    }

    /// Whether a topic is about to be made.
    fn is_pending(&self, topic: &str) -> bool {
        self.pending().iter().any(|(name, _)| **name == *topic)
    }

    fn pending(&self) -> MutexGuard<'_, Vec<(Arc<str>, TopicPlan)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is not there, and compares what is.
    async fn declare(&self, wanted: Vec<(Arc<str>, TopicPlan)>) -> Result<(), BrokerError> {
        let settings = &self.common.settings;
        topology::declare(settings, &self.topics, &wanted, settings.accept_differences).await
    }

    /// Whether a topic is there; makes it where that is allowed. A server that is away says nothing.
    async fn expect(&self, topic: &Arc<str>) -> Result<(), BrokerError> {
        match self.topics.partitions(topic).await {
            Ok(Some(_)) | Err(_) => Ok(()),
            Ok(None) if self.common.settings.auto_create => {
                let plan = topology::plan_of(topic, &TopicSettings::default(), &self.common.settings);
                self.declare(vec![(Arc::clone(topic), plan)]).await
            }
            // As soon as somebody has time.
            Ok(None) if self.is_pending(topic) => Ok(()),
            Ok(None) => Err(BrokerError::NotFound(Address::topic(Arc::clone(topic)))),
        }
    }
}

#[async_trait]
impl Broker for Kafka {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: true,
            priority: false,
            delay: true,
            expiry: false,
            log: true,
            replay: true,
            delivery_count: false,
            transactions: true,
            ordering: Ordering::Arrival,
            browse: true,
            message_bytes_max: self.shared.common.settings.message_bytes_max,
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let all =
            |error: PublishError| PublishFailures((0..messages.len()).map(|place| (place, error.clone())).collect());
        if to.kind == Kind::Queue || group::is_pattern(&to.name) {
            return Err(all(PublishError::NotFound(to.clone())));
        }
        if self.stop.is_cancelled() {
            return Err(all(PublishError::Closed));
        }
        if self.shared.common.settings.auto_create
            && let Err(error) = self.shared.expect(&to.name).await
        {
            // What the publisher finds is what counts.
            tracing::warn!(%to, "cannot be made: {error}");
        }
        let format = self.shared.common.settings.format;
        let records: Vec<_> = messages.iter().map(|message| wire::outgoing(message, format, None)).collect();
        let published = self.shared.publisher.publish(&to.name, to, records).await;
        published.map_err(|PublishFailures(mut failures)| {
            let is_coming = |error: &PublishError| *error == PublishError::NotFound(to.clone());
            if failures.iter().any(|(_, error)| is_coming(error)) && self.shared.is_pending(&to.name) {
                let later = || PublishError::Unavailable(format!("{to} is about to be made"));
                failures.iter_mut().filter(|(_, error)| is_coming(error)).for_each(|(_, error)| *error = later());
            }
            PublishFailures(failures)
        })
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        if self.stop.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let mut wanted = Vec::new();
        for declaration in what {
            match declaration {
                Declaration::Queue(..) => return Err(no_queues()),
                Declaration::Topic(name, TopicSettings { partitions: 0, .. }) => {
                    return Err(BrokerError::Invalid(format!("topic {name} has no partitions: give it at least 1")));
                }
                Declaration::Topic(name, _) if self.shared.common.settings.topics.contains_key(name) => {}
                Declaration::Topic(name, settings) => {
                    wanted.push((Arc::clone(name), topology::plan_of(name, settings, &self.shared.common.settings)))
                }
            }
            self.shared.common.places.known(&declaration.address().name);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        match self.shared.declare(wanted.clone()).await {
            // As soon as a server answers.
            Err(BrokerError::Unreachable { .. }) => {
                self.shared.pending().extend(wanted);
                Ok(())
            }
            done => done,
        }
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        if self.stop.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        if request.from.kind == Kind::Queue {
            return Err(no_queues());
        }
        let name = Arc::clone(&request.from.name);
        if !group::is_pattern(&name) {
            self.shared.expect(&name).await?;
            self.shared.common.places.known(&name);
        }
        if request.group.is_empty() {
            let begun = AssignedSubscription::begin(&self.shared.common, &self.shared.topics, &request, &self.threads);
            return Ok(Box::new(begun.await?));
        }
        let starts = starts::resolve(&self.shared, &name, request.start).await;
        let reading = Reading::new(name, request.group, request.start, starts);
        let (common, publisher) = (&self.shared.common, &self.shared.publisher);
        let begun =
            GroupSubscription::begin(common, reading, request.prefetch, request.aside, publisher, &self.threads);
        Ok(Box::new(begun?))
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        if request.from.kind == Kind::Queue {
            return Err(no_queues());
        }
        self.shared.common.places.known(&request.from.name);
        reader::page(&self.shared.common.settings, &self.shared.topics, &request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.shared.common.places.stats()
    }

    fn status(&self) -> BrokerStatus {
        let condition = &self.shared.common.condition;
        if let Some(reason) = condition.why_away() {
            return BrokerStatus::Degraded { reason: format!("Kafka is away: {reason}") };
        }
        match condition.troubles() {
            troubles if troubles.is_empty() => BrokerStatus::Ready,
            troubles => BrokerStatus::Degraded { reason: troubles.join("; ") },
        }
    }

    fn connection(&self) -> ConnectionState {
        if self.stop.is_cancelled() { ConnectionState::Closed } else { self.shared.common.condition.connection() }
    }

    async fn answers(&self) -> Result<(), BrokerError> {
        self.shared.topics.all().await.map(drop)
    }

    async fn close(&self) {
        self.stop.cancel();
        // A server that hangs holds up both, and each for as long as it may: not one after the other.
        tokio::join!(self.threads.close(), self.shared.publisher.close());
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!("a task of the Kafka broker did not end well: {error}");
            }
        }
    }
}

fn no_queues() -> BrokerError {
    BrokerError::Unsupported { broker: "kafka", what: "have queues: it has topics" }
}
