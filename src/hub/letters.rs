//! Writes the dead letters of a route: what is known of a delivery that will not be handled.

use std::sync::Arc;

use super::{
    effects,
    parts::{Parts, SETBACK},
};
use crate::{
    broker::{Deliveries, Delivery},
    handler::Version,
    message::{Address, FailedAttempt, Outcome, ReasonCode, Settlement, UnixMs, now_ms},
    settle::{DeadLetter, Decision},
    telemetry::metrics,
};

/// The letter of one delivery. `outcome` is how its last call ended, where there was one, by `version`.
pub(super) fn letter(
    shared: &Parts,
    version: Option<&Version>,
    delivery: &Delivery,
    decision: &Decision,
    outcome: Option<&Outcome>,
    now: UnixMs,
) -> DeadLetter {
    let code = match decision.settlement {
        Settlement::DeadLetter { code } => code,
        _ => ReasonCode::HandlerContract,
    };
    let text = decision.cause.clone().unwrap_or_default();
    let (handler_code, backtrace) = match outcome {
        Some(Outcome::Reject { code, .. }) => (code.as_ref().map(ToString::to_string), None),
        Some(Outcome::Failed(failure)) => (None, failure.backtrace.clone()),
        _ => (None, None),
    };
    let mut attempts = delivery.failures.clone();
    if outcome.is_some() {
        attempts.push(FailedAttempt { attempt: delivery.attempt, at: now, code, text: text.clone() });
    }
    // Where the route reads several topics, the one that it came from.
    let source = match &delivery.topic {
        Some(topic) => &Address::topic(Arc::clone(topic)),
        None => &shared.route.source.address,
    };
    DeadLetter {
        code,
        text,
        handler_code,
        at: now,
        broker: shared.broker.name_of(source).to_string(),
        source: source.to_string(),
        partition: delivery.position.map(|position| position.partition),
        offset: delivery.position.map(|position| position.offset),
        route: Some(shared.route.name.to_string()),
        handler: version.map(|version| version.handler.identity().clone()),
        backtrace,
        attempts,
        trace_id: delivery.message.trace_id().map(str::to_owned),
    }
}

/// Keeps deliveries that no route takes: they are dead letters, not lost.
pub(super) fn keep_unrouted(shared: &Parts, batch: Deliveries) {
    let now = now_ms();
    let source = &shared.route.source.address;
    let letters = batch
        .as_slice()
        .iter()
        .map(|delivery| {
            let text = format!("no route of {source} takes a message of type {:?}", delivery.message.kind);
            let settlement = Settlement::DeadLetter { code: ReasonCode::NoRoute };
            let decision = Decision { settlement, cause: Some(text) };
            let letter = DeadLetter { route: None, ..letter(shared, None, delivery, &decision, None, now) };
            Arc::new(letter.wrap(&delivery.message))
        })
        .collect();
    let kept = shared.wait(effects::keep_dead_letters(&*shared.broker, &shared.route.dead_letter, letters));
    let kept = kept.unwrap_or_else(|| vec![false; batch.len()]);
    let dead = kept.iter().filter(|kept| **kept).count();
    let settlements = kept
        .into_iter()
        .map(|kept| match kept {
            true => Settlement::DeadLetter { code: ReasonCode::NoRoute },
            false => Settlement::Release { after: SETBACK },
        })
        .collect();
    metrics().dead_lettered.with_label_values(&["", ReasonCode::NoRoute.as_str()]).inc_by(dead as u64);
    if let Some(Err(error)) = shared.wait(batch.settle(settlements)) {
        tracing::warn!(%source, "messages without a route were not settled and will be delivered again: {error}");
    }
}
