//! What waits on a lane that keeps order: for each key (or partition) a retrying delivery with those behind it. Others
//! go on. The deliveries stay unsettled and their leases are kept, so that nobody else gets the followers first.

use std::time::Instant;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::{
    broker::{Deliveries, Delivery},
    message::FailedAttempt,
    route::Order,
};

/// Deliveries a lane holds at most; beyond it, it takes nothing new until one is due.
pub(super) const HELD_MAX: usize = 4096;

/// What shares an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sequence {
    Key(Bytes),
    Partition(u32),
}

/// The sequences of one lane that wait.
#[derive(Debug, Default)]
pub(super) struct Held {
    waiting: FxHashMap<Sequence, Waiting>,
    count: usize,
}

#[derive(Debug)]
struct Waiting {
    /// The retrying one first.
    deliveries: Deliveries,
    due: Instant,
    /// What its next attempt is counted with; none where the head was not tried.
    failure: Option<FailedAttempt>,
}

/// What a delivery shares its order with; `None` where it has no order.
pub(super) fn sequence(order: Order, delivery: &Delivery) -> Option<Sequence> {
    match order {
        Order::None => None,
        Order::Key => delivery.message.key.clone().map(Sequence::Key),
        Order::Partition => Some(Sequence::Partition(delivery.position.map_or(0, |position| position.partition))),
    }
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= HELD_MAX
    }

    /// Whether deliveries of that sequence have to wait.
    pub(super) fn holds(&self, sequence: &Sequence) -> bool {
        self.waiting.contains_key(sequence)
    }

    /// Puts a delivery, or several of one sequence, behind those that wait, or begins to wait.
    pub(super) fn park(
        &mut self,
        sequence: Sequence,
        deliveries: Deliveries,
        due: Instant,
        failure: Option<FailedAttempt>,
    ) {
        self.count += deliveries.len();
        match self.waiting.get_mut(&sequence) {
            Some(waiting) => {
                if let Err(foreign) = waiting.deliveries.append(deliveries) {
                    // Of another subscription, which ended when this one began: it goes back to the broker.
                    self.count -= foreign.len();
                }
            }
            None => {
                self.waiting.insert(sequence, Waiting { deliveries, due, failure });
            }
        }
    }

    /// When the first of them is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Takes a sequence that is due: its deliveries, and what the next attempt of the first is counted with.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Deliveries, Option<FailedAttempt>)> {
        let sequence =
            self.waiting.iter().find(|(_, waiting)| waiting.due <= now).map(|(sequence, _)| sequence.clone())?;
        let waiting = self.waiting.remove(&sequence)?;
        self.count -= waiting.deliveries.len();
        Some((waiting.deliveries, waiting.failure))
    }
}
