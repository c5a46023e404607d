//! Attempts counted for a broker that does not count them: before a delivery is handed over, the ledger on disk says so,
//! and forgets it when the message has ended. A host that dies with the message out has used up the attempt, as on
//! brokers that count by themselves. In: any broker. Out: the same, with `delivery_count`.
//!
//! A message is known by its place in a topic, or by its id in a queue. What is in the ledger is also in memory: only
//! messages that are out, or that failed before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Declaration, Deliveries, Delivery,
    KeepAlive, Page, PublishFailures, Settler, Subscribe, Subscription, Tag,
};
use crate::{
    message::{Address, FailedAttempt, Kind, Message, ReasonCode, Settlement, now_ms},
    store::{Batch, Change, LedgerKey, Need, Note, Store, StoreError, Then},
};

/// Most failures kept with one message: the first, and the latest.
const FAILURES_MAX: usize = 32;

/// A broker whose attempts are counted in a store.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Broker>,
    store: Arc<Store>,
    /// One for each place that was read from: subscriptions share it, as they share its messages.
    ledgers: Mutex<HashMap<Arc<str>, Arc<Ledger>>>,
}

impl Counted {
    /// Counts for `inner`, in a store that belongs to this engine.
    #[must_use]
    pub fn new(inner: Arc<dyn Broker>, store: Arc<Store>) -> Self {
        Self { inner, store, ledgers: Mutex::default() }
    }

    /// The ledger of a place, with what was noted there before.
    async fn ledger(&self, place: Arc<str>) -> Result<Arc<Ledger>, BrokerError> {
        let there = |ledgers: &HashMap<Arc<str>, Arc<Ledger>>| ledgers.get(&place).cloned();
        if let Some(ledger) = there(&self.lock()) {
            return Ok(ledger);
        }
        let of = Arc::clone(&place);
        let known = self.store.read_async(move |reader| reader.ledger(&of)).await;
        let known = known.map_err(|error| BrokerError::Storage(Arc::new(error)))?.into_iter().collect();
        let mut ledgers = self.lock();
        // Another may have been as quick.
        let ledger = there(&ledgers).unwrap_or_else(|| {
            Arc::new(Ledger { place: Arc::clone(&place), store: Arc::clone(&self.store), known: Mutex::new(known) })
        });
        ledgers.insert(place, Arc::clone(&ledger));
        Ok(ledger)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Ledger>>> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Broker for Counted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { delivery_count: true, ..self.inner.capabilities() }
    }

