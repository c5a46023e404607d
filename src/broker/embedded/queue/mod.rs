//! A queue: each message is handled by one reader, then gone. This file is the lock and the waiting; what happens
//! behind the lock is in `state.rs`, one priority of it in `lane.rs`.
//!
//! Nobody who waits misses anything: a reader looks, and only then waits, on a wake-up that was armed before it
//! looked. One reader is woken when something is ready, and wakes the next if it left something. All are woken when
//! something is due earlier than they reckoned with.

mod lane;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::sleep_until};

use self::state::{EVICTOR, State, Taken, Wake};
use super::{
    beside::{Held, Intake},
    clock::Clock,
    readers::{ReaderId, renew_every},
};
use crate::{
    broker::{
        AddressStats, BatchMax, BrokerError, Browse, Deliveries, Delivery, KeepAlive, Page, PublishError,
        QueueSettings, Settler, Subscription, delivery,
    },
    message::{Address, FailedAttempt, Message, Settlement},
};

/// One queue of the embedded broker.
#[derive(Debug)]
pub(super) struct Queue {
    clock: Clock,
    lease: Duration,
    state: Mutex<State>,
    ready: Notify,
}

impl Queue {
    pub(super) fn new(name: Arc<str>, settings: QueueSettings, clock: Clock) -> Self {
        Self {
            clock,
            lease: settings.lease,
            state: Mutex::new(State::new(Address::queue(name), settings)),
            ready: Notify::new(),
        }
    }

    pub(super) fn settings(&self) -> QueueSettings {
        self.lock().settings.clone()
    }

    /// Gives what was not published, by place.
    pub(super) fn publish(&self, messages: Vec<Arc<Message>>, intake: Intake) -> Vec<(usize, PublishError)> {
        let now = self.clock.now();
        self.change(|state, wake| state.publish(messages, intake, now, wake))
    }

    pub(super) fn held(&self) -> Held {
        let stats = self.stats();
        Held { messages: stats.ready + stats.delayed + stats.unsettled, bytes: stats.bytes, arriving: 0 }
    }

    pub(super) fn subscribe(self: &Arc<Self>, prefetch: usize) -> QueueSubscription {
        let room = Arc::new(Notify::new());
        let id = self.lock().join(prefetch, Arc::clone(&room));
        let member = Arc::new(Member { queue: Arc::clone(self), id, room });
        QueueSubscription { settler: Arc::<Member>::clone(&member), member }
    }

    /// See [`Broker::evict`](crate::broker::Broker::evict).
    pub(super) fn evict(self: &Arc<Self>, max: BatchMax) -> Deliveries {
        let now = self.clock.now();
        let items = self.change(|state, wake| state.evict(max, now, wake));
        if items.is_empty() {
            return Deliveries::none();
        }
        Deliveries::new(items, Arc::new(Member { queue: Arc::clone(self), id: EVICTOR, room: Arc::default() }))
    }

    pub(super) fn browse(&self, request: &Browse) -> Result<Page, BrokerError> {
        self.lock().browse(&request.at, request.limit)
    }

    pub(super) fn stats(&self) -> AddressStats {
        self.lock().stats()
    }

    pub(super) fn close(&self) {
        let now = self.clock.now();
        self.change(|state, wake| state.close(now, wake));
    }

    /// Changes what is behind the lock, and tells whom it concerns after the lock is released.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Wake) -> T) -> T {
        let mut wake = Wake::default();
        let result = change(&mut self.lock(), &mut wake);
        if wake.all {
            self.ready.notify_waiters();
        }
        if wake.one {
            self.ready.notify_one();
        }
        wake.rooms.notify();
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic behind the lock is a bug that was reported; the queue goes on with what it has.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader of a queue.
#[derive(Debug)]
pub(super) struct QueueSubscription {
    member: Arc<Member>,
    /// The same, as deliveries name it.
    settler: Arc<dyn Settler>,
}

/// What of a subscription outlives it: settlements and signs of life.
#[derive(Debug)]
struct Member {
    queue: Arc<Queue>,
    id: ReaderId,
    room: Arc<Notify>,
}

#[async_trait]
impl Subscription for QueueSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let Member { queue, id, room } = self.member.as_ref();
        loop {
            let ready = queue.ready.notified();
            let now = queue.clock.now();
            let (until, full) = match queue.change(|state, wake| state.take(*id, max, now, wake)) {
                Taken::Some(items) => return Ok(Some(Deliveries::new(items, Arc::clone(&self.settler)))),
                Taken::Ended => return Ok(None),
                Taken::Nothing { until, full } => (until, full),
            };
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

impl Drop for QueueSubscription {
    fn drop(&mut self) {
        self.member.queue.lock().readers.leave(self.member.id);
    }
}

#[async_trait]
impl Settler for Member {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let settled = delivery::by_tag(settled);
        let now = self.queue.clock.now();
        self.queue.change(|state, wake| {
            if state.closed {
                return Err(BrokerError::Closed);
            }
            state.settle(self.id, settled, now, wake);
            Ok(())
        })
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        let now = self.queue.clock.now();
        let mut state = self.queue.lock();
        if state.closed {
            return Err(BrokerError::Closed);
        }
        state.count_attempt(delivery.tag, failure, now);
        Ok(())
    }

    fn release(&self, released: Vec<Delivery>) {
        let now = self.queue.clock.now();
        self.queue.change(|state, wake| state.release(self.id, delivery::tags(&released), now, wake));
    }
}

impl KeepAlive for Member {
    fn renew(&self) {
        let now = self.queue.clock.now();
        self.queue.lock().readers.renew(self.id, now);
    }

    fn every(&self) -> Option<Duration> {
        Some(renew_every(self.queue.lease))
    }
}

/// Milliseconds, at most.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
