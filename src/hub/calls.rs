//! Calls the handler for each delivery of a batch that may be handled, and says what is known about each after that.
//! What becomes of it is not decided here.

use std::time::Duration;

use super::{
    brake::{Ended, Tried},
    held::{Sequence, sequence},
    parts::{Parts, SETBACK},
    verdict::Verdict,
};
use crate::{
    broker::Delivery,
    handler::{Call, Runner},
    message::{FailureKind, Message, Outcome, ReasonCode, UnixMs},
    route::Order,
};

/// Why a delivery must not be handled, where there is a reason.
fn objection(shared: &Parts, delivery: &Delivery, now: UnixMs) -> Option<Verdict> {
    let message: &Message = &delivery.message;
    if message.expired(now) {
        let late = now.saturating_sub(message.expires_at.unwrap_or(now));
        return Some(Verdict::Dead(
            ReasonCode::MessageExpired,
            format!("expired {late} ms before it could be handled"),
        ));
    }
    let hops = message.hops();
    if hops > shared.route.terms.limits.hops_max {
        let text = format!(
            "descends from {hops} handlers' results; at most {} are allowed",
            shared.route.terms.limits.hops_max
        );
        return Some(Verdict::Dead(ReasonCode::LoopDetected, text));
    }
    if delivery.attempt > shared.route.retry.attempts_for(message.retries_max) {
        // The attempts were used up by something that left no answer: a crash of the engine, or a lost lease.
        let last = delivery.failures.last();
        let code = last.map_or(ReasonCode::HandlerUnavailable, |failure| failure.code);
        let text =
            last.map_or_else(|| "its attempts ended without an answer".to_owned(), |failure| failure.text.clone());
        return Some(Verdict::Dead(code, text));
    }
    None
}

fn call<'a>(shared: &'a Parts, delivery: &'a Delivery) -> Call<'a> {
    Call {
        message: &delivery.message,
        source: &shared.route.source.address,
        topic: delivery.topic.as_deref(),
        position: delivery.position,
        attempt: delivery.attempt,
        attempts_max: shared.route.retry.attempts_for(delivery.message.retries_max),
    }
}

/// Watches the calls of one batch, for the brake.
pub(super) struct Watch<'a> {
    shared: &'a Parts,
    /// Of the version that runs.
    generation: u64,
    /// The next call is the probe.
    probe: bool,
    /// What is left of the batch is not to be tried now, but after this.
    stopped: Option<Duration>,
}

/// Not tried: after a while it is, as the same attempt. Where it has an order it waits here, else it goes back.
fn not_tried(order: Order, delivery: &Delivery, after: Duration) -> Verdict {
    match sequence(order, delivery).filter(|_| after.is_zero()) {
        Some(sequence) => Verdict::Behind(sequence),
        None => Verdict::NotTried(after),
    }
}

/// Whether what comes behind it has to wait. (On a last attempt it need not, but `decide` has yet to say so: it then waits
/// for a moment only.)
fn holds(verdict: &Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Ran(Outcome::Retry { .. } | Outcome::Failed(_))
            | Verdict::Spared(..)
            | Verdict::NotTried(_)
            | Verdict::Behind(_)
    )
}

pub(super) fn handle_each(
    watch: &mut Watch<'_>,
    runner: &mut Box<dyn Runner>,
    batch: &[Delivery],
    now: UnixMs,
    verdicts: &mut Vec<Verdict>,
) {
    let (shared, order) = (watch.shared, watch.shared.route.order);
    let mut waiting: Vec<Sequence> = Vec::new();
    for delivery in batch {
        let sequence = sequence(order, delivery);
        let waits = sequence.as_ref().is_some_and(|sequence| waiting.contains(sequence));
        let verdict = if waits {
            not_tried(order, delivery, Duration::ZERO)
        } else if let Some(after) = watch.stopped {
            not_tried(order, delivery, after)
        } else if let Some(objection) = objection(shared, delivery, now) {
            objection
        } else {
            watch.verdict(delivery, runner.handle(&call(shared, delivery)))
        };
        if let Some(sequence) = sequence.filter(|_| holds(&verdict)) {
            waiting.push(sequence);
        }
        verdicts.push(verdict);
    }
}

