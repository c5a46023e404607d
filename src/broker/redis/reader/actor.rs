//! The task of one reader: fetches ahead, tells the server what became of deliveries, and takes what comes again. All that
//! there is to say goes in one round trip. While nothing happens it waits for the bell of its queue or topic, a stream of
//! one entry that each publish replaces: waiting takes nothing, so nothing is lost when it is given up.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesOrdered};
use redis::{RedisError, Value, cmd};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    super::{
        errors,
        link::{Made, Up},
        reply::Reply,
        scripts,
    },
    bell::{Bell, ring},
    round::{Answered, Asking, Round, together},
    session::Session,
    told::Step,
    work::{Item, To, Work},
};
use crate::{
    broker::{BrokerError, Start},
    message::{Kind, UnixMs, now_ms},
};

/// How often what is not new is looked for, at least. Source: other engines ring when something comes back, so this is for
/// those that were killed.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// And at most.
const TEND_MIN: Duration = Duration::from_millis(10);
/// Entries of the first fetch; each may bring four times as many as the one before.
const COUNT_FIRST: usize = 16;
/// Most entries of a fetch.
const COUNT_MAX: usize = 1000;
/// Bytes that may wait to be handed out; what comes on top is one fetch.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Bytes that a fetch is meant to bring at most.
const FETCH_BYTES: usize = 4 << 20;
/// Pause after something went wrong that is not the connection.
const PAUSE: Duration = Duration::from_millis(200);
/// Round trips at a time: while the answer of one is taken in, the server works on the next.
const UNDER_WAY_MAX: usize = 2;

/// How a reading begins and ends.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::broker::redis) struct Reading {
    /// Whether the group ends with it.
    pub(in crate::broker::redis) ends_group: bool,
    /// Whether nothing is fetched: it only settles.
    pub(in crate::broker::redis) only_settles: bool,
    /// Topics: where the group begins, if it is not there.
    pub(in crate::broker::redis) start: Start,
    /// Topics: what is older is passed over, until something is not.
    pub(in crate::broker::redis) not_before: Option<UnixMs>,
}

/// See the module.
pub(in crate::broker::redis) struct Actor {
    session: Arc<Session>,
    reading: Reading,
    woken: watch::Receiver<u64>,
    /// There may be something new.
    hungry: bool,
    /// Entries of the next fetch.
    count: usize,
    /// The highest level that had as many as were asked for.
    full: Option<usize>,
    /// Since when there is, or may be, what was out when another process ended. Nothing is fetched meanwhile.
    narrow: Option<Instant>,
    /// When what is not new is looked for next.
    tend_at: Instant,
    renew_at: Instant,
    /// Which connection all of it went over.
    generation: u64,
    /// Round trips that were begun, in their order.
    under_way: FuturesOrdered<Asking>,
    /// Whether one of them looks after what is not new. It is the only one then, as what it finds decides about all else.
    looks: bool,
    /// Entries that they ask for, at most.
    asked_for: usize,
    bell: Option<Bell>,
    /// For the next wait.
    bell_over: Option<Made>,
    /// The bell's last id that was seen, once nothing more was there.
    tip: Option<String>,
}

impl Actor {
    pub(in crate::broker::redis) fn new(session: Arc<Session>, reading: Reading, generation: u64) -> Self {
        let now = Instant::now();
        let woken = session.place.changes();
        Self {
            reading,
            woken,
            hungry: true,
            count: COUNT_FIRST,
            full: None,
            narrow: Some(now),
            tend_at: now,
            renew_at: now + session.lease / 4,
            generation,
            under_way: FuturesOrdered::new(),
            looks: false,
            asked_for: 0,
            bell: None,
            bell_over: None,
            tip: None,
            session,
        }
    }

    /// Reads until it is closed, or nothing is owed any more after its end.
    pub(in crate::broker::redis) async fn run(mut self) {
        loop {
            let up = tokio::select! {
                up = self.session.shared.consume.up() => up,
                () = self.session.shared.closing() => break,
            };
            let Ok(up) = up else { break };
            let result = self.work(&up).await;
            match result {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => self.wrong(&error).await,
            }
        }
        self.leave().await;
    }

