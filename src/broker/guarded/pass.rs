//! One pass of a drain over what waits, from the first on, until nothing is left or something fails.
//!
//! One publish is on its way at a time, as large as the system takes in a tenth of a second (`ahead.rs`): of two, no system
//! promises that the second comes to nothing where the first fails, and nothing may pass what failed. While it is on its
//! way, the next is read and the one before is settled, so that all that nobody uses is the way there and back.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::futures::Notified,
    time::{Instant, sleep_until},
};

use super::{
    ahead::{Ahead, Portion},
    backlog::Front,
    breaker::Permit,
    drain::{Drain, share},
    outcome::{self, is_outage},
    spool,
};
use crate::{
    broker::{BatchMax, Deliveries, PublishError, Subscription},
    message::{Message, Settlement},
    telemetry::metrics,
};

/// How often to look whether something has come, or whether nothing is left.
const LOOK: Duration = Duration::from_millis(100);

/// How a pass over the backlog ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Passed {
    /// Nothing is left.
    Empty,
    /// Nothing is left of what was in memory beside, which was older.
    OlderGone,
    Stopped,
    /// Something stays for now. `progressed`: and something has left.
    Held {
        progressed: bool,
        refused: bool,
    },
}

/// See the module.
pub(super) struct Pass<'a> {
    drain: &'a Drain,
    reader: Box<dyn Subscription>,
    /// Read, and not published yet.
    ahead: Ahead,
    /// Published, and not settled yet.
    confirmed: Deliveries,
    progressed: bool,
}

/// Why nothing more is read.
#[derive(Clone, Copy, Debug)]
enum ReadEnd {
    Closed,
    Failed,
}

impl<'a> Pass<'a> {
    pub(super) fn new(drain: &'a Drain, reader: Box<dyn Subscription>) -> Self {
        Self { drain, reader, ahead: Ahead::none(), confirmed: Deliveries::none(), progressed: false }
    }

