//! A queue or topic as it is used here: its name on the server, and what is counted of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus::{IntCounter, IntGauge};

use super::{forgiven::Forgiven, publisher::Publisher};
use crate::{broker::AddressStats, message::Address, telemetry::metrics};

/// A queue or topic as it is used here.
#[derive(Debug)]
pub(super) struct Place {
    /// What the engine calls it.
    pub(super) address: Address,
    /// The queue on the server that is read.
    pub(super) name: Arc<str>,
    /// Of a topic: whose queue it is.
    pub(super) group: Option<Arc<str>>,
    /// Takes copies for later.
    pub(super) publisher: Arc<Publisher>,
    pub(super) counts: Counts,
    pub(super) forgiven: Forgiven,
}

/// What is counted of a place.
#[derive(Debug)]
pub(super) struct Counts {
    ready: AtomicU64,
    unsettled: AtomicU64,
    dead_lettered: AtomicU64,
    consumed: IntCounter,
    acked: IntCounter,
    nacked: IntCounter,
    dead: IntCounter,
    consumers: IntGauge,
}

impl Counts {
    pub(super) fn new(address: &Address) -> Self {
        let label = [address.to_string()];
        let label: &[&str] = &label.each_ref().map(String::as_str);
        let all = metrics();
        Self {
            ready: AtomicU64::new(0),
            unsettled: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            consumed: all.rabbitmq_consumed.with_label_values(label),
            acked: all.rabbitmq_acked.with_label_values(label),
            nacked: all.rabbitmq_nacked.with_label_values(label),
            dead: all.rabbitmq_dead_lettered.with_label_values(label),
            consumers: all.rabbitmq_consumers.with_label_values(label),
        }
    }

    /// So many were handed out.
    pub(super) fn out(&self, count: usize) {
        self.unsettled.fetch_add(count as u64, Relaxed);
        self.consumed.inc_by(count as u64);
    }

    /// So many are not out any more.
    pub(super) fn back(&self, count: usize) {
        self.unsettled.fetch_sub(count as u64, Relaxed);
    }

    /// How they were settled.
    pub(super) fn settled(&self, acked: usize, dead: usize, nacked: usize) {
        self.acked.inc_by((acked + dead) as u64);
        if dead > 0 {
            self.dead.inc_by(dead as u64);
            self.dead_lettered.fetch_add(dead as u64, Relaxed);
        }
        if nacked > 0 {
            self.nacked.inc_by(nacked as u64);
        }
    }

    /// What the server says.
    pub(super) fn seen(&self, ready: u64, consumers: u64) {
        self.ready.store(ready, Relaxed);
        self.consumers.set(i64::try_from(consumers).unwrap_or(i64::MAX));
    }

    /// What the server said last.
    pub(super) fn ready(&self) -> u64 {
        self.ready.load(Relaxed)
    }
}

impl Place {
    /// What is there, as far as it is known, added to what is known of the same topic.
    pub(super) fn add_to(&self, all: &mut BTreeMap<Address, AddressStats>) {
        let stats = all.entry(self.address.clone()).or_insert_with(|| AddressStats {
            address: self.address.clone(),
            ready: 0,
            delayed: 0,
            unsettled: 0,
            bytes: 0,
            lag: Vec::new(),
            dropped: 0,
            dead_lettered: 0,
        });
        let unsettled = self.counts.unsettled.load(Relaxed);
        match &self.group {
            Some(group) => stats.lag.push((Arc::clone(group), self.counts.ready() + unsettled)),
            None => stats.ready += self.counts.ready(),
        }
        stats.unsettled += unsettled;
        stats.dead_lettered += self.counts.dead_lettered.load(Relaxed);
    }
}
