//! Slows a route whose handler keeps dying, then holds it; and slows one behind whose handler something is away: its
//! messages wait instead of using up their attempts. A trap, a timeout or exhausted memory is a crash (source: SPEC §14,
//! "crash budget"); what else fails may be an [outage](super::outage). Lanes ask here for both.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::watch;

use super::outage::{Outage, OutageSeen};
use crate::{
    message::{FailureKind, MessageId, Outcome, ReasonCode},
    route::{CrashBudget, OutageBrake},
};

/// Before the first probe of an outage; each that fails doubles it, up to the route's interval. Short, because what looks
/// like an outage may be a row of poisonous messages, and the next one shows it.
const FIRST_PROBE: Duration = Duration::from_millis(100);

/// How a route is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
    probe_interval: Duration,
    /// Nothing has failed since the last success: one look at this is all that a success costs.
    is_well: AtomicBool,
    /// Of the version whose failures are counted.
    generation: AtomicU64,
    state: Mutex<Inner>,
    changed: watch::Sender<BrakeState>,
}

#[derive(Debug)]
struct Inner {
    crashes_in_a_row: u32,
    /// By crashes alone.
    crashing: BrakeState,
    failed_probes: u32,
    outage: Outage,
    /// Between the probes of that, now.
    pause: Duration,
    next_probe: Instant,
    /// A lane has the probe.
    probing: bool,
}

/// What was called for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried<'a> {
    pub(super) message: &'a MessageId,
    /// Counted from 1.
    pub(super) attempt: u32,
}

/// What the end of a call means for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing: go on.
    Go,
    /// Crashes have just slowed the route, or it was slowed already: stop after this message.
    Slowed,
    /// Crashes have just held the route.
    Held,
    /// Calls run out of time, and so did the probes: a version before this one may do better. With none, messages wait.
    Outlasted(Duration),
    /// It is no fault of its message, which comes again after this as the same attempt: stop after it.
    Spared(Duration),
}

impl Brake {
    pub(super) fn new(budget: CrashBudget, outage: OutageBrake) -> Self {
        let inner = Inner {
            crashes_in_a_row: 0,
            crashing: BrakeState::Open,
            failed_probes: 0,
            outage: Outage::new(outage),
            pause: FIRST_PROBE.min(outage.probe_interval),
            next_probe: Instant::now(),
            probing: false,
        };
        Self {
            budget,
            probe_interval: outage.probe_interval,
            is_well: AtomicBool::new(true),
            generation: AtomicU64::new(0),
            state: Mutex::new(inner),
            changed: watch::Sender::new(BrakeState::Open),
        }
    }

    pub(super) fn state(&self) -> BrakeState {
        *self.changed.borrow()
    }

    /// The outage that slows it, if one does.
    pub(super) fn outage(&self) -> Option<OutageSeen> {
        self.lock().outage.seen()
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
                    // It is told when the probe is over.
                    return Permit::Wait(now + self.budget.probe_interval);
                }
                inner.probing = true;
                Permit::Probe(Probe(Arc::clone(self)))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call for that, by the version of that generation, ended. `probe`: it was to show whether the handler has
    /// recovered; one that was running when the route was slowed is none, and one of a version that is gone says nothing.
    pub(super) fn ended(&self, generation: u64, probe: bool, tried: Tried<'_>, outcome: &Outcome) -> Ended {
        if let Outcome::Done(_) = outcome {
            self.succeeded();
            return Ended::Go;
        }
        if generation != self.generation.load(Ordering::Relaxed) {
            return Ended::Go;
        }
        match outcome {
            Outcome::Failed(failure) if failure.kind == FailureKind::Timeout => {
                self.timed_out(probe, tried, &failure.text)
            }
            Outcome::Failed(failure) if failure.kind.is_crash() => self.crashed(probe),
            // An answer, if not the one that was hoped for: what is behind the handler may be away or not.
            Outcome::Done(_) | Outcome::Reject { .. } => self.answered(),
            // So does the engine: no further attempt can end better.
            Outcome::Failed(failure) if failure.kind == FailureKind::Denied => self.answered(),
            // It decides for this message, and knows when: no sign of anything but itself.
            Outcome::Retry { delay: Some(_), .. } => self.answered(),
            Outcome::Retry { reason, .. } => self.failed(probe, tried, ReasonCode::HandlerRetryExhausted, reason),
            Outcome::Failed(failure) => self.failed(probe, tried, failure.kind.code(), &failure.text),
        }
    }

