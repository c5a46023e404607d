//! The circuit breaker: whether a system is published to, decided from how publishing to it ended and from what it says
//! of its connections. Pure: time comes in. Source of the idea: Nygard, "Release It!", circuit breaker.
//!
//! ```text
//!            failures_max in a row, or the system is away
//!   closed ───────────────────────────────────────────────► open
//!     ▲                                                     │  open_for is over, or the system is back
//!     │ the probe is confirmed                              ▼
//!     └────────────────────────────────────────────────  half-open ──► open, when the probe fails
//! ```
//!
//! The probe is the first message that somebody publishes. Where nobody does, the system is asked for any answer: one that
//! gives it counts as well, until the first message that it does not confirm.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::CircuitSettings;
use crate::broker::Circuit;

/// How long after a probe that failed whoever has messages that wait may send the next.
const EAGER: Duration = Duration::from_millis(200);
/// How long it is half-open before the system is asked whether it answers: who publishes meanwhile shows more.
const IDLE: Duration = Duration::from_secs(1);

/// One system's circuit.
#[derive(Debug)]
pub(super) struct Breaker {
    settings: CircuitSettings,
    state: State,
    /// The system says that it is away: no probe is sent.
    is_away: bool,
    /// The probe that is out.
    probe: Option<u64>,
    probes: u64,
    /// From when on an eager one may be sent.
    eager_from: Option<Instant>,
    /// When it last opened, and why.
    opened: Option<(Instant, String)>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { since: Instant },
}

/// Leave to publish; owed an end ([`Breaker::ended`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// As everything is.
    Direct,
    /// To see whether the system is well again.
    Probe(u64),
}

/// How publishing ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The system answered, whatever it said.
    Answered,
    /// It answered when it was asked, and was given no message.
    Lives,
    /// It answered to none of so many messages.
    Failed { messages: u32, why: String },
    /// Nothing was learnt: what was published never reached it.
    Unclear,
}

impl Breaker {
    pub(super) fn new(settings: CircuitSettings) -> Self {
        Self {
            settings,
            state: State::Closed { failures: 0 },
            is_away: false,
            probe: None,
            probes: 0,
            eager_from: None,
            opened: None,
        }
    }

    pub(super) fn circuit(&self) -> Circuit {
        match self.state {
            State::Closed { .. } => Circuit::Closed,
            State::Open { .. } => Circuit::Open,
            State::HalfOpen { .. } => Circuit::HalfOpen,
        }
    }

    /// Whether it is closed, with nothing to remember: whoever publishes need not ask.
    pub(super) fn is_calm(&self) -> bool {
        matches!(self.state, State::Closed { failures: 0 })
    }

    /// When it opened, and why; `None` while it is closed.
    pub(super) fn opened(&self) -> Option<(Instant, &str)> {
        let (at, why) = self.opened.as_ref()?;
        (self.circuit() != Circuit::Closed).then_some((*at, why.as_str()))
    }

    /// Asks for leave to publish. Whoever has messages that wait anyway probes without waiting for `open_for`
    /// (`is_eager`), so that a system that goes on where it stopped is noticed at once.
    pub(super) fn permit(&mut self, now: Instant, is_eager: bool) -> Option<Permit> {
        let is_eager = is_eager && self.eager_from.is_none_or(|from| now >= from);
        let may_probe = match self.state {
            State::Closed { .. } => return Some(Permit::Direct),
            State::Open { until } => !self.is_away && (is_eager || now >= until),
            State::HalfOpen { .. } => true,
        };
        if !may_probe || self.probe.is_some() {
            return None;
        }
        self.half_open(now);
        Some(self.probe())
    }

    /// Leave to ask the system whether it answers, where nobody has published for a while.
    pub(super) fn permit_asking(&mut self, now: Instant) -> Option<Permit> {
        let State::HalfOpen { since } = self.state else { return None };
        let is_due = self.probe.is_none() && !self.is_away && now.duration_since(since) >= IDLE;
        is_due.then(|| self.probe())
    }

    fn probe(&mut self) -> Permit {
        self.probes += 1;
        self.probe = Some(self.probes);
        Permit::Probe(self.probes)
    }

