//! RabbitMQ behind the seam: the only folder that names its client library.
//!
//! Two connections, each kept up by a task ([`link`]): what is blocked on the one does not hold up the other. Messages go
//! out through [`publisher`], come in through [`subscription`], and are settled by the [`session`] they came over. What
//! comes again later waits in a queue that the server empties into the right one ([`rungs`]). [`wire`] knows what a message
//! is in AMQP, [`topology`] what has to be there, [`transport`] how a connection is made.

mod acks;
pub(crate) mod baseline;
mod browse;
mod declared;
mod errors;
mod forgiven;
mod leaving;
mod link;
mod opening;
mod patrol;
mod place;
mod publisher;
mod rungs;
mod session;
pub mod settings;
mod shared;
mod subscription;
mod targets;
pub mod topology;
mod transport;
mod wire;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    link::State,
    shared::Shared,
    subscription::{RabbitSubscription, Reading},
    topology::{QueueKind, Topology},
};
use super::{
    AddressStats, Broker, BrokerError, BrokerStatus, Browse, Capabilities, ConnectionState, Declaration, Ordering,
    Page, PublishError, PublishFailures, Subscribe, Subscription,
};
use crate::message::{Address, Kind, Message};

pub use settings::{Credentials, Host, Settings, Tls};

/// How long a channel may take to close in good order.
const CLOSE: Duration = Duration::from_secs(2);

/// RabbitMQ, connected or about to be.
#[derive(Debug)]
pub struct RabbitMq {
    name: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Keep the connections up, and look around.
    tasks: Mutex<JoinSet<()>>,
    browsing: tokio::sync::Mutex<()>,
}

impl RabbitMq {
    /// Connects. A server that is away is no reason to fail: what is read and published waits until it is there.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: the server, or its certificate, will not have us: correct what it names.
    /// [`BrokerError::Mismatch`]: something is there, and not as configured.
    pub async fn connect(name: &str, settings: Settings) -> Result<Self, BrokerError> {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared::new(Arc::new(settings)));
        let (mut consume, mut publish) = (None, None);
        let both = async { tokio::try_join!(shared.consume.connect(), shared.publish.connect()) };
        match both.await {
            Ok((first, second)) => (consume, publish) = (Some(first), Some(second)),
            Err(error) if error.is_refusal() => {
                return Err(BrokerError::Refused { reason: error.to_string(), code: error.code() });
            }
            Err(error) => {
                tracing::debug!("RabbitMQ is away, going on without until it is there: {error}");
                // The first that fails ends the other's try, which would not know why.
                [&shared.consume, &shared.publish].into_iter().for_each(|link| link.lacks(&error));
            }
        }
        if let Some(up) = &consume {
            declared::declare(&up.connection, &shared.everything(), &shared.settings).await?;
        }
        let is_there = consume.is_some() && publish.is_some();
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
        tasks.spawn(async move { link.publish.run(publish, |_| async {}, stopping).await });
        tasks.spawn(patrol::run(Arc::clone(&shared)));
        if is_there {
            // What was connected just now is in use from here on.
            let (consume, publish) = tokio::join!(shared.consume.up(), shared.publish.up());
            drop((consume?, publish?));
        }
        Ok(Self {
            name: name.to_owned(),
            shared,
            stop,
            tasks: Mutex::new(tasks),
            browsing: tokio::sync::Mutex::default(),
        })
    }

    /// Connects once, and leaves: whether the server is there, and will have us.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub async fn probe(settings: &Settings) -> Result<(), String> {
        let connection = transport::connect(settings, "doctor").await.map_err(|error| error.to_string())?;
        // It has answered: whether it hears this is of no interest.
        timeout(CLOSE, connection.close(200, "seen".into())).await.ok();
        Ok(())
    }

    /// What a declaration is on the server.
    fn wanted(&self, what: &[Declaration]) -> Result<Topology, BrokerError> {
        let mut wanted = Topology::default();
        let settings = &self.shared.settings;
        for declaration in what {
            match declaration {
                Declaration::Queue(name, _) if settings.topology.queues.contains_key(name) => {}
                Declaration::Queue(name, queue) => {
                    let queue = declared::queue(name, queue, settings.queue_kind).map_err(BrokerError::Invalid)?;
                    wanted.queues.insert(Arc::clone(name), queue);
                }
                Declaration::Topic(name, topic) => {
                    wanted.merge(declared::topic(name, topic, settings).map_err(BrokerError::Invalid)?);
                }
            }
            let address = declaration.address();
            self.shared.place(&address, &address.name, None);
        }
        Ok(wanted)
    }

    /// Makes what is not there, where that is allowed.
    async fn create(&self, address: &Address) -> Result<(), BrokerError> {
        let declaration = match address.kind {
            Kind::Queue => Declaration::Queue(Arc::clone(&address.name), super::QueueSettings::default()),
            Kind::Topic => Declaration::Topic(Arc::clone(&address.name), super::TopicSettings::default()),
        };
        self.declare(&[declaration]).await
    }
}

