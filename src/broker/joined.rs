//! Several systems as one broker: an address says which of them has it, or goes where all of its kind are. Nothing is copied
//! between them, and what one of them cannot do does not hold up the others. Below this no address names a system.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering as Memory},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::{sync::watch, time::timeout};

use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Circuit, Declaration, Deliveries,
    Ordering, Page, PublishError, PublishFailures, Subscribe, Subscription, System,
    guarded::{is_spool, orphans},
    room::Room,
};
use crate::message::{Address, Kind, Message};

/// What can be done where no system is left.
const NOTHING: Capabilities = Capabilities {
    durable: false,
    priority: false,
    delay: false,
    expiry: false,
    log: false,
    replay: false,
    delivery_count: false,
    transactions: false,
    ordering: Ordering::None,
    browse: false,
    message_bytes_max: 0,
};

/// How long closing one usually takes at most.
const CLOSE_USUAL: Duration = Duration::from_secs(1);

/// One of the systems.
#[derive(Clone, Debug)]
pub struct JoinedSystem {
    /// As addresses name it.
    pub name: Arc<str>,
    /// What it is.
    pub broker: Arc<dyn Broker>,
}

/// One of them, with the room for what is on its way there.
#[derive(Clone, Debug)]
struct Place {
    system: JoinedSystem,
    /// `None`: as much as it takes.
    room: Option<Arc<Room>>,
    /// It was closed, and nothing has taken its place.
    is_closed: Arc<AtomicBool>,
}

impl Place {
    fn new(system: JoinedSystem, room: Option<usize>) -> Self {
        Self { system, room: room.map(|bytes| Arc::new(Room::new(bytes))), is_closed: Arc::default() }
    }
}

/// Several systems.
#[derive(Debug)]
pub struct Joined {
    /// Has the queues of addresses that name no system.
    queues: Arc<str>,
    /// The same for topics.
    topics: Arc<str>,
    /// Everything is there, whatever an address says.
    is_one: bool,
    /// All of them are.
    is_closed: AtomicBool,
    /// Bytes that may be on their way to all but the last; `None`: any number.
    room: Option<usize>,
    /// All of them.
    systems: ArcSwap<Vec<Place>>,
}

impl Joined {
    /// Joins systems; `queues` and `topics` name those of them that have what names no system. The last one has
    /// the store of the others, and is closed after them.
    #[must_use]
    pub fn new(queues: Arc<str>, topics: Arc<str>, systems: Vec<JoinedSystem>) -> Self {
        let systems = systems.into_iter().map(|system| Place::new(system, None)).collect();
        let systems = ArcSwap::from_pointee(systems);
        Self { queues, topics, is_one: false, is_closed: AtomicBool::new(false), room: None, systems }
    }

    /// Shares out room for so many bytes among all systems but the last, which keeps what it is given: what is on its way to
    /// each may be as large as its share. 0: any number.
    #[must_use]
    pub fn with_room(self, bytes: usize) -> Self {
        let room = (bytes > 0).then_some(bytes);
        let systems = ArcSwap::from_pointee(shared_out(Vec::clone(&self.systems.load()), room));
        Self { room, systems, ..self }
    }

    /// Queues on one system, topics on another, and nothing else.
    #[must_use]
    pub fn pair(queues: Arc<dyn Broker>, topics: Arc<dyn Broker>) -> Self {
        let named = |broker: Arc<dyn Broker>| JoinedSystem { name: broker.name().into(), broker };
        let (queues, topics) = (named(queues), named(topics));
        Self::new(Arc::clone(&queues.name), Arc::clone(&topics.name), vec![queues, topics])
    }

    /// Everything goes to the systems of unnamed addresses, whatever an address says.
    #[must_use]
    pub fn as_one(self) -> Self {
        Self { is_one: true, ..self }
    }