    fn succeeded(&self) {
        if self.is_well.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.lock();
        inner.outage.succeeded();
        inner.answered();
        self.show(&inner);
    }

    fn answered(&self) -> Ended {
        if !self.is_well.load(Ordering::Relaxed) {
            let mut inner = self.lock();
            inner.answered();
            self.show(&inner);
        }
        Ended::Go
    }

    fn failed(&self, probe: bool, tried: Tried<'_>, code: ReasonCode, text: &str) -> Ended {
        let mut inner = self.lock();
        inner.answered();
        let was_slowed = inner.outage.slows();
        let is_outage = inner.outage.failed(tried.message, tried.attempt, code, text);
        let pause = self.pace(&mut inner, was_slowed, probe);
        if probe || is_outage && !was_slowed {
            inner.probe_not_before(pause);
        }
        self.show(&inner);
        if is_outage { Ended::Spared(pause) } else { Ended::Go }
    }

    /// How long to wait for the next probe of an outage.
    fn pace(&self, inner: &mut Inner, was_slowed: bool, probe: bool) -> Duration {
        if !was_slowed {
            inner.pause = FIRST_PROBE.min(self.probe_interval);
        } else if probe {
            inner.pause = self.probe_interval.min(inner.pause * 2);
        }
        inner.pause
    }

    /// The handler may hang, or what it waits for be away: it is a crash as others are, and a failure that others may share.
    /// As long as calls end so for different messages, the route is not held, and they use up no attempt.
    fn timed_out(&self, probe: bool, tried: Tried<'_>, text: &str) -> Ended {
        let mut inner = self.lock();
        let was_slowed = inner.outage.slows();
        let is_outage = inner.outage.failed(tried.message, tried.attempt, ReasonCode::HandlerTimeout, text);
        let crash = self.count_crash(&mut inner, probe);
        if is_outage {
            let pause = self.pace(&mut inner, was_slowed, probe).max(self.budget.probe_interval);
            inner.probe_not_before(pause);
            if inner.crashing == BrakeState::Held {
                (inner.crashing, inner.failed_probes) = (BrakeState::Slowed, 0);
            }
        }
        self.show(&inner);
        match (is_outage, crash) {
            (true, Ended::Held) => Ended::Outlasted(inner.pause),
            (true, _) => Ended::Spared(inner.pause),
            (false, crash) => crash,
        }
    }

    fn crashed(&self, probe: bool) -> Ended {
        let mut inner = self.lock();
        let ended = self.count_crash(&mut inner, probe);
        self.show(&inner);
        ended
    }

    fn count_crash(&self, inner: &mut Inner, probe: bool) -> Ended {
        inner.crashes_in_a_row = inner.crashes_in_a_row.saturating_add(1);
        match inner.crashing {
            BrakeState::Open if inner.crashes_in_a_row < self.budget.failures_max => Ended::Go,
            BrakeState::Open => {
                inner.failed_probes = 0;
                inner.probe_not_before(self.budget.probe_interval);
                inner.crashing = BrakeState::Slowed;
                Ended::Slowed
            }
            BrakeState::Slowed if probe => {
                inner.failed_probes += 1;
                inner.probe_not_before(self.budget.probe_interval);
                if inner.failed_probes < self.budget.probes_max {
                    Ended::Slowed
                } else {
                    inner.crashing = BrakeState::Held;
                    Ended::Held
                }
            }
            BrakeState::Slowed | BrakeState::Held => Ended::Slowed,
        }
    }

    /// Something changed that may have cured it: messages flow again.
    pub(super) fn release(&self) {
        let mut inner = self.lock();
        (inner.crashes_in_a_row, inner.failed_probes, inner.crashing) = (0, 0, BrakeState::Open);
        inner.outage.succeeded();
        self.show(&inner);
    }

