//! What is counted of a subscription. Handles are resolved once.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge};

use super::part::Part;
use crate::telemetry::metrics;

/// What is counted of a subscription.
#[derive(Debug)]
pub(super) struct Meters {
    place: Arc<str>,
    group: Arc<str>,
    received: IntCounter,
    assigned: IntGauge,
    committed: IntCounter,
    not_committed: IntCounter,
}

impl Meters {
    pub(super) fn new(place: &Arc<str>, group: &Arc<str>) -> Self {
        let labels: &[&str] = &[place, group];
        let commits = |result| metrics().kafka_commits.with_label_values(&[&**place, &**group, result]);
        Self {
            received: metrics().kafka_received.with_label_values(labels),
            assigned: metrics().kafka_assigned.with_label_values(labels),
            committed: commits("done"),
            not_committed: commits("failed"),
            place: Arc::clone(place),
            group: Arc::clone(group),
        }
    }

    pub(super) fn received(&self, count: usize) {
        self.received.inc_by(count as u64);
    }

    pub(super) fn assigned(&self, count: usize) {
        self.assigned.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn committed(&self, well: bool) {
        if well { self.committed.inc() } else { self.not_committed.inc() }
    }

    /// What changed about who reads what.
    pub(super) fn rebalanced(&self, what: &str) {
        metrics().kafka_rebalances.with_label_values(&[&*self.place, &*self.group, what]).inc();
    }

    /// A transaction has ended.
    pub(super) fn transaction(&self, result: &str) {
        metrics().kafka_transactions.with_label_values(&[&*self.place, &*self.group, result]).inc();
    }

    /// How far a partition is behind. A pattern's topics are counted by their own names.
    pub(super) fn lag(&self, part: &Part) {
        let lag = i64::try_from(part.lag()).unwrap_or(i64::MAX);
        let partition = part.partition.to_string();
        metrics().kafka_lag.with_label_values(&[&*part.topic, &*self.group, &*partition]).set(lag);
    }

    /// A partition is not ours any more: how far it is is for others to say.
    pub(super) fn gone(&self, topic: &str, partition: i32) {
        // Not there where nothing was ever said of it.
        metrics().kafka_lag.remove_label_values(&[topic, &*self.group, &*partition.to_string()]).ok();
    }
}
