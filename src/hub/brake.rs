//! Slows a route whose handler keeps dying, then holds it: its messages wait instead of using up their attempts.
//! A trap, a timeout or exhausted memory is a crash; any answer at all is not. Source: SPEC §14, "crash budget".

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::Serialize;
use tokio::sync::watch;

use crate::route::CrashBudget;

/// How a route is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BrakeState {
    /// Messages flow.
    Open,
    /// One message goes through at a time; the others wait.
    Slowed,
    /// Nothing goes through until the handler or the configuration changes.
    Held,
}

/// What a lane may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// Take as much as there is.
    Go,
    /// Take one message, as the probe.
    Probe,
    /// Nothing before this.
    Wait(Instant),
    /// Nothing until something changes.
    Held,
}

/// Shared by the lanes of one route.
#[derive(Debug)]
pub(super) struct Brake {
    budget: CrashBudget,
    crashes_in_a_row: AtomicU32,
    /// Of the version whose crashes are counted.
    generation: AtomicU64,
    state: Mutex<Inner>,
    changed: watch::Sender<BrakeState>,
}

#[derive(Debug)]
struct Inner {
    failed_probes: u32,
    next_probe: Instant,
}

/// What a crash led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crashed {
    /// The budget is not used up.
    Go,
    /// The route has just been slowed, or was already: stop after this message.
    Slowed,
    /// The route has just been held.
    Held,
}

impl Brake {
    pub(super) fn new(budget: CrashBudget) -> Self {
        Self {
            budget,
            crashes_in_a_row: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            state: Mutex::new(Inner { failed_probes: 0, next_probe: Instant::now() }),
            changed: watch::Sender::new(BrakeState::Open),
        }
    }

    pub(super) fn state(&self) -> BrakeState {
        *self.changed.borrow()
    }

    pub(super) fn changes(&self) -> watch::Receiver<BrakeState> {
        self.changed.subscribe()
    }

    /// Which version serves now: a new one starts with a clean record.
    pub(super) fn serves(&self, generation: u64) {
        if self.generation.load(Ordering::Relaxed) != generation
            && self.generation.swap(generation, Ordering::Relaxed) != generation
        {
            self.release();
        }
    }

    /// What the asking lane may do. A probe is given to one lane an interval.
    pub(super) fn permit(&self) -> Permit {
        match self.state() {
            BrakeState::Open => Permit::Go,
            BrakeState::Held => Permit::Held,
            BrakeState::Slowed => {
                let mut inner = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                if now < inner.next_probe {
                    return Permit::Wait(inner.next_probe);
                }
                inner.next_probe = now + self.budget.probe_interval;
                Permit::Probe
            }
        }
    }

    /// The handler answered.
    pub(super) fn answered(&self) {
        if self.crashes_in_a_row.load(Ordering::Relaxed) > 0 {
            self.crashes_in_a_row.store(0, Ordering::Relaxed);
            if self.state() == BrakeState::Slowed {
                self.release();
            }
        }
    }

    /// The handler crashed.
    pub(super) fn crashed(&self) -> Crashed {
        let crashes = self.crashes_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        match self.state() {
            BrakeState::Open if crashes < self.budget.failures_max => Crashed::Go,
            BrakeState::Open => {
                let mut inner = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                inner.failed_probes = 0;
                inner.next_probe = Instant::now() + self.budget.probe_interval;
                self.changed.send_replace(BrakeState::Slowed);
                Crashed::Slowed
            }
            BrakeState::Slowed => {
                let mut inner = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                inner.failed_probes += 1;
                if inner.failed_probes < self.budget.probes_max {
                    return Crashed::Slowed;
                }
                self.changed.send_replace(BrakeState::Held);
                Crashed::Held
            }
            BrakeState::Held => Crashed::Slowed,
        }
    }

    /// Something changed that may have cured it: messages flow again.
    pub(super) fn release(&self) {
        self.crashes_in_a_row.store(0, Ordering::Relaxed);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed_probes = 0;
        self.changed.send_replace(BrakeState::Open);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn brake() -> Brake {
        Brake::new(CrashBudget {
            failures_max: 3,
            probes_max: 2,
            probe_interval: Duration::ZERO,
            ..CrashBudget::default()
        })
    }

    #[test]
    fn crashes_in_a_row_slow_it_then_hold_it() {
        let brake = brake();
        assert_eq!([brake.crashed(), brake.crashed(), brake.crashed()], [Crashed::Go, Crashed::Go, Crashed::Slowed]);
        assert_eq!(brake.permit(), Permit::Probe);
        assert_eq!([brake.crashed(), brake.crashed()], [Crashed::Slowed, Crashed::Held]);
        assert_eq!(brake.permit(), Permit::Held);
        brake.release();
        assert_eq!(brake.permit(), Permit::Go);
    }

    #[test]
    fn any_answer_ends_the_row_and_lets_messages_flow() {
        let brake = brake();
        brake.crashed();
        brake.crashed();
        brake.answered();
        assert_eq!([brake.crashed(), brake.crashed(), brake.crashed()], [Crashed::Go, Crashed::Go, Crashed::Slowed]);
        brake.answered();
        assert_eq!(brake.state(), BrakeState::Open);
    }

    #[test]
    fn one_probe_an_interval() {
        let brake = Brake::new(CrashBudget { failures_max: 1, ..CrashBudget::default() });
        brake.crashed();
        assert!(matches!(brake.permit(), Permit::Wait(_)));
    }
}
