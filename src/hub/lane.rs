//! A lane: a thread that carries batches through, one at a time. It owns its instance of the handler and waits for
//! nothing but its feed, its broker and the guest. A guest that takes long keeps its own lane, and the kernel sees to
//! it that the others run.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::{Histogram, IntCounter, IntGauge};
use tokio_util::sync::CancellationToken;

use super::{
    brake::{Brake, BrakeState, Crashed, Permit, Probe},
    effects,
    feed::{Feed, Seat, Taken},
    held::{Due, Held, Sequence, sequence},
};
use crate::{
    broker::{BatchMax, Broker, Deliveries, Delivery},
    handler::{Call, LaneContext, Runner, Slot, Version},
    message::{FailedAttempt, FailureKind, Message, Outcome, ReasonCode, Settlement, UnixMs, now_ms},
    route::{Order, Route},
    settle::{self, DeadLetter, Decision},
    telemetry::metrics,
};

/// Deliveries of a batch, at most.
pub(super) const BATCH_MAX: usize = 256;
/// Bytes of a batch, at most.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long a batch should take in its handler: a slow handler takes fewer at a time, so that nothing waits behind it
/// while another lane is free.
const BATCH_TIME: Duration = Duration::from_millis(4);
/// How long a delivery waits whose dead letter could not be kept, or whose handler cannot be run.
const SETBACK: Duration = Duration::from_secs(1);

/// What all lanes of one route share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) route: Arc<Route>,
    pub(super) slot: Arc<Slot>,
    pub(super) brake: Arc<Brake>,
    pub(super) context: LaneContext,
    pub(super) meters: Meters,
}

/// A thread's worth of a route.
pub(super) struct Lane {
    shared: Arc<Shared>,
    feed: Arc<Feed>,
    seat: Seat,
    runner: Option<(Arc<Version>, Box<dyn Runner>)>,
    held: Held,
    /// Running mean of the time one message takes in the handler.
    mean: Duration,
}

