//! A guard around a networked system: while it is away, publishing to it fails at once instead of after a time limit, or
//! the messages wait here and follow when it is back. In: any broker. Out: the same for reading; publishing goes through a
//! circuit breaker and, where a fallback is configured, never ends with an outage.
//!
//! The spool is a queue of the embedded broker for each queue or topic (`spool.rs`), and a task that brings it to the
//! system (`drain.rs`). From the first message that is spooled until the last has left, everything for that queue or topic
//! goes behind it, so that messages of one key keep their order. A message may come twice, under the same id.
//!
//! `breaker.rs` decides about the system, `backlog.rs` about each queue or topic: both are pure, and behind the one lock of
//! `shared.rs`. Who publishes while all is well passes them with one look at a flag.
//!
//! Start at [`Guarded`], then `shared.rs`.

mod ages;
mod ahead;
mod backlog;
mod breaker;
mod drain;
mod orphans;
mod outcome;
mod pass;
mod patrol;
mod settings;
mod shared;
mod spool;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::orphans::Orphan;
pub(super) use self::orphans::orphans;
use self::{
    breaker::{Ended, Permit},
    drain::Drain,
    outcome::is_outage,
    shared::{Shared, Way},
    spool::Place,
};
pub use self::{
    settings::{CircuitSettings, Fallback, GuardSettings, SpoolSettings},
    spool::{SPOOL_PREFIX, is_spool},
};
use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Circuit, ConnectionState,
    Declaration, Deliveries, Page, PublishError, PublishFailures, Subscribe, Subscription, System, embedded::Embedded,
};
use crate::message::{Address, Message};

/// How long what is on its way out of the spool may take when the broker is closed; it comes again at the next start.
const CLOSING: Duration = Duration::from_secs(2);
/// How long a publisher whose messages are kept waits for those before them, so that the spool of a system that is well
/// gets shorter.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// A broker that publishers need not wait for while it is away.
#[derive(Debug)]
pub struct Guarded {
    shared: Arc<Shared>,
    /// The patrol, and the drains.
    tasks: Mutex<JoinSet<()>>,
    stop: CancellationToken,
}

impl Guarded {
    /// Guards `inner`; what waits for it is in queues of `embedded`. What an earlier run left there is drained, whatever
    /// the fallback is now. Close it before `embedded`.
    ///
    /// Needs a tokio runtime with time enabled.
    #[must_use]
    pub fn new(inner: Arc<dyn Broker>, embedded: Arc<Embedded>, settings: GuardSettings) -> Self {
        let left_over = spool::left_over(&embedded, inner.name(), settings.fallback);
        let guarded = Self {
            shared: Arc::new(Shared::new(inner, embedded, settings)),
            tasks: Mutex::default(),
            stop: CancellationToken::new(),
        };
        for (to, place) in left_over {
            let held = place.held(&guarded.shared.embedded);
            tracing::info!(broker = &*guarded.shared.name, "{} messages wait for {to} since before", held.messages);
            guarded.shared.found(&to, &place);
            guarded.drain(to, place);
        }
        let (shared, stop) = (Arc::clone(&guarded.shared), guarded.stop.clone());
        guarded.begin(patrol::run(shared, stop));
        guarded
    }

    /// Begins to drain what waits for an address.
    fn drain(&self, to: Address, place: Place) {
        let drain = Drain { shared: Arc::clone(&self.shared), to, place, stop: self.stop.clone() };
        self.begin(drain.run());
    }

