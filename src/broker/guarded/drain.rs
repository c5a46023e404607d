//! Out of the spool: one task for each queue or topic with a backlog brings it to its system, in order, until nothing is
//! left. What the system confirmed is settled then and only then (Invariant 2), so that a process that ends in between
//! brings it again, and loses nothing.
//!
//! What the system does not take stays, with what has the same key behind it, and is tried again. Each try is a pass from
//! the first that waits on: `pass.rs`.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ahead::{COUNT_MAX, Portion},
    pass::{Pass, Passed},
    shared::Shared,
    spool::{self, Place},
};
use crate::{
    broker::{Aside, Broker, BrokerError, Circuit, Start, Storage, Subscribe, Subscription, embedded::Held},
    message::Address,
};

/// Read and not settled: what is on its way, what is read meanwhile, and what is settled meanwhile.
const PREFETCH: usize = 4 * COUNT_MAX;
/// How long to wait after a system did not answer, at most; and after it refused what is in front.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Brings what waits for one queue or topic to its system.
pub(super) struct Drain {
    pub(super) shared: Arc<Shared>,
    pub(super) to: Address,
    pub(super) place: Place,
    pub(super) stop: CancellationToken,
}

impl Drain {
    /// Runs until nothing is left, or until it is stopped; a batch that is on its way is waited for.
    pub(super) async fn run(mut self) {
        let (mut pause, mut is_careful, mut portion) = (PAUSE_MIN, false, Portion::first());
        let mut circuit = self.shared.watched();
        loop {
            match self.pass(is_careful, &mut portion).await {
                Passed::Stopped => return,
                Passed::Empty => return self.shared.older_left(&self.to),
                Passed::OlderGone => {
                    self.place.older = None;
                    self.shared.older_left(&self.to);
                }
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
    async fn pass(&self, is_careful: bool, portion: &mut Portion) -> Passed {
        match self.reader().await {
            Ok(reader) => Pass::new(self, reader).run(is_careful, portion).await,
            Err(BrokerError::Closed) => Passed::Stopped,
            Err(error) => {
                tracing::error!(broker = &*self.shared.name, "what waits for {} cannot be read: {error}", self.to);
                Passed::Held { progressed: false, refused: true }
            }
        }
    }

    async fn reader(&self) -> Result<Box<dyn Subscription>, BrokerError> {
        let (queue, storage) = match &self.place.older {
            Some(older) => (older, Storage::Memory),
            None => (&self.place.intake, self.place.storage),
        };
        // One of an earlier run has the settings of others until it is taken over.
        self.shared.embedded.keep_queue(Arc::clone(&queue.name), spool::settings(storage)).await?;
        let request = Subscribe {
            from: queue.clone(),
            group: "".into(),
            start: Start::Earliest,
            prefetch: PREFETCH,
            workers: 1,
            aside: Aside::Local,
        };
        self.shared.embedded.subscribe(request).await
    }

    /// Whether what was in memory beside is all gone, to which nothing is added.
    pub(super) fn is_older_gone(&self) -> bool {
        self.place.older.as_ref().is_some_and(|older| self.shared.embedded.held(older) == Held::default())
    }

    /// Whether nothing is left, in which case publishers pass by from here on: whatever has left is settled on disk by
    /// then, so that it does not come again behind them.
    pub(super) async fn is_done(&self) -> bool {
        let held = || self.place.held(&self.shared.embedded);
        if !self.shared.is_empty(&self.to, held) {
            return false;
        }
        if let Err(error) = self.shared.embedded.flush().await {
            tracing::warn!(broker = &*self.shared.name, "what has left the spool may come again: {error}");
        }
        self.shared.end(&self.to, held)
    }
}

impl Shared {
    /// So many are about to leave: whoever comes next waits as long as they take at most a second.
    pub(super) fn pace(&self, messages: usize) {
        let Some(rate) = self.settings.spool.drain_per_second else { return };
        let takes = Duration::from_secs(1).mul_f64(messages as f64 / f64::from(rate.max(1)));
        let mut paced = self.paced.lock().unwrap_or_else(PoisonError::into_inner);
        *paced = Some(paced.map_or_else(Instant::now, |until| until.max(Instant::now())) + takes);
    }

    /// Until when nothing more is to leave; `None`: it may.
    pub(super) fn paced_until(&self) -> Option<Instant> {
        self.settings.spool.drain_per_second?;
        let until = *self.paced.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > Instant::now())
    }
}

/// Most messages at a time where so many may leave in a second.
pub(super) fn share(per_second: u32) -> usize {
    usize::try_from(per_second / 10).unwrap_or(usize::MAX).clamp(1, COUNT_MAX)
}