/// What is known about one delivery of a batch before it is settled.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The handler was called, and this is how it ended.
    Ran(Outcome),
    /// It must not be handled, whatever the handler would say.
    Dead(ReasonCode, String),
    /// It was not tried: it goes back as the same attempt after a while.
    NotTried(Duration),
    /// It waits here behind one of its sequence.
    Behind(Sequence),
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, feed: Arc<Feed>, seat: Seat) -> Self {
        Self { shared, feed, seat, runner: None, held: Held::default(), mean: Duration::from_micros(250) }
    }

    /// Carries batches through until the feed ends. What it holds then goes back to the broker.
    pub(super) fn run(mut self) {
        let runtime = self.shared.context.runtime.clone();
        let _guard = runtime.enter();
        loop {
            if !runtime.block_on(self.until_permitted()) {
                break;
            }
            if let Some(due) = self.held.take_due(Instant::now()) {
                self.try_again(due);
                continue;
            }
            match runtime.block_on(self.next_batch(self.count())) {
                Some(Taken::Batch(batch)) => self.take_in(batch),
                Some(Taken::Unrouted(unrouted, mine)) => {
                    self.dead_letter_unrouted(unrouted);
                    if let Some(mine) = mine {
                        self.take_in(mine);
                    }
                }
                Some(Taken::End) => break,
                None => {} // A held sequence is due.
            }
        }
    }

    /// Carries one batch through: handle, publish what came of it, decide, keep what died, settle.
    fn deliver(&mut self, batch: Deliveries, turn: Turn) {
        let now = now_ms();
        let _span = tracing::info_span!("batch", route = %self.shared.route.name, messages = batch.len()).entered();
        let mut verdicts = self.handle(&batch, now, &turn);
        self.publish_results(&batch, &mut verdicts); // Invariant 2: confirmed before settled.
        let mut decisions = self.decide(&batch, &verdicts, now);
        self.keep_dead_letters(&batch, &verdicts, &mut decisions, now); // Invariant 2.
        self.settle(batch, verdicts, decisions, now); // Invariant 1: each once.
    }

    /// Waits until there is a version to run and the route is not held; false when the feed stops first.
    async fn until_permitted(&self) -> bool {
        let shared = &self.shared;
        loop {
            let mut versions = shared.slot.changes();
            let mut brake = shared.brake.changes();
            if self.feed.is_stopped() {
                return false;
            }
            if let Some(version) = shared.slot.serving() {
                shared.brake.serves(version.generation);
                match shared.brake.state() {
                    BrakeState::Open => {
                        shared.meters.released();
                        return true;
                    }
                    BrakeState::Slowed => return true,
                    BrakeState::Held => {}
                }
            }
            tokio::select! {
                () = self.feed.stopped() => return false,
                // Their senders live as long as `shared`.
                _ = versions.changed() => {}
                _ = brake.changed() => {}
            }
        }
    }

    /// The right to call the handler for what is in hand; `None`: not now, it has to wait.
    fn turn(&self) -> Option<Turn> {
        match self.shared.brake.state() {
            BrakeState::Open => Some(Turn(None)),
            BrakeState::Slowed | BrakeState::Held => self.shared.context.runtime.block_on(self.until_turn()),
        }
    }

    /// Waits with a message in hand until it is this lane's turn to try it.
    async fn until_turn(&self) -> Option<Turn> {
        let mut versions = self.shared.slot.changes();
        let mut brake = self.shared.brake.changes();
        loop {
            let until = match self.shared.brake.permit() {
                Permit::Go => return Some(Turn(None)),
                Permit::Probe(probe) => return Some(Turn(Some(probe))),
                Permit::Wait(until) => until,
                Permit::Held => return None,
            };
            tokio::select! {
                () = self.feed.stopped() => return None,
                _ = versions.changed() => return None,
                _ = brake.changed() => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    async fn next_batch(&mut self, count: usize) -> Option<Taken> {
        let due = self.held.next_due();
        let until_due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let max = BatchMax { count, bytes: BATCH_BYTES_MAX };
        tokio::select! {
            biased;
            () = until_due => None,
            taken = self.feed.take(&self.seat, max), if !self.held.is_full() => Some(taken),
            () = self.feed.stopped() => Some(Taken::End),
        }
    }

    /// How many messages to handle at a time: as many as fill [`BATCH_TIME`], and one where it may crash.
    fn count(&self) -> usize {
        if self.shared.brake.state() != BrakeState::Open {
            return 1;
        }
        let fit = BATCH_TIME.as_nanos() / self.mean.as_nanos().max(1);
        usize::try_from(fit).unwrap_or(BATCH_MAX).clamp(1, BATCH_MAX)
    }

    /// Delivers a batch, in pieces if it is more than should be handled at a time, and keeps apart what has to wait.
    fn take_in(&mut self, mut batch: Deliveries) {
        while !batch.is_empty() && !self.feed.is_stopped() {
            let piece = batch.take_front(self.count());
            let piece = self.park_behind(piece);
            if piece.is_empty() {
                continue;
            }
            match self.turn() {
                Some(turn) => self.deliver(piece, turn),
                None => {
                    self.put_back(piece);
                    return self.put_back(batch);
                }
            }
        }
    }

    /// Does without what cannot be tried now: it goes back, or waits here where it has an order.
    fn put_back(&mut self, batch: Deliveries) {
        let order = self.shared.route.order;
        let mut kept = false;
        for one in batch.into_each() {
            // Without an order it is dropped, and goes back.
            if let Some(sequence) = one.as_slice().first().and_then(|delivery| sequence(order, delivery)) {
                self.held.park(sequence, one, Instant::now(), None);
                kept = true;
            }
        }
        if kept {
            self.count_held();
        }
    }

    /// Parks what belongs behind a sequence that waits already; the rest is returned.
    fn park_behind(&mut self, batch: Deliveries) -> Deliveries {
        if self.held.is_empty() {
            return batch;
        }
        let order = self.shared.route.order;
        let mut rest = Deliveries::none();
        for one in batch.into_each() {
            let waits = one.as_slice().first().and_then(|delivery| sequence(order, delivery)).filter(|sequence| self.held.holds(sequence));
            match waits {
                Some(sequence) => self.held.park(sequence, one, Instant::now(), None),
                None => rest = joined(rest, one),
            }
        }
        self.count_held();
        rest
    }

    /// A sequence is due: its first is tried once more, those behind it follow.
    fn try_again(&mut self, due: Due) {
        let Due { sequence, batches, failure } = due;
        let mut batches = batches.into_iter();
        let Some(mut first) = batches.next() else { return };
        let Some(turn) = self.turn() else {
            self.held.park(sequence.clone(), first, Instant::now(), failure);
            batches.for_each(|batch| self.held.park(sequence.clone(), batch, Instant::now(), None));
            return;
        };
        if let Some(failure) = failure {
            let counted = self.shared.context.runtime.block_on(first.count_attempt(failure));
            if let Err(error) = counted {
                tracing::warn!(route = %self.shared.route.name, "an attempt could not be counted, the messages go back: {error}");
                return;
            }
        }
        self.deliver(first, turn);
        batches.for_each(|batch| self.take_in(batch));
        self.count_held();
    }

    /// Calls the handler for each delivery that may be handled.
    fn handle(&mut self, batch: &Deliveries, now: UnixMs, turn: &Turn) -> Vec<Verdict> {
        let begin = Instant::now();
        let mut verdicts = Vec::with_capacity(batch.len());
        let shared = Arc::clone(&self.shared);
        let Some((version, runner)) = self.open() else {
            return batch.as_slice().iter().map(|_| Verdict::NotTried(SETBACK)).collect();
        };
        let mut watch = Watch { shared: &shared, generation: version.generation, probe: turn.0.is_some(), stopped: false };
        runner.begin();
        if runner.calls_take() > 1 {
            handle_many(&mut watch, runner, batch.as_slice(), now, &mut verdicts);
        } else {
            handle_each(&mut watch, runner, batch.as_slice(), now, &mut verdicts);
        }
        runner.end();
        let elapsed = begin.elapsed();
        let share = elapsed / u32::try_from(batch.len().max(1)).unwrap_or(u32::MAX);
        self.mean = if share > self.mean { (self.mean + share) / 2 } else { (self.mean * 7 + share) / 8 };
        shared.meters.run_time.observe(elapsed.as_secs_f64());
        shared.meters.batch.observe(batch.len() as f64);
        verdicts
    }

    /// A runner of the version that serves now.
    fn open(&mut self) -> Option<(&Version, &mut Box<dyn Runner>)> {
        let shared = &self.shared;
        let serving = shared.slot.serving()?;
        if self.runner.as_ref().is_none_or(|(version, _)| version.generation != serving.generation) {
            // The old one goes before the new one comes: two instances would be twice the memory.
            self.runner = None;
            match Arc::clone(&serving.handler).open(&shared.context, shared.route.source.address.kind) {
                Ok(runner) => self.runner = Some((serving, runner)),
                Err(error) => {
                    tracing::error!(route = %shared.route.name, handler = %shared.route.handler, "the handler cannot be run, its messages wait: {error}");
                    return None;
                }
            }
        }
        self.runner.as_mut().map(|(version, runner)| (&**version, runner))
    }

    fn publish_results(&mut self, batch: &Deliveries, verdicts: &mut [Verdict]) {
        let any = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Ran(Outcome::Done(results)) if !results.is_empty()));
        if any {
            let shared = &self.shared;
            shared.context.runtime.block_on(effects::publish_results(&*shared.broker, &shared.route, batch, verdicts));
            self.keep_order(batch, verdicts);
        }
    }

    /// On a route that keeps order, what came behind a delivery whose results were not published waits behind it.
    fn keep_order(&self, batch: &Deliveries, verdicts: &mut [Verdict]) {
        let mut failed: Vec<Sequence> = Vec::new();
        for (delivery, verdict) in batch.as_slice().iter().zip(verdicts) {
            let Some(sequence) = sequence(self.shared.route.order, delivery) else { continue };
            if failed.contains(&sequence) {
                *verdict = Verdict::Behind(sequence);
            } else if matches!(verdict, Verdict::Ran(Outcome::Failed(_))) {
                failed.push(sequence);
            }
        }
    }

    fn decide(&self, batch: &Deliveries, verdicts: &[Verdict], now: UnixMs) -> Vec<Decision> {
        let retry = &self.shared.route.retry;
        let decisions = batch.as_slice().iter().zip(verdicts).map(|(delivery, verdict)| match verdict {
            Verdict::Ran(Outcome::Done(_)) => Decision { settlement: Settlement::Accept, cause: None },
            Verdict::Ran(outcome) => {
                let attempts_max = retry.attempts_for(delivery.message.retries_max);
                settle::decide(outcome, delivery.attempt, attempts_max, retry, now, effects::random())
            }
            Verdict::Dead(code, text) => {
                Decision { settlement: Settlement::DeadLetter { code: *code }, cause: Some(text.clone()) }
            }
            Verdict::NotTried(after) => Decision { settlement: Settlement::Release { after: *after }, cause: None },
            Verdict::Behind(_) => Decision { settlement: Settlement::Release { after: Duration::ZERO }, cause: None },
        });
        decisions.collect()
    }

    /// Keeps the dead letters of a batch. A delivery whose letter is not confirmed is not settled, but goes back: as the
    /// next attempt if its handler ran, so that it does not run more often than it may.
    fn keep_dead_letters(&self, batch: &Deliveries, verdicts: &[Verdict], decisions: &mut [Decision], now: UnixMs) {
        let dead: Vec<usize> = (0..decisions.len())
            .filter(|place| matches!(decisions.get(*place).map(|decision| &decision.settlement), Some(Settlement::DeadLetter { .. })))
            .collect();
        if dead.is_empty() {
            return;
        }
        let letters: Vec<Arc<Message>> = dead
            .iter()
            .filter_map(|place| {
                let delivery = batch.as_slice().get(*place)?;
                let decision = decisions.get(*place)?;
                let outcome = match verdicts.get(*place)? {
                    Verdict::Ran(outcome) => Some(outcome),
                    _ => None,
                };
                Some(Arc::new(self.letter(delivery, decision, outcome, now).wrap(&delivery.message)))
            })
            .collect();
        let shared = &self.shared;
        let kept = shared
            .context
            .runtime
            .block_on(effects::keep_dead_letters(&*shared.broker, &shared.route.dead_letter, letters));
        for (place, kept) in dead.into_iter().zip(kept) {
            let (Some(decision), Some(delivery), false) = (decisions.get_mut(place), batch.as_slice().get(place), kept) else {
                continue;
            };
            decision.settlement = match (verdicts.get(place), &decision.settlement) {
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
    }

    fn letter(&self, delivery: &Delivery, decision: &Decision, outcome: Option<&Outcome>, now: UnixMs) -> DeadLetter {
        let shared = &self.shared;
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
        DeadLetter {
            code,
            text,
            handler_code,
            at: now,
            broker: shared.broker.name().to_owned(),
            source: shared.route.source.address.to_string(),
            partition: delivery.position.map(|position| position.partition),
            offset: delivery.position.map(|position| position.offset),
            route: Some(shared.route.name.to_string()),
            handler: self.runner.as_ref().map(|(version, _)| version.handler.identity().clone()),
            backtrace,
            attempts,
            trace_id: delivery.message.trace_id().map(str::to_owned),
        }
    }

    /// Tells the broker what became of each delivery, and holds those of an ordered route that are tried again.
    fn settle(&mut self, batch: Deliveries, verdicts: Vec<Verdict>, decisions: Vec<Decision>, now: UnixMs) {
        self.shared.meters.count(&self.shared, &batch, &verdicts, &decisions, now);
        let (batch, settlements) = self.hold_back(batch, verdicts, decisions);
        if batch.is_empty() {
            return;
        }
        let settled = self.shared.context.runtime.block_on(batch.settle(settlements));
        if let Err(error) = settled {
            metrics().settle_failures.with_label_values(&[self.shared.broker.name()]).inc();
            tracing::warn!(route = %self.shared.route.name, "a batch was not settled and will be delivered again: {error}");
        }
    }

    /// Takes out of a batch what waits on this lane to keep its order.
    fn hold_back(&mut self, batch: Deliveries, verdicts: Vec<Verdict>, decisions: Vec<Decision>) -> (Deliveries, Vec<Settlement>) {
        let order = self.shared.route.order;
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
        let mut waiting: Vec<Option<(Sequence, Duration, Option<FailedAttempt>)>> =
            batch.as_slice().iter().zip(&verdicts).zip(&decisions).map(|((delivery, verdict), decision)| waits(delivery, verdict, decision)).collect();
        if waiting.iter().all(Option::is_none) {
            return (batch, decisions.into_iter().map(|decision| decision.settlement).collect());
        }
        let mut settlements = Vec::with_capacity(decisions.len());
        let mut kept = Deliveries::none();
        let now = Instant::now();
        for ((delivery, decision), wait) in batch.into_each().zip(decisions).zip(waiting.drain(..)) {
            match wait {
                Some((sequence, after, failure)) => self.held.park(sequence, delivery, now + after, failure),
                None => {
                    settlements.push(decision.settlement);
                    kept = joined(kept, delivery);
                }
            }
        }
        self.count_held();
        (kept, settlements)
    }

    fn count_held(&self) {
        self.shared.meters.held.set(i64::try_from(self.held.len()).unwrap_or(i64::MAX));
    }

    /// Nobody takes these: they are dead letters, not lost.
    fn dead_letter_unrouted(&self, batch: Deliveries) {
        let now = now_ms();
        let source = &self.shared.route.source.address;
        let letters = batch
            .as_slice()
            .iter()
            .map(|delivery| {
                let text = format!("no route of {source} takes a message of type {:?}", delivery.message.kind);
                let decision = Decision { settlement: Settlement::DeadLetter { code: ReasonCode::NoRoute }, cause: Some(text) };
                let mut letter = self.letter(delivery, &decision, None, now);
                letter.route = None;
                letter.handler = None;
                Arc::new(letter.wrap(&delivery.message))
            })
            .collect();
        let shared = &self.shared;
        let runtime = &shared.context.runtime;
        let kept = runtime.block_on(effects::keep_dead_letters(&*shared.broker, &shared.route.dead_letter, letters));
        let dead = kept.iter().filter(|kept| **kept).count();
        let settlements = kept
            .into_iter()
            .map(|kept| match kept {
                true => Settlement::DeadLetter { code: ReasonCode::NoRoute },
                false => Settlement::Release { after: SETBACK },
            })
            .collect();
        metrics().dead_lettered.with_label_values(&["", ReasonCode::NoRoute.as_str()]).inc_by(dead as u64);
        if let Err(error) = runtime.block_on(batch.settle(settlements)) {
            tracing::warn!(%source, "messages without a route were not settled and will be delivered again: {error}");
        }
    }
}

/// Deliveries of one batch, together again.
fn joined(mut first: Deliveries, more: Deliveries) -> Deliveries {
    // Only deliveries of different subscriptions cannot be joined, and a batch has one: those would go back.
    drop(first.append(more));
    first
}

/// Why a delivery must not be handled, where there is a reason.
fn objection(shared: &Shared, delivery: &Delivery, now: UnixMs) -> Option<Verdict> {
    let message: &Message = &delivery.message;
    if message.expired(now) {
        let late = now.saturating_sub(message.expires_at.unwrap_or(now));
        return Some(Verdict::Dead(ReasonCode::MessageExpired, format!("expired {late} ms before it could be handled")));
    }
    let hops = message.hops();
    if hops > shared.route.terms.limits.hops_max {
        let text = format!("descends from {hops} handlers' results; at most {} are allowed", shared.route.terms.limits.hops_max);
        return Some(Verdict::Dead(ReasonCode::LoopDetected, text));
    }
    if delivery.attempt > shared.route.retry.attempts_for(message.retries_max) {
        // The attempts were used up by something that left no answer: a crash of the engine, or a lost lease.
        let last = delivery.failures.last();
        let code = last.map_or(ReasonCode::HandlerUnavailable, |failure| failure.code);
        let text = last.map_or_else(|| "its attempts ended without an answer".to_owned(), |failure| failure.text.clone());
        return Some(Verdict::Dead(code, text));
    }
    None
}

fn call<'a>(shared: &'a Shared, delivery: &'a Delivery) -> Call<'a> {
    Call {
        message: &delivery.message,
        source: &shared.route.source.address,
        position: delivery.position,
        attempt: delivery.attempt,
        attempts_max: shared.route.retry.attempts_for(delivery.message.retries_max),
    }
}

/// The right to call the handler now.
struct Turn(Option<Probe>);

/// Watches the calls of one batch, for the brake.
struct Watch<'a> {
    shared: &'a Shared,
    /// Of the version that runs.
    generation: u64,
    /// The next call is the probe.
    probe: bool,
    /// What is left of the batch is not to be tried now.
    stopped: bool,
}

/// Not tried: where it has an order it waits here, else it goes back.
fn not_tried(order: Order, delivery: &Delivery) -> Verdict {
    sequence(order, delivery).map_or(Verdict::NotTried(Duration::ZERO), Verdict::Behind)
}

/// Whether what comes behind it has to wait. (On a last attempt it need not, but `decide` has yet to say so: it then waits
/// for a moment only.)
fn holds(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Ran(Outcome::Retry { .. } | Outcome::Failed(_)) | Verdict::NotTried(_) | Verdict::Behind(_))
}

