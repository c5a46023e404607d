//! The broker inside the engine: for development, for tests, and for one machine that is to keep its messages without a
//! server beside it. In: what the seam says. Out: the same guarantees as the networked systems give.
//!
//! Each queue and topic keeps its messages in memory (`queue/`, `topic/`) or on disk (`disk/`). Nothing runs in the
//! background here: leases and delays are timers of those who wait in [`next`](crate::broker::Subscription::next),
//! retention goes along with publishing. A batch is published, handed over or settled under one lock, with one reading of
//! the clock.
//!
//! Start at [`Embedded`], then `queue/state.rs` and `topic/state.rs`; for the disk at `disk/mod.rs`.

mod beside;
mod clock;
pub(super) mod declare;
mod delayed;
mod disk;
mod figures;
mod leases;
mod place;
mod queue;
mod readers;
mod topic;
mod tries;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use async_trait::async_trait;

pub(in crate::broker) use self::beside::Held;
use self::{
    beside::Intake,
    clock::Clock,
    declare::Settings as _,
    disk::{DiskQueue, DiskTopic, Memory},
    figures::Figures,
    place::Place,
    queue::Queue,
    topic::Topic,
};
use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Declaration, Deliveries, Ordering,
    Page, PublishError, PublishFailures, QueueSettings, Storage, Subscribe, Subscription, TopicSettings,
};
use crate::{
    message::{Address, Kind, Message},
    store::{Store, StoreError, StoreStatus, StoredGroup, StoredQueue, StoredTopic},
};

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
    /// Publishers are refused while what is kept takes more than this, in bytes. `None`: no limit but the disk's.
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

/// A broker in this process. What it keeps in memory is gone with it.
///
/// Waiting for deliveries needs a tokio runtime with time enabled.
#[derive(Debug)]
pub struct Embedded {
    name: Arc<str>,
    settings: Settings,
    clock: Clock,
    store: Option<Arc<Store>>,
    /// What queues on disk hold in memory.
    memory: Arc<Memory>,
    figures: Figures,
    places: RwLock<Places>,
}

#[derive(Debug, Default)]
struct Places {
    all: HashMap<Address, Place>,
    /// On disk since an earlier run, and not declared in this one: the first declaration is taken over.
    found: HashSet<Address>,
    closed: bool,
}