    /// What was permitted has ended.
    pub(super) fn ended(&mut self, permit: Permit, how: Ended, now: Instant) {
        let is_probe = matches!(permit, Permit::Probe(probe) if self.probe == Some(probe));
        if is_probe {
            self.probe = None;
        }
        match (how, self.state) {
            // What was confirmed on the way out says nothing of a system that is away by now.
            (Ended::Answered | Ended::Lives, _) if self.is_away => {}
            (Ended::Answered, _) => self.state = State::Closed { failures: 0 },
            (Ended::Lives, State::HalfOpen { .. }) if is_probe => {
                self.state = State::Closed { failures: self.settings.failures_max.saturating_sub(1) };
            }
            (Ended::Failed { messages, why }, State::Closed { failures }) => {
                let failures = failures.saturating_add(messages);
                if failures >= self.settings.failures_max {
                    self.open(now, why);
                } else {
                    self.state = State::Closed { failures };
                }
            }
            (Ended::Failed { .. }, State::HalfOpen { .. }) if is_probe => {
                self.eager_from = Some(now + EAGER);
                self.reopen(now);
            }
            (Ended::Failed { .. } | Ended::Lives | Ended::Unclear, _) => {}
        }
    }

    /// The system says that it takes nothing for now.
    pub(super) fn away(&mut self, now: Instant, why: impl FnOnce() -> String) {
        if std::mem::replace(&mut self.is_away, true) {
            return;
        }
        match self.state {
            State::Closed { .. } => self.open(now, why()),
            State::HalfOpen { .. } => self.reopen(now),
            State::Open { .. } => {}
        }
    }

    /// The system says that it is there. Said again, it changes nothing.
    pub(super) fn back(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_away, false) {
            return;
        }
        // A probe from before went over a connection that is gone.
        (self.probe, self.eager_from) = (None, None);
        if matches!(self.state, State::Open { .. }) {
            self.half_open(now);
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        if matches!(self.state, State::Open { until } if !self.is_away && now >= until) {
            self.half_open(now);
        }
    }

    fn half_open(&mut self, now: Instant) {
        if !matches!(self.state, State::HalfOpen { .. }) {
            self.state = State::HalfOpen { since: now };
        }
    }

    fn open(&mut self, now: Instant, why: String) {
        self.opened = Some((now, why));
        self.reopen(now);
    }

