//! Counts what a route does: the metrics of one route with their labels resolved once, added to once a batch.

use prometheus::{Histogram, IntCounter, IntGauge};

use crate::{
    broker::Deliveries,
    message::{ReasonCode, Settlement, UnixMs},
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
        }
    }

    /// What became of a batch.
    pub(super) fn count(&self, name: &str, batch: &Deliveries, decisions: &[Decision], now: UnixMs) {
        let mut accepted = 0;
        for decision in decisions {
            match &decision.settlement {
                Settlement::Accept => accepted += 1,
                Settlement::Redeliver { failure, .. } => {
                    let ended =
                        if failure.code == ReasonCode::HandlerRetryExhausted { &self.retry } else { &self.failed };
                    ended.inc();
                    metrics().retries.with_label_values(&[name, failure.code.as_str()]).inc();
                }
                Settlement::DeadLetter { code } => {
                    let ended = if *code == ReasonCode::HandlerRejected { &self.reject } else { &self.failed };
                    ended.inc();
                    metrics().dead_lettered.with_label_values(&[name, code.as_str()]).inc();
                }
                Settlement::Release { .. } => {}
            }
        }
        self.done.inc_by(accepted);
        let released =
            decisions.iter().filter(|decision| matches!(decision.settlement, Settlement::Release { .. })).count();
        self.consumed.inc_by(batch.len().saturating_sub(released) as u64);
        let oldest = batch.as_slice().iter().map(|delivery| delivery.message.timestamp).min().unwrap_or(now);
        self.latency.observe(now.saturating_sub(oldest) as f64 / 1000.0);
    }
}