pub(super) fn handle_many(
    watch: &mut Watch<'_>,
    runner: &mut Box<dyn Runner>,
    batch: &[Delivery],
    now: UnixMs,
    verdicts: &mut Vec<Verdict>,
) {
    let (shared, order) = (watch.shared, watch.shared.route.order);
    let objections: Vec<Option<Verdict>> = batch.iter().map(|delivery| objection(shared, delivery, now)).collect();
    let (owners, calls): (Vec<&Delivery>, Vec<Call<'_>>) = batch
        .iter()
        .zip(&objections)
        .filter(|(_, objection)| objection.is_none())
        .map(|(delivery, _)| (delivery, call(shared, delivery)))
        .unzip();
    let mut answers = Vec::with_capacity(calls.len());
    let take = runner.calls_take().max(1);
    for (owners, calls) in owners.chunks(take).zip(calls.chunks(take)) {
        if watch.stopped.is_some() {
            break;
        }
        match runner.handle_batch(calls) {
            Some(outcomes) => {
                answers.extend(owners.iter().zip(outcomes).map(|(delivery, outcome)| watch.verdict(delivery, outcome)))
            }
            // Which of them did it? One to a batch, the innocent get their answers, and the brake sees each call.
            None => {
                for (delivery, call) in owners.iter().zip(calls) {
                    if watch.stopped.is_some() || watch.is_ending() {
                        break;
                    }
                    answers.push(watch.verdict(delivery, runner.handle(call)));
                }
            }
        }
    }
    let mut answers = answers.into_iter();
    let mut waiting: Vec<Sequence> = Vec::new();
    for (delivery, objection) in batch.iter().zip(objections) {
        let sequence = sequence(order, delivery);
        let after = watch.stopped.unwrap_or_default();
        let verdict = objection.or_else(|| answers.next()).unwrap_or_else(|| not_tried(order, delivery, after));
        let verdict = match sequence.as_ref().filter(|sequence| waiting.contains(sequence)) {
            Some(_) => not_tried(order, delivery, Duration::ZERO),
            None => verdict,
        };
        if let Some(sequence) = sequence.filter(|_| holds(&verdict)) {
            waiting.push(sequence);
        }
        verdicts.push(verdict);
    }
}

impl<'a> Watch<'a> {
    /// `probe`: the first call is to show whether the handler has recovered.
    pub(super) fn new(shared: &'a Parts, generation: u64, probe: bool) -> Self {
        Self { shared, generation, probe, stopped: None }
    }

    /// What a call means for its delivery, and for the brake.
    fn verdict(&mut self, delivery: &Delivery, outcome: Outcome) -> Verdict {
        let shared = self.shared;
        if let Some(after) = self.not_made(&outcome) {
            self.stopped = Some(after);
            return not_tried(shared.route.order, delivery, after);
        }
        let tried = Tried { message: &delivery.message.id, attempt: delivery.attempt };
        let ended = shared.brake.ended(self.generation, self.probe, tried, &outcome);
        self.probe = false;
        match ended {
            Ended::Go => return Verdict::Ran(outcome),
            Ended::Slowed => self.slowed(),
            Ended::Held => self.held(),
            Ended::Spared(after) => return self.spared(outcome, after),
            Ended::Outlasted(after) => {
                self.roll_back();
                return self.spared(outcome, after);
            }
        }
        self.stopped = Some(Duration::ZERO);
        Verdict::Ran(outcome)
    }

    /// Whether a call was not made at all, and when to try again: there was no instance to make it on, or the engine is
    /// stopping and ended it. Neither is the message's fault: it waits, and no attempt is used.
    fn not_made(&self, outcome: &Outcome) -> Option<Duration> {
        let Outcome::Failed(failure) = outcome else { return None };
        if self.is_ending() {
            return Some(Duration::ZERO);
        }
        if failure.kind != FailureKind::Unavailable {
            return None;
        }
        let route = &self.shared.route;
        tracing::error!(route = %route.name, handler = %route.handler, "the handler cannot be run, its messages wait: {}", failure.text);
        Some(SETBACK)
    }

    fn is_ending(&self) -> bool {
        self.shared.context.ending.is_cancelled()
    }

    /// Says once that crashes have slowed the route.
    fn slowed(&self) {
        let (shared, route) = (self.shared, &self.shared.route);
        if shared.meters.brake.get() != 1 {
            tracing::warn!(route = %route.name, handler = %route.handler, "{} calls in a row have crashed: one message every {:?} goes through until one is answered", route.crash_budget.failures_max, route.crash_budget.probe_interval);
        }
        shared.meters.brake.set(1);
    }

    /// It waits, and uses up no attempt. Says once that an outage has slowed the route.
    fn spared(&mut self, outcome: Outcome, after: Duration) -> Verdict {
        let (shared, route) = (self.shared, &self.shared.route);
        if shared.meters.brake.get() == 0
            && let Some(outage) = shared.brake.outage()
        {
            tracing::warn!(route = %route.name, handler = %route.handler, code = %outage.code, "{} different messages have failed alike: one at a time is tried, and at last one every {:?}, until one is handled, and none uses up an attempt; the last said: {}", route.outage.failures_max, route.outage.probe_interval, outage.text);
            shared.meters.brake.set(1);
        }
        self.stopped = Some(Duration::ZERO);
        Verdict::Spared(outcome, after)
    }

    /// The version that crashed gives way, or its messages wait.
    fn held(&self) {
        let (shared, route) = (self.shared, &self.shared.route);
        shared.meters.brake.set(2);
        if !self.roll_back() {
            tracing::error!(route = %route.name, handler = %route.handler, "the handler kept crashing and is held: its messages wait until its file or the configuration changes");
        }
    }

    /// Whether a version serves again that did before this one.
    fn roll_back(&self) -> bool {
        let (shared, route) = (self.shared, &self.shared.route);
        let Some(version) = shared.slot.roll_back(self.generation, route.crash_budget.rollback_within) else {
            return false;
        };
        tracing::error!(route = %route.name, handler = %route.handler, digest = version.handler.identity().digest, "the new version kept crashing: the version before it serves again");
        true
    }
}
