//! Redis behind the seam: the only folder that names its client library.
//!
//! A queue is a stream for each priority, read by one group; a topic is one stream, read by a group each. What is out is what
//! the server calls pending, and its count of deliveries is the count of attempts. What the server has to do in one piece is
//! a script ([`scripts`]).
//!
//! Two connections, each kept up by a task ([`link`]). Messages go out through [`publisher`]; a task for each subscription
//! fetches ahead and settles ([`reader`]); topics that are channels have a way of their own ([`channels`]). [`wire`] knows what a message is as an entry, [`declared`] what has to be there,
//! [`transport`] how a connection is made, and [`client`] how requests go over it.

pub(crate) mod baseline;
mod browse;
mod channels;
mod client;
mod declared;
pub mod durability;
mod errors;
mod link;
mod patrol;
mod place;
mod publisher;
mod reader;
mod reply;
mod scripts;
pub mod settings;
mod shared;
pub mod topology;
mod transport;
mod wire;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::Value;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    channels::{ChannelSubscription, Listener},
    link::State,
    place::{GROUP, Place},
    reader::{Reading, RedisSubscription, Session},
    shared::Shared,
};
use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Circuit, ConnectionState,
    Declaration, Deliveries, Ordering, Page, PublishError, PublishFailures, QueueSettings, Start, Subscribe,
    Subscription, System, TopicSettings,
};
use crate::message::{Address, Kind, Message};

pub use settings::{Host, Settings, Tls};

/// How long one step of closing in good order may take.
const CLOSE: Duration = Duration::from_secs(2);

/// Redis, connected or about to be.
#[derive(Debug)]
pub struct Redis {
    name: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Keep the connections up, and look around.
    tasks: Mutex<JoinSet<()>>,
}

impl Redis {
    /// Connects. A server that is away is no reason to fail: what is read and published waits until it is there.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: the server, or its certificate, will not have us: correct what it names.
    /// [`BrokerError::Mismatch`]: something is there, and not as configured.
    pub async fn connect(name: &str, settings: Settings) -> Result<Self, BrokerError> {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared::new(Arc::new(settings)));
        let (mut consume, mut publish) = (None, None);
        match tokio::try_join!(shared.consume.connect(), shared.publish.connect()) {
            Ok((first, second)) => (consume, publish) = (Some(first), Some(second)),
            Err(error) if error.is_refusal => {
                return Err(BrokerError::Refused { reason: error.text, code: error.code });
            }
            Err(error) => {
                tracing::warn!("Redis is away, going on without until it is there: {}", error.text);
                [&shared.consume, &shared.publish].into_iter().for_each(|link| link.lacks(&error));
            }
        }
        let is_there = consume.is_some();
        let mut tasks = JoinSet::new();
        let (link, restorer, stopping) = (Arc::clone(&shared), Arc::clone(&shared), stop.clone());
        tasks.spawn(async move {
            let restore = |up| {
                let restorer = Arc::clone(&restorer);
                async move { restorer.restore(up).await }
            };
            link.consume.run(consume, restore, stopping).await;
        });
        let (link, stopping) = (Arc::clone(&shared), stop.clone());
        tasks.spawn(async move {
            // Not before what has to be there is there.
            let restore = |_| async { link.consume.up().await.map(drop) };
            link.publish.run(publish, restore, stopping).await;
        });
        tasks.spawn(patrol::run(Arc::clone(&shared)));
        let redis = Self { name: name.to_owned(), shared, stop, tasks: Mutex::new(tasks) };
        if is_there {
            // What was connected just now is in use from here on, unless it is lost again.
            let both = async { tokio::join!(redis.shared.consume.up(), redis.shared.publish.up()) };
            timeout(CLOSE, both).await.ok();
        }
        let settings = Arc::clone(&redis.shared.settings);
        if !settings.channels.is_empty() {
            let names = settings.channels.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                channels = names,
                "these are Pub/Sub channels of Redis: messages come at most once, and some never"
            );
        }
        let queues = settings.queues.iter().map(|(name, queue)| Declaration::Queue(Arc::clone(name), queue.clone()));
        let topics = settings.topics.iter().map(|(name, topic)| Declaration::Topic(Arc::clone(name), topic.clone()));
        let declared: Vec<Declaration> = queues.chain(topics).collect();
        match redis.shared.declare(&declared).await {
            Err(error @ (BrokerError::Unreachable { .. } | BrokerError::Lost(_))) => {
                tracing::warn!("what is to be in Redis is made once it is there: {error}");
            }
            declared => declared?,
        }
        Ok(redis)
    }

    /// Connects once, and leaves: whether the server is there, and will have us.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub async fn probe(settings: &Settings) -> Result<(), String> {
        transport::connect(settings).await.map(drop).map_err(|error| error.text)
    }

    /// Looks whether it is there; makes it where that is allowed.
    async fn find(&self, address: &Address) -> Result<Arc<Place>, BrokerError> {
        let place = self.shared.place(address);
        if self.shared.is_channel(address) {
            return Ok(place);
        }
        let up = match self.shared.connection() {
            Ok(up) => up,
            // It is made, if it is not there, before anybody reads.
            Err(BrokerError::Unreachable { .. }) if self.shared.is_declared(address) => return Ok(place),
            Err(error) => return Err(error),
        };
        let found = declared::find(&up, &place, &self.shared.settings).await;
        if found.map_err(|error| errors::seam(&self.shared.settings, &error))? {
            return Ok(place);
        }
        if !self.shared.settings.auto_create {
            self.shared.forget(address);
            return Err(BrokerError::NotFound(address.clone()));
        }
        self.create(address).await?;
        Ok(place)
    }

    async fn create(&self, address: &Address) -> Result<(), BrokerError> {
        let lease = self.shared.settings.lease;
        let name = Arc::clone(&address.name);
        let declaration = match address.kind {
            Kind::Queue => Declaration::Queue(name, QueueSettings { lease, ..QueueSettings::default() }),
            Kind::Topic => Declaration::Topic(name, TopicSettings { lease, ..TopicSettings::default() }),
        };
        self.shared.declare(&[declaration]).await
    }
}

