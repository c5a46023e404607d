//! A reader of a topic on disk: what is handed over to it, and what it tells of that.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};

use super::{
    DiskTopic,
    effects::{Batch, Follow},
    state::{GroupKey, Taken},
    unusable,
};
use crate::{
    broker::{
        BatchMax, BrokerError, Deliveries, Delivery, KeepAlive, Settler, Subscription, delivery,
        embedded::{
            clock::Tick,
            disk::grants::Grants,
            readers::{ReaderId, renew_every},
        },
    },
    message::{FailedAttempt, Settlement},
};

/// One reader of a topic on disk.
#[derive(Debug)]
pub(in crate::broker::embedded) struct DiskTopicSubscription {
    grants: Grants,
    member: Arc<Member>,
    /// The same, as deliveries name it.
    settler: Arc<dyn Settler>,
}

/// What of a subscription outlives it: settlements and signs of life.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) topic: Arc<DiskTopic>,
    pub(super) group: GroupKey,
    pub(super) reader: ReaderId,
    pub(super) wake: Arc<Notify>,
}

/// What looking for more came to.
enum Looked {
    /// Enough is handed over.
    Enough,
    /// These, which need not be written down first.
    AtOnce(Deliveries),
    /// There is no more for now: look again at that time, or when woken.
    NoMore(Tick),
    Ended,
}

impl DiskTopicSubscription {
    pub(super) fn new(member: Member) -> Self {
        let member = Arc::new(member);
        Self { grants: Grants::default(), settler: Arc::<Member>::clone(&member), member }
    }

    /// Hands over as much as the reader is fast.
    fn look(&mut self, max: BatchMax) -> Result<Looked, BrokerError> {
        let Member { topic, group, reader, .. } = self.member.as_ref();
        while self.grants.wants_more() {
            let (now, ahead) = (topic.clock.now(), !self.grants.is_empty());
            let (answer, safe) = oneshot::channel();
            let (taken, at_once) = topic.change(|state, effects| {
                let mut taken = state.take(*group, *reader, ahead, max, now, effects);
                let mut at_once = false;
                if let Taken::Some(_, changes) = &mut taken {
                    let changes = std::mem::take(changes);
                    at_once = changes.is_empty();
                    effects.batches.push(Batch { changes, follow: Follow::Answer(answer) });
                }
                (taken, at_once)
            });
            match taken {
                Taken::Some(items, _) => {
                    let deliveries = Deliveries::new(items, Arc::clone(&self.settler));
                    if at_once {
                        return Ok(Looked::AtOnce(deliveries));
                    }
                    self.grants.push(deliveries, safe);
                }
                Taken::Nothing { until } => return Ok(Looked::NoMore(until)),
                Taken::Failed(error) => return Err(unusable(error)),
                Taken::Ended => return Ok(Looked::Ended),
            }
        }
        Ok(Looked::Enough)
    }
}

#[async_trait]
impl Subscription for DiskTopicSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        loop {
            let until = match self.look(max)? {
                Looked::AtOnce(deliveries) => return Ok(Some(deliveries)),
                Looked::Ended => return Ok(None),
                Looked::Enough => None,
                Looked::NoMore(until) => Some(until),
            };
            if !self.grants.is_empty() {
                return self.grants.next(max).await.map(Some);
            }
            let Member { topic, wake, .. } = self.member.as_ref();
            tokio::select! {
                () = wake.notified() => {}
                () = sleep_until(topic.clock.instant(until.unwrap_or_default())) => {}
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::<Member>::clone(&self.member)
    }
}

impl Drop for DiskTopicSubscription {
    fn drop(&mut self) {
        // What was handed over ahead goes back first.
        self.grants = Grants::default();
        let Member { topic, group, reader, .. } = self.member.as_ref();
        topic.change(|state, effects| state.leave(*group, *reader, effects));
    }
}

#[async_trait]
impl Settler for Member {
    /// Holds at once, and is on disk soon: should the process end before, the messages come again as the next attempt.
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let settled = delivery::by_tag(settled);
        crate::broker::embedded::disk::check(&self.topic.store)?;
        let now = self.topic.clock.now();
        self.topic.change(|state, effects| {
            if state.closed {
                return Err(BrokerError::Closed);
            }
            state.settle(self.group, self.reader, settled, now, effects);
            Ok(())
        })
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        let now = self.topic.clock.now();
        let (answer, safe) = oneshot::channel();
        let written = self.topic.change(|state, effects| {
            if state.closed {
                return Err(BrokerError::Closed);
            }
            let changes = state.count_attempt(self.group, delivery.tag, failure, now);
            let any = !changes.is_empty();
            if any {
                effects.batches.push(Batch { changes, follow: Follow::Answer(answer) });
            }
            Ok(any)
        })?;
        if written { crate::broker::embedded::disk::safely(safe).await } else { Ok(()) }
    }

    fn release(&self, released: Vec<Delivery>) {
        let now = self.topic.clock.now();
        let released =
            delivery::tags(&released).into_iter().map(|tag| (tag, Settlement::Release { after: Duration::ZERO }));
        self.topic.change(|state, effects| state.settle(self.group, self.reader, released, now, effects));
    }
}

impl KeepAlive for Member {
    fn renew(&self) {
        let now = self.topic.clock.now();
        self.topic.lock().renew(self.group, self.reader, now);
    }

    fn every(&self) -> Option<Duration> {
        Some(renew_every(self.topic.lock().settings.lease))
    }
}