    fn status(&self) -> BrokerStatus {
        self.inner.status()
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.inner.publish(to, messages).await
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let place = match request.from.kind {
            Kind::Queue => format!("{}/{}", self.inner.name(), request.from),
            // Each group tries for itself.
            Kind::Topic => format!("{}/{}/{}", self.inner.name(), request.from, request.group),
        };
        let ledger = self.ledger(place.into()).await?;
        Ok(Box::new(CountedSubscription {
            inner: self.inner.subscribe(request).await?,
            ledger,
            settler: None,
            begun: None,
        }))
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

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// What is noted of the messages of one place.
#[derive(Debug)]
struct Ledger {
    place: Arc<str>,
    store: Arc<Store>,
    known: Mutex<HashMap<String, Note>>,
}

impl Ledger {
    /// Notes something of some messages; `None`: they have ended. In the order of the calls.
    fn write(&self, notes: impl IntoIterator<Item = (String, Option<Note>)>, answer: Option<Answer>) {
        let mut known = self.lock();
        let mut changes = Vec::new();
        for (message, note) in notes {
            match &note {
                Some(note) => known.insert(message.clone(), note.clone()),
                None => known.remove(&message),
            };
            changes.push(Change::Attempts { of: LedgerKey { place: Arc::clone(&self.place), message }, note });
        }
        // Whoever waited may have gone away.
        let then = answer.map(|answer| Box::new(move |result| drop(answer.send(result))) as Then);
        self.store.submit(Batch { changes, need: Need::MustHappen, permit: None, then });
    }

    /// The attempt that a delivery is, with what went wrong before.
    fn begin(&self, delivery: &Delivery) -> (String, Note) {
        let message = identity(delivery);
        let mut note = self.lock().get(&message).cloned().unwrap_or_else(|| Note {
            attempt: delivery.attempt,
            failures: delivery.failures.clone(),
            ..Note::default()
        });
        if note.out {
            note.crashes = note.crashes.saturating_add(1);
            let text = "it came again unsettled: the engine or its connection ended while it was out".to_owned();
            let failure =
                FailedAttempt { attempt: note.attempt, at: now_ms(), code: ReasonCode::OperationCanceled, text };
            failed(&mut note, failure);
        }
        note.attempt = note.attempt.max(delivery.attempt);
        note.out = true;
        (message, note)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Note>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Answer = oneshot::Sender<Result<(), Arc<StoreError>>>;

/// What names a message at its place.
fn identity(delivery: &Delivery) -> String {
    match delivery.position {
        Some(position) => format!("{}@{}", position.partition, position.offset),
        None => delivery.message.id.to_string(),
    }
}

/// The attempt did not succeed: the next one begins.
fn failed(note: &mut Note, failure: FailedAttempt) {
    if note.failures.len() >= FAILURES_MAX {
        note.failures.remove(1);
    }
    note.failures.push(failure);
    note.attempt = note.attempt.saturating_add(1);
}

/// Deliveries that wait for their attempts to be on disk.
type Begun = (Deliveries, oneshot::Receiver<Result<(), Arc<StoreError>>>);

#[derive(Debug)]
struct CountedSubscription {
    inner: Box<dyn Subscription>,
    ledger: Arc<Ledger>,
    settler: Option<Arc<CountingSettler>>,
    /// Kept where the caller goes away while it waits.
    begun: Option<Begun>,
}

impl CountedSubscription {
    /// Notes the attempts that these deliveries are.
    fn begin(&mut self, fetched: Deliveries) -> Begun {
        let notes: Vec<(String, Note)> =
            fetched.as_slice().iter().map(|delivery| self.ledger.begin(delivery)).collect();
        let mut each = notes.iter();
        let deliveries = fetched
            .edited(|delivery| {
                let Some((_, note)) = each.next() else { return };
                (delivery.attempt, delivery.failures) = (note.attempt, note.failures.clone());
            })
            .settled_by(|items, inner| {
                let settler = self.settler.get_or_insert_with(|| {
                    Arc::new(CountingSettler { inner, ledger: Arc::clone(&self.ledger), out: Mutex::default() })
                });
                let mut out = settler.lock();
                for (delivery, (message, _)) in items.iter().zip(&notes) {
                    out.put(delivery.tag, message.clone());
                }
                drop(out);
                Arc::<CountingSettler>::clone(settler)
            });
        let (answer, safe) = oneshot::channel();
        self.ledger.write(notes.into_iter().map(|(message, note)| (message, Some(note))), Some(answer));
        (deliveries, safe)
    }
}

#[async_trait]
impl Subscription for CountedSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        if self.begun.is_none() {
            let Some(fetched) = self.inner.next(max).await? else { return Ok(None) };
            self.begun = Some(self.begin(fetched));
        }
        if let Some((_, safe)) = &mut self.begun {
            let answer = safe.await;
            let begun = self.begun.take();
            match answer {
                Ok(Ok(())) => return Ok(begun.map(|(deliveries, _)| deliveries)),
                // Dropped, they go back.
                Ok(Err(error)) => return Err(BrokerError::Storage(error)),
                Err(_) => {}
            }
        }
        Err(BrokerError::Closed)
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

/// Settles with the broker, and in the ledger.
#[derive(Debug)]
struct CountingSettler {
    inner: Arc<dyn Settler>,
    ledger: Arc<Ledger>,
    out: Mutex<Out>,
}

/// What is out, by the names in the ledger. A message that came again has the tag of its last delivery: what is said of
/// an earlier one comes too late, for the broker as well.
#[derive(Debug, Default)]
struct Out {
    messages: HashMap<Tag, String>,
    tags: HashMap<String, Tag>,
}

impl Out {
    fn put(&mut self, tag: Tag, message: String) {
        if let Some(earlier) = self.tags.insert(message.clone(), tag) {
            self.messages.remove(&earlier);
        }
        self.messages.insert(tag, message);
    }

    fn take(&mut self, tag: Tag) -> Option<String> {
        let message = self.messages.remove(&tag)?;
        self.tags.remove(&message);
        Some(message)
    }
}

impl CountingSettler {
    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is noted of a message that comes back.
    fn back(&self, tag: Tag, failure: Option<FailedAttempt>) -> Option<(String, Option<Note>)> {
        let message = self.lock().take(tag)?;
        let mut note = self.ledger.lock().get(&message).cloned()?;
        if let Some(failure) = failure {
            failed(&mut note, failure);
        }
        note.out = false;
        Some((message, Some(note)))
    }
}

#[async_trait]
impl Settler for CountingSettler {
    async fn settle(&self, settled: Vec<(Tag, Settlement)>) -> Result<(), BrokerError> {
        // What is tried again is counted before the broker may deliver it; what has ended is forgotten after the broker
        // has, so that no attempt is ever uncounted.
        let (mut back, mut ended) = (Vec::new(), Vec::new());
        for (tag, how) in &settled {
            match how {
                Settlement::Accept | Settlement::DeadLetter { .. } => ended.extend(self.lock().take(*tag)),
                Settlement::Redeliver { failure, .. } => back.extend(self.back(*tag, Some((**failure).clone()))),
                Settlement::Release { .. } => back.extend(self.back(*tag, None)),
            }
        }
        if !back.is_empty() {
            self.ledger.write(back, None);
        }
        self.inner.settle(settled).await?;
        if !ended.is_empty() {
            self.ledger.write(ended.into_iter().map(|message| (message, None)), None);
        }
        Ok(())
    }

    async fn count_attempt(&self, tag: Tag, failure: FailedAttempt) -> Result<(), BrokerError> {
        let message = self.lock().messages.get(&tag).cloned();
        let note = message.and_then(|message| {
            let mut note = self.ledger.lock().get(&message).cloned()?;
            failed(&mut note, failure.clone());
            Some((message, Some(note)))
        });
        if let Some(note) = note {
            let (answer, safe) = oneshot::channel();
            self.ledger.write([note], Some(answer));
            match safe.await {
                Ok(result) => result.map_err(|error| BrokerError::Storage(error))?,
                Err(_) => return Err(BrokerError::Closed),
            }
        }
        self.inner.count_attempt(tag, failure).await
    }

    fn release(&self, tags: Vec<Tag>) {
        let back: Vec<_> = tags.iter().filter_map(|tag| self.back(*tag, None)).collect();
        if !back.is_empty() {
            self.ledger.write(back, None);
        }
        self.inner.release(tags);
    }
}
