//! What waits on a lane that keeps order: for each key (or partition) a retrying delivery with those behind it. Others
//! go on. The deliveries stay unsettled and their leases are kept, so that nobody else gets the followers first.

use std::{sync::Arc, time::Instant};

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
    /// Its topic, where the route reads several.
    Partition(Option<Arc<str>>, u32),
}

/// The sequences of one lane that wait.
#[derive(Debug, Default)]
pub(super) struct Held {
    waiting: FxHashMap<Sequence, Waiting>,
    count: usize,
}

#[derive(Debug)]
struct Waiting {
    /// The retrying one first. More than one batch only where a subscription ended and another began in between.
    batches: Vec<Deliveries>,
    due: Instant,
    /// What its next attempt is counted with; none where the head was not tried.
    failure: Option<FailedAttempt>,
}

/// A sequence whose time has come.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) sequence: Sequence,
    /// In their order.
    pub(super) batches: Vec<Deliveries>,
    /// What the next attempt of the first is counted with.
    pub(super) failure: Option<FailedAttempt>,
}

/// What a delivery shares its order with; `None` where it has no order.
pub(super) fn sequence(order: Order, delivery: &Delivery) -> Option<Sequence> {
    match order {
        Order::None => None,
        Order::Key => delivery.message.key.clone().map(Sequence::Key),
        Order::Partition => {
            let partition = delivery.position.map_or(0, |position| position.partition);
            Some(Sequence::Partition(delivery.topic.clone(), partition))
        }
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
                let joined = match waiting.batches.last_mut() {
                    Some(last) => last.append(deliveries),
                    None => Err(deliveries),
                };
                // Of another subscription, which began when the one before ended.
                waiting.batches.extend(joined.err());
            }
            None => {
                self.waiting.insert(sequence, Waiting { batches: vec![deliveries], due, failure });
            }
        }
    }

    /// When the first of them is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Takes a sequence that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due> {
        let sequence =
            self.waiting.iter().find(|(_, waiting)| waiting.due <= now).map(|(sequence, _)| sequence.clone())?;
        let Waiting { batches, failure, .. } = self.waiting.remove(&sequence)?;
        self.count -= batches.iter().map(Deliveries::len).sum::<usize>();
        Some(Due { sequence, batches, failure })
    }
}