    /// Puts a system in the place of the one with its name, or adds it, or with `None` takes it away. Which systems have what
    /// names none stays. The room for what is on its way is shared out anew.
    pub fn exchange(&self, name: &Arc<str>, broker: Option<Arc<dyn Broker>>) {
        self.systems.rcu(|systems| {
            let mut systems = Vec::clone(systems);
            let place = systems.iter().position(|place| place.system.name == *name);
            let new = broker.clone().map(|broker| JoinedSystem { name: Arc::clone(name), broker });
            let new = new.map(|system| Place::new(system, None));
            match place {
                Some(place) => drop(systems.splice(place..=place, new)),
                // In front of the one that has the store.
                None => drop(systems.splice(0..0, new)),
            }
            shared_out(systems, self.room)
        });
    }

    /// Closes a system before it is [exchanged](Self::exchange). What is published there until then is told to come again.
    pub async fn close_one(&self, name: &str) {
        let of_name = self.systems.load().iter().find(|place| *place.system.name == *name).cloned();
        if let Some(place) = of_name {
            place.is_closed.store(true, Memory::Relaxed);
            place.system.broker.close().await;
        }
    }

    /// Whether a system was closed and nothing has taken its place: nobody could be had.
    #[must_use]
    pub fn has_lost(&self, name: &str) -> bool {
        let systems = self.systems.load();
        systems.iter().any(|place| *place.system.name == *name && place.is_closed.load(Memory::Relaxed))
    }

    /// What has the addresses of a kind that name no system.
    fn usual(&self, kind: Kind) -> &Arc<str> {
        match kind {
            Kind::Queue => &self.queues,
            Kind::Topic => &self.topics,
        }
    }

    /// What has that address.
    fn of(&self, address: &Address) -> Option<Arc<dyn Broker>> {
        self.place_of(address).map(|place| place.system.broker)
    }

    fn place_of(&self, address: &Address) -> Option<Place> {
        let name = match &address.system {
            Some(system) if !self.is_one => system,
            _ => self.usual(address.kind),
        };
        let systems = self.systems.load();
        systems.iter().find(|place| place.system.name == *name).cloned()
    }

    fn asked(&self, address: &Address) -> Result<Arc<dyn Broker>, BrokerError> {
        self.of(address).ok_or_else(|| BrokerError::NotFound(address.clone()))
    }
}

/// Shares out room for so many bytes among all but the last. Where a share becomes another one, what is on its way has left
/// the old one within the time of a publish.
fn shared_out(mut places: Vec<Place>, room: Option<usize>) -> Vec<Place> {
    let others = places.len().saturating_sub(1);
    let share = room.map(|bytes| bytes / others.max(1));
    for (place, one) in places.iter_mut().enumerate() {
        let share = share.filter(|_| place < others);
        if one.room.as_ref().map(|room| room.bytes()) != share {
            one.room = share.map(|bytes| Arc::new(Room::new(bytes)));
        }
    }
    places
}

/// The same failure, about the address as it was asked for. `is_open`: one that is closed is being exchanged.
fn placed(failures: PublishFailures, to: &Address, is_open: bool) -> PublishFailures {
    let placed = |error: PublishError| match error {
        PublishError::Closed if is_open => {
            PublishError::Unavailable(format!("the system that has {to} is being connected anew"))
        }
        PublishError::NotFound(_) => PublishError::NotFound(to.clone()),
        PublishError::Unroutable(_) => PublishError::Unroutable(to.clone()),
        PublishError::Full { limit, .. } => PublishError::Full { address: to.clone(), limit },
        PublishError::NoSpace { reason, .. } => PublishError::NoSpace { address: to.clone(), reason },
        PublishError::TooLarge { bytes, max, .. } => PublishError::TooLarge { address: to.clone(), bytes, max },
        PublishError::Rejected { reason, .. } => PublishError::Rejected { address: to.clone(), reason },
        PublishError::Unavailable(_) | PublishError::Unconfirmed(_) | PublishError::Closed => error,
    };
    PublishFailures(failures.0.into_iter().map(|(place, error)| (place, placed(error))).collect())
}

