//! What is handed over to a subscription ahead of its reader. An attempt is on disk before its handler runs, and a
//! commit takes as long as many calls: a fast reader finds its next batches safe already, a slow one is never given
//! more than it asks for, so that little is out that was not begun should the process end.

use std::{collections::VecDeque, future::pending};

use tokio::time::Instant;

use crate::broker::{
    BatchMax, BrokerError, Deliveries,
    commit::{Safe, safely},
};

/// Most deliveries that wait for a fast reader.
const AHEAD_MAX: usize = 2048;
/// What a reader begins with that waits for the disk more than it works.
const AHEAD_MIN: usize = 128;

/// Batches of one subscription, first in, first out.
#[derive(Debug, Default)]
pub(super) struct Grants {
    waiting: VecDeque<Grant>,
    /// Deliveries in `waiting`.
    count: usize,
    /// How many there should be.
    ahead: usize,
    /// When the reader went away with its last batch, and when it came back for this one.
    left: Option<Instant>,
    came: Option<Instant>,
}

#[derive(Debug)]
struct Grant {
    deliveries: Deliveries,
    /// `None`: it is.
    safe: Option<Safe>,
}

impl Grants {
    /// Whether more should be handed over now.
    pub(super) fn wants_more(&self) -> bool {
        self.waiting.is_empty() || self.count < self.ahead
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a batch that may be worked on once `safe` says so.
    pub(super) fn push(&mut self, deliveries: Deliveries, safe: Safe) {
        self.count += deliveries.len();
        self.waiting.push_back(Grant { deliveries, safe: Some(safe) });
    }

    /// The first batch, once it is safe, and of it no more than asked for. Waits for ever while there is none.
    ///
    /// # Errors
    /// [`BrokerError::Storage`], [`BrokerError::Closed`]: the batch went back; it was not tried.
    ///
    /// # Cancel safety
    /// Cancel safe: what was not returned is there for the next call.
    pub(super) async fn next(&mut self, max: BatchMax) -> Result<Deliveries, BrokerError> {
        let came = *self.came.get_or_insert_with(Instant::now);
        let Some(first) = self.waiting.front_mut() else { return pending().await };
        if let Some(safe) = &mut first.safe {
            let written = safely(&mut *safe).await;
            first.safe = None;
            if let Err(error) = written {
                self.waiting.clear();
                self.count = 0;
                return Err(error);
            }
        }
        let now = Instant::now();
        self.adapt(came, now);
        (self.left, self.came) = (Some(now), None);
        Ok(self.take_first(max))
    }

    /// Looks further ahead while the reader waits for the disk longer than a quarter of the time that it works, and less
    /// far when it does not wait at all.
    fn adapt(&mut self, came: Instant, now: Instant) {
        let Some(left) = self.left else { return };
        let (worked, waited) = (came - left, now - came);
        if waited * 4 > worked {
            self.ahead = (self.ahead * 2).clamp(AHEAD_MIN, AHEAD_MAX);
        } else if waited * 64 < worked {
            self.ahead = if self.ahead > AHEAD_MIN { self.ahead - self.ahead / 8 } else { 0 };
        }
    }

    fn take_first(&mut self, max: BatchMax) -> Deliveries {
        let Some(first) = self.waiting.front_mut() else { return Deliveries::none() };
        let mut bytes = 0_usize;
        let fits = |bytes: usize| bytes <= max.bytes;
        let count = first.deliveries.as_slice().iter().take(max.count.max(1)).take_while(|delivery| {
            let first = bytes == 0;
            bytes += delivery.message.size();
            first || fits(bytes)
        });
        let count = count.count().max(1);
        let taken = if count >= first.deliveries.len() {
            self.waiting.pop_front().map_or_else(Deliveries::none, |grant| grant.deliveries)
        } else {
            first.deliveries.take_front(count)
        };
        self.count = self.count.saturating_sub(taken.len());
        taken
    }
}
