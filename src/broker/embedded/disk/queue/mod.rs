//! A queue on disk: each message is handled by one reader, then gone. This file is the lock, the waiting and the way to
//! the store; what happens behind the lock is in `state.rs`: one priority in `lane.rs`, what waits for its time in
//! `later.rs`.
//!
//! A publish takes its place in the queue, is written, and only then is there. A delivery is marked as handed over, that
//! is written, and only then is it returned to its reader (`disk/grants.rs`). A settlement holds at once and is written
//! soon; should the process end before, the message comes back as the next attempt. A queue that only passes on what is in
//! it (`embedded/beside.rs`) marks nothing and has no attempts.

mod effects;
mod item;
mod lane;
mod later;
mod limits;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};

pub(in crate::broker::embedded) use self::lane::Memory;
use self::{
    effects::{Effects, Load, Taken},
    state::{EVICTOR, State},
};
use super::grants::Grants;
use crate::{
    broker::{
        AddressStats, BatchMax, BrokerError, Browse, BrowseAt, Browsed, Deliveries, Delivery, KeepAlive, Page,
        PublishError, QueueSettings, Settler, Start, Subscription, delivery,
        embedded::{
            beside::{Held, Intake},
            clock::{Clock, Now},
            readers::{ReaderId, renew_every},
        },
    },
    message::{Address, FailedAttempt, Message, Settlement},
    store::{Batch, Need, Store, StoredQueue, Then, record},
};

/// One queue of the embedded broker, on disk.
#[derive(Debug)]
pub(in crate::broker::embedded) struct DiskQueue {
    address: Address,
    store: Arc<Store>,
    clock: Clock,
    state: Mutex<State>,
    ready: Notify,
}

impl DiskQueue {
    /// As it was found on disk.
    pub(in crate::broker::embedded) fn open(
        store: Arc<Store>,
        stored: &StoredQueue,
        settings: QueueSettings,
        clock: Clock,
        memory: &Arc<Memory>,
    ) -> Arc<Self> {
        let address = Address::queue(Arc::clone(&stored.name));
        let state = Mutex::new(State::new(address.clone(), stored, settings, memory));
        Arc::new(Self { address, store, clock, state, ready: Notify::new() })
    }

    pub(in crate::broker::embedded) fn settings(&self) -> QueueSettings {
        self.lock().settings.clone()
    }

    /// What the configuration says holds from now on.
    pub(in crate::broker::embedded) fn adopt(&self, settings: QueueSettings) {
        self.lock().adopt(settings);
    }

    /// Being handed over is no attempt from now on.
    pub(in crate::broker::embedded) fn passes_on(&self) {
        self.lock().counts = false;
    }

    /// Gives what was not published, by place. All others are on disk.
    pub(in crate::broker::embedded) async fn publish(
        self: &Arc<Self>,
        mut messages: Vec<Arc<Message>>,
        intake: Intake,
    ) -> Vec<(usize, PublishError)> {
        let count = messages.len();
        let all = |error: PublishError| (0..count).map(|place| (place, error.clone())).collect();
        let bytes = messages.iter().map(|message| message.size()).sum();
        let permit = match super::admit(&self.store, messages.iter().map(|message| &**message), bytes).await {
            Ok(permit) => permit,
            Err(error) => return all(super::refused(&self.address, &error)),
        };
        let now = self.clock.now();
        let ttl = self.lock().settings.ttl;
        if let Some(expires) = ttl.map(|ttl| now.unix.saturating_add(super::millis(ttl))) {
            for message in messages.iter_mut().filter(|message| message.expires_at.is_none_or(|own| expires < own)) {
                Arc::make_mut(message).expires_at = Some(expires);
            }
        }
        let rests = messages.iter().map(|message| record::encode(message)).collect();
        let (answer, answered) = oneshot::channel();
        let (failures, places) = {
            let mut state = self.lock();
            let mut changes = Vec::new();
            let (items, failures) = state.reserve(messages, rests, intake, now, &mut changes);
            if items.is_empty() {
                return failures;
            }
            let queue = Arc::clone(self);
            let then: Then = Box::new(move |result| {
                let is_safe = result.is_ok();
                queue.change(|state, effects| state.arrived(items, is_safe, effects));
                // Whoever published may have gone away.
                drop(answer.send(result));
            });
            self.store.submit(Batch { changes, need: Need::MayFail, permit: Some(permit), then: Some(then) });
            (failures, count)
        };
        let error = match answered.await {
            Ok(Ok(())) => return failures,
            Ok(Err(error)) => super::refused(&self.address, &error),
            Err(_) => PublishError::Closed,
        };
        let mut failures = failures;
        for place in 0..places {
            if failures.iter().all(|(failed, _)| *failed != place) {
                failures.push((place, error.clone()));
            }
        }
        failures.sort_unstable_by_key(|(place, _)| *place);
        failures
    }

