//! The broker inside the engine, kept in memory: for development, for tests, and for what may be lost with the
//! process. In: what the seam says. Out: the same guarantees as the networked systems give, without one.
//!
//! Nothing runs in the background: leases and delays are timers of those who wait in
//! [`next`](crate::broker::Subscription::next), retention goes along with publishing. A batch is published, handed
//! over or settled under one lock, with one reading of the clock.
//!
//! Start at [`Embedded`], then `queue/state.rs` and `topic/state.rs`.

mod clock;
mod declare;
mod delayed;
mod leases;
mod queue;
mod readers;
mod topic;
mod tries;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use async_trait::async_trait;

use self::{clock::Clock, declare::Settings as _, queue::Queue, topic::Topic};
use super::{
    AddressStats, BatchMax, Broker, BrokerError, Browse, Capabilities, Declaration, Deliveries, Ordering, Page,
    PublishError, PublishFailures, QueueSettings, Subscribe, Subscription, TopicSettings,
};
use crate::message::{Address, Kind, Message};

/// How an embedded broker behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether publishing or subscribing to what was not declared makes it, with the settings below.
    pub auto_create: bool,
    /// Of queues that are made so.
    pub queue: QueueSettings,
    /// Of topics that are made so.
    pub topic: TopicSettings,
    /// Longest payload with headers and key, in bytes.
    pub message_bytes_max: usize,
    /// Where queues and topics are that are kept on disk. `None`: there are none.
    pub disk: Option<DiskSettings>,
}

/// The store of queues and topics on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSettings {
    /// Belongs to one engine at a time, and to nothing else.
    pub directory: PathBuf,
    /// Publishers are refused while the file system has less free than this, in bytes.
    pub free_min: u64,
    /// Publishers are refused while the store's files take more than this, in bytes. `None`: no limit but the disk's.
    pub bytes_max: Option<u64>,
}

impl DiskSettings {
    /// With a reserve of 256 MiB, and no limit of its own.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), free_min: 256 << 20, bytes_max: None }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auto_create: false,
            queue: QueueSettings::default(),
            topic: TopicSettings::default(),
            message_bytes_max: 8 * 1024 * 1024,
            disk: None,
        }
    }
}

/// A broker in this process's memory. What it holds is gone with it.
///
/// Waiting for deliveries needs a tokio runtime with time enabled.
#[derive(Debug)]
pub struct Embedded {
    name: Arc<str>,
    settings: Settings,
    clock: Clock,
    places: RwLock<Places>,
}

#[derive(Debug, Default)]
struct Places {
    queues: HashMap<Arc<str>, Arc<Queue>>,
    topics: HashMap<Arc<str>, Arc<Topic>>,
    closed: bool,
}

enum Place {
    Queue(Arc<Queue>),
    Topic(Arc<Topic>),
}

impl Embedded {
    /// An empty one.
    ///
    /// # Errors
    /// [`BrokerError::Invalid`]: the settings of queues or topics cannot work.
    pub fn new(name: impl Into<Arc<str>>, settings: Settings) -> Result<Self, BrokerError> {
        settings.queue.check()?;
        settings.topic.check()?;
        Ok(Self { name: name.into(), settings, clock: Clock::new(), places: RwLock::default() })
    }

