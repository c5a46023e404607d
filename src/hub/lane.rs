//! A lane: a thread that carries batches through, one at a time. It owns its instance of the handler and waits for
//! nothing but its feed, its broker and the guest. A guest that takes long keeps its own lane, and the kernel sees to
//! it that the others run.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    calls::{self, Watch},
    decided::{self, Divided},
    doing::Step,
    effects,
    feed::{Feed, Seat, Taken},
    held::{Due, Held, sequence},
    intake::{Intake, Turn},
    letters,
    meters::oldest,
    parts::{Parts, SETBACK},
    transaction::Transaction,
    verdict::Verdict,
};
use crate::{
    broker::{BatchMax, Deliveries},
    handler::{Runner, Version},
    message::{Message, Outcome, UnixMs, now_ms},
    route,
    settle::Decision,
    telemetry::metrics,
};

/// Deliveries of a batch, at most.
pub(super) const BATCH_MAX: usize = 256;
/// Bytes of a batch, at most.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long a batch should take in its handler: a slow handler takes fewer at a time, so that nothing waits behind it
/// while another lane is free.
const BATCH_TIME: Duration = Duration::from_millis(4);
/// A thread's worth of a route.
pub(super) struct Lane {
    shared: Arc<Parts>,
    feed: Arc<Feed>,
    intake: Intake,
    seat: Seat,
    runner: Option<(Arc<Version>, Box<dyn Runner>)>,
    held: Held,
    /// Running mean of the time one message takes in the handler.
    mean: Duration,
}

impl Lane {
    pub(super) fn new(shared: Arc<Parts>, feed: Arc<Feed>, seat: Seat) -> Self {
        let intake = Intake::new(Arc::clone(&shared), Arc::clone(&feed));
        Self { shared, feed, intake, seat, runner: None, held: Held::default(), mean: Duration::from_micros(250) }
    }