    /// Opens again: since when and why stays as it was.
    fn reopen(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.settings.open_for };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Ask(bool),
        /// Somebody would know whether it answers.
        Wonder,
        End(usize, u8),
        Away,
        Back,
        Tick,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (0_u64..4000).prop_map(Step::Wait),
            4 => any::<bool>().prop_map(Step::Ask),
            2 => Just(Step::Wonder),
            5 => (any::<usize>(), 0_u8..7).prop_map(|(which, how)| Step::End(which, how)),
            1 => Just(Step::Away),
            1 => Just(Step::Back),
            1 => Just(Step::Tick),
        ]
    }

    fn how(roll: u8) -> Ended {
        match roll {
            0 | 1 => Ended::Answered,
            2 => Ended::Unclear,
            6 => Ended::Lives,
            other => Ended::Failed { messages: u32::from(other) - 2, why: "no answer".to_owned() },
        }
    }

    proptest! {
        #[test]
        fn opens_and_closes_as_its_picture_says(steps in vec(step(), 1..200)) {
            let settings = CircuitSettings { failures_max: 3, open_for: Duration::from_secs(3) };
            let mut breaker = Breaker::new(settings);
            let mut now = Instant::now();
            // What is out, and since the last answer, failures; and how long it has been open.
            let (mut out, mut failures, mut open_since, mut is_away) = (Vec::new(), 0, None, false);
            let (mut probe, mut failed_at, mut half_open_since) = (None, None, None);
            for step in steps {
                let before = breaker.circuit();
                let is_tired = failed_at.is_some_and(|at| now - at < EAGER);
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Ask(is_eager) => {
                        let permit = breaker.permit(now, is_eager);
                        match permit {
                            Some(Permit::Direct) => prop_assert_eq!(before, Circuit::Closed),
                            Some(Permit::Probe(number)) => {
                                prop_assert!(!is_away && before != Circuit::Closed);
                                prop_assert_eq!(probe, None, "one probe at a time");
                                let waited = open_since.is_none_or(|since| now - since >= settings.open_for);
                                prop_assert!(is_eager && !is_tired || before == Circuit::HalfOpen || waited);
                                probe = Some(number);
                            }
                            None => {
                                prop_assert!(before != Circuit::Closed, "what is closed lets everything through");
                                let waits = open_since.is_some_and(|since| now - since < settings.open_for);
                                prop_assert!(probe.is_some() || is_away || waits && (!is_eager || is_tired));
                            }
                        }
                        out.extend(permit);
                    }
                    Step::Wonder => {
                        let permit = breaker.permit_asking(now);
                        let is_idle = half_open_since.is_some_and(|since| now - since >= IDLE);
                        prop_assert_eq!(permit.is_some(), is_idle && probe.is_none(), "only where nobody publishes");
                        if let Some(Permit::Probe(number)) = permit {
                            probe = Some(number);
                        }
                        out.extend(permit);
                    }
                    Step::End(which, roll) if !out.is_empty() => {
                        let permit = out.remove(which % out.len());
                        let is_probe = matches!(permit, Permit::Probe(number) if probe == Some(number));
                        if is_probe {
                            probe = None;
                        }
                        let how = how(roll);
                        breaker.ended(permit, how.clone(), now);
                        let after = breaker.circuit();
                        match how {
                            Ended::Answered => {
                                prop_assert_eq!(after, if is_away { Circuit::Open } else { Circuit::Closed });
                                failures = 0;
                            }
                            Ended::Lives if is_probe && before == Circuit::HalfOpen => {
                                prop_assert_eq!(after, Circuit::Closed);
                                failures = 2;
                            }
                            Ended::Failed { messages, .. } if before == Circuit::Closed => {
                                failures += messages;
                                let wanted = if failures >= 3 { Circuit::Open } else { Circuit::Closed };
                                prop_assert_eq!(after, wanted);
                            }
                            Ended::Failed { .. } if is_probe && before == Circuit::HalfOpen => {
                                prop_assert_eq!(after, Circuit::Open);
                                failed_at = Some(now);
                            }
                            Ended::Failed { .. } | Ended::Lives | Ended::Unclear => prop_assert_eq!(after, before),
                        }
                    }
                    Step::End(..) => {}
                    Step::Away => {
                        breaker.away(now, || "gone".to_owned());
                        is_away = true;
                        prop_assert_eq!(breaker.circuit(), Circuit::Open);
                    }
                    Step::Back => {
                        breaker.back(now);
                        if is_away {
                            (probe, failed_at) = (None, None);
                            prop_assert_eq!(breaker.circuit(), Circuit::HalfOpen, "at once, whatever the time");
                        }
                        is_away = false;
                    }
                    Step::Tick => breaker.tick(now),
                }
                let after = breaker.circuit();
                if after != Circuit::HalfOpen {
                    half_open_since = None;
                } else if before != Circuit::HalfOpen {
                    half_open_since = Some(now);
                }
                if after == Circuit::Open && before != Circuit::Open {
                    open_since = Some(now);
                } else if after != Circuit::Open {
                    open_since = None;
                }
                prop_assert_eq!(breaker.opened().is_some(), after != Circuit::Closed, "says since when and why");
            }
        }
    }

    #[test]
    fn says_since_when_and_why_until_it_is_closed() {
        let mut breaker = Breaker::new(CircuitSettings::default());
        let begin = Instant::now();
        breaker.away(begin, || "the server is away".to_owned());
        breaker.back(begin);
        let permit = breaker.permit(begin, false).unwrap();
        let failed = Ended::Failed { messages: 1, why: "no answer".to_owned() };
        breaker.ended(permit, failed, begin + Duration::from_secs(1));
        assert_eq!(breaker.opened(), Some((begin, "the server is away")), "the outage is the same");
        breaker.tick(begin + Duration::from_secs(31));
        let permit = breaker.permit(begin + Duration::from_secs(31), false).unwrap();
        breaker.ended(permit, Ended::Answered, begin + Duration::from_secs(32));
        assert_eq!(breaker.opened(), None);
    }
}
