//! Calls the handler for each delivery of a batch that may be handled, and says what is known about each after that.
//! What becomes of it is not decided here.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    brake::Crashed,
    held::{Sequence, sequence},
    parts::{Parts, SETBACK},
    verdict::Verdict,
};
use crate::{
    broker::Delivery,
    handler::{Call, Runner},
    message::{FailureKind, Message, Outcome, ReasonCode, UnixMs},
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
        position: delivery.position,
        attempt: delivery.attempt,
        attempts_max: shared.route.retry.attempts_for(delivery.message.retries_max),
    }
}

pub(super) fn handle_each(
    shared: &Parts,
    runner: &mut Box<dyn Runner>,
    batch: &[Delivery],
    now: UnixMs,
    verdicts: &mut Vec<Verdict>,
) {
    let order = shared.route.order;
    let mut waiting: Vec<Sequence> = Vec::new();
    let mut stopped = None;
    for delivery in batch {
        let waits = |sequence: &Sequence| stopped.is_some() || waiting.contains(sequence);
        let verdict = if let Some(sequence) = sequence(order, delivery).filter(waits) {
            Verdict::Behind(sequence)
        } else if let Some(after) = stopped {
            Verdict::NotTried(after)
        } else if let Some(objection) = objection(shared, delivery, now) {
            objection
        } else {
            let outcome = runner.handle(&call(shared, delivery));
            stopped = after_call(shared, &outcome).or_else(|| not_made(shared, &outcome));
            verdict_of(shared, outcome)
        };
        // Whatever is tried again holds those behind it. (A last attempt is not, but `decide` has yet to say so: the
        // follower then waits for a moment only.)
        let tried_again =
            matches!(&verdict, Verdict::Ran(Outcome::Retry { .. } | Outcome::Failed(_)) | Verdict::NotTried(_));
        if tried_again && let Some(sequence) = sequence(order, delivery) {
            waiting.push(sequence);
        }
        verdicts.push(verdict);
    }
}

pub(super) fn handle_many(
    shared: &Parts,
    runner: &mut Box<dyn Runner>,
    batch: &[Delivery],
    now: UnixMs,
    verdicts: &mut Vec<Verdict>,
) {
    let order = shared.route.order;
    let objections: Vec<Option<Verdict>> = batch.iter().map(|delivery| objection(shared, delivery, now)).collect();
    let calls: Vec<Call<'_>> = batch
        .iter()
        .zip(&objections)
        .filter(|(_, objection)| objection.is_none())
        .map(|(delivery, _)| call(shared, delivery))
        .collect();
    let mut outcomes = Vec::with_capacity(calls.len());
    let mut stopped = None;
    for chunk in calls.chunks(runner.calls_take().max(1)) {
        if stopped.is_some() {
            break;
        }
        for outcome in runner.handle_batch(chunk) {
            stopped = after_call(shared, &outcome).or_else(|| not_made(shared, &outcome)).or(stopped);
            outcomes.push(outcome);
        }
    }
    let mut outcomes = outcomes.into_iter();
    let mut waiting: Vec<Sequence> = Vec::new();
    for (delivery, objection) in batch.iter().zip(objections) {
        let sequence = sequence(order, delivery);
        if let Some(sequence) = sequence.as_ref().filter(|sequence| waiting.contains(sequence)) {
            if objection.is_none() {
                outcomes.next();
            }
            verdicts.push(Verdict::Behind(sequence.clone()));
            continue;
        }
        let verdict = objection.unwrap_or_else(|| match outcomes.next() {
            Some(outcome) => verdict_of(shared, outcome),
            None => Verdict::NotTried(stopped.unwrap_or_default()),
        });
        let tried_again =
            matches!(&verdict, Verdict::Ran(Outcome::Retry { .. } | Outcome::Failed(_)) | Verdict::NotTried(_));
        if let Some(sequence) = sequence.filter(|_| tried_again) {
            waiting.push(sequence);
        }
        verdicts.push(verdict);
    }
}

/// Tells the brake how a call ended. An answer means: the rest of the batch is not tried, and comes back after that.
fn after_call(shared: &Parts, outcome: &Outcome) -> Option<Duration> {
    let crash = matches!(outcome, Outcome::Failed(failure) if failure.kind.is_crash());
    if !crash {
        if !matches!(outcome, Outcome::Failed(failure) if failure.kind == FailureKind::Unavailable) {
            shared.brake.answered();
        }
        return None;
    }
    let crashed = shared.brake.crashed();
    let route = &shared.route;
    match crashed {
        Crashed::Go => return None,
        Crashed::Slowed => {
            if shared.meters.brake.get() != 1 {
                tracing::warn!(route = %route.name, handler = %route.handler, "{} calls in a row have crashed: one message every {:?} goes through until one is answered", route.crash_budget.failures_max, route.crash_budget.probe_interval);
            }
            shared.meters.brake.set(1);
        }
        Crashed::Held => {
            shared.meters.brake.set(2);
            let generation = shared.slot.serving().map_or(0, |version| version.generation);
            match shared.slot.roll_back(generation, route.crash_budget.rollback_within) {
                Some(version) => {
                    tracing::error!(route = %route.name, handler = %route.handler, digest = version.handler.identity().digest, "the new version kept crashing: the version before it serves again")
                }
                None => {
                    tracing::error!(route = %route.name, handler = %route.handler, "the handler kept crashing and is held: its messages wait until its file or the configuration changes")
                }
            }
        }
    }
    Some(Duration::ZERO)
}

/// Whether a call was not made at all, and when to try again: there was no instance to make it on, or the engine is
/// stopping and ended it. Neither is the message's fault: it waits, and no attempt is used.
fn not_made(shared: &Parts, outcome: &Outcome) -> Option<Duration> {
    match outcome {
        Outcome::Failed(_) if shared.context.ending.load(Ordering::Relaxed) => Some(Duration::ZERO),
        Outcome::Failed(failure) if failure.kind == FailureKind::Unavailable => Some(SETBACK),
        _ => None,
    }
}

fn verdict_of(shared: &Parts, outcome: Outcome) -> Verdict {
    if let Outcome::Failed(failure) = &outcome
        && failure.kind == FailureKind::Unavailable
    {
        let route = &shared.route;
        tracing::error!(route = %route.name, handler = %route.handler, "the handler cannot be run, its messages wait: {}", failure.text);
    }
    match not_made(shared, &outcome) {
        Some(after) => Verdict::NotTried(after),
        None => Verdict::Ran(outcome),
    }
}
