//! When the flow of messages is slowed, held or begun anew: for each route, and for the whole engine.

use super::{finding::Origin, kind, limits::WAIT_MS, section::Section};
use crate::route::{CrashBudget, OutageBrake, Watchdog};

/// Messages that fail alike are told apart by their ids, which are kept until one succeeds.
const DIFFERENT_MAX: u32 = 1000;

/// The outage brake of routes that do not say, and who says so: how many failures, and how often a probe.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    rule: OutageBrake,
    said_by: [Origin; 2],
}

impl Outage {
    /// What nobody in particular says.
    pub(super) fn of(rule: OutageBrake) -> Self {
        Self { rule, said_by: [Origin::Default, Origin::Default] }
    }

    pub(super) fn rule(&self) -> OutageBrake {
        self.rule
    }

    /// `engine.outage`
    pub(super) fn default(section: &mut Section<'_, '_, '_>) -> Self {
        let default = OutageBrake::default();
        let failures_max = section.value("failures_max", &kind::integer(0..=DIFFERENT_MAX), default.failures_max);
        let probe_interval = section.value("probe_ms", &kind::millis(WAIT_MS), default.probe_interval);
        let said_by = ["failures_max", "probe_ms"]
            .map(|key| if section.has(key) { section.origin_of(key) } else { Origin::Default });
        Self { rule: OutageBrake { failures_max, probe_interval }, said_by }
    }

    /// `routes[].outage`
    pub(super) fn read(&self, section: &mut Section<'_, '_, '_>) -> OutageBrake {
        let (rule, [failures, probe]) = (self.rule, self.said_by.clone());
        let count = kind::integer(0..=DIFFERENT_MAX);
        OutageBrake {
            failures_max: section.value_or(
                "failures_max",
                &count,
                rule.failures_max,
                failures,
                "engine.outage.failures_max",
            ),
            probe_interval: section.value_or(
                "probe_ms",
                &kind::millis(WAIT_MS),
                rule.probe_interval,
                probe,
                "engine.outage.probe_ms",
            ),
        }
    }
}

/// `engine.watchdog`
pub(super) fn watchdog(section: &mut Section<'_, '_, '_>) -> Watchdog {
    let default = Watchdog::default();
    Watchdog {
        stalled: section.value("stalled_ms", &kind::millis(0..=*WAIT_MS.end()), default.stalled),
        restarts_max: section.value("restarts_max", &kind::integer(1..=1_000_000), default.restarts_max),
    }
}

/// `routes[].crash_budget`
pub(super) fn crash_budget(section: &mut Section<'_, '_, '_>) -> CrashBudget {
    let default = CrashBudget::default();
    CrashBudget {
        failures_max: section.value("failures_max", &kind::integer(1..=1_000_000), default.failures_max),
        probes_max: section.value("probes_max", &kind::integer(1..=1_000_000), default.probes_max),
        probe_interval: section.value("probe_interval_ms", &kind::millis(WAIT_MS), default.probe_interval),
        rollback_within: section.value("rollback_within_ms", &kind::millis(WAIT_MS), default.rollback_within),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::load_text;

    #[test]
    fn a_route_that_does_not_say_has_the_brake_of_the_engine() {
        let text = "engine: {outage: {failures_max: 9, probe_ms: 700}, watchdog: {stalled_ms: 0}}\n\
                    routes:\n  - {name: a, queue: a, handler: h}\n  \
                    - {name: b, queue: b, handler: h, outage: {failures_max: 0}}\n";
        let config = load_text("x.yaml".as_ref(), text, &|_| None).unwrap().config;
        let of: Vec<_> = config.routes.iter().map(|route| route.outage).collect();
        let probe_interval = Duration::from_millis(700);
        assert_eq!(of, [9, 0].map(|failures_max| OutageBrake { failures_max, probe_interval }));
        assert_eq!(config.watchdog, Watchdog { stalled: Duration::ZERO, ..Watchdog::default() });
    }
}