fn handle_each(watch: &mut Watch<'_>, runner: &mut Box<dyn Runner>, batch: &[Delivery], now: UnixMs, verdicts: &mut Vec<Verdict>) {
    let (shared, order) = (watch.shared, watch.shared.route.order);
    let mut waiting: Vec<Sequence> = Vec::new();
    for delivery in batch {
        let sequence = sequence(order, delivery);
        let waits = watch.stopped || sequence.as_ref().is_some_and(|sequence| waiting.contains(sequence));
        let verdict = if waits {
            not_tried(order, delivery)
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

fn handle_many(watch: &mut Watch<'_>, runner: &mut Box<dyn Runner>, batch: &[Delivery], now: UnixMs, verdicts: &mut Vec<Verdict>) {
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
        if watch.stopped {
            break;
        }
        match runner.handle_batch(calls) {
            Some(outcomes) => answers.extend(owners.iter().zip(outcomes).map(|(delivery, outcome)| watch.verdict(delivery, outcome))),
            // Which of them did it? One to a batch, the innocent get their answers, and the brake sees each call.
            None => {
                for (delivery, call) in owners.iter().zip(calls) {
                    if watch.stopped || watch.is_ending() {
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
        let verdict = objection.or_else(|| answers.next()).unwrap_or_else(|| not_tried(order, delivery));
        let verdict = match sequence.as_ref().filter(|sequence| waiting.contains(sequence)) {
            Some(_) => not_tried(order, delivery),
            None => verdict,
        };
        if let Some(sequence) = sequence.filter(|_| holds(&verdict)) {
            waiting.push(sequence);
        }
        verdicts.push(verdict);
    }
}

impl Watch<'_> {
    /// What a call means for its delivery, and for the brake.
    fn verdict(&mut self, delivery: &Delivery, outcome: Outcome) -> Verdict {
        // The engine itself ended the call, because it is stopping.
        if matches!(outcome, Outcome::Failed(_)) && self.is_ending() {
            self.stopped = true;
            return not_tried(self.shared.route.order, delivery);
        }
        match &outcome {
            Outcome::Failed(failure) if failure.kind.is_crash() => self.crashed(),
            Outcome::Failed(failure) if failure.kind == FailureKind::Unavailable => {}
            _ => self.shared.brake.answered(),
        }
        self.probe = false;
        Verdict::Ran(outcome)
    }

    fn is_ending(&self) -> bool {
        self.shared.context.ending.is_cancelled()
    }

    fn crashed(&mut self) {
        let (shared, route) = (self.shared, &self.shared.route);
        match shared.brake.crashed(self.generation, self.probe) {
            Crashed::Go => return,
            Crashed::Slowed => {
                if shared.meters.brake.get() != 1 {
                    tracing::warn!(route = %route.name, handler = %route.handler, "{} calls in a row have crashed: one message every {:?} goes through until one is answered", route.crash_budget.failures_max, route.crash_budget.probe_interval);
                }
                shared.meters.brake.set(1);
            }
            Crashed::Held => {
                shared.meters.brake.set(2);
                match shared.slot.roll_back(self.generation, route.crash_budget.rollback_within) {
                    Some(version) => tracing::error!(route = %route.name, handler = %route.handler, digest = version.handler.identity().digest, "the new version kept crashing: the version before it serves again"),
                    None => tracing::error!(route = %route.name, handler = %route.handler, "the handler kept crashing and is held: its messages wait until its file or the configuration changes"),
                }
            }
        }
        self.stopped = true;
    }
}

/// Metrics of one route, with their labels resolved.
#[derive(Debug)]
pub(super) struct Meters {
    consumed: IntCounter,
    done: IntCounter,
    retry: IntCounter,
    reject: IntCounter,
    failed: IntCounter,
    latency: Histogram,
    run_time: Histogram,
    batch: Histogram,
    held: IntGauge,
    pub(super) brake: IntGauge,
}

impl Meters {
    pub(super) fn new(broker: &str, route: &Route) -> Self {
        let metrics = metrics();
        let (name, handler) = (&*route.name, &*route.handler);
        let outcome = |outcome| metrics.outcomes.with_label_values(&[name, handler, outcome]);
        Self {
            consumed: metrics.consumed.with_label_values(&[broker, &route.source.address.to_string()]),
            done: outcome("done"),
            retry: outcome("retry"),
            reject: outcome("reject"),
            failed: outcome("failed"),
            latency: metrics.latency.with_label_values(&[name]),
            run_time: metrics.run_time.with_label_values(&[name, handler]),
            batch: metrics.handled_batch.with_label_values(&[name, handler]),
            held: metrics.held.with_label_values(&[name]),
            brake: metrics.brake.with_label_values(&[name]),
        }
    }

    /// Messages flow, if they did not.
    fn released(&self) {
        if self.brake.get() != 0 {
            self.brake.set(0);
        }
    }

    fn count(&self, shared: &Shared, batch: &Deliveries, verdicts: &[Verdict], decisions: &[Decision], now: UnixMs) {
        let name = &*shared.route.name;
        let (mut done, mut consumed) = (0, 0);
        for (verdict, decision) in verdicts.iter().zip(decisions) {
            match verdict {
                Verdict::Ran(Outcome::Done(_)) => done += 1,
                Verdict::Ran(Outcome::Retry { .. }) => self.retry.inc(),
                Verdict::Ran(Outcome::Reject { .. }) => self.reject.inc(),
                Verdict::Ran(Outcome::Failed(_)) => self.failed.inc(),
                Verdict::Dead(..) | Verdict::NotTried(_) | Verdict::Behind(_) => {}
            }
            match &decision.settlement {
                Settlement::Accept => {}
                Settlement::Redeliver { failure, .. } => metrics().retries.with_label_values(&[name, failure.code.as_str()]).inc(),
                Settlement::DeadLetter { code } => metrics().dead_lettered.with_label_values(&[name, code.as_str()]).inc(),
                Settlement::Release { .. } => continue,
            }
            consumed += 1;
        }
        self.done.inc_by(done);
        self.consumed.inc_by(consumed);
        let oldest = batch.as_slice().iter().map(|delivery| delivery.message.timestamp).min().unwrap_or(now);
        self.latency.observe(now.saturating_sub(oldest) as f64 / 1000.0);
    }
}

/// Cancelled when the grace period of a drain is over: the running calls of its source are ended.
pub(super) type Ending = CancellationToken;
