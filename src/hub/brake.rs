//! Slows a route whose handler keeps dying, then holds it: its messages wait instead of using up their attempts.
//! A trap, a timeout or exhausted memory is a crash; any answer at all is not. Source: SPEC §14, "crash budget".

use std::{
    sync::{
        Arc, Mutex, PoisonError,
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
#[derive(Debug)]
pub(super) enum Permit {
    /// Call the handler.
    Go,
    /// Call it once, as the probe.
    Probe(Probe),
    /// Nothing before this.
    Wait(Instant),
    /// Nothing until something changes.
    Held,
}

/// The right to make the one call that shows whether the handler has recovered. Dropped unused, another lane gets it.
#[derive(Debug)]
pub(super) struct Probe(Arc<Brake>);

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.lock().probing = false;
        // Those who wait for it look again.
        self.0.changed.send_modify(|_| {});
    }
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
    /// A lane has the probe.
    probing: bool,
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
            state: Mutex::new(Inner { failed_probes: 0, next_probe: Instant::now(), probing: false }),
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

    /// What the asking lane may do, which has a message in hand. One lane at a time gets a probe, an interval after the
    /// one before.
    pub(super) fn permit(self: &Arc<Self>) -> Permit {
        match self.state() {
            BrakeState::Open => Permit::Go,
            BrakeState::Held => Permit::Held,
            BrakeState::Slowed => {
                let mut inner = self.lock();
                let now = Instant::now();
                if now < inner.next_probe {
                    return Permit::Wait(inner.next_probe);
                }
                if inner.probing {
                    return Permit::Wait(now + self.budget.probe_interval);
                }
                inner.probing = true;
                Permit::Probe(Probe(Arc::clone(self)))
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The version of that generation crashed; `probe`: on the call that was to show whether it has recovered. A call
    /// that was running when the route was slowed is none, and one of a version that is gone says nothing.
    pub(super) fn crashed(&self, generation: u64, probe: bool) -> Crashed {
        if generation != self.generation.load(Ordering::Relaxed) {
            return Crashed::Go;
        }
        let crashes = self.crashes_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        match self.state() {
            BrakeState::Open if crashes < self.budget.failures_max => Crashed::Go,
            BrakeState::Open => {
                let mut inner = self.lock();
                inner.failed_probes = 0;
                inner.next_probe = Instant::now() + self.budget.probe_interval;
                self.changed.send_replace(BrakeState::Slowed);
                Crashed::Slowed
            }
            BrakeState::Slowed if !probe => Crashed::Slowed,
            BrakeState::Slowed => {
                let mut inner = self.lock();
                inner.failed_probes += 1;
                inner.next_probe = Instant::now() + self.budget.probe_interval;
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
        self.lock().failed_probes = 0;
        self.changed.send_replace(BrakeState::Open);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn brake() -> Arc<Brake> {
        let budget =
            CrashBudget { failures_max: 3, probes_max: 2, probe_interval: Duration::ZERO, ..CrashBudget::default() };
        Arc::new(Brake::new(budget))
    }

    fn crash(brake: &Brake) -> Crashed {
        brake.crashed(0, false)
    }

    #[test]
    fn crashes_in_a_row_slow_it_and_failed_probes_hold_it() {
        let brake = brake();
        assert_eq!([crash(&brake), crash(&brake), crash(&brake)], [Crashed::Go, Crashed::Go, Crashed::Slowed]);
        assert_eq!([crash(&brake), crash(&brake)], [Crashed::Slowed, Crashed::Slowed]);
        assert!(matches!(brake.permit(), Permit::Probe(_)));
        assert_eq!([brake.crashed(0, true), brake.crashed(0, true)], [Crashed::Slowed, Crashed::Held]);
        assert!(matches!(brake.permit(), Permit::Held));
        brake.release();
        assert!(matches!(brake.permit(), Permit::Go));
    }

    #[test]
    fn any_answer_ends_the_row_and_lets_messages_flow() {
        let brake = brake();
        crash(&brake);
        crash(&brake);
        brake.answered();
        assert_eq!([crash(&brake), crash(&brake), crash(&brake)], [Crashed::Go, Crashed::Go, Crashed::Slowed]);
        brake.answered();
        assert_eq!(brake.state(), BrakeState::Open);
    }

    #[test]
    fn one_lane_has_the_probe_until_it_gives_it_back() {
        let brake = brake();
        assert_eq!([crash(&brake), crash(&brake), crash(&brake)], [Crashed::Go, Crashed::Go, Crashed::Slowed]);
        let probe = brake.permit();
        assert!(matches!(probe, Permit::Probe(_)) && matches!(brake.permit(), Permit::Wait(_)));
        drop(probe);
        assert!(matches!(brake.permit(), Permit::Probe(_)));
    }

    #[test]
    fn the_first_probe_waits_for_the_interval() {
        let brake = Arc::new(Brake::new(CrashBudget { failures_max: 1, ..CrashBudget::default() }));
        crash(&brake);
        assert!(matches!(brake.permit(), Permit::Wait(_)));
    }

    #[test]
    fn crashes_of_a_version_that_is_gone_are_not_counted() {
        let brake = brake();
        brake.serves(2);
        assert_eq!((0..9).map(|_| brake.crashed(1, true)).collect::<Vec<_>>(), [Crashed::Go; 9]);
    }
}