    pub(in crate::broker::embedded) fn subscribe(self: &Arc<Self>, prefetch: usize) -> DiskQueueSubscription {
        let room = Arc::new(Notify::new());
        let id = self.lock().join(prefetch, Arc::clone(&room));
        let member = Arc::new(Member { queue: Arc::clone(self), id, room });
        DiskQueueSubscription { settler: Arc::<Member>::clone(&member), member, grants: Grants::default() }
    }

    /// See [`crate::broker::Broker::evict`].
    pub(in crate::broker::embedded) async fn evict(self: &Arc<Self>, max: BatchMax) -> Result<Deliveries, BrokerError> {
        let now = self.clock.now();
        let (answer, safe) = oneshot::channel();
        let items = self.change_then(|state, effects| {
            let items = state.evict(max, now, effects);
            (items, Some(super::answering(answer)))
        });
        if items.is_empty() {
            return Ok(Deliveries::none());
        }
        let member = Member { queue: Arc::clone(self), id: EVICTOR, room: Arc::default() };
        let deliveries = Deliveries::new(items, Arc::new(member));
        super::safely(safe).await?;
        Ok(deliveries)
    }

    pub(in crate::broker::embedded) async fn browse(&self, request: &Browse) -> Result<Page, BrokerError> {
        let after = match &request.at {
            BrowseAt::Start(Start::Latest) => self.lock().last_sequence(),
            BrowseAt::Start(_) => 0,
            BrowseAt::Cursor(text) => text
                .parse()
                .map_err(|_| BrokerError::Invalid(format!("{text:?} is not a cursor of {}", self.address)))?,
        };
        let (id, limit) = (self.lock().id, request.limit.max(1));
        // What was settled a moment ago is not shown.
        let found = match self.store.flush().await {
            Ok(()) => self.store.read_async(move |reader| reader.queue_browse(id, after, limit)).await,
            Err(error) => Err(error),
        };
        let found = found.map_err(|error| BrokerError::Storage(Arc::new(error)))?;
        Ok(Page {
            next: found.last().map_or(after, |stored| stored.key.sequence()).to_string(),
            items: found.into_iter().map(|stored| Browsed { message: stored.message, position: None }).collect(),
            total: self.lock().total(),
        })
    }

    pub(in crate::broker::embedded) fn stats(&self) -> AddressStats {
        self.lock().stats()
    }

    pub(in crate::broker::embedded) fn held(&self) -> Held {
        self.lock().held()
    }

    pub(in crate::broker::embedded) fn close(self: &Arc<Self>) {
        self.change(State::close);
    }