    fn begin(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            tell_of_a_panic(ended);
        }
        tasks.spawn(task);
    }

    /// Publishes to the system itself; what ends in an outage is kept, where that is configured.
    async fn publish_direct(
        &self,
        to: &Address,
        messages: Vec<Arc<Message>>,
        permit: Permit,
    ) -> Result<(), PublishFailures> {
        let count = messages.len();
        let kept = (self.shared.settings.fallback != Fallback::None).then(|| messages.clone());
        let mut leave = Leave { shared: &self.shared, permit: Some(permit) };
        let failures = match self.shared.inner.publish(to, messages).await {
            Ok(()) => {
                if permit != Permit::Direct || !self.shared.is_calm() {
                    leave.ended(Ended::Answered);
                }
                return Ok(());
            }
            Err(PublishFailures(failures)) => failures,
        };
        leave.ended(outcome::judge(&failures, count));
        let Some(messages) = kept else { return Err(PublishFailures(failures)) };
        let failures = self.keep_what_failed(to, &messages, failures).await;
        if failures.is_empty() { Ok(()) } else { Err(PublishFailures(failures)) }
    }

    /// Keeps what failed because of an outage, and what has the same key behind it. Gives what failed for good.
    async fn keep_what_failed(
        &self,
        to: &Address,
        messages: &[Arc<Message>],
        failures: Vec<(usize, PublishError)>,
    ) -> Vec<(usize, PublishError)> {
        let (outages, mut failures): (Vec<_>, Vec<_>) = failures.into_iter().partition(|(_, error)| is_outage(error));
        if outages.is_empty() {
            return failures;
        }
        let is_kept = outcome::with_followers(messages, outages.iter().map(|(place, _)| *place));
        // The publisher has what was refused, and decides about it.
        let places: Vec<usize> = (0..messages.len())
            .filter(|place| is_kept.get(*place).is_some_and(|is_kept| *is_kept))
            .filter(|place| failures.iter().all(|(refused, _)| refused != place))
            .collect();
        let kept = places.iter().filter_map(|place| messages.get(*place).cloned()).collect();
        let not_kept = self.spool(to, kept).await.into_iter();
        // What was confirmed is there in any case.
        let failed = |place: &usize| outages.iter().any(|(outage, _)| outage == place);
        failures.extend(
            not_kept.filter_map(|(nth, error)| Some((*places.get(nth)?, error))).filter(|(place, _)| failed(place)),
        );
        failures.sort_unstable_by_key(|(place, _)| *place);
        failures
    }

    /// Keeps messages behind what waits. While the system is well, it waits until twice as much has left as all publishers
    /// have brought: they would never let the spool run empty otherwise.
    async fn publish_behind(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let enough = self.shared.owes(to, messages.len() as u64);
        let failures = self.spool(to, messages).await;
        let until = Instant::now() + BEHIND_MAX;
        loop {
            let changed = self.shared.changed.notified();
            if !self.shared.is_behind(to, enough) || timeout_at(until, changed).await.is_err() {
                break;
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(PublishFailures(failures)) }
    }
}

/// Leave to publish: whoever goes away without an end has learnt nothing.
struct Leave<'a> {
    shared: &'a Shared,
    permit: Option<Permit>,
}

impl Leave<'_> {
    fn ended(&mut self, how: Ended) {
        if let Some(permit) = self.permit.take() {
            self.shared.ended(permit, how);
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if let Some(permit @ Permit::Probe(_)) = self.permit.take() {
            self.shared.ended(permit, Ended::Unclear);
        }
    }
}

#[async_trait]
impl Broker for Guarded {
    fn name(&self) -> &str {
        self.shared.inner.name()
    }

    fn name_of(&self, address: &Address) -> Arc<str> {
        self.shared.inner.name_of(address)
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.inner.capabilities()
    }

    /// What is kept here counts as published. While the system is away and nothing is kept, the error is there at once.
    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        if self.shared.is_calm() {
            return self.publish_direct(to, messages, Permit::Direct).await;
        }
        match self.shared.way(to) {
            Way::Direct(permit) => self.publish_direct(to, messages, permit).await,
            Way::Behind => self.publish_behind(to, messages).await,
            Way::Nowhere(error) => {
                Err(PublishFailures((0..messages.len()).map(|place| (place, error.clone())).collect()))
            }
        }
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.shared.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        self.shared.inner.subscribe(request).await
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        self.shared.inner.evict(from, max).await
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.shared.inner.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        let mut stats = self.shared.inner.stats();
        stats.retain(|stats| !is_spool(&stats.address));
        stats
    }

    fn status(&self) -> BrokerStatus {
        self.shared.status()
    }

    fn connection(&self) -> ConnectionState {
        self.shared.inner.connection()
    }

    async fn answers(&self) -> Result<(), BrokerError> {
        self.shared.inner.answers().await
    }

    fn circuit(&self, _: &Address) -> Option<watch::Receiver<Circuit>> {
        (self.shared.settings.fallback == Fallback::None).then(|| self.shared.watched())
    }

    fn systems(&self) -> Vec<System> {
        let guard = |system| System {
            status: self.status(),
            circuit: self.shared.circuit(),
            spool: self.shared.stats(),
            ..system
        };
        self.shared.inner.systems().into_iter().map(guard).collect()
    }

    /// What is on its way out of the spool is waited for, for a moment; the rest stays there.
    async fn close(&self) {
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                tell_of_a_panic(ended);
            }
        };
        if timeout(CLOSING, all).await.is_err() {
            tasks.shutdown().await;
        }
        self.shared.inner.close().await;
        // Whoever guards the system next finds everything.
        if let Err(error) = self.shared.embedded.flush().await {
            tracing::warn!(broker = self.name(), "what has left the spool may come again: {error}");
        }
        let waits = self.shared.stats().map_or(0, |stats| stats.messages);
        let in_memory = self.shared.in_memory();
        for (messages, fate) in [
            (waits.saturating_sub(in_memory), "stay on disk, and follow when it is used again"),
            (in_memory, "stay in memory, and are gone when the engine ends, unless it is used again before"),
        ] {
            if messages > 0 {
                tracing::warn!(broker = self.name(), "{messages} messages that it did not take {fate}");
            }
        }
    }
}

fn tell_of_a_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("what drains the spool failed, and goes on at the next start: {error}");
    }
}
