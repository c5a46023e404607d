//! Out of the spool: one task for each queue or topic with a backlog brings it to its system, in order, until nothing is
//! left. What the system confirmed is settled then and only then (Invariant 2), so that a process that ends in between
//! brings it again, and loses nothing.
//!
//! What the system does not take stays, with what has the same key behind it, and is tried again.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    backlog::Front,
    breaker::Permit,
    outcome::{self, is_outage},
    shared::Shared,
    spool,
};
use crate::{
    broker::{Aside, BatchMax, Broker, BrokerError, Circuit, Deliveries, PublishError, Start, Subscribe, Subscription},
    message::{Address, Message, Settlement},
    telemetry::metrics,
};

/// What is published and settled together.
const BATCH: BatchMax = BatchMax { count: 4096, bytes: 4 << 20 };
/// Read ahead of it.
const PREFETCH: usize = 4 * BATCH.count;
/// How often to look whether something has come, or whether nothing is left.
const LOOK: Duration = Duration::from_millis(100);
/// How long to wait after a system did not answer, at most; and after it refused what is in front.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Brings what waits for one queue or topic to its system.
pub(super) struct Drain {
    pub(super) shared: Arc<Shared>,
    pub(super) to: Address,
    pub(super) queue: Address,
    pub(super) stop: CancellationToken,
}

/// How a pass over the backlog ended.
enum Passed {
    /// Nothing is left.
    Empty,
    Stopped,
    /// Something stays for now.
    Held {
        progressed: bool,
        refused: bool,
    },
}

impl Drain {
    /// Runs until nothing is left, or until it is stopped; a batch that is on its way is waited for.
    pub(super) async fn run(self) {
        let (mut pause, mut is_careful) = (PAUSE_MIN, false);
        let mut circuit = self.shared.watched();
        loop {
            match self.pass(is_careful).await {
                Passed::Empty | Passed::Stopped => return,
                Passed::Held { progressed, refused } => {
                    is_careful = true;
                    if progressed {
                        pause = PAUSE_MIN;
                    }
                    let max = if refused { REFUSED_PAUSE_MAX } else { PAUSE_MAX };
                    let is_open = *circuit.borrow_and_update() == Circuit::Open;
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        Ok(()) = circuit.changed(), if is_open => {}
                        () = sleep(pause.min(max)) => {}
                    }
                    pause = (pause * 2).min(max);
                }
            }
        }
    }

    /// From the first that waits on. A subscription of its own, so that what was given back comes first again. After a
    /// failure (`is_careful`) the first goes alone: should it fail again, nothing behind it was published in vain.
    async fn pass(&self, is_careful: bool) -> Passed {
        let mut reader = match self.reader().await {
            Ok(reader) => reader,
            Err(BrokerError::Closed) => return Passed::Stopped,
            Err(error) => {
                tracing::error!(broker = &*self.shared.name, "what waits for {} cannot be read: {error}", self.to);
                return Passed::Held { progressed: false, refused: true };
            }
        };
        let mut progressed = false;
        loop {
            if self.is_done().await {
                return Passed::Empty;
            }
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Passed::Stopped,
                next = timeout(LOOK, reader.next(BATCH)) => next,
            };
            let batch = match next {
                Err(_) => continue,
                Ok(Ok(Some(batch))) => batch,
                Ok(Ok(None)) => return Passed::Stopped,
                Ok(Err(error)) => {
                    tracing::debug!(queue = %self.queue, "nothing is read: {error}");
                    return Passed::Held { progressed, refused: true };
                }
            };
            match self.carry(batch, is_careful, &mut progressed).await {
                Some(Passed::Held { refused, .. }) => return Passed::Held { progressed, refused },
                Some(ended) => return ended,
                None => {}
            }
        }
    }

    async fn reader(&self) -> Result<Box<dyn Subscription>, BrokerError> {
        // One of an earlier run has the settings of others until it is taken over.
        let settings = spool::settings(self.shared.settings.fallback);
        self.shared.embedded.keep_queue(Arc::clone(&self.queue.name), settings).await?;
        let request = Subscribe {
            from: self.queue.clone(),
            group: "".into(),
            start: Start::Earliest,
            prefetch: PREFETCH,
            workers: 1,
            aside: Aside::Local,
        };
        self.shared.embedded.subscribe(request).await
    }

    /// Whether nothing is left, in which case publishers pass by from here on: whatever has left is settled on disk by
    /// then, so that it does not come again behind them.
    async fn is_done(&self) -> bool {
        let held = || self.shared.embedded.held(&self.queue);
        if !self.shared.is_empty(&self.to, held) {
            return false;
        }
        if let Err(error) = self.shared.embedded.flush().await {
            tracing::warn!(broker = &*self.shared.name, "what has left the spool may come again: {error}");
        }
        self.shared.end(&self.to, held)
    }

    /// Publishes a batch, as far as the circuit lets it. `None`: all of it has left. What has not goes back.
    async fn carry(&self, mut batch: Deliveries, is_careful: bool, progressed: &mut bool) -> Option<Passed> {
        while !batch.is_empty() {
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Some(Passed::Stopped),
                permit = self.permit() => permit,
            };
            let part = batch.take_front(match permit {
                Permit::Probe(_) => 1,
                Permit::Direct if is_careful && !*progressed => 1,
                Permit::Direct => self.shared.settings.spool.drain_per_second.map_or(BATCH.count, share),
            });
            let ended = self.publish(part, permit, progressed).await;
            if ended.is_some() {
                return ended;
            }
            if let Some(due) = self.shared.paced_until() {
                tokio::select! {
                    () = self.stop.cancelled() => return Some(Passed::Stopped),
                    () = sleep_until(due) => {}
                }
            }
        }
        None
    }

    /// Waits for leave.
    async fn permit(&self) -> Permit {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(permit) = self.shared.permit() {
                return permit;
            }
            // Time opens it, too.
            // It looks again in any case.
            timeout(LOOK, changed).await.ok();
        }
    }

    async fn publish(&self, part: Deliveries, permit: Permit, progressed: &mut bool) -> Option<Passed> {
        let (messages, since): (Vec<_>, Vec<_>) =
            part.as_slice().iter().map(|delivery| spool::as_it_was(&delivery.message)).unzip();
        if let Some(since) = since.into_iter().flatten().next() {
            self.shared.is_since(&self.to, since);
        }
        self.shared.pace(part.len());
        let published = self.shared.inner.publish(&self.to, messages).await;
        let failures = published.err().map(|failures| failures.0).unwrap_or_default();
        self.shared.ended(permit, outcome::judge(&failures, part.len()));
        let refusal = failures.iter().find(|(_, error)| !is_outage(error));
        if let Some((_, error)) = refusal {
            tracing::debug!(broker = &*self.shared.name, "what waits for {} stays: {error}", self.to);
            metrics().spool_refused.with_label_values(&[&*self.shared.name]).inc();
        }
        let is_refused = refusal.is_some();
        let front = match refusal {
            Some((_, error)) => Front::Refused(error.to_string()),
            None if failures.is_empty() => Front::Moves,
            None => Front::Waits,
        };
        self.shared.tried(&self.to, front);
        let (left, stays) = divided(part, &failures);
        if !self.settle(left, progressed).await {
            return Some(Passed::Held { progressed: *progressed, refused: true });
        }
        drop(stays); // Invariant 1: it goes back, at its place.
        (!failures.is_empty()).then_some(Passed::Held { progressed: *progressed, refused: is_refused })
    }

    /// Ends what was confirmed. Whether that is known.
    async fn settle(&self, left: Deliveries, progressed: &mut bool) -> bool {
        if left.is_empty() {
            return true;
        }
        let load = spool::load(left.as_slice().iter().map(|delivery| &delivery.message));
        let accepted = vec![Settlement::Accept; left.len()];
        if let Err(error) = left.settle(accepted).await {
            tracing::warn!(broker = &*self.shared.name, "what has left the spool stays there as well: {error}");
            return false;
        }
        *progressed = true;
        self.shared.left(&self.to, load);
        metrics().spool_drained.with_label_values(&[&*self.shared.name]).inc_by(load.messages);
        true
    }
}