    /// Changes what is behind the lock, hands what is to be written to the store in the order of the changes, and after
    /// that reads what is needed and tells whom it concerns.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, &mut Effects) -> T) -> T {
        self.change_then(|state, effects| (change(state, effects), None))
    }

    /// The same; what `change` gives beside its result is called when the changes are on disk.
    fn change_then<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, &mut Effects) -> (T, Option<Then>)) -> T {
        let mut effects = Effects::default();
        let mut state = self.lock();
        let (result, then) = change(&mut state, &mut effects);
        let changes = std::mem::take(&mut effects.changes);
        let at_once = if changes.is_empty() {
            then
        } else {
            let then = self.then_later(std::mem::take(&mut effects.later), then);
            self.store.submit(Batch { changes, need: Need::MustHappen, permit: None, then });
            None
        };
        drop(state);
        if let Some(then) = at_once {
            then(Ok(()));
        }
        effects.loads.into_iter().for_each(|load| self.load(load));
        if effects.wake_all {
            self.ready.notify_waiters();
        }
        if effects.wake_one {
            self.ready.notify_one();
        }
        effects.rooms.notify();
        result
    }

    /// What waits for its time does so from the moment at which that is on disk: what is read from there has it too.
    fn then_later(self: &Arc<Self>, later: Vec<later::Entry>, then: Option<Then>) -> Option<Then> {
        if later.is_empty() {
            return then;
        }
        let queue = Arc::clone(self);
        Some(Box::new(move |result| {
            if result.is_ok() {
                queue.change(|state, effects| state.put_later(later, effects));
            }
            if let Some(then) = then {
                then(result);
            }
        }))
    }

    /// Reads on a thread of the store, which brings what it found.
    fn load(self: &Arc<Self>, load: Load) {
        let queue = Arc::clone(self);
        match load {
            Load::Page { place, lane, behind, count } => self.store.read(
                move |reader| reader.queue_page(lane, behind, count, lane::PAGE_BYTES),
                move |page| {
                    queue.loaded(page, |state, page, now, effects| state.page_loaded(place, page, now, effects))
                },
            ),
            Load::Due(keys) => self
                .store
                .read(move |reader| reader.queue_messages(&keys), move |found| queue.loaded(found, State::due_loaded)),
            Load::Later(behind) => {
                let id = self.lock().id;
                self.store.read(
                    move |reader| reader.queue_later(id, behind, later::PAGE),
                    move |page| queue.loaded(page, |state, page, _, effects| state.later_loaded(page, effects)),
                );
            }
        }
    }

    fn loaded<T>(
        self: &Arc<Self>,
        found: Result<T, crate::store::StoreError>,
        take: impl FnOnce(&mut State, Option<T>, Now, &mut Effects),
    ) {
        if let Err(error) = &found {
            tracing::error!(queue = %self.address, "messages could not be read from disk: {error}");
        }
        let now = self.clock.now();
        self.change(|state, effects| take(state, found.ok(), now, effects));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic behind the lock is a bug that was reported; the queue goes on with what it has.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader of a queue.
#[derive(Debug)]
pub(in crate::broker::embedded) struct DiskQueueSubscription {
    grants: Grants,
    member: Arc<Member>,
    /// The same, as deliveries name it.
    settler: Arc<dyn Settler>,
}

/// What of a subscription outlives it: settlements and signs of life.
#[derive(Debug)]
struct Member {
    queue: Arc<DiskQueue>,
    id: ReaderId,
    room: Arc<Notify>,
}

#[async_trait]
impl Subscription for DiskQueueSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let Member { queue, id, room } = self.member.as_ref();
        loop {
            let ready = queue.ready.notified();
            let mut wait = (queue.clock.now().tick, false);
            while self.grants.wants_more() {
                let (now, ahead) = (queue.clock.now(), !self.grants.is_empty());
                let (answer, safe) = oneshot::channel();
                let taken = queue.change_then(|state, effects| {
                    let taken = state.take(*id, ahead, max, now, effects);
                    let then = matches!(taken, Taken::Some(_)).then(|| super::answering(answer));
                    (taken, then)
                });
                match taken {
                    Taken::Some(items) => self.grants.push(Deliveries::new(items, Arc::clone(&self.settler)), safe),
                    Taken::Ended => return Ok(None),
                    Taken::Nothing { until, full } => {
                        wait = (until, full);
                        break;
                    }
                }
            }
            let (until, full) = wait;
            if !self.grants.is_empty() {
                return self.grants.next(max).await.map(Some);
            }
            tokio::select! {
                () = ready, if !full => {}
                () = room.notified(), if full => {}
                () = sleep_until(queue.clock.instant(until)) => {}
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::<Member>::clone(&self.member)
    }
}

impl Drop for DiskQueueSubscription {
    fn drop(&mut self) {
        self.member.queue.lock().readers.leave(self.member.id);
    }
}

#[async_trait]
impl Settler for Member {
    /// Holds at once, and is on disk soon: should the process end before, the messages come again as the next attempt.
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let settled = delivery::by_tag(settled);
        super::check(&self.queue.store)?;
        let now = self.queue.clock.now();
        self.queue.change(|state, effects| {
            if state.closed {
                return Err(BrokerError::Closed);
            }
            state.settle(self.id, settled, now, effects);
            Ok(())
        })
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        let now = self.queue.clock.now();
        let (answer, safe) = oneshot::channel();
        let was_out = self.queue.change_then(|state, effects| {
            if state.closed {
                return (Err(BrokerError::Closed), None);
            }
            state.count_attempt(delivery.tag, failure, now, effects);
            (Ok(!effects.changes.is_empty()), Some(super::answering(answer)))
        })?;
        if was_out { super::safely(safe).await } else { Ok(()) }
    }

    fn release(&self, released: Vec<Delivery>) {
        self.queue.change(|state, effects| state.release(self.id, delivery::tags(&released), effects));
    }
}

impl KeepAlive for Member {
    fn renew(&self) {
        let now = self.queue.clock.now();
        self.queue.lock().readers.renew(self.id, now);
    }

    fn every(&self) -> Option<Duration> {
        Some(renew_every(self.queue.lock().settings.lease))
    }
}
