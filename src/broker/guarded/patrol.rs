//! Looks what the system says of its connections, and tells the metrics. It is the one that notices that a system went away
//! or came back while nobody publishes.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use crate::{broker::Circuit, telemetry::metrics};

/// How often it looks: so long at most somebody may publish to a system that is gone.
const EVERY: Duration = Duration::from_millis(50);
/// How many looks between two that tell the metrics.
const LOOKS: u32 = 20;

/// Runs until it is stopped.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {
                shared.look();
                if looks == 0 {
                    tell(&shared);
                }
                looks = (looks + 1) % LOOKS;
            }
        }
    }
}

fn tell(shared: &Shared) {
    let (metrics, name) = (metrics(), [&*shared.name]);
    metrics.circuit_state.with_label_values(&name).set(match shared.circuit() {
        Circuit::Closed => 0,
        Circuit::HalfOpen => 1,
        Circuit::Open => 2,
    });
    let spool = shared.stats().unwrap_or_default();
    let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    metrics.spool_messages.with_label_values(&name).set(whole(spool.messages));
    metrics.spool_bytes.with_label_values(&name).set(whole(spool.bytes));
    metrics.spool_oldest.with_label_values(&name).set(Duration::from_millis(spool.oldest_ms).as_secs_f64());
}
