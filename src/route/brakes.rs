//! When the flow of messages is slowed, held or begun anew, as the operator wants it. Counting is done elsewhere.

use std::time::Duration;

use serde::Serialize;

/// When a handler that keeps dying is slowed, and when it is held. Source: SPEC §14, "crash budget".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CrashBudget {
    /// Failed calls in a row after which one probe at a time goes through.
    pub failures_max: u32,
    /// Failed probes after which it is held until its file or the configuration changes.
    pub probes_max: u32,
    /// Between two probes.
    pub probe_interval: Duration,
    /// A version that is held and serves no longer than this gives way to the one before it. Zero: never.
    pub rollback_within: Duration,
}

impl Default for CrashBudget {
    fn default() -> Self {
        Self {
            failures_max: 5,
            probes_max: 3,
            probe_interval: Duration::from_secs(5),
            rollback_within: Duration::from_secs(600),
        }
    }
}

/// When a route slows to a probe because different messages fail alike: what its handler needs is away, and no message is
/// at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OutageBrake {
    /// How many different messages have to fail alike, with no success in between. 0: it is never slowed.
    pub failures_max: u32,
    /// Longest time between two probes, none of which uses up an attempt. The first comes after 100 ms, each after twice the
    /// time of the one before.
    pub probe_interval: Duration,
}

impl Default for OutageBrake {
    fn default() -> Self {
        Self { failures_max: 5, probe_interval: Duration::from_secs(30) }
    }
}

/// When a subscription that brings nothing, although messages wait, is begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Watchdog {
    /// For how long it may bring nothing. Zero: for ever.
    pub stalled: Duration,
    /// After so many restarts without a delivery the engine is not ready, until there is one.
    pub restarts_max: u32,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self { stalled: Duration::from_secs(30), restarts_max: 3 }
    }
}