#[async_trait]
impl Broker for Redis {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: self.shared.is_durable(),
            priority: true,
            delay: true,
            expiry: true,
            log: false,
            replay: true,
            delivery_count: true,
            transactions: false,
            ordering: Ordering::Arrival,
            browse: true,
            message_bytes_max: self.shared.settings.message_bytes_max,
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let max = self.shared.settings.message_bytes_max;
        if self.shared.is_closed() {
            return Err(PublishFailures((0..messages.len()).map(|place| (place, PublishError::Closed)).collect()));
        }
        let (mut failures, mut sent) = (Vec::new(), Vec::with_capacity(messages.len()));
        for (place, message) in messages.iter().enumerate() {
            let bytes = message.size();
            if bytes > max {
                failures.push((place, PublishError::TooLarge { address: to.clone(), bytes, max }));
            } else {
                sent.push((place, &**message));
            }
        }
        let place = self.shared.place(to);
        let only: Vec<&Message> = sent.iter().map(|(_, message)| *message).collect();
        let is_channel = self.shared.is_channel(to);
        let mut results = match is_channel {
            true => channels::publish(&self.shared, to, &only).await,
            false => publisher::publish(&self.shared, &place, &only).await,
        };
        if results.iter().any(|result| matches!(result, Err(PublishError::NotFound(_)))) {
            if !self.shared.settings.auto_create {
                self.shared.forget(to);
            } else if let Err(error) = self.create(to).await {
                tracing::warn!(%to, "cannot be made: {error}");
            } else {
                results = publisher::publish(&self.shared, &place, &only).await;
            }
        }
        let wrong = sent.iter().zip(results).filter_map(|((place, _), result)| Some((*place, result.err()?)));
        failures.extend(wrong);
        if failures.is_empty() {
            return Ok(());
        }
        failures.sort_unstable_by_key(|(place, _)| *place);
        Err(PublishFailures(failures))
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.shared.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        if self.shared.is_closed() {
            return Err(BrokerError::Closed);
        }
        // Where the server is away, its reader sees what is there once it is back.
        let is_up = self.shared.consume.now().is_some();
        let place = if is_up { self.find(&request.from).await? } else { self.shared.place(&request.from) };
        let settings = &self.shared.settings;
        let prefetch = usize::from(settings.prefetch_count).saturating_mul(request.workers.max(1));
        let prefetch = prefetch.min(request.prefetch).max(1);
        if self.shared.is_channel(&request.from) {
            let listener = Arc::new(Listener::new(request.from, prefetch));
            self.shared.listen(&listener);
            return Ok(Box::new(ChannelSubscription(listener)));
        }
        let mut reading = Reading::default();
        let (group, side): (Arc<str>, String) = match request.from.kind {
            Kind::Queue => (GROUP.into(), String::new()),
            Kind::Topic => {
                let is_own = request.group.is_empty();
                let group = if is_own { self.shared.reader_name().into() } else { Arc::clone(&request.group) };
                reading.start = request.start;
                if let Ok(up) = self.shared.connection() {
                    self.shared.make_group(&up, &place, &group, request.start).await?;
                }
                reading.ends_group = is_own;
                if let Start::Time(at) = request.start {
                    reading.not_before = Some(at);
                }
                let side = format!(":{group}");
                (group, side)
            }
        };
        let session = Arc::new(Session::new(Arc::clone(&self.shared), place, group, side, prefetch));
        self.shared.begin(&session, reading);
        Ok(Box::new(RedisSubscription(session)))
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        if from.kind == Kind::Topic {
            return Ok(Deliveries::none());
        }
        let place = self.find(from).await?;
        let evictor = self.shared.evictor(&place);
        // What was not settled has to be back.
        evictor.flush().await?;
        let up = self.shared.connection()?;
        let answer = up
            .run(&scripts::EVICT, |command| {
                command.arg(&place.base).arg(GROUP).arg(evictor.reader()).arg(max.count.min(1000));
            })
            .await;
        match answer.map_err(|error| errors::seam(&self.shared.settings, &error))? {
            Value::Array(taken) if taken.is_empty() => Ok(Deliveries::none()),
            Value::Array(taken) => Ok(evictor.hand_out(evictor.claimed(taken))),
            _ => Err(BrokerError::NotFound(from.clone())),
        }
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        if self.shared.is_channel(&request.from) {
            return Err(BrokerError::Unsupported { broker: "redis", what: "show a channel, which keeps nothing" });
        }
        let place = self.find(&request.from).await?;
        let up = self.shared.connection()?;
        browse::page(&up, &place, &self.shared.settings, &request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.shared.places().iter().map(|place| place.stats()).collect()
    }

