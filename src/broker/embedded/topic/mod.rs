//! A topic: messages stay for their retention, and each group reads all of them. This file is the lock and the
//! waiting; `state.rs` is what happens behind the lock: logs by partition (`log.rs`), and groups (`group.rs`) with
//! their progress in each (`progress.rs`).
//!
//! Each reader has a wake-up of its own, armed whenever there is something for it in a partition that it reads, so
//! it misses nothing between looking and waiting.

mod browse;
mod group;
mod log;
pub(super) mod partition;
mod progress;
mod state;
mod window;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::sleep_until};

use self::{
    group::Taken,
    state::{GroupId, State},
};
use super::{
    clock::Clock,
    readers::{ReaderId, Wakes, renew_every},
};
use crate::{
    broker::{
        AddressStats, BatchMax, BrokerError, Browse, Deliveries, Delivery, KeepAlive, Page, PublishError, Settler,
        Subscribe, Subscription, TopicSettings, delivery,
    },
    message::{Address, FailedAttempt, Message, Settlement},
};

/// Most messages that looking at a topic takes away for their age.
const AGED_MAX: usize = 4096;

/// One topic of the embedded broker.
#[derive(Debug)]
pub(super) struct Topic {
    clock: Clock,
    lease: Duration,
    state: Mutex<State>,
}

impl Topic {
    pub(super) fn new(name: Arc<str>, settings: TopicSettings, clock: Clock) -> Self {
        Self { clock, lease: settings.lease, state: Mutex::new(State::new(Address::topic(name), settings)) }
    }

    pub(super) fn settings(&self) -> TopicSettings {
        self.lock().settings.clone()
    }

    /// Gives what was not published, by place.
    pub(super) fn publish(&self, messages: Vec<Arc<Message>>, bytes_max: usize) -> Vec<(usize, PublishError)> {
        let now = self.clock.now();
        let mut old = Vec::new();
        self.change(|state, wakes| state.publish(messages, bytes_max, now, wakes, &mut old))
    }

    pub(super) fn subscribe(self: &Arc<Self>, request: &Subscribe) -> TopicSubscription {
        self.retain();
        let wake = Arc::new(Notify::new());
        let (group, reader) = self.change(|state, wakes| {
            state.join(&request.group, request.start, request.prefetch, Arc::clone(&wake), wakes)
        });
        let member = Arc::new(Member { topic: Arc::clone(self), group, reader, wake });
        TopicSubscription { settler: Arc::<Member>::clone(&member), member }
    }

    pub(super) fn browse(&self, request: &Browse) -> Result<Page, BrokerError> {
        self.retain();
        browse::browse(&self.lock(), &request.at, request.limit)
    }

    pub(super) fn stats(&self) -> AddressStats {
        self.retain();
        let now = self.clock.now();
        self.lock().stats(now)
    }

    pub(super) fn close(&self) {
        let now = self.clock.now();
        self.change(|state, wakes| state.close(now, wakes));
    }

    /// Applies retention where nothing is published that would.
    fn retain(&self) {
        let now = self.clock.now();
        let mut old = Vec::new();
        self.lock().retain(AGED_MAX, now, &mut old);
    }

    /// Changes what is behind the lock, and tells whom it concerns after the lock is released.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Wakes) -> T) -> T {
        let mut wakes = Wakes::default();
        let result = change(&mut self.lock(), &mut wakes);
        wakes.notify();
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic behind the lock is a bug that was reported; the topic goes on with what it has.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader of a topic.
#[derive(Debug)]
pub(super) struct TopicSubscription {
    member: Arc<Member>,
    /// The same, as deliveries name it.
    settler: Arc<dyn Settler>,
}

/// What of a subscription outlives it: settlements and signs of life.
#[derive(Debug)]
struct Member {
    topic: Arc<Topic>,
    group: GroupId,
    reader: ReaderId,
    wake: Arc<Notify>,
}

#[async_trait]
impl Subscription for TopicSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let Member { topic, group, reader, wake } = self.member.as_ref();
        loop {
            let now = topic.clock.now();
            let until = match topic.change(|state, wakes| state.take(*group, *reader, max, now, wakes)) {
                Taken::Some(items) => return Ok(Some(Deliveries::new(items, Arc::clone(&self.settler)))),
                Taken::Ended => return Ok(None),
                Taken::Nothing { until } => until,
            };
            tokio::select! {
                () = wake.notified() => {}
                () = sleep_until(topic.clock.instant(until)) => {}
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::<Member>::clone(&self.member)
    }
}

impl Drop for TopicSubscription {
    fn drop(&mut self) {
        let Member { topic, group, reader, .. } = self.member.as_ref();
        topic.change(|state, wakes| state.leave(*group, *reader, wakes));
    }
}

#[async_trait]
impl Settler for Member {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let settled = delivery::by_tag(settled);
        let now = self.topic.clock.now();
        self.topic.change(|state, wakes| {
            if state.closed {
                return Err(BrokerError::Closed);
            }
            state.settle(self.group, self.reader, settled, now, wakes);
            Ok(())
        })
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        let now = self.topic.clock.now();
        let mut state = self.topic.lock();
        if state.closed {
            return Err(BrokerError::Closed);
        }
        state.count_attempt(self.group, delivery.tag, failure, now);
        Ok(())
    }

    fn release(&self, released: Vec<Delivery>) {
        let now = self.topic.clock.now();
        let released =
            delivery::tags(&released).into_iter().map(|tag| (tag, Settlement::Release { after: Duration::ZERO }));
        self.topic.change(|state, wakes| state.settle(self.group, self.reader, released, now, wakes));
    }
}

impl KeepAlive for Member {
    fn renew(&self) {
        let now = self.topic.clock.now();
        self.topic.lock().renew(self.group, self.reader, now);
    }

    fn every(&self) -> Option<Duration> {
        Some(renew_every(self.topic.lease))
    }
}