    /// Begins a round trip, or waits for something to do. True: it is over.
    async fn work(&mut self, up: &Up) -> Result<bool, RedisError> {
        let session = Arc::clone(&self.session);
        if up.generation != self.generation {
            // What was under way went over the one before.
            self.finish().await;
            if session.place.address.kind == Kind::Topic
                && let Err(error) =
                    session.shared.make_group(up, &session.place, &session.group, self.reading.start).await
            {
                tracing::warn!(source = %session.place.address, "its group cannot be made: {error}");
            }
            session.leave(up, false).await?;
            (self.generation, self.hungry, self.bell) = (up.generation, true, None);
            self.tend_at = Instant::now();
        }
        if self.looks || self.under_way.len() >= UNDER_WAY_MAX {
            return self.next_answer().await;
        }
        // Nobody would say that there is something new.
        self.hungry |= self.tip.is_none() && self.bell.is_none();
        let now = Instant::now();
        let lease = session.lease;
        let (work, room, has_ended, ended) = {
            let mut state = session.state();
            if state.is_closed {
                return Ok(true);
            }
            let ended = state.run_out(lease, now);
            // A source that is held up does not keep from others what they could handle; and what waits beside something
            // that may end this process, too, would use up an attempt with it.
            if state.is_left_alone(lease / 2, now)
                || (self.narrow.is_some() && state.suspect().is_none() && state.has_waiting())
            {
                state.put_off();
            }
            let takes = !self.reading.only_settles && state.is_wanted() && state.waiting_bytes() <= WAITING_BYTES_MAX;
            let work = state.work();
            // The server hears what is done before it is asked for more.
            let room = if takes { state.room().saturating_sub(self.asked_for) } else { 0 };
            (work, room, state.has_ended, ended)
        };
        session.place.back(ended);
        let enough = room > 0 && room * 4 >= session.state().prefetch();
        let reads = enough && self.hungry && self.narrow.is_none();
        // What is out for longer than a lease does not hold it up.
        let takes_suspect = room > 0 && self.narrow.is_some_and(|since| session.state().is_empty(since + lease <= now));
        let is_told = self.woken.has_changed().unwrap_or(false);
        let is_new = self.hungry && self.tip.is_none();
        let tends = room > 0 && (now >= self.tend_at || is_told || is_new || takes_suspect);
        let renews = now >= self.renew_at;
        // Who waits for all that was said before waits for what is under way.
        if (tends || work.only_waits()) && !self.under_way.is_empty() {
            session.state().untold(work);
            return self.next_answer().await;
        }
        if work.is_empty() && !reads && !tends && !renews {
            let is_over = has_ended && !session.state().has_out() && !self.reading.only_settles;
            if is_over && self.under_way.is_empty() {
                return Ok(true);
            }
            self.idle(room > 0 && self.under_way.is_empty()).await?;
            return Ok(false);
        }
        if tends {
            self.woken.mark_unchanged();
        }
        let mut steps = Vec::new();
        session.tell(&work, &mut steps);
        if work.renews || renews {
            self.renew_at = now + lease / 4;
            session.tell_renewed(session.state().leased(work.renews), &mut steps);
        }
        if tends {
            steps.push((Step::Tend, session.tend(room, takes_suspect)));
        }
        let count = self.count.min(room).max(1);
        if reads {
            steps.push((Step::Read { count, last: self.full }, session.read_new(count, self.full)));
        }
        let round = Round::new(up, &session.place, work, steps);
        self.looks = tends;
        self.asked_for += round.asks_for();
        self.under_way.push_back(Box::pin(round.ask()));
        Ok(false)
    }

    /// Waits for the first answer.
    async fn next_answer(&mut self) -> Result<bool, RedisError> {
        if let Some(answered) = self.under_way.next().await {
            self.answered(answered).await?;
        }
        Ok(false)
    }

    /// Waits for all answers. What went wrong is told again by whoever comes next.
    async fn finish(&mut self) {
        while let Some(answered) = self.under_way.next().await {
            if let Err(error) = self.answered(answered).await {
                tracing::debug!(source = %self.session.place.address, "a round trip failed: {error}");
            }
        }
    }