fn said(error: BrokerError, system: Option<&Arc<str>>) -> BrokerError {
    let Some(system) = system else { return error };
    match error {
        BrokerError::NotFound(address) => BrokerError::NotFound(address.on(Arc::clone(system))),
        BrokerError::Mismatch { address, differences } => {
            BrokerError::Mismatch { address: address.on(Arc::clone(system)), differences }
        }
        other => other,
    }
}

/// Closes one, and names it where that takes long.
async fn closed(system: &JoinedSystem) {
    let closing = system.broker.close();
    tokio::pin!(closing);
    if timeout(CLOSE_USUAL, &mut closing).await.is_err() {
        tracing::info!(broker = %system.name, "its connections are not closed yet: it does not answer");
        closing.await;
    }
}

#[async_trait]
impl Broker for Joined {
    fn name(&self) -> &str {
        &self.queues
    }

    fn name_of(&self, address: &Address) -> Arc<str> {
        match &address.system {
            Some(system) if !self.is_one => Arc::clone(system),
            _ => Arc::clone(self.usual(address.kind)),
        }
    }

    fn plain(&self, address: &Address) -> Address {
        let is_usual = |system: &Arc<str>| self.is_one || system == self.usual(address.kind);
        if address.system.as_ref().is_some_and(is_usual) { address.local() } else { address.clone() }
    }