    /// The queue or topic of that address, made if that is allowed.
    fn place(&self, address: &Address) -> Result<Place, BrokerError> {
        {
            let places = self.read();
            if places.closed {
                return Err(BrokerError::Closed);
            }
            let found = match address.kind {
                Kind::Queue => places.queues.get(&address.name).map(|queue| Place::Queue(Arc::clone(queue))),
                Kind::Topic => places.topics.get(&address.name).map(|topic| Place::Topic(Arc::clone(topic))),
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
        if !self.settings.auto_create {
            return Err(BrokerError::NotFound(address.clone()));
        }
        let mut places = self.write();
        if places.closed {
            return Err(BrokerError::Closed);
        }
        Ok(match address.kind {
            Kind::Queue => Place::Queue(self.make_queue(&mut places, &address.name, &self.settings.queue)),
            Kind::Topic => Place::Topic(self.make_topic(&mut places, &address.name, &self.settings.topic)),
        })
    }

    fn make_queue(&self, places: &mut Places, name: &Arc<str>, settings: &QueueSettings) -> Arc<Queue> {
        let make = || Arc::new(Queue::new(Arc::clone(name), settings.clone(), self.clock));
        Arc::clone(places.queues.entry(Arc::clone(name)).or_insert_with(make))
    }

    fn make_topic(&self, places: &mut Places, name: &Arc<str>, settings: &TopicSettings) -> Arc<Topic> {
        let make = || Arc::new(Topic::new(Arc::clone(name), settings.clone(), self.clock));
        Arc::clone(places.topics.entry(Arc::clone(name)).or_insert_with(make))
    }

    fn read(&self) -> RwLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Broker for Embedded {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: false,
            priority: true,
            delay: true,
            expiry: true,
            replay: true,
            delivery_count: true,
            ordering: Ordering::Arrival,
            browse: true,
            message_bytes_max: self.settings.message_bytes_max,
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let bytes_max = self.settings.message_bytes_max;
        let failures = match self.place(to) {
            Ok(Place::Queue(queue)) => queue.publish(messages, bytes_max),
            Ok(Place::Topic(topic)) => topic.publish(messages, bytes_max),
            Err(error) => {
                let error = match error {
                    BrokerError::NotFound(address) => PublishError::NotFound(address),
                    _ => PublishError::Closed,
                };
                (0..messages.len()).map(|place| (place, error.clone())).collect()
            }
        };
        if failures.is_empty() { Ok(()) } else { Err(PublishFailures(failures)) }
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        let mut places = self.write();
        if places.closed {
            return Err(BrokerError::Closed);
        }
        // All is compared before anything is made.
        for declaration in what {
            let (address, differences) = match declaration {
                Declaration::Queue(name, settings) => {
                    settings.check()?;
                    let there = places.queues.get(name).map(|queue| queue.settings());
                    (Address::queue(Arc::clone(name)), there.map(|there| there.differences(settings)))
                }
                Declaration::Topic(name, settings) => {
                    settings.check()?;
                    let there = places.topics.get(name).map(|topic| topic.settings());
                    (Address::topic(Arc::clone(name)), there.map(|there| there.differences(settings)))
                }
            };
            if let Some(differences) = differences.filter(|differences| !differences.is_empty()) {
                return Err(BrokerError::Mismatch { address, differences });
            }
        }
        for declaration in what {
            match declaration {
                Declaration::Queue(name, settings) => drop(self.make_queue(&mut places, name, settings)),
                Declaration::Topic(name, settings) => drop(self.make_topic(&mut places, name, settings)),
            }
        }
        Ok(())
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        Ok(match self.place(&request.from)? {
            Place::Queue(queue) => Box::new(queue.subscribe(request.prefetch)),
            Place::Topic(topic) => Box::new(topic.subscribe(&request)),
        })
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        let queue = match from.kind {
            Kind::Queue => self.read().queues.get(&from.name).map(Arc::clone),
            Kind::Topic => return Ok(Deliveries::none()),
        };
        Ok(queue.ok_or_else(|| BrokerError::NotFound(from.clone()))?.evict(max))
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        let places = self.read();
        let missing = || BrokerError::NotFound(request.from.clone());
        match request.from.kind {
            Kind::Queue => places.queues.get(&request.from.name).ok_or_else(missing)?.browse(&request),
            Kind::Topic => places.topics.get(&request.from.name).ok_or_else(missing)?.browse(&request),
        }
    }

    fn stats(&self) -> Vec<AddressStats> {
        let places = self.read();
        let queues = places.queues.values().map(|queue| queue.stats());
        let mut all: Vec<_> = queues.chain(places.topics.values().map(|topic| topic.stats())).collect();
        all.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        all
    }

    async fn close(&self) {
        let mut places = self.write();
        places.closed = true;
        places.queues.values().for_each(|queue| queue.close());
        places.topics.values().for_each(|topic| topic.close());
    }
}