    /// Takes in what the server answered.
    async fn answered(&mut self, (round, answers): Answered) -> Result<(), RedisError> {
        let session = Arc::clone(&self.session);
        self.looks = false;
        self.asked_for -= round.asks_for();
        let Round { up, work, steps, commands, changing } = round;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                session.state().untold(work);
                return Err(error);
            }
        };
        let (mut ours, mut wrong, mut items) = (Vec::with_capacity(work.back.len()), None, Vec::new());
        for ((step, command), reply) in steps.into_iter().zip(commands.cmd_iter()).zip(answers) {
            if let Step::Read { count, last } = step
                && !reply.is_error()
            {
                items.extend(self.read(&reply, count, last));
                continue;
            }
            let mut answer = reply.value();
            if matches!(&answer, Err(error) if errors::is_forgotten_script(error)) {
                answer = match scripts::load_all(&up).await {
                    Ok(()) => up.ask(command).await,
                    Err(error) => Err(error),
                };
            }
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    if let Step::Back(count) = step {
                        ours.extend(std::iter::repeat_n(false, count));
                    }
                    wrong = wrong.or(Some((error, matches!(step, Step::Tend | Step::Read { .. }))));
                    continue;
                }
            };
            match step {
                Step::Done | Step::Read { .. } => {}
                Step::Back(count) => ours.extend(session.ours(answer, count)),
                Step::Renewed(entries) => {
                    let Value::Array(gone) = answer else { continue };
                    let place =
                        |gone: &Value| if let Value::Int(place) = gone { usize::try_from(*place).ok() } else { None };
                    let gone: Vec<_> =
                        gone.iter().filter_map(place).filter_map(|place| entries.get(place).copied()).collect();
                    session.state().gone(&gone);
                }
                Step::Tend => items.extend(self.tended(answer)),
            }
        }
        let result = match wrong {
            // What was to be told was not, or not all of it.
            Some((error, false)) => {
                self.arrived(items);
                session.state().untold(work);
                Err(error)
            }
            wrong => {
                self.told(work, ours);
                self.arrived(items);
                wrong.map_or(Ok(()), |(error, _)| Err(error))
            }
        };
        drop(changing);
        result
    }

    fn told(&self, work: Work, mut ours: Vec<bool>) {
        ours.resize(work.back.len(), false);
        let session = &self.session;
        let is_for_others = work.back.iter().any(|back| !matches!(back.to, To::Me(_)));
        if session.place.address.kind == Kind::Queue {
            session.place.forgotten(work.done.len());
        }
        session.state().told(&work.done, work.back.into_iter().zip(ours).collect());
        if is_for_others {
            session.place.wake();
        }
        session.arrived();
        for waiter in work.waiters {
            // Whoever waited may have given up.
            waiter.send(Ok(())).ok();
        }
    }

    fn tended(&mut self, answer: Value) -> Vec<Item> {
        let Some(tended) = self.session.tended(answer) else { return Vec::new() };
        let now = Instant::now();
        let every = (self.session.lease / 8).clamp(TEND_MIN, TEND_EVERY);
        self.tend_at = now + every;
        if let Some(due) = tended.next_due {
            let after = Duration::from_millis(due.saturating_sub(tended.now) + 1);
            self.tend_at = self.tend_at.min(now + after);
        }
        // Only what is read after this look is behind it: where nothing is to be read now, the earlier place holds, or what came
        // in between would wait for the next message.
        if self.hungry {
            self.tip = Some(tended.bell);
        }
        self.narrow = tended.has_suspects.then(|| self.narrow.unwrap_or(now));
        if let Some(item) = tended.items.first().filter(|_| tended.is_suspect) {
            self.session.state().suspects(item.entry);
        }
        if self.session.place.address.kind == Kind::Queue {
            let (delayed, at) = tended.delayed;
            self.session.place.delayed(delayed, at);
        }
        tended.items
    }

    fn read(&mut self, reply: &Reply, count: usize, last: Option<usize>) -> Vec<Item> {
        let (items, full) = self.session.read(reply, count);
        let bytes: usize = items.iter().map(|item| item.message.size() + 256).sum();
        if !items.is_empty() {
            let affordable = FETCH_BYTES * items.len() / bytes.max(1);
            self.count = (self.count * 4).min(affordable).clamp(1, COUNT_MAX);
        }
        // What was read to its end on all levels that were looked at, with those below them.
        self.hungry = full.is_some() || last.is_some();
        self.full = full;
        items
    }

    fn arrived(&mut self, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let now = now_ms();
        let mut state = self.session.state();
        state.was_asked = false;
        for item in items {
            let wait = item.message.not_before.filter(|at| *at > now && item.count == 1);
            if self.session.place.address.kind == Kind::Topic {
                if self.reading.not_before.is_some_and(|first| item.message.timestamp < first) {
                    state.passed_over(&item);
                    continue;
                }
                self.reading.not_before = None;
                if let Some(at) = wait {
                    state.too_early(&item, Duration::from_millis(at - now));
                    continue;
                }
            }
            state.arrived(item);
        }
        drop(state);
        self.session.arrived();
    }

    /// Waits until there is something to do, or an answer.
    async fn idle(&mut self, reads: bool) -> Result<(), RedisError> {
        let session = Arc::clone(&self.session);
        if reads
            && self.bell.is_none()
            && let Some(tip) = self.tip.take()
        {
            self.bell = Some(Box::pin(ring(Arc::clone(&session), self.bell_over.take(), tip)));
        }
        let ends = session.state().first_end(session.lease);
        let until = [reads.then_some(self.tend_at), Some(self.renew_at), ends].into_iter().flatten().min();
        let until = until.unwrap_or_else(|| Instant::now() + TEND_EVERY);
        let bell = async {
            match &mut self.bell {
                Some(bell) => bell.await,
                None => std::future::pending().await,
            }
        };
        let rang = tokio::select! {
            () = session.changed.notified() => None,
            // What comes back is for later where nothing can be taken: it would only wake this again and again.
            _ = self.woken.changed(), if reads => {
                // Seen by the next round.
                self.woken.mark_changed();
                None
            }
            () = sleep_until(until) => None,
            () = session.shared.consume.lost_since(self.generation) => None,
            Some(answered) = self.under_way.next() => return self.answered(answered).await,
            rang = bell => Some(rang),
        };
        match rang {
            Some(Ok(over)) => (self.bell, self.bell_over, self.hungry) = (None, Some(over), true),
            Some(Err(why)) => {
                tracing::debug!(source = %session.place.address, "waiting for the bell ended: {why}");
                (self.bell, self.hungry) = (None, true);
                tokio::time::sleep(PAUSE).await;
            }
            None => {}
        }
        Ok(())
    }

    /// Something other than what was asked for happened.
    async fn wrong(&mut self, error: &RedisError) {
        let session = Arc::clone(&self.session);
        session.shared.consume.judge(error);
        if errors::is_missing(error) {
            tracing::warn!(source = %session.place.address, "the server has forgotten it, it is made again");
            if let Err(error) = session.shared.make_again(&session.place, &session.group).await {
                tracing::warn!(source = %session.place.address, "cannot be made: {error}");
            }
        } else {
            tracing::warn!(source = %session.place.address, "cannot be read, trying again: {error}");
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = session.shared.closing() => {}
        }
    }

    /// What the server still has for this reader is for others.
    async fn leave(mut self) {
        self.bell = None;
        self.finish().await;
        let session = &self.session;
        let work = session.state().work();
        session.state().close();
        session.arrived();
        if let Some(up) = session.shared.consume.now() {
            if !work.done.is_empty() || !work.back.is_empty() {
                let mut steps = Vec::new();
                session.tell(&work, &mut steps);
                let (_, commands) = together(steps);
                if let Err(error) = up.ask_all(&commands).await {
                    tracing::debug!(source = %session.place.address, "could not say what became of the last: {error}");
                }
            }
            let left = session.leave(&up, true).await;
            if let Err(error) = left {
                tracing::debug!(source = %session.place.address, "could not leave in good order: {error}");
            }
            if self.reading.ends_group {
                let mut command = cmd("XGROUP");
                command.arg("DESTROY").arg(session.place.key("log")).arg(&*session.group);
                up.ask(&command).await.ok();
            }
        }
        session.place.wake();
        for waiter in work.waiters {
            waiter.send(Err(BrokerError::Closed)).ok();
        }
    }
}