    /// Tells the lanes, where it has changed.
    fn show(&self, inner: &Inner) {
        let is_well = inner.crashes_in_a_row == 0 && inner.crashing == BrakeState::Open && inner.outage.is_over();
        self.is_well.store(is_well, Ordering::Relaxed);
        let by_outage = if inner.outage.slows() { BrakeState::Slowed } else { BrakeState::Open };
        let state = inner.crashing.max(by_outage);
        self.changed.send_if_modified(|shown| std::mem::replace(shown, state) != state);
    }
}

impl Inner {
    /// The handler gave an answer: it does not crash any more. One that is held stays so.
    fn answered(&mut self) {
        self.crashes_in_a_row = 0;
        if self.crashing == BrakeState::Slowed {
            self.crashing = BrakeState::Open;
            self.failed_probes = 0;
        }
    }

    fn probe_not_before(&mut self, interval: Duration) {
        self.next_probe = self.next_probe.max(Instant::now() + interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brake() -> Arc<Brake> {
        let budget =
            CrashBudget { failures_max: 3, probes_max: 2, probe_interval: Duration::ZERO, ..CrashBudget::default() };
        let outage = OutageBrake { failures_max: 2, probe_interval: Duration::ZERO };
        Arc::new(Brake::new(budget, outage))
    }

    fn end(brake: &Brake, probe: bool, number: u32, outcome: &Outcome) -> Ended {
        let message = MessageId::parse(&number.to_string());
        brake.ended(0, probe, Tried { message: &message, attempt: 1 }, outcome)
    }

    fn crash(brake: &Brake, probe: bool) -> Ended {
        end(brake, probe, 0, &Outcome::failed(FailureKind::Trapped, "unreachable"))
    }

    fn fail(brake: &Brake, number: u32) -> Ended {
        end(brake, false, number, &Outcome::Retry { reason: "away".into(), delay: None })
    }

    fn done(brake: &Brake) -> Ended {
        end(brake, false, 0, &Outcome::Done(Vec::new()))
    }

    fn reject(brake: &Brake) -> Ended {
        end(brake, false, 0, &Outcome::Reject { reason: "bad".into(), code: None })
    }

    #[test]
    fn crashes_in_a_row_slow_it_and_failed_probes_hold_it() {
        let brake = brake();
        assert_eq!([(); 3].map(|()| crash(&brake, false)), [Ended::Go, Ended::Go, Ended::Slowed]);
        assert_eq!([(); 2].map(|()| crash(&brake, false)), [Ended::Slowed, Ended::Slowed]);
        assert!(matches!(brake.permit(), Permit::Probe(_)));
        assert_eq!([(); 2].map(|()| crash(&brake, true)), [Ended::Slowed, Ended::Held]);
        assert!(matches!(brake.permit(), Permit::Held));
        done(&brake);
        assert_eq!(brake.state(), BrakeState::Held, "by a call that was running then");
        brake.release();
        assert!(matches!(brake.permit(), Permit::Go));
    }

    #[test]
    fn any_answer_ends_the_row_of_crashes_and_lets_messages_flow() {
        for answer in [done, reject, |brake: &Brake| fail(brake, 1)] {
            let brake = brake();
            crash(&brake, false);
            crash(&brake, false);
            answer(&brake);
            assert_eq!([(); 3].map(|()| crash(&brake, false)), [Ended::Go, Ended::Go, Ended::Slowed]);
            answer(&brake);
            assert_eq!(brake.state(), BrakeState::Open);
        }
    }

    #[test]
    fn an_outage_slows_it_until_a_success_and_never_holds_it() {
        let brake = brake();
        assert_eq!(
            [fail(&brake, 1), fail(&brake, 1), fail(&brake, 2)],
            [Ended::Go, Ended::Go, Ended::Spared(Duration::ZERO)]
        );
        assert!((3..100).all(|number| fail(&brake, number) == Ended::Spared(Duration::ZERO)));
        reject(&brake);
        assert_eq!((brake.state(), brake.outage().unwrap().failures), (BrakeState::Slowed, 100));
        done(&brake);
        assert_eq!((brake.state(), brake.outage()), (BrakeState::Open, None));
        assert_eq!(fail(&brake, 1), Ended::Go);
    }

    #[test]
    fn a_retry_at_a_time_that_the_handler_names_and_a_destination_that_is_not_granted_are_no_outage() {
        let brake = brake();
        let later = Outcome::Retry { reason: "not before noon".into(), delay: Some(Duration::from_secs(9)) };
        let denied = Outcome::failed(FailureKind::Denied, "elsewhere");
        assert!((0..9).all(|n| [&later, &denied].iter().all(|outcome| end(&brake, false, n, outcome) == Ended::Go)));
        fail(&brake, 1);
        fail(&brake, 2);
        assert_eq!((end(&brake, true, 3, &later), brake.state()), (Ended::Go, BrakeState::Slowed), "nor is it over");
    }

    #[test]
    fn one_lane_has_the_probe_until_it_gives_it_back() {
        let brake = brake();
        let crashes = [(); 3].map(|()| crash(&brake, false));
        assert_eq!(crashes.last(), Some(&Ended::Slowed));
        let probe = brake.permit();
        assert!(matches!(probe, Permit::Probe(_)) && matches!(brake.permit(), Permit::Wait(_)));
        drop(probe);
        assert!(matches!(brake.permit(), Permit::Probe(_)));
    }

    #[test]
    fn the_first_probe_waits_for_the_interval() {
        let often = CrashBudget { failures_max: 1, ..CrashBudget::default() };
        let alike = OutageBrake { failures_max: 1, ..OutageBrake::default() };
        for fails in [|brake: &Brake| crash(brake, false), |brake: &Brake| fail(brake, 1)] {
            let brake = Arc::new(Brake::new(often, alike));
            fails(&brake);
            assert!(matches!(brake.permit(), Permit::Wait(_)));
        }
    }

    #[test]
    fn messages_that_all_run_out_of_time_are_spared_and_the_route_is_never_held() {
        let brake = brake();
        let late = Outcome::failed(FailureKind::Timeout, "no answer in 30 s");
        assert_eq!(end(&brake, false, 1, &late), Ended::Go);
        let spared = Ended::Spared(Duration::ZERO);
        assert_eq!([2, 3, 4].map(|number| end(&brake, false, number, &late)), [spared; 3]);
        let probes = [5, 6, 7, 8].map(|number| end(&brake, true, number, &late));
        let outlasted = Ended::Outlasted(Duration::ZERO);
        assert_eq!(
            probes,
            [spared, outlasted, spared, outlasted],
            "a version before this one is asked for again and again"
        );
        assert!(matches!(brake.permit(), Permit::Probe(_)));
        done(&brake);
        assert_eq!((brake.state(), brake.outage()), (BrakeState::Open, None));
    }

    #[test]
    fn one_message_that_runs_out_of_time_is_a_crash_as_others_are() {
        let brake = brake();
        let late = Outcome::failed(FailureKind::Timeout, "no answer in 30 s");
        assert_eq!([(); 3].map(|()| end(&brake, false, 1, &late)), [Ended::Go, Ended::Go, Ended::Slowed]);
        assert_eq!([(); 2].map(|()| end(&brake, true, 1, &late)), [Ended::Slowed, Ended::Held]);
    }

    #[test]
    fn each_probe_of_an_outage_that_fails_doubles_the_time_to_the_next() {
        let alike = OutageBrake { failures_max: 1, probe_interval: Duration::from_secs(1) };
        let brake = Brake::new(CrashBudget::default(), alike);
        let away = Outcome::Retry { reason: "away".into(), delay: None };
        let spared = |number, probe| match end(&brake, probe, number, &away) {
            Ended::Spared(pause) => pause.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!([spared(1, false), spared(2, false)], [100, 100], "running when the first failed");
        assert_eq!([3, 4, 5, 6, 7].map(|number| spared(number, true)), [200, 400, 800, 1000, 1000]);
        done(&brake);
        assert_eq!(spared(8, false), 100);
    }

    #[test]
    fn failures_of_a_version_that_is_gone_are_not_counted() {
        let brake = brake();
        let crash = Outcome::failed(FailureKind::Trapped, "unreachable");
        let retry = Outcome::Retry { reason: "away".into(), delay: None };
        fail(&brake, 1);
        brake.serves(2);
        for number in 0..9 {
            let message = MessageId::parse(&number.to_string());
            assert_eq!(
                [&crash, &retry].map(|outcome| brake.ended(1, true, Tried { message: &message, attempt: 1 }, outcome)),
                [Ended::Go; 2]
            );
        }
    }
}