    pub(super) async fn run(mut self, is_careful: bool, portion: &mut Portion) -> Passed {
        let drain = self.drain;
        loop {
            let changed = drain.shared.changed.notified();
            let paced = drain.shared.paced_until();
            let may_go = !self.ahead.is_empty() && paced.is_none() && !drain.stop.is_cancelled();
            let ended = match may_go.then(|| drain.shared.permit()).flatten() {
                Some(permit) => {
                    let count = match permit {
                        Permit::Probe(_) => 1,
                        Permit::Direct if is_careful && !self.progressed => 1,
                        Permit::Direct => drain.shared.settings.spool.drain_per_second.map_or(portion.count(), share),
                    };
                    self.send(permit, count, portion).await
                }
                None => self.rest(changed, paced, portion.count()).await,
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Nothing can go now: settles what went, and waits until something can.
    async fn rest(&mut self, changed: Notified<'_>, paced: Option<Instant>, count: usize) -> Option<Passed> {
        let drain = self.drain;
        if !drain.settle(self.take_confirmed()).await {
            return Some(self.held(true));
        }
        if drain.stop.is_cancelled() {
            return Some(Passed::Stopped);
        }
        let has_some = !self.ahead.is_empty();
        if !has_some && drain.is_done().await {
            return Some(Passed::Empty);
        }
        if !has_some && drain.is_older_gone() {
            return Some(Passed::OlderGone);
        }
        let room = if has_some { None } else { self.ahead.room(count) };
        let until = paced.filter(|_| has_some).unwrap_or_else(|| Instant::now() + LOOK);
        tokio::select! {
            biased;
            () = drain.stop.cancelled() => None,
            read = read(&mut *self.reader, &mut self.ahead, room) => read.err().map(|end| self.ended(end)),
            () = changed, if has_some && paced.is_none() => None,
            // Time opens a circuit, too.
            () = sleep_until(until) => None,
        }
    }

    /// Publishes the next, settles the one before, and reads what comes then. `None`: all of it was confirmed.
    async fn send(&mut self, permit: Permit, count: usize, portion: &mut Portion) -> Option<Passed> {
        let drain = self.drain;
        let part = self.ahead.take(count);
        let (count, begun) = (part.len(), Instant::now());
        let before = self.take_confirmed();
        let (failures, is_settled, read_end) = {
            let mut publishing = pin!(drain.publish(&part, permit));
            let mut settling = pin!(drain.settle(before));
            let (mut is_settled, mut read_end) = (None, None);
            let failures = loop {
                let room = if read_end.is_none() { self.ahead.room(portion.count()) } else { None };
                tokio::select! {
                    // It is sent before anything else is done.
                    biased;
                    failures = &mut publishing => break failures,
                    settled = &mut settling, if is_settled.is_none() => is_settled = Some(settled),
                    read = read(&mut *self.reader, &mut self.ahead, room), if room.is_some() => read_end = read.err(),
                }
            };
            let is_settled = match is_settled {
                Some(is_settled) => is_settled,
                None => settling.await,
            };
            (failures, is_settled, read_end)
        };
        let is_refused = failures.iter().any(|(_, error)| !is_outage(error));
        let (left, stays) = divided(part, &failures);
        self.progressed |= !left.is_empty();
        if !is_settled {
            // Those come again, and so must these behind them.
            return Some(self.held(true));
        }
        self.confirmed = left;
        if failures.is_empty() && read_end.is_none() {
            portion.took(count, begun.elapsed());
            return None;
        }
        let is_settled = drain.settle(self.take_confirmed()).await;
        drop(stays); // Invariant 1: it goes back, at its place.
        match read_end {
            Some(end) if is_settled && failures.is_empty() => Some(self.ended(end)),
            _ => Some(self.held(is_refused || !is_settled)),
        }
    }

    fn take_confirmed(&mut self) -> Deliveries {
        std::mem::replace(&mut self.confirmed, Deliveries::none())
    }

    fn ended(&self, end: ReadEnd) -> Passed {
        match end {
            ReadEnd::Closed => Passed::Stopped,
            ReadEnd::Failed => self.held(true),
        }
    }

    fn held(&self, refused: bool) -> Passed {
        Passed::Held { progressed: self.progressed, refused }
    }
}

/// Reads some more, where there is room for it; waits for ever where there is none.
///
/// # Cancel safety
/// Cancel safe.
async fn read(reader: &mut dyn Subscription, ahead: &mut Ahead, room: Option<BatchMax>) -> Result<(), ReadEnd> {
    let Some(room) = room else { return std::future::pending().await };
    match reader.next(room).await {
        Ok(Some(batch)) => ahead.add(batch).map_err(|_| ReadEnd::Failed),
        Ok(None) => Err(ReadEnd::Closed),
        Err(error) => {
            tracing::debug!("nothing is read from the spool: {error}");
            Err(ReadEnd::Failed)
        }
    }
}

impl Drain {
    /// Brings these to the system. Gives what it did not confirm.
    async fn publish(&self, part: &Deliveries, permit: Permit) -> Vec<(usize, PublishError)> {
        let (messages, since): (Vec<_>, Vec<_>) =
            part.as_slice().iter().map(|delivery| spool::as_it_was(&delivery.message)).unzip();
        if let Some(since) = since.into_iter().flatten().next() {
            self.shared.is_since(&self.to, since);
        }
        self.shared.pace(part.len());
        let published = self.shared.inner.publish(&self.to, messages).await;
        let failures = published.err().map(|failures| failures.0).unwrap_or_default();
        self.shared.ended(permit, outcome::judge(&failures, part.len()));
        let refusal = failures.iter().find(|(_, error)| !is_outage(error));
        let front = match refusal {
            Some((_, error)) => {
                tracing::debug!(broker = &*self.shared.name, "what waits for {} stays: {error}", self.to);
                metrics().spool_refused.with_label_values(&[&*self.shared.name]).inc();
                Front::Refused(error.to_string())
            }
            None if failures.is_empty() => Front::Moves,
            None => Front::Waits,
        };
        self.shared.tried(&self.to, front);
        failures
    }

    /// Ends what was confirmed. Whether that is known.
    async fn settle(&self, left: Deliveries) -> bool {
        if left.is_empty() {
            return true;
        }
        let load = spool::load(left.as_slice().iter().map(|delivery| &delivery.message));
        let accepted = vec![Settlement::Accept; left.len()];
        if let Err(error) = left.settle(accepted).await {
            tracing::warn!(broker = &*self.shared.name, "what has left the spool stays there as well: {error}");
            return false;
        }
        self.shared.left(&self.to, load);
        metrics().spool_drained.with_label_values(&[&*self.shared.name]).inc_by(load.messages);
        true
    }
}

/// What was confirmed, and what stays: what failed, and what has the same key behind it, confirmed or not.
fn divided(part: Deliveries, failures: &[(usize, PublishError)]) -> (Deliveries, Deliveries) {
    if failures.is_empty() {
        return (part, Deliveries::none());
    }
    let messages: Vec<Arc<Message>> = part.as_slice().iter().map(|delivery| Arc::clone(&delivery.message)).collect();
    let stays = outcome::with_followers(&messages, failures.iter().map(|(place, _)| *place));
    let mut stays = stays.into_iter();
    let mut parts = part.split(2, |_| usize::from(stays.next().unwrap_or(true))).into_iter();
    (parts.next().unwrap_or_else(Deliveries::none), parts.next().unwrap_or_else(Deliveries::none))
}