#[async_trait]
impl Broker for RabbitMq {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        let settings = &self.shared.settings;
        Capabilities {
            durable: true,
            priority: settings.queue_kind == QueueKind::Classic,
            delay: true,
            expiry: false,
            log: false,
            replay: true,
            delivery_count: true,
            transactions: false,
            ordering: Ordering::Arrival,
            browse: false,
            message_bytes_max: settings.message_bytes_max,
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        if self.shared.is_closed() {
            return Err(PublishFailures((0..messages.len()).map(|place| (place, PublishError::Closed)).collect()));
        }
        let again = if self.shared.settings.auto_create { messages.clone() } else { Vec::new() };
        let Err(failures) = self.shared.publisher.publish(to, messages).await else { return Ok(()) };
        let is_missing =
            |error: &PublishError| matches!(error, PublishError::NotFound(_) | PublishError::Unroutable(_));
        if !self.shared.settings.auto_create || !failures.0.iter().all(|(_, error)| is_missing(error)) {
            return Err(failures);
        }
        if let Err(error) = self.create(to).await {
            tracing::warn!(%to, "cannot be made: {error}");
            return Err(failures);
        }
        let places: Vec<usize> = failures.0.iter().map(|(place, _)| *place).collect();
        let missing = places.iter().filter_map(|place| again.get(*place).cloned()).collect();
        let result = self.shared.publisher.publish(to, missing).await;
        result.map_err(|failures| {
            let at = |place: usize| places.get(place).copied().unwrap_or(place);
            PublishFailures(failures.0.into_iter().map(|(place, error)| (at(place), error)).collect())
        })
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.shared.declare(self.wanted(what)?).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let settings = &self.shared.settings;
        let mut name = Arc::clone(&request.from.name);
        let (mut stream, mut group) = (None, None);
        if request.from.kind == Kind::Topic {
            if request.group.is_empty() {
                stream = Some(request.start);
            } else {
                let (queue, wanted) = declared::group(&request.from.name, &request.group, settings);
                (name, group) = (queue, Some(Arc::clone(&request.group)));
                self.shared.declare(wanted).await?;
            }
        }
        let workers = u16::try_from(request.workers).unwrap_or(u16::MAX).max(1);
        let asked = u16::try_from(request.prefetch).unwrap_or(u16::MAX);
        let prefetch = settings.prefetch_count.saturating_mul(workers).min(asked).max(1);
        let reading = Reading { place: self.shared.place(&request.from, &name, group.as_ref()), prefetch, stream };
        let begun = RabbitSubscription::begin(Arc::clone(&self.shared), reading.clone()).await;
        let begun = match begun {
            Err(BrokerError::NotFound(address)) if settings.auto_create => {
                self.create(&address).await?;
                RabbitSubscription::begin(Arc::clone(&self.shared), reading).await
            }
            begun => begun,
        };
        Ok(Box::new(begun?))
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        if request.from.kind == Kind::Queue && !self.shared.settings.dead_letters.contains(&request.from.name) {
            return Err(BrokerError::Unsupported {
                broker: "rabbitmq",
                what: "show a queue without consuming from it",
            });
        }
        // One at a time: what one looks at is not there for another.
        let _turn = self.browsing.lock().await;
        browse::page(&self.shared, &request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        let mut all = BTreeMap::new();
        self.shared.places().iter().for_each(|place| place.add_to(&mut all));
        all.into_values().collect()
    }

    fn status(&self) -> BrokerStatus {
        let mut reasons = Vec::new();
        for link in [&self.shared.consume, &self.shared.publish] {
            match link.state() {
                State::Up(up) => {
                    reasons.extend(up.blocked().map(|reason| format!("RabbitMQ takes no messages for now: {reason}")))
                }
                State::Away { reason, .. } => reasons.push(format!("RabbitMQ is away: {reason}")),
                State::Failed { reason } => return BrokerStatus::Failed { reason },
                State::Closed => {}
            }
        }
        reasons.extend(self.shared.trouble());
        reasons.dedup();
        match reasons.into_iter().next() {
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

    async fn answers(&self) -> Result<(), BrokerError> {
        self.shared.publisher.answers().await
    }

    async fn close(&self) {
        self.shared.close();
        self.shared.see_off().await;
        let sessions = self.shared.sessions();
        // All at once: a server that does not answer is waited for once, not for each of them.
        let closed = sessions.iter().map(|session| {
            session.tell_all();
            // Answered once all that was said before has been read.
            timeout(CLOSE, session.channel().close(200, "stopping".into()))
        });
        join_all(closed).await;
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!("a task of the RabbitMQ broker did not end well: {error}");
            }
        }
    }
}
