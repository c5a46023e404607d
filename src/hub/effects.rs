//! What a batch causes before it is settled: results published, dead letters kept, both confirmed (Invariant 2).

use std::sync::Arc;

use smallvec::SmallVec;

use super::{parts::SETBACK, verdict::Verdict};
use crate::{
    broker::{Broker, Deliveries, PublishError},
    message::{Address, FailureKind, Message, Outbound, Outcome, ReasonCode},
    route::Route,
    settle::DeadLetter,
    telemetry::metrics,
};

/// Messages for one address, and which delivery of the batch each belongs to.
pub(super) struct Group {
    pub(super) to: Address,
    pub(super) messages: Vec<Arc<Message>>,
    pub(super) owners: Vec<usize>,
}

impl Group {
    pub(super) fn to(to: Address) -> Self {
        Self { to, messages: Vec::new(), owners: Vec::new() }
    }

    /// What belongs to some of the deliveries.
    pub(super) fn only(&self, owned: impl Fn(&usize) -> bool) -> Self {
        let both = self.messages.iter().zip(&self.owners).filter(|(_, owner)| owned(owner));
        let (messages, owners) = both.map(|(message, owner)| (Arc::clone(message), *owner)).unzip();
        Self { to: self.to.clone(), messages, owners }
    }
}

/// Publishes what the calls of a batch returned. A delivery one of whose results was not confirmed has failed: it will
/// be tried again, and then repeats the ids of the results that did get through.
pub(super) async fn publish_results(broker: &dyn Broker, route: &Route, batch: &Deliveries, verdicts: &mut [Verdict]) {
    for group in results(route, batch, verdicts) {
        publish(broker, route, group, verdicts).await;
    }
}

/// Takes what the calls of a batch returned, by where it goes.
pub(super) fn results(route: &Route, batch: &Deliveries, verdicts: &mut [Verdict]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (owner, verdict) in verdicts.iter_mut().enumerate() {
        let Verdict::Ran(Outcome::Done(results)) = verdict else { continue };
        if results.is_empty() {
            continue;
        }
        let handled = batch.as_slice().get(owner).map(|delivery| &delivery.message);
        let to = |result: &Outbound| match route.terms.destinations.get(&result.destination) {
            Some(address) => Some(address.clone()),
            None => handled.and_then(|message| message.reply_address()),
        };
        // All or nothing: each has to have its address before any is published.
        let Some(addresses) = results.iter().map(to).collect::<Option<SmallVec<[Address; 2]>>>() else {
            let text = "returned an answer to a message that expects none";
            *verdict = Verdict::Ran(Outcome::failed(FailureKind::Contract, text));
            continue;
        };
        for (result, to) in std::mem::take(results).into_iter().zip(addresses) {
            let group = match groups.iter_mut().find(|group| group.to == to) {
                Some(group) => group,
                None => {
                    groups.push(Group { messages: Vec::with_capacity(batch.len()), ..Group::to(to) });
                    let Some(group) = groups.last_mut() else { continue };
                    group
                }
            };
            group.messages.push(Arc::new(result.message));
            group.owners.push(owner);
        }
    }
    groups
}

async fn publish(broker: &dyn Broker, route: &Route, group: Group, verdicts: &mut [Verdict]) {
    let count = group.messages.len();
    let failures = match broker.publish(&group.to, group.messages).await {
        Ok(()) => Vec::new(),
        Err(failures) => failures.0,
    };
    count_published(broker, &group.to, count.saturating_sub(failures.len()));
    for (place, error) in failures {
        count_failure(broker, &group.to, &error);
        tracing::debug!(route = %route.name, destination = %group.to, "a result was not published: {error}");
        if let Some(verdict) = group.owners.get(place).and_then(|owner| verdicts.get_mut(*owner)) {
            *verdict = unpublished(&error);
        }
    }
}

/// What is known of a delivery one of whose results was not published.
pub(super) fn unpublished(error: &PublishError) -> Verdict {
    match error {
        // Nobody's fault, and no reason to use up attempts: it runs again when there may be room, or a broker.
        PublishError::Closed => Verdict::NotTried(SETBACK),
        error if error.is_retryable() => Verdict::NotTried(SETBACK),
        _ => {
            let text = format!("a result was not published: {error}");
            Verdict::Ran(Outcome::failed(FailureKind::PublishFailed, text))
        }
    }
}

pub(super) fn count_published(broker: &dyn Broker, to: &Address, count: usize) {
    let destination = to.to_string();
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    metrics().published.with_label_values(&[&*broker.name_of(to), &destination]).inc_by(count);
}

/// Keeps dead letters. Returns, for each, whether it is confirmed; one that is not must not be settled.
pub(super) async fn keep_dead_letters(broker: &dyn Broker, to: &Address, letters: Vec<Arc<Message>>) -> Vec<bool> {
    let mut kept = vec![true; letters.len()];
    let Err(failures) = broker.publish(to, letters.clone()).await else { return kept };
    let mut failures = failures.0;
    // One with more headers than the system takes is kept with fewer: it would come again for ever.
    let mut cut = Vec::new();
    for (place, error) in &failures {
        let is_large = matches!(error, PublishError::TooLarge { .. });
        if let Some(letter) = letters.get(*place).filter(|_| is_large).and_then(|letter| DeadLetter::cut(letter)) {
            cut.push((*place, Arc::new(letter)));
        }
    }
    if !cut.is_empty() {
        let places: Vec<usize> = cut.iter().map(|(place, _)| *place).collect();
        let again = broker.publish(to, cut.into_iter().map(|(_, letter)| letter).collect()).await;
        let again = again.err().map(|failures| failures.0).unwrap_or_default();
        failures.retain(|(place, _)| !places.contains(place));
        failures.extend(again.into_iter().filter_map(|(at, error)| Some((*places.get(at)?, error))));
    }
    for (place, error) in &failures {
        count_failure(broker, to, error);
        if let Some(kept) = kept.get_mut(*place) {
            *kept = false;
        }
    }
    if let Some((_, error)) = failures.first() {
        let count = failures.len();
        tracing::error!(dead_letters = %to, count, "dead letters could not be kept; their messages stay: {error}");
    }
    kept
}

pub(super) fn count_failure(broker: &dyn Broker, to: &Address, error: &PublishError) {
    let code: ReasonCode = error.code();
    metrics().publish_failures.with_label_values(&[&*broker.name_of(to), code.as_str()]).inc();
}
