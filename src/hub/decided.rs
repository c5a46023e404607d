//! From verdicts to settlements: what is decided about a batch once its handler has been called, and what of it waits on
//! its lane.

use std::time::{Duration, Instant};

use super::{
    held::{Held, Sequence, sequence},
    parts::{Parts, SETBACK},
    verdict::Verdict,
};
use crate::{
    broker::{Deliveries, Delivery},
    message::{FailedAttempt, Outcome, Settlement, UnixMs},
    route::Order,
    settle::{self, Decision},
};

/// On a route that keeps order, what came behind a delivery whose results were not published waits behind it.
pub(super) fn keep_order(order: Order, batch: &Deliveries, verdicts: &mut [Verdict]) {
    let mut failed: Vec<Sequence> = Vec::new();
    for (delivery, verdict) in batch.as_slice().iter().zip(verdicts) {
        let Some(sequence) = sequence(order, delivery) else { continue };
        if failed.contains(&sequence) {
            *verdict = Verdict::Behind(sequence);
        } else if matches!(verdict, Verdict::Ran(Outcome::Failed(_)) | Verdict::NotTried(_) | Verdict::Spared(..)) {
            failed.push(sequence);
        }
    }
}

/// What the broker is to be told of each.
pub(super) fn decide(shared: &Parts, batch: &Deliveries, verdicts: &[Verdict], now: UnixMs) -> Vec<Decision> {
    let retry = &shared.route.retry;
    let decisions = batch.as_slice().iter().zip(verdicts).map(|(delivery, verdict)| match verdict {
        Verdict::Ran(Outcome::Done(_)) => Decision { settlement: Settlement::Accept, cause: None },
        Verdict::Ran(outcome) => {
            let attempts_max = retry.attempts_for(delivery.message.retries_max);
            settle::decide(outcome, delivery.attempt, attempts_max, retry, now, crate::message::random())
        }
        Verdict::Dead(code, text) => {
            Decision { settlement: Settlement::DeadLetter { code: *code }, cause: Some(text.clone()) }
        }
        Verdict::NotTried(after) | Verdict::Spared(_, after) => {
            Decision { settlement: Settlement::Release { after: *after }, cause: None }
        }
        Verdict::Behind(_) => Decision { settlement: Settlement::Release { after: Duration::ZERO }, cause: None },
    });
    decisions.collect()
}

/// The places of those that are to be dead letters.
pub(super) fn dead(decisions: &[Decision]) -> Vec<usize> {
    let is_dead = |decision: &Decision| matches!(decision.settlement, Settlement::DeadLetter { .. });
    decisions.iter().enumerate().filter(|(_, decision)| is_dead(decision)).map(|(place, _)| place).collect()
}

/// What becomes of a delivery whose dead letter was not kept: it goes back, as the next attempt if its handler ran, so
/// that it does not run more often than it may.
pub(super) fn unkept(delivery: &Delivery, verdict: Option<&Verdict>, decision: &mut Decision, now: UnixMs) {
    decision.settlement = match (verdict, &decision.settlement) {
        (Some(Verdict::Ran(_)), Settlement::DeadLetter { code }) => Settlement::Redeliver {
            after: SETBACK,
            failure: Box::new(FailedAttempt {
                attempt: delivery.attempt,
                at: now,
                code: *code,
                text: decision.cause.clone().unwrap_or_default(),
            }),
        },
        _ => Settlement::Release { after: SETBACK },
    };
}

/// A batch, taken apart.
pub(super) struct Divided {
    /// What the broker is told of now, and what.
    pub(super) settled: Deliveries,
    pub(super) settlements: Vec<Settlement>,
    /// What waits on this lane to keep its order.
    pub(super) waiting: Vec<Waits>,
}

/// One that waits.
pub(super) struct Waits {
    /// In its batch.
    place: usize,
    delivery: Deliveries,
    sequence: Sequence,
    after: Duration,
    failure: Option<FailedAttempt>,
}

/// Takes apart what is settled now and what waits.
pub(super) fn divide(order: Order, batch: Deliveries, verdicts: &[Verdict], decisions: Vec<Decision>) -> Divided {
    let waits = |delivery: &Delivery, verdict: &Verdict, decision: &Decision| match verdict {
        Verdict::Behind(sequence) => Some((sequence.clone(), Duration::ZERO, None)),
        _ => match &decision.settlement {
            Settlement::Redeliver { after, failure } => {
                Some((sequence(order, delivery)?, *after, Some((**failure).clone())))
            }
            Settlement::Release { after } if !after.is_zero() => Some((sequence(order, delivery)?, *after, None)),
            _ => None,
        },
    };
    let each = batch.as_slice().iter().zip(verdicts).zip(&decisions);
    let wait: Vec<_> = each.map(|((delivery, verdict), decision)| waits(delivery, verdict, decision)).collect();
    if wait.iter().all(Option::is_none) {
        let settlements = decisions.into_iter().map(|decision| decision.settlement).collect();
        return Divided { settled: batch, settlements, waiting: Vec::new() };
    }
    let mut divided =
        Divided { settled: Deliveries::none(), settlements: Vec::with_capacity(decisions.len()), waiting: Vec::new() };
    for (place, ((delivery, decision), wait)) in batch.into_each().zip(decisions).zip(wait).enumerate() {
        match wait {
            Some((sequence, after, failure)) => {
                divided.waiting.push(Waits { place, delivery, sequence, after, failure })
            }
            None => {
                divided.settlements.push(decision.settlement);
                divided.settled = joined(divided.settled, delivery);
            }
        }
    }
    divided
}

/// Puts those that wait where they wait.
pub(super) fn park(waiting: Vec<Waits>, held: &mut Held) {
    let now = Instant::now();
    for Waits { delivery, sequence, after, failure, .. } in waiting {
        held.park(sequence, delivery, now + after, failure);
    }
}

/// The batch that was taken apart, in its order.
pub(super) fn whole(settled: Deliveries, waiting: Vec<Waits>) -> Deliveries {
    if waiting.is_empty() {
        return settled;
    }
    let (mut batch, mut settled) = (Deliveries::none(), settled.into_each());
    for Waits { place, delivery, .. } in waiting {
        while batch.len() < place
            && let Some(one) = settled.next()
        {
            batch = joined(batch, one);
        }
        batch = joined(batch, delivery);
    }
    settled.fold(batch, joined)
}

/// Deliveries of one batch, together again.
pub(super) fn joined(mut first: Deliveries, more: Deliveries) -> Deliveries {
    // Only deliveries of different subscriptions cannot be joined, and a batch has one: those would go back.
    drop(first.append(more));
    first
}