    /// Carries batches through until the feed ends. What it holds then goes back to the broker.
    pub(super) fn run(mut self) {
        let runtime = self.shared.context.runtime.clone();
        let _guard = runtime.enter();
        loop {
            if !runtime.block_on(self.intake.until_permitted()) {
                break;
            }
            if let Some(due) = self.held.take_due(Instant::now()) {
                self.try_again(due);
                continue;
            }
            let count = self.count();
            match runtime.block_on(self.next_batch(count)) {
                Some(Taken::Batch(batch)) => self.take_in(batch),
                Some(Taken::Unrouted(unrouted, mine)) => {
                    letters::keep_unrouted(&self.shared, unrouted);
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
    fn deliver(&mut self, mut batch: Deliveries, turn: Turn) {
        batch.give_back_lost();
        if batch.is_empty() {
            return;
        }
        let now = now_ms();
        let _span = tracing::info_span!("batch", route = %self.shared.route.name, messages = batch.len()).entered();
        let count = i64::try_from(batch.len()).unwrap_or(i64::MAX);
        self.shared.meters.in_flight.add(count);
        let mut verdicts = self.handle(&batch, now, &turn);
        if self.shared.route.delivery == route::Delivery::Transactional {
            let version = self.runner.as_ref().map(|(version, _)| &**version);
            // Invariants 1 and 2: all of it at once, or nothing.
            Transaction::new(&self.shared, version, &batch, verdicts, now).run(batch, &mut self.held);
            self.count_held();
            self.shared.meters.in_flight.sub(count);
            return;
        }
        self.publish_results(&batch, &mut verdicts); // Invariant 2: confirmed before settled.
        let mut decisions = decided::decide(&self.shared, &batch, &verdicts, now);
        self.keep_dead_letters(&batch, &verdicts, &mut decisions, now); // Invariant 2.
        self.settle(batch, verdicts, decisions, now); // Invariant 1: each once.
        self.shared.meters.in_flight.sub(count);
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
        let _idle = self.held.is_empty().then(|| self.feed.idle());
        tokio::select! {
            biased;
            () = until_due => None,
            taken = self.feed.take(&self.seat, max), if !self.held.is_full() => Some(taken),
            () = self.feed.stopped() => Some(Taken::End),
        }
    }

    /// How many messages to handle at a time: as many as fill [`BATCH_TIME`], and one where it is to show whether all is well.
    fn count(&mut self) -> usize {
        if self.intake.is_narrow() {
            return 1;
        }
        let fit = BATCH_TIME.as_nanos() / self.mean.as_nanos().max(1);
        usize::try_from(fit).unwrap_or(BATCH_MAX).clamp(1, BATCH_MAX)
    }

    /// Delivers a batch, in pieces if it is more than should be handled at a time, and keeps apart what has to wait.
    fn take_in(&mut self, mut batch: Deliveries) {
        while !batch.is_empty() && !self.feed.is_stopped() {
            let count = self.count();
            let piece = batch.take_front(count);
            let piece = self.park_behind(piece);
            if piece.is_empty() {
                continue;
            }
            match self.intake.turn() {
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
            let waits = one
                .as_slice()
                .first()
                .and_then(|delivery| sequence(order, delivery))
                .filter(|sequence| self.held.holds(sequence));
            match waits {
                Some(sequence) => self.held.park(sequence, one, Instant::now(), None),
                None => rest = decided::joined(rest, one),
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
        let Some(turn) = self.intake.turn() else {
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
        let mut watch = Watch::new(&shared, version.generation, turn.is_probe());
        let _busy = shared.doing.begin(Step::Handling);
        runner.begin();
        if runner.calls_take() > 1 {
            calls::handle_many(&mut watch, runner, batch.as_slice(), now, &mut verdicts);
        } else {
            calls::handle_each(&mut watch, runner, batch.as_slice(), now, &mut verdicts);
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

    /// The version that ran last.
    fn version(&self) -> Option<&Version> {
        self.runner.as_ref().map(|(version, _)| &**version)
    }

    fn publish_results(&mut self, batch: &Deliveries, verdicts: &mut [Verdict]) {
        let any = verdicts
            .iter()
            .any(|verdict| matches!(verdict, Verdict::Ran(Outcome::Done(results)) if !results.is_empty()));
        if any {
            let shared = &self.shared;
            let _busy = shared.doing.begin(Step::Publishing);
            let published = effects::publish_results(&*shared.broker, &shared.route, batch, verdicts);
            if shared.wait(published).is_none() {
                // Any of it may be there, or not.
                let is_done = |verdict: &&mut Verdict| matches!(verdict, Verdict::Ran(Outcome::Done(_)));
                verdicts.iter_mut().filter(is_done).for_each(|verdict| *verdict = Verdict::NotTried(Duration::ZERO));
            }
            decided::keep_order(shared.route.order, batch, verdicts);
        }
    }

    /// Keeps the dead letters of a batch. A delivery whose letter is not confirmed is not settled, but goes back: as the
    /// next attempt if its handler ran, so that it does not run more often than it may.
    fn keep_dead_letters(&self, batch: &Deliveries, verdicts: &[Verdict], decisions: &mut [Decision], now: UnixMs) {
        let dead = decided::dead(decisions);
        if dead.is_empty() {
            return;
        }
        let letters: Vec<Arc<Message>> = dead
            .iter()
            .filter_map(|place| {
                let delivery = batch.as_slice().get(*place)?;
                let decision = decisions.get(*place)?;
                let outcome = verdicts.get(*place)?.outcome();
                let letter = letters::letter(&self.shared, self.version(), delivery, decision, outcome, now);
                Some(Arc::new(letter.wrap(&delivery.message)))
            })
            .collect();
        let shared = &self.shared;
        let _busy = shared.doing.begin(Step::Publishing);
        let kept = shared.wait(effects::keep_dead_letters(&*shared.broker, &shared.route.dead_letter, letters));
        let kept = kept.unwrap_or_else(|| vec![false; dead.len()]);
        for (place, kept) in dead.into_iter().zip(kept) {
            if let (Some(decision), Some(delivery), false) =
                (decisions.get_mut(place), batch.as_slice().get(place), kept)
            {
                decided::unkept(delivery, verdicts.get(place), decision, now);
            }
        }
    }

    /// Tells the broker what became of each delivery, and holds those of an ordered route that are tried again.
    fn settle(&mut self, batch: Deliveries, verdicts: Vec<Verdict>, decisions: Vec<Decision>, now: UnixMs) {
        let shared = &self.shared;
        shared.meters.count(&shared.route.name, oldest(&batch), &verdicts, &decisions, now);
        let Divided { settled, settlements, waiting } =
            decided::divide(shared.route.order, batch, &verdicts, decisions);
        if !waiting.is_empty() {
            decided::park(waiting, &mut self.held);
            self.count_held();
        }
        if settled.is_empty() {
            return;
        }
        let _busy = shared.doing.begin(Step::Settling);
        if let Some(Err(error)) = shared.wait(settled.settle(settlements)) {
            metrics().settle_failures.with_label_values(&[shared.broker.name()]).inc();
            tracing::warn!(route = %shared.route.name, "a batch was not settled and will be delivered again: {error}");
        }
    }

    fn count_held(&self) {
        self.shared.meters.held.set(i64::try_from(self.held.len()).unwrap_or(i64::MAX));
    }
}
