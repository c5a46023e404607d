//! A broker in front of the embedded one, that tells what passed.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        AddressStats, BatchMax, Broker, BrokerError, Browse, BrowseAt, Capabilities, Circuit, Declaration, Deliveries,
        Delivery, KeepAlive, Page, PublishError, PublishFailures, Settler, Start, Subscribe, Subscription, Tag,
        TransactionError,
        embedded::{self, Embedded},
    },
    message::{Address, FailedAttempt, Message, Settlement},
};
use tokio::sync::watch;

/// Something that passed.
#[derive(Clone, Debug)]
pub(crate) enum Passed {
    /// A message was published and confirmed.
    Published(Address, Arc<Message>),
    /// A message was refused.
    Refused,
    /// A delivery of a message, by its id, on this attempt, was settled.
    Settled(String, u32, Settlement),
    /// A delivery was dropped, and went back.
    Dropped,
    /// A transaction was committed, with so many messages and settlements.
    Committed(usize, usize),
    /// A transaction was not.
    Aborted,
}

type Refuse = Box<dyn FnMut(&Address, &Message) -> Option<PublishError> + Send>;

/// A broker in front of the embedded one: keeps a ledger of what passes, refuses what it is told to, breaks
/// subscriptions, and stays open when an engine closes it.
pub(crate) struct Tap {
    pub(crate) inner: Arc<Embedded>,
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Mutex<Vec<Passed>>,
    refuse: Mutex<Option<Refuse>>,
    breaks: AtomicU32,
    aborts: AtomicU32,
    topic: OnceLock<Arc<str>>,
    circuits: Mutex<BTreeMap<Address, watch::Sender<Circuit>>>,
    /// What is published there is not answered.
    hangs: watch::Sender<Option<Address>>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Vec<Passed>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn circuit(&self, to: &Address) -> watch::Sender<Circuit> {
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        circuits.entry(to.clone()).or_default().clone()
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Tap {
    pub(crate) fn new(settings: embedded::Settings) -> Self {
        let shared = Shared {
            ledger: Mutex::default(),
            refuse: Mutex::default(),
            breaks: AtomicU32::new(0),
            aborts: AtomicU32::new(0),
            topic: OnceLock::new(),
            circuits: Mutex::default(),
            hangs: watch::Sender::new(None),
        };
        let inner = Embedded::new("embedded", settings).expect("settings that can work");
        Self { inner: Arc::new(inner), shared: Arc::new(shared) }
    }

    /// Everything so far, in order.
    pub(crate) fn ledger(&self) -> Vec<Passed> {
        self.shared.ledger().clone()
    }

    /// What was published and confirmed at one address, in order.
    pub(crate) fn published(&self, at: &Address) -> Vec<Arc<Message>> {
        self.shared
            .ledger()
            .iter()
            .filter_map(|passed| match passed {
                Passed::Published(to, message) if to == at => Some(Arc::clone(message)),
                _ => None,
            })
            .collect()
    }

    /// How the deliveries of one message were settled, in order.
    pub(crate) fn settlements(&self, of: &Message) -> Vec<Settlement> {
        let id = of.id.to_string();
        self.shared
            .ledger()
            .iter()
            .filter_map(|passed| match passed {
                Passed::Settled(settled, _, how) if *settled == id => Some(how.clone()),
                _ => None,
            })
            .collect()
    }

    /// From now on, what this says yes to is not published.
    pub(crate) fn refuse(&self, mut refuse: impl FnMut(&Address, &Message) -> bool + Send + 'static) {
        let unconfirmed = || PublishError::Unconfirmed("refused by the test".to_owned());
        self.refuse_with(move |to, message| refuse(to, message).then(unconfirmed));
    }

    /// From now on, what this gives an error for is not published.
    pub(crate) fn refuse_with(&self, refuse: impl FnMut(&Address, &Message) -> Option<PublishError> + Send + 'static) {
        *self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(refuse));
    }

    /// Everything is published again.
    pub(crate) fn recover(&self) {
        *self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The next so many batches end in an error instead, and their subscription with them.
    pub(crate) fn break_subscriptions(&self, times: u32) {
        self.shared.breaks.store(times, Ordering::SeqCst);
    }

    /// The next so many transactions fail as a whole.
    pub(crate) fn abort_transactions(&self, times: u32) {
        self.shared.aborts.store(times, Ordering::SeqCst);
    }

    /// Says whether what is published there is taken; nothing but this changes.
    pub(crate) fn circuit_is(&self, to: &Address, circuit: Circuit) {
        self.circuit_of(to).send_replace(circuit);
    }

    /// What says it.
    pub(crate) fn circuit_of(&self, to: &Address) -> watch::Sender<Circuit> {
        self.shared.circuit(to)
    }

    /// Every delivery says from here on that it is of this topic, as if a pattern were subscribed to.
    pub(crate) fn say_topic(&self, topic: &str) {
        self.shared.topic.set(topic.into()).expect("said once");
    }

    /// What is published there from now on is not answered, until this says something else.
    pub(crate) fn hang(&self, at: Option<Address>) {
        self.shared.hangs.send_replace(at);
    }

    /// What lies at an address, without taking it.
    pub(crate) async fn lies_at(&self, from: &Address) -> Vec<Arc<Message>> {
        let at = BrowseAt::Start(Start::Earliest);
        let page = self.inner.browse(Browse { from: from.clone(), at, limit: usize::MAX }).await.expect("a page");
        page.items.into_iter().map(|item| item.message).collect()
    }
}

#[async_trait]
impl Broker for Tap {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let mut hangs = self.shared.hangs.subscribe();
        hangs.wait_for(|at| at.as_ref() != Some(to)).await.expect("its sender is here");
        let refused: Vec<Option<PublishError>> = {
            let mut refuse = self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner);
            messages.iter().map(|message| refuse.as_mut().and_then(|refuse| refuse(to, message))).collect()
        };
        let mut failures = Vec::new();
        // One by one, so that the ledger has what the broker has, in its order.
        for (place, (message, refused)) in messages.into_iter().zip(refused).enumerate() {
            if let Some(error) = refused {
                self.shared.ledger().push(Passed::Refused);
                failures.push((place, error));
            } else if let Err(error) = self.inner.publish(to, vec![Arc::clone(&message)]).await {
                failures.extend(error.0.into_iter().map(|(_, error)| (place, error)));
            } else {
                self.shared.ledger().push(Passed::Published(to.clone(), message));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(PublishFailures(failures)) }
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let inner = self.inner.subscribe(request).await?;
        let shared = Arc::clone(&self.shared);
        let broker = Arc::clone(&self.inner);
        let settler = TapSettler { inner: OnceLock::new(), names: Mutex::default(), shared, broker };
        Ok(Box::new(TapSubscription { inner, settler: Arc::new(settler) }))
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        self.inner.evict(from, max).await
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.inner.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.inner.stats()
    }

    fn circuit(&self, to: &Address) -> Option<watch::Receiver<Circuit>> {
        Some(self.shared.circuit(to).subscribe())
    }

    async fn close(&self) {}
}

#[derive(Debug)]
struct TapSubscription {
    inner: Box<dyn Subscription>,
    settler: Arc<TapSettler>,
}

#[async_trait]
impl Subscription for TapSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let Some(deliveries) = self.inner.next(max).await? else { return Ok(None) };
        let breaks = |left: u32| left.checked_sub(1);
        if self.settler.shared.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, breaks).is_ok() {
            let cause = "broken by the test".into();
            return Err(BrokerError::Unreachable { endpoint: "embedded".into(), timeout: Duration::ZERO, cause });
        }
        let topic = self.settler.shared.topic.get();
        let deliveries = deliveries.edited(|delivery| delivery.topic = topic.cloned());
        Ok(Some(deliveries.settled_by(|items, inner| {
            let names = items.iter().map(|item| (item.tag, (item.message.id.to_string(), item.attempt)));
            self.settler.names.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
            self.settler.inner.get_or_init(|| inner);
            Arc::<TapSettler>::clone(&self.settler)
        })))
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

