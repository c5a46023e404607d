//! Counts what a route does: the metrics of one route with their labels resolved once, added to once a batch.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::verdict::Verdict;
use crate::{
    broker::Deliveries,
    message::{Outcome, Settlement, UnixMs},
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

    /// Messages flow, if they did not.
    pub(super) fn released(&self) {
        if self.brake.get() != 0 {
            self.brake.set(0);
        }
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
            match verdict {
                Verdict::Ran(Outcome::Done(_)) => done += 1,
                Verdict::Ran(Outcome::Retry { .. }) => self.retry.inc(),
                Verdict::Ran(Outcome::Reject { .. }) => self.reject.inc(),
                Verdict::Ran(Outcome::Failed(_)) => self.failed.inc(),
                Verdict::Dead(..) | Verdict::NotTried(_) | Verdict::Behind(_) => {}
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

/// The time of the oldest message of a batch; what somebody published without a time says nothing.
pub(super) fn oldest(batch: &Deliveries) -> Option<UnixMs> {
    batch.as_slice().iter().map(|delivery| delivery.message.timestamp).filter(|at| *at > 0).min()
}