    fn capabilities(&self) -> Capabilities {
        let of = |kind| self.of(&Address { kind, system: None, name: "".into() }).map(|broker| broker.capabilities());
        // One of them is away while it is exchanged.
        let (queues, topics) = match (of(Kind::Queue), of(Kind::Topic)) {
            (Some(queues), Some(topics)) => (queues, topics),
            (Some(one), None) | (None, Some(one)) => (one, one),
            (None, None) => return NOTHING,
        };
        Capabilities {
            durable: queues.durable && topics.durable,
            log: topics.log,
            replay: topics.replay,
            transactions: topics.transactions,
            delivery_count: queues.delivery_count && topics.delivery_count,
            browse: queues.browse && topics.browse,
            message_bytes_max: queues.message_bytes_max.min(topics.message_bytes_max),
            ..queues
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let Some(Place { system: JoinedSystem { name, broker }, room, .. }) = self.place_of(to) else {
            let missing = |place| (place, PublishError::NotFound(to.clone()));
            return Err(PublishFailures((0..messages.len()).map(missing).collect()));
        };
        let _taken = match &room {
            Some(room) => Some(room.take(&name, &messages).await?),
            None => None,
        };
        let published = match &to.system {
            None => broker.publish(to, messages).await,
            Some(_) => broker.publish(&to.local(), messages).await,
        };
        published.map_err(|failures| placed(failures, to, !self.is_closed.load(Memory::Relaxed)))
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        let (queues, topics): (Vec<_>, Vec<_>) =
            what.iter().cloned().partition(|declaration| declaration.address().kind == Kind::Queue);
        for of_kind in [queues, topics] {
            if let Some(first) = of_kind.first() {
                self.asked(&first.address())?.declare(&of_kind).await?;
            }
        }
        Ok(())
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let broker = self.asked(&request.from)?;
        let system = request.from.system.clone();
        let from = request.from.local();
        broker.subscribe(Subscribe { from, ..request }).await.map_err(|error| said(error, system.as_ref()))
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        let evicted = self.asked(from)?.evict(&from.local(), max).await;
        evicted.map_err(|error| said(error, from.system.as_ref()))
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        let broker = self.asked(&request.from)?;
        let system = request.from.system.clone();
        let from = request.from.local();
        broker.browse(Browse { from, ..request }).await.map_err(|error| said(error, system.as_ref()))
    }

    fn stats(&self) -> Vec<AddressStats> {
        let mut all = Vec::new();
        for Place { system, .. } in self.systems.load().iter() {
            // What waits for another system is its own.
            let stats = system.broker.stats().into_iter().filter(|stats| !is_spool(&stats.address));
            for mut stats in stats {
                if *self.usual(stats.address.kind) != system.name {
                    stats.address = stats.address.on(Arc::clone(&system.name));
                }
                all.push(stats);
            }
        }
        all
    }

    fn status(&self) -> BrokerStatus {
        let mut worst = BrokerStatus::Ready;
        for Place { system, .. } in self.systems.load().iter() {
            let named = |reason: String| format!("{}: {reason}", system.name);
            match (system.broker.status(), &worst) {
                (BrokerStatus::Failed { reason }, _) => return BrokerStatus::Failed { reason: named(reason) },
                (BrokerStatus::Degraded { reason }, BrokerStatus::Ready) => {
                    worst = BrokerStatus::Degraded { reason: named(reason) };
                }
                _ => {}
            }
        }
        worst
    }

    fn circuit(&self, to: &Address) -> Option<watch::Receiver<Circuit>> {
        self.of(to)?.circuit(&to.local())
    }

    fn systems(&self) -> Vec<System> {
        let systems = self.systems.load();
        let mut all: Vec<System> = systems.iter().flat_map(|place| place.system.broker.systems()).collect();
        if let Some(last) = systems.last() {
            let names: Vec<&str> = systems.iter().map(|place| &*place.system.name).collect();
            all.extend(orphans(last.system.broker.stats(), &names));
        }
        all
    }

    async fn close(&self) {
        self.is_closed.store(true, Memory::Relaxed);
        let systems = self.systems.load_full();
        let Some((last, others)) = systems.split_last() else { return };
        join_all(others.iter().map(|place| closed(&place.system))).await;
        closed(&last.system).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{QueueSettings, embedded};

    fn system(name: &str) -> JoinedSystem {
        let broker = embedded::Embedded::new(name, embedded::Settings::default()).unwrap();
        JoinedSystem { name: name.into(), broker: Arc::new(broker) }
    }

    #[test]
    fn however_many_systems_come_and_go_their_shares_are_the_room_there_is() {
        let joined = Joined::new("a".into(), "a".into(), vec![system("a"), system("embedded")]).with_room(12 << 10);
        let shares = || {
            let room = |place: &Place| place.room.as_ref().map(|room| room.bytes() >> 10);
            joined.systems.load().iter().map(room).collect::<Vec<_>>()
        };
        assert_eq!(shares(), [Some(12), None]);
        joined.exchange(&"b".into(), Some(system("b").broker));
        joined.exchange(&"c".into(), Some(system("c").broker));
        assert_eq!(shares(), [Some(4), Some(4), Some(4), None]);
        let kept = joined.place_of(&Address::queue("q").on("b")).unwrap().room.unwrap();
        joined.exchange(&"c".into(), Some(system("c").broker));
        assert!(Arc::ptr_eq(&kept, &joined.place_of(&Address::queue("q").on("b")).unwrap().room.unwrap()));
        joined.exchange(&"a".into(), None);
        assert_eq!(shares(), [Some(6), Some(6), None]);
    }

    #[tokio::test]
    async fn what_waits_for_a_system_that_is_not_there_is_shown_with_what_to_do() {
        let embedded = system("embedded");
        let joined = Joined::new("a".into(), "a".into(), vec![system("a"), embedded.clone()]);
        for (queue, count) in
            [("billing~eu.queue.q", 2), ("billing~eu.topic.t", 1), ("a.queue.q", 5), ("idle.queue.q", 0)]
        {
            let queue: Arc<str> = format!("helixmq.spool.{queue}").into();
            embedded.broker.declare(&[Declaration::Queue(Arc::clone(&queue), QueueSettings::default())]).await.unwrap();
            let messages = (0..count).map(|_| Arc::new(Message::new("", "", 1))).collect();
            embedded.broker.publish(&Address::queue(queue), messages).await.unwrap();
        }
        let shown: Vec<_> = joined.systems().into_iter().filter(|system| system.spool.is_some()).collect();
        assert_eq!(shown.len(), 1, "{shown:?}");
        let BrokerStatus::Degraded { reason } = &shown[0].status else { panic!("{shown:?}") };
        assert_eq!((shown[0].name.as_str(), shown[0].spool.as_ref().unwrap().messages), ("billing.eu", 3));
        assert!(reason.contains("3 messages wait on disk") && reason.contains("use it again"), "{reason}");
    }
}