impl Shared {
    /// So many are about to leave: whoever comes next waits as long as they take at most a second.
    fn pace(&self, messages: usize) {
        let Some(rate) = self.settings.spool.drain_per_second else { return };
        let takes = Duration::from_secs(1).mul_f64(messages as f64 / f64::from(rate.max(1)));
        let mut paced = self.paced.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *paced = Some(paced.map_or_else(Instant::now, |until| until.max(Instant::now())) + takes);
    }

    /// Until when nothing more is to leave.
    fn paced_until(&self) -> Option<Instant> {
        self.settings.spool.drain_per_second?;
        *self.paced.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Most messages at a time where so many may leave in a second.
fn share(per_second: u32) -> usize {
    usize::try_from(per_second / 10).unwrap_or(usize::MAX).clamp(1, BATCH.count)
}

/// What was confirmed, and what stays: what failed, and what has the same key behind it, confirmed or not.
fn divided(part: Deliveries, failures: &[(usize, PublishError)]) -> (Deliveries, Deliveries) {
    if failures.is_empty() {
        return (part, Deliveries::none());
    }
    let messages: Vec<Arc<Message>> = part.as_slice().iter().map(|delivery| Arc::clone(&delivery.message)).collect();
    let stays = outcome::with_followers(&messages, failures.iter().map(|(place, _)| *place));
    let mut stays = stays.into_iter();
    let mut parts = part.split(2, |_| usize::from(stays.next().unwrap_or(true))).into_iter();
    (parts.next().unwrap_or_else(Deliveries::none), parts.next().unwrap_or_else(Deliveries::none))
}
