//! Notices a subscription that gets nothing: no partition, a topic that is not there, messages that wait and do not come, a
//! group that is far behind.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use super::{Trouble, context::GroupContext, part::Part};
use crate::{broker::BrokerError, telemetry::metrics};

/// How long joining a group may take before it is said that it does.
const JOINING: Duration = Duration::from_secs(30);
/// How long it may take before the subscription begins anew, with a client of its own. Longer than other members that poll
/// as they should need to come back, so that it does not get in their way.
const JOINING_MAX: Duration = Duration::from_secs(120);

/// What was seen before.
#[derive(Debug)]
pub(super) struct Stalls {
    /// When it began to join, or the last time that it was a member.
    begun: Instant,
    missing_since: Option<Instant>,
}

impl Stalls {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), missing_since: None }
    }

    /// Looks around. A subscription that has stalled is ended, so that it begins anew.
    pub(super) fn look(&mut self, context: &GroupContext, now: Instant) {
        let reading = &context.reading;
        if context.condition.why_away().is_some() {
            // Said by the broker as a whole.
            (self.begun, self.missing_since) = (now, None);
            context.share.lock().moved = Some(now);
            return;
        }
        if reading.joined.load(Relaxed) {
            self.begun = now;
        }
        let mut state = context.share.lock();
        let lag: u64 = state.parts.iter().map(Part::lag).sum();
        let waits = state.parts.iter().any(|part| part.out == 0 && part.stuck.is_none() && part.is_behind());
        let idle = state.out() == 0 && waits;
        if !idle {
            state.moved = Some(now);
        }
        let is_stalled = idle && state.moved.is_some_and(|moved| now - moved >= context.settings.stalled_after);
        let has_none = state.parts.is_empty();
        let stuck = state.parts.iter().find_map(|part| part.stuck.clone());
        let is_missing = std::mem::take(&mut state.missing);
        drop(state);
        // It is said again as long as it holds.
        self.missing_since = match (is_missing, has_none, self.missing_since) {
            (true, _, None) => Some(now),
            (_, true, since) => since,
            _ => None,
        };
        let (place, group) = (&reading.place, &reading.group);
        let reason = if self.missing_since.is_some_and(|since| now - since > Duration::from_secs(2)) {
            Some(format!("Kafka has no {place} (any more): make it, `helixmq topology apply` does"))
        } else if !reading.joined.load(Relaxed) && now - self.begun > JOINING {
            Some(format!(
                "group {group} has given this engine no place in {place} for {} s: it waits for members that do not answer, \
                 which may be this engine before an outage (they go after session_timeout), or others",
                JOINING.as_secs()
            ))
        } else if stuck.is_some() {
            stuck
        } else if context.settings.lag_max.is_some_and(|most| lag > most) {
            Some(format!(
                "group {group} is {lag} messages behind in {place}: give its routes more concurrency, or start another engine"
            ))
        } else {
            None
        };
        match reason {
            Some(reason) => context.condition.trouble(&reading.trouble(Trouble::Pace), reason),
            None => context.condition.well(&reading.trouble(Trouble::Pace)),
        }
        if !reading.joined.load(Relaxed) && now - self.begun > JOINING_MAX {
            metrics().kafka_restarts.with_label_values(&[&**place, &**group, "no place"]).inc();
            let error = format!("group {group} has given this engine no place in {place} for {JOINING_MAX:?}");
            context.share.fail(BrokerError::Lost(error));
        }
        if is_stalled {
            metrics().kafka_restarts.with_label_values(&[&**place, &**group, "stalled"]).inc();
            let after = context.settings.stalled_after;
            context.share.fail(BrokerError::Lost(format!("messages wait in {place}, and none has come for {after:?}")));
        }
    }
}
