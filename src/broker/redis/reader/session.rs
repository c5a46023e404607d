//! A reader as others see it: a subscription that hands out, a settler that takes back, and what keeps leases.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use super::{
    super::{errors, place::Place, scripts, shared::Shared},
    state::State,
    work::{Item, Waiter},
};
use crate::{
    broker::{BatchMax, BrokerError, Deliveries, Delivery, KeepAlive, Settler, Subscription},
    message::{FailedAttempt, Settlement, remember},
};

/// Who takes so many at a time is back for more at once: it should find some.
const MANY: usize = 64;

/// What a reader and its task share.
#[derive(Debug)]
pub(in crate::broker::redis) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) place: Arc<Place>,
    /// The group that it reads for.
    pub(super) group: Arc<str>,
    /// How the names of keys end that are this group's alone.
    pub(super) side: String,
    /// Its name on the server.
    pub(super) name: String,
    pub(super) streams: Vec<String>,
    pub(super) lease: Duration,
    state: Mutex<State>,
    /// Something can be handed out, or never will.
    arrived: Notify,
    /// There is something to do for the task.
    pub(super) changed: Notify,
}

impl Session {
    pub(in crate::broker::redis) fn new(
        shared: Arc<Shared>,
        place: Arc<Place>,
        group: Arc<str>,
        side: String,
        prefetch: usize,
    ) -> Self {
        let (streams, lease) = (place.streams(), place.known().lease);
        let per_level = if streams.len() > 1 { 2 } else { 1 };
        let name = shared.reader_name();
        let state = Mutex::new(State::new(prefetch, per_level));
        let (arrived, changed) = Default::default();
        Self { shared, place, group, side, name, streams, lease, state, arrived, changed }
    }

    /// Its name on the server.
    pub(in crate::broker::redis) fn reader(&self) -> &str {
        &self.name
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out nothing any more: what waits is for others.
    pub(in crate::broker::redis) fn end(&self) {
        self.state().end();
        self.arrived.notify_one();
        self.changed.notify_one();
    }

    /// Everything goes back, wherever it is.
    pub(in crate::broker::redis) fn close(&self) {
        let out = self.state().close();
        self.place.back(out);
        self.arrived.notify_one();
        self.changed.notify_one();
    }

    /// Something came.
    pub(super) fn arrived(&self) {
        self.arrived.notify_one();
    }

    /// All of these are out from now on.
    pub(in crate::broker::redis) fn hand_out(self: &Arc<Self>, items: Vec<Item>) -> Deliveries {
        let (now, count) = (Instant::now(), items.len());
        let mut state = self.state();
        let deliveries = items.into_iter().map(|item| state.hand_out(item, now)).collect();
        drop(state);
        self.place.out(count);
        Deliveries::new(deliveries, Arc::clone(self) as Arc<dyn Settler>)
    }

    /// Waits until the server knows all that was said before.
    pub(in crate::broker::redis) async fn flush(&self) -> Result<(), BrokerError> {
        if !self.state().has_work() {
            return Ok(());
        }
        self.confirmed(|_| ()).await
    }

    async fn confirmed(&self, say: impl FnOnce(&mut State)) -> Result<(), BrokerError> {
        let (waiter, confirmed): (Waiter, _) = oneshot::channel();
        {
            let mut state = self.state();
            if state.is_closed {
                return Err(BrokerError::Closed);
            }
            say(&mut state);
            state.waits(waiter);
        }
        self.changed.notify_one();
        let patience = self.shared.settings.publish_timeout;
        match timeout(patience, confirmed).await {
            Ok(Ok(confirmed)) => confirmed,
            Ok(Err(_)) => Err(BrokerError::Closed),
            // It is told all the same, as soon as that can be done.
            Err(_) => Err(BrokerError::Unreachable {
                endpoint: self.shared.settings.endpoint(),
                timeout: patience,
                cause: self.shared.consume.away().unwrap_or_else(|| "it did not answer".to_owned()).into(),
            }),
        }
    }
}

#[async_trait]
impl Settler for Session {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let mut came_to = Default::default();
        let confirmed = self.confirmed(|state| came_to = state.settle(settled)).await;
        self.place.back(came_to.back);
        if confirmed.is_ok() {
            self.place.dead_lettered(came_to.dead);
        }
        confirmed
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        let lost = || BrokerError::Lost("somebody else may have this delivery by now".to_owned());
        let Some(((stream, id), count)) = self.state().entry_of(delivery.tag) else { return Err(lost()) };
        let stream = self.streams.get(usize::from(stream)).map_or("", String::as_str);
        let mut failures = delivery.failures.clone();
        remember(&mut failures, failure);
        let notes = serde_json::to_string(&failures).unwrap_or_default();
        let up = self.shared.connected().await?;
        let answer = up
            .run(&scripts::BACK, |command| {
                command.arg(&self.place.base).arg(&*self.group).arg(&self.side).arg(&self.name);
                command.arg(stream).arg(id.to_string()).arg(count).arg(count.saturating_add(1)).arg(&self.name);
                command.arg(0).arg(&notes);
            })
            .await;
        match answer {
            Ok(answer) if self.ours(answer.clone(), 1) == [true] => {
                self.state().counted(delivery.tag);
                Ok(())
            }
            Ok(_) => Err(lost()),
            Err(error) => Err(errors::seam(&self.shared.settings, &error)),
        }
    }

    fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        self.state().lost(deliveries, self.lease, Instant::now())
    }

    fn release(&self, released: Vec<Delivery>) {
        let count = self.state().give_back(released);
        self.place.back(count);
        self.arrived.notify_one();
        self.changed.notify_one();
    }
}

impl KeepAlive for Session {
    fn renew(&self) {
        self.state().renew(Instant::now());
        self.changed.notify_one();
    }

    fn every(&self) -> Option<Duration> {
        Some(self.lease / 3)
    }
}

/// Somebody waits for something to hand out, as long as it lives.
struct Waits<'a>(&'a Session);

impl<'a> Waits<'a> {
    fn begin(session: &'a Session) -> Self {
        session.state().is_waited_for = true;
        session.changed.notify_one();
        Self(session)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.state().is_waited_for = false;
    }
}

/// Reads a queue or topic.
#[derive(Debug)]
pub(in crate::broker::redis) struct RedisSubscription(pub(in crate::broker::redis) Arc<Session>);

#[async_trait]
impl Subscription for RedisSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let session = &self.0;
        loop {
            let (taken, is_low) = {
                let mut state = session.state();
                if state.is_closed {
                    return Ok(None);
                }
                let now = Instant::now();
                state.asked_at = now;
                let taken = state.take(max, now);
                // Who takes all that is there has not said that there should be more, unless it goes through many at a time.
                let asks = taken.is_empty() || state.has_waiting() || taken.len() >= MANY;
                state.was_asked |= asks;
                (taken, asks && state.room() * 4 >= state.prefetch())
            };
            if is_low {
                session.changed.notify_one();
            }
            if !taken.is_empty() {
                session.place.out(taken.len());
                let settler = Arc::clone(session) as Arc<dyn Settler>;
                return Ok(Some(Deliveries::new(taken, settler)));
            }
            let _waits = Waits::begin(session);
            session.arrived.notified().await;
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::clone(&self.0) as Arc<dyn KeepAlive>
    }
}

impl Drop for RedisSubscription {
    fn drop(&mut self) {
        self.0.end();
    }
}