impl Embedded {
    /// What is on disk, for others that keep something there as well.
    #[must_use]
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref()
    }

    /// One with what is on disk, or an empty one. Opening the store blocks, for less than a second.
    ///
    /// # Errors
    /// [`BrokerError::Invalid`]: the settings of queues or topics cannot work. [`BrokerError::Storage`]: the store cannot
    /// be opened, and why.
    pub fn new(name: impl Into<Arc<str>>, settings: Settings) -> Result<Self, BrokerError> {
        settings.queue.check()?;
        settings.topic.check()?;
        let mut embedded = Self {
            name: name.into(),
            settings,
            clock: Clock::new(),
            store: None,
            memory: Arc::default(),
            figures: Figures::default(),
            places: RwLock::default(),
        };
        if let Some(disk) = &embedded.settings.disk {
            let mut settings = crate::store::Settings::new(&disk.directory);
            (settings.free_min, settings.bytes_max) = (disk.free_min, disk.bytes_max);
            embedded.store = Some(Store::open(settings).map_err(storage)?);
            embedded.find()?;
        }
        Ok(embedded)
    }

    /// Takes up what is on disk.
    fn find(&mut self) -> Result<(), BrokerError> {
        let Some(store) = &self.store else { return Ok(()) };
        let catalog = store.catalog().map_err(storage)?;
        let queues = catalog.queues.iter().map(|stored| {
            let settings = QueueSettings { storage: Storage::Disk, ..self.settings.queue.clone() };
            let queue = DiskQueue::open(Arc::clone(store), stored, settings, self.clock, &self.memory);
            (Address::queue(Arc::clone(&stored.name)), Place::DiskQueue(queue))
        });
        let topics = catalog.topics.iter().map(|stored| {
            let partitions = u32::try_from(stored.partitions.len()).unwrap_or(u32::MAX);
            let settings = TopicSettings { storage: Storage::Disk, partitions, ..self.settings.topic.clone() };
            let groups: Vec<StoredGroup> =
                catalog.groups.iter().filter(|group| group.topic == stored.id).cloned().collect();
            let topic = DiskTopic::open(Arc::clone(store), stored, &groups, settings, self.clock);
            (Address::topic(Arc::clone(&stored.name)), Place::DiskTopic(topic))
        });
        let all: HashMap<Address, Place> = queues.chain(topics).collect();
        let found = all.keys().cloned().collect();
        *self.write() = Places { all, found, closed: false };
        Ok(())
    }

    /// The queue or topic of that address, made if that is allowed.
    fn place(&self, address: &Address) -> Result<Place, BrokerError> {
        {
            let places = self.read();
            if places.closed {
                return Err(BrokerError::Closed);
            }
            if let Some(found) = places.all.get(address) {
                return Ok(found.clone());
            }
        }
        if !self.settings.auto_create {
            return Err(BrokerError::NotFound(address.clone()));
        }
        let mut places = self.write();
        if places.closed {
            return Err(BrokerError::Closed);
        }
        let name = Arc::clone(&address.name);
        self.make(
            &mut places,
            &match address.kind {
                Kind::Queue => Declaration::Queue(name, self.settings.queue.clone()),
                Kind::Topic => Declaration::Topic(name, self.settings.topic.clone()),
            },
        )
    }

    /// Makes it, unless somebody else just has.
    fn make(&self, places: &mut Places, declaration: &Declaration) -> Result<Place, BrokerError> {
        let address = declaration.address();
        if let Some(there) = places.all.get(&address) {
            return Ok(there.clone());
        }
        let name = Arc::clone(&address.name);
        let place = match declaration {
            Declaration::Queue(_, settings) => match self.store_for(settings.storage)? {
                None => Place::Queue(Arc::new(Queue::new(name, settings.clone(), self.clock))),
                Some(store) => {
                    let id = store.create_queue(&name).map_err(storage)?;
                    let stored = StoredQueue { id, name, sequence_next: 1, lanes: Vec::new() };
                    Place::DiskQueue(DiskQueue::open(
                        Arc::clone(store),
                        &stored,
                        settings.clone(),
                        self.clock,
                        &self.memory,
                    ))
                }
            },
            Declaration::Topic(_, settings) => match self.store_for(settings.storage)? {
                None => Place::Topic(Arc::new(Topic::new(name, settings.clone(), self.clock))),
                Some(store) => {
                    let (id, partitions) = store.create_topic(&name, settings.partitions).map_err(storage)?;
                    let stored = StoredTopic::new(id, name, partitions);
                    Place::DiskTopic(DiskTopic::open(Arc::clone(store), &stored, &[], settings.clone(), self.clock))
                }
            },
        };
        places.all.insert(address, place.clone());
        Ok(place)
    }

    /// Where a queue or topic of that storage is kept; `None`: in memory.
    fn store_for(&self, storage: Storage) -> Result<Option<&Arc<Store>>, BrokerError> {
        match (storage, &self.store) {
            (Storage::Memory, _) => Ok(None),
            (Storage::Disk, Some(store)) => Ok(Some(store)),
            (Storage::Disk, None) => Err(BrokerError::Invalid(
                "storage is disk, and the store is opened when the engine starts: restart it".to_owned(),
            )),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn storage(error: StoreError) -> BrokerError {
    BrokerError::Storage(Arc::new(error))
}

#[async_trait]
impl Broker for Embedded {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: self.settings.queue.storage == Storage::Disk && self.settings.topic.storage == Storage::Disk,
            priority: true,
            delay: true,
            expiry: true,
            log: true,
            replay: true,
            delivery_count: true,
            transactions: false,
            ordering: Ordering::Arrival,
            browse: true,
            message_bytes_max: self.settings.message_bytes_max,
        }
    }

    fn status(&self) -> BrokerStatus {
        match self.store.as_ref().map(|store| store.status()) {
            None | Some(StoreStatus::Ready) => BrokerStatus::Ready,
            Some(StoreStatus::NoSpace { limit }) => {
                BrokerStatus::Degraded { reason: StoreError::NoSpace { limit }.to_string() }
            }
            Some(StoreStatus::Failed { what }) => {
                BrokerStatus::Failed { reason: StoreError::Failed { what }.to_string() }
            }
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let intake = Intake { bytes_max: self.settings.message_bytes_max, delays: true };
        let failures = match self.place(to) {
            Ok(place) => place.publish(messages, intake).await,
            Err(error) => {
                let error = match error {
                    BrokerError::NotFound(address) => PublishError::NotFound(address),
                    BrokerError::Closed => PublishError::Closed,
                    error => PublishError::Unconfirmed(error.to_string()),
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
            match declaration {
                Declaration::Queue(_, settings) => settings.check()?,
                Declaration::Topic(_, settings) => settings.check()?,
            }
            let address = declaration.address();
            let Some(there) = places.all.get(&address) else { continue };
            let differences = match places.found.contains(&address) {
                true => there.hindrances(declaration),
                false => there.differences(declaration),
            };
            if !differences.is_empty() {
                return Err(BrokerError::Mismatch { address, differences });
            }
        }
        for declaration in what {
            let address = declaration.address();
            if places.found.remove(&address) {
                if declaration.storage() == Storage::Memory {
                    // Nothing is in it any more.
                    places.all.remove(&address);
                } else if let Some(there) = places.all.get(&address) {
                    there.adopt(declaration);
                }
            }
            self.make(&mut places, declaration)?;
        }
        Ok(())
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        self.place(&request.from)?.subscribe(&request).await
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        let place = self.read().all.get(from).cloned();
        place.ok_or_else(|| BrokerError::NotFound(from.clone()))?.evict(max).await
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        let place = self.read().all.get(&request.from).cloned();
        place.ok_or_else(|| BrokerError::NotFound(request.from.clone()))?.browse(&request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        if let Some(store) = &self.store {
            self.figures.tell(&self.name, store);
        }
        let places = self.read();
        let mut all: Vec<_> = places.all.values().map(Place::stats).collect();
        all.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        all
    }

    async fn close(&self) {
        {
            let mut places = self.write();
            places.closed = true;
            places.all.values().for_each(Place::close);
        }
        let Some(store) = self.store.clone() else { return };
        // Waits for the disk, and for threads.
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        if let Err(panic) = closed {
            tracing::error!("closing the store failed: {panic}");
        }
    }
}
