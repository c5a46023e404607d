//! Counts what a route does: the metrics of one route with their labels resolved once, added to once a batch.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::verdict::Verdict;
use crate::{
    broker::{AddressStats, Broker, Deliveries},
    message::{Address, Outcome, Settlement, UnixMs},
    route::Route,
    settle::Decision,
    telemetry::metrics,
};

/// Metrics of one route, with their labels resolved.
#[derive(Debug)]
pub(super) struct Meters {
    consumed: IntCounter,
    done: IntCounter,
    retry: IntCounter,
    reject: IntCounter,
    failed: IntCounter,
    latency: Histogram,
    pub(super) run_time: Histogram,
    pub(super) batch: Histogram,
    pub(super) held: IntGauge,
    pub(super) brake: IntGauge,
    pub(super) in_flight: IntGauge,
}

impl Meters {
    pub(super) fn new(broker: &str, route: &Route) -> Self {
        let metrics = metrics();
        let (name, handler) = (&*route.name, &*route.handler);
        let outcome = |outcome| metrics.outcomes.with_label_values(&[name, handler, outcome]);
        Self {
            consumed: metrics.consumed.with_label_values(&[broker, &route.source.address.to_string()]),
            done: outcome("done"),
            retry: outcome("retry"),
            reject: outcome("reject"),
            failed: outcome("failed"),
            latency: metrics.latency.with_label_values(&[name]),
            run_time: metrics.run_time.with_label_values(&[name, handler]),
            batch: metrics.handled_batch.with_label_values(&[name, handler]),
            held: metrics.held.with_label_values(&[name]),
            brake: metrics.brake.with_label_values(&[name]),
            in_flight: metrics.in_flight.with_label_values(&[name]),
        }
    }

    /// Messages flow. Returns whether they did not before.
    pub(super) fn released(&self) -> bool {
        let was_braked = self.brake.get() != 0;
        if was_braked {
            self.brake.set(0);
        }
        was_braked
    }

    /// What became of a batch, of which the oldest message has this time.
    pub(super) fn count(
        &self,
        name: &str,
        oldest: Option<UnixMs>,
        verdicts: &[Verdict],
        decisions: &[Decision],
        now: UnixMs,
    ) {
        let (mut done, mut consumed) = (0, 0);
        for (verdict, decision) in verdicts.iter().zip(decisions) {
            match verdict.outcome() {
                Some(Outcome::Done(_)) => done += 1,
                Some(Outcome::Retry { .. }) => self.retry.inc(),
                Some(Outcome::Reject { .. }) => self.reject.inc(),
                Some(Outcome::Failed(_)) => self.failed.inc(),
                None => {}
            }
            match &decision.settlement {
                Settlement::Accept => {}
                Settlement::Redeliver { failure, .. } => {
                    metrics().retries.with_label_values(&[name, failure.code.as_str()]).inc()
                }
                Settlement::DeadLetter { code } => {
                    metrics().dead_lettered.with_label_values(&[name, code.as_str()]).inc()
                }
                Settlement::Release { .. } => continue,
            }
            consumed += 1;
        }
        self.done.inc_by(done);
        self.consumed.inc_by(consumed);
        if let Some(oldest) = oldest {
            self.latency.observe(now.saturating_sub(oldest) as f64 / 1000.0);
        }
    }
}

/// What waits in each queue and topic.
pub(super) fn count_depths(broker: &dyn Broker, all: &[AddressStats], dead_letters: &Address) {
    for stats in all {
        let lag = stats.lag.iter().map(|(_, lag)| *lag).max();
        let waiting = lag.unwrap_or(stats.ready + stats.delayed);
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        let name = stats.address.to_string();
        metrics().depth.with_label_values(&[&*broker.name_of(&stats.address), &name]).set(waiting);
        if stats.address == *dead_letters {
            metrics().dlq_depth.with_label_values(&[&name]).set(waiting);
        }
    }
}

/// The time of the oldest message of a batch; what somebody published without a time says nothing.
pub(super) fn oldest(batch: &Deliveries) -> Option<UnixMs> {
    batch.as_slice().iter().map(|delivery| delivery.message.timestamp).filter(|at| *at > 0).min()
}