/// Settles for one subscription.
#[derive(Debug)]
struct TapSettler {
    /// The same for every batch.
    inner: OnceLock<Arc<dyn Settler>>,
    names: Mutex<BTreeMap<Tag, (String, u32)>>,
    shared: Arc<Shared>,
    broker: Arc<Embedded>,
}

impl TapSettler {
    fn name(&self, tag: Tag) -> (String, u32) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&tag).unwrap_or_default()
    }

    fn inner(&self) -> &Arc<dyn Settler> {
        self.inner.get().expect("a batch came before its settlement")
    }
}

#[async_trait]
impl Settler for TapSettler {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let named = settled.iter().map(|(delivery, how)| (self.name(delivery.tag), how.clone()));
        let passed: Vec<_> = named.map(|((id, attempt), how)| Passed::Settled(id, attempt, how)).collect();
        self.shared.ledger().extend(passed);
        self.inner().settle(settled).await
    }

    async fn transact(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        let refused: Vec<_> = {
            let mut refuse = self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner);
            let mut refuse = |to: &Address, message: &Message| refuse.as_mut().and_then(|refuse| refuse(to, message));
            let mut refused = Vec::new();
            for (group, (to, messages)) in published.iter().enumerate() {
                let each = messages.iter().enumerate();
                refused.extend(each.filter_map(|(place, message)| Some((group, place, refuse(to, message)?))));
            }
            refused
        };
        let fails = |left: u32| left.checked_sub(1);
        let fails = self.shared.aborts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok();
        if fails || !refused.is_empty() {
            self.shared.ledger().push(Passed::Aborted);
        }
        if fails {
            return Err(BrokerError::Lost("aborted by the test".to_owned()).into());
        }
        if !refused.is_empty() {
            return Err(TransactionError::Publish(refused));
        }
        let count = published.iter().map(|(_, messages)| messages.len()).sum();
        self.shared.ledger().push(Passed::Committed(count, settled.len()));
        for (to, messages) in published {
            self.broker.publish(to, messages.clone()).await.expect("what the broker takes");
            self.shared
                .ledger()
                .extend(messages.iter().map(|message| Passed::Published(to.clone(), Arc::clone(message))));
        }
        let copy = |delivery: &Delivery| Delivery {
            message: Arc::clone(&delivery.message),
            topic: delivery.topic.clone(),
            failures: delivery.failures.clone(),
            ..*delivery
        };
        let settled = settled.iter().map(|(delivery, how)| (copy(delivery), (*how).clone())).collect();
        self.settle(settled).await.map_err(TransactionError::Broker)
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        if let Some((_, attempt)) = self.names.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&delivery.tag) {
            *attempt += 1;
        }
        self.inner().count_attempt(delivery, failure).await
    }

    fn release(&self, released: Vec<Delivery>) {
        self.shared.ledger().extend(released.iter().map(|delivery| {
            self.name(delivery.tag);
            Passed::Dropped
        }));
        self.inner().release(released);
    }
}
