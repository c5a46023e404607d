//! What a batch causes, in one transaction: its results, its dead letters and what the broker is told of it, all of it or
//! nothing. One whose results cannot be published fails for itself, and the others are tried again without it. Where the
//! broker fails, nothing of the batch was done: all of it goes back untried.

use std::sync::Arc;

use super::{
    decided::{self, Divided},
    doing::Step,
    effects::{self, Group},
    held::Held,
    letters,
    meters::oldest,
    parts::{Parts, SETBACK},
    verdict::Verdict,
};
use crate::{
    broker::{BrokerError, Deliveries, PublishError, TransactionError},
    handler::Version,
    message::{Outcome, UnixMs},
    settle::{DeadLetter, Decision},
    telemetry::metrics,
};

/// One batch on its way.
pub(super) struct Transaction<'a> {
    shared: &'a Parts,
    version: Option<&'a Version>,
    now: UnixMs,
    verdicts: Vec<Verdict>,
    /// The results of all of them.
    results: Vec<Group>,
    /// For each delivery, how far its dead letter is.
    letters: Vec<Letter>,
}

/// How far the dead letter of a delivery is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Letter {
    Whole,
    /// Refused as too large: it is tried with fewer headers.
    Cut,
    /// Refused: its delivery goes back.
    Refused,
}

impl<'a> Transaction<'a> {
    /// `version` is the one that ran.
    pub(super) fn new(
        shared: &'a Parts,
        version: Option<&'a Version>,
        batch: &Deliveries,
        mut verdicts: Vec<Verdict>,
        now: UnixMs,
    ) -> Self {
        let results = effects::results(&shared.route, batch, &mut verdicts);
        Self { shared, version, now, verdicts, results, letters: vec![Letter::Whole; batch.len()] }
    }

    /// Carries it through: in the end each delivery is settled, waits in `held`, or went back.
    pub(super) fn run(mut self, mut batch: Deliveries, held: &mut Held) {
        let (shared, route) = (self.shared, &self.shared.route);
        // After each but the last, one more is done without: its results, its letter's headers, its letter.
        for _ in 0..=3 * batch.len() {
            decided::keep_order(route.order, &batch, &mut self.verdicts);
            let mut decisions = decided::decide(shared, &batch, &self.verdicts, self.now);
            let published = self.published(&batch, &mut decisions);
            let (decided, oldest) = (decisions.clone(), oldest(&batch));
            let Divided { settled, settlements, waiting } =
                decided::divide(route.order, batch, &self.verdicts, decisions);
            let messages: Vec<_> = published.iter().map(|group| (group.to.clone(), group.messages.clone())).collect();
            // Not given up: nobody would know what became of it. The system bounds it.
            let busy = shared.doing.begin(Step::Settling);
            let done = match settled.is_empty() {
                true => Ok(()),
                false => shared.context.runtime.block_on(settled.transact(&messages, &settlements)),
            };
            drop(busy);
            let Err((settled, error)) = done else {
                for group in &published {
                    effects::count_published(&*shared.broker, &group.to, group.messages.len());
                }
                shared.meters.count(&route.name, oldest, &self.verdicts, &decided, self.now);
                return decided::park(waiting, held);
            };
            batch = decided::whole(settled, waiting);
            match error {
                TransactionError::Publish(failures) => self.refuse(&published, &failures),
                TransactionError::Broker(error) => return self.give_back(batch, held, &error),
            }
        }
        // Not reached by a broker that names what it refuses.
        self.give_back(batch, held, &BrokerError::Lost("its messages were refused again and again".to_owned()));
    }

    /// What is to be published: the results of those that are done, then the dead letters.
    fn published(&self, batch: &Deliveries, decisions: &mut [Decision]) -> Vec<Group> {
        let is_done = |owner: &usize| matches!(self.verdicts.get(*owner), Some(Verdict::Ran(Outcome::Done(_))));
        let mut published: Vec<Group> = self.results.iter().map(|group| group.only(is_done)).collect();
        let mut letters = Group::to(self.shared.route.dead_letter.clone());
        for place in decided::dead(decisions) {
            let (Some(delivery), Some(decision)) = (batch.as_slice().get(place), decisions.get_mut(place)) else {
                continue;
            };
            let verdict = self.verdicts.get(place);
            let state = self.letters.get(place).copied().unwrap_or(Letter::Whole);
            if state == Letter::Refused {
                decided::unkept(delivery, verdict, decision, self.now);
                continue;
            }
            let outcome = verdict.and_then(Verdict::outcome);
            let letter = letters::letter(self.shared, self.version, delivery, decision, outcome, self.now);
            let whole = letter.wrap(&delivery.message);
            let letter = if state == Letter::Cut { DeadLetter::cut(&whole).unwrap_or(whole) } else { whole };
            letters.messages.push(Arc::new(letter));
            letters.owners.push(place);
        }
        published.push(letters);
        published.retain(|group| !group.messages.is_empty());
        published
    }

    /// Does without what cannot be published.
    fn refuse(&mut self, published: &[Group], failures: &[(usize, usize, PublishError)]) {
        let shared = self.shared;
        for (group, place, error) in failures {
            let Some(group) = published.get(*group) else { continue };
            effects::count_failure(&*shared.broker, &group.to, error);
            let Some(owner) = group.owners.get(*place).copied() else { continue };
            let (Some(verdict), Some(letter)) = (self.verdicts.get_mut(owner), self.letters.get_mut(owner)) else {
                continue;
            };
            if matches!(verdict, Verdict::Ran(Outcome::Done(_))) {
                tracing::debug!(route = %shared.route.name, destination = %group.to, "a result was not published: {error}");
                *verdict = effects::unpublished(error);
                continue;
            }
            let is_large = matches!(error, PublishError::TooLarge { .. });
            *letter = if is_large && *letter == Letter::Whole { Letter::Cut } else { Letter::Refused };
            if *letter == Letter::Refused {
                tracing::error!(route = %shared.route.name, dead_letters = %group.to, "a dead letter could not be kept; its message stays: {error}");
            }
        }
    }

    /// Nothing of it was done, and nothing of it is a message's fault.
    fn give_back(mut self, batch: Deliveries, held: &mut Held, error: &BrokerError) {
        let shared = self.shared;
        metrics().settle_failures.with_label_values(&[shared.broker.name()]).inc();
        tracing::warn!(route = %shared.route.name, "a transaction was not committed, its batch is handled again: {error}");
        self.verdicts.iter_mut().for_each(|verdict| *verdict = Verdict::NotTried(SETBACK));
        let decisions = decided::decide(shared, &batch, &self.verdicts, self.now);
        let Divided { settled, settlements, waiting } =
            decided::divide(shared.route.order, batch, &self.verdicts, decisions);
        decided::park(waiting, held);
        if !settled.is_empty()
            && let Err(error) = shared.context.runtime.block_on(settled.settle(settlements))
        {
            tracing::debug!(route = %shared.route.name, "it could not be given back, and comes again by itself: {error}");
        }
    }
}