    fn status(&self) -> BrokerStatus {
        let away = [&self.shared.consume, &self.shared.publish].into_iter().find_map(|link| match link.state() {
            State::Away { reason, .. } => Some(format!("Redis is away: {reason}")),
            State::Up(_) | State::Closed => None,
        });
        let full = || self.shared.is_full().then(|| errors::full(&self.shared.settings));
        match away.or_else(full).or_else(|| self.shared.trouble()) {
            Some(reason) => BrokerStatus::Degraded { reason },
            None => BrokerStatus::Ready,
        }
    }

    fn connection(&self) -> ConnectionState {
        if self.shared.is_closed() {
            return ConnectionState::Closed;
        }
        self.shared.consume.connection().or_worse(self.shared.publish.connection())
    }

    /// For people it is blocked while it has no memory. Nobody here waits for that to pass: it passes when what is there is
    /// handled, and handlers may have something to publish.
    fn systems(&self) -> Vec<System> {
        let state = match self.connection() {
            ConnectionState::Ready if self.shared.is_full() => ConnectionState::Blocked,
            state => state,
        };
        vec![System {
            name: self.name.clone(),
            status: self.status(),
            state,
            circuit: Circuit::Closed,
            spool: None,
            is_durable: self.shared.is_durable(),
        }]
    }

    async fn answers(&self) -> Result<(), BrokerError> {
        let lost = |why: String| BrokerError::Lost(why);
        let up = self.shared.connection_to_publish().await.map_err(|error| lost(error.to_string()))?;
        up.ask(&redis::cmd("PING")).await.map(drop).map_err(|error| lost(error.to_string()))
    }

    async fn close(&self) {
        self.shared.close();
        let mut readers = std::mem::take(&mut *self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let left = timeout(CLOSE, async { while readers.join_next().await.is_some() {} }).await;
        if left.is_err() {
            tracing::warn!("Redis did not answer while closing: what was out comes again when its leases end");
        }
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!("a task of the Redis broker did not end well: {error}");
            }
        }
    }
}
