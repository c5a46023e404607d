//! What waits in front of a lane, or, where a route keeps no order, of all its lanes.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use super::lane::BATCH_MAX;
use crate::broker::Deliveries;

/// Batches that wait in front of the lanes of a route without order.
const BATCHES_MAX: usize = 2;
/// Deliveries that wait in front of all lanes of a route that keeps order: so far a busy key may be behind, before its
/// route waits for it.
const WAITING_MAX: usize = 4096;
/// Bytes of them.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// What waits in front of all lanes of one route.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    batches: Mutex<VecDeque<Deliveries>>,
    arrived: Notify,
    /// It was full for as long as a source waits, and has not been seen with room since.
    pub(super) stuck: AtomicBool,
    /// Of one lane only: what comes keeps its order, and may be put together.
    is_ordered: bool,
}

impl Inbox {
    pub(super) fn new(is_ordered: bool) -> Self {
        Self { is_ordered, ..Self::default() }
    }

    /// Whether it takes something. One that is empty always does, so that no lane idles for what waits in front of others.
    pub(super) fn has_room(&self, backlog: &Backlog) -> bool {
        let batches = self.lock().len();
        if !self.is_ordered {
            return batches < BATCHES_MAX;
        }
        let (count, bytes) = (backlog.count.load(Ordering::Relaxed), backlog.bytes.load(Ordering::Relaxed));
        batches == 0 || (count < WAITING_MAX && bytes < WAITING_BYTES_MAX)
    }

    pub(super) fn push(&self, mut deliveries: Deliveries, backlog: &Backlog) {
        if self.is_ordered {
            backlog.count.fetch_add(deliveries.len(), Ordering::Relaxed);
            backlog.bytes.fetch_add(bytes(&deliveries), Ordering::Relaxed);
        }
        let mut batches = self.lock();
        let is_joined = |last: &&mut Deliveries| self.is_ordered && last.len() + deliveries.len() <= BATCH_MAX;
        if let Some(last) = batches.back_mut().filter(is_joined) {
            match last.append(deliveries) {
                Ok(()) => return,
                // Of another subscription, which began when the one before ended.
                Err(others) => deliveries = others,
            }
        }
        batches.push_back(deliveries);
        drop(batches);
        self.arrived.notify_one();
    }

    /// Takes what waits longest.
    pub(super) fn pop(&self, backlog: &Backlog) -> Option<Deliveries> {
        let mut batches = self.lock();
        let taken = batches.pop_front()?;
        if !batches.is_empty() {
            // For another lane.
            self.arrived.notify_one();
        }
        drop(batches);
        if self.is_ordered {
            backlog.count.fetch_sub(taken.len(), Ordering::Relaxed);
            backlog.bytes.fetch_sub(bytes(&taken), Ordering::Relaxed);
        }
        Some(taken)
    }

    /// Waits until there may be something.
    ///
    /// # Cancel safety
    /// Cancel safe: another who waits is told instead.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Deliveries>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes(deliveries: &Deliveries) -> usize {
    deliveries.as_slice().iter().map(|delivery| delivery.message.size()).sum()
}
