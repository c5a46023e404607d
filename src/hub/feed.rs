//! Where the lanes of one source get their batches. Whichever lane is free takes the lead: it fetches from the
//! subscription, keeps what is its own and hands the rest to the lanes it belongs to. With one route and no order,
//! everything is its own, and a message is never passed between threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_channel::TrySendError;
use rustc_hash::FxBuildHasher;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    brake::{Brake, BrakeState},
    held::{Sequence, sequence},
};
use crate::{
    broker::{BatchMax, Broker, BrokerError, Deliveries, KeepAlive, Subscribe, Subscription},
    handler::Slot,
    message::{Kind, Settlement},
    route::{Order, Route},
};

/// Batches that wait in front of a lane.
const INBOX_BATCHES: usize = 2;
/// First pause before subscribing again; doubles up to the longest, spread by full jitter.
const RESUBSCRIBE_MIN: Duration = Duration::from_millis(100);
const RESUBSCRIBE_MAX: Duration = Duration::from_secs(5);

/// For how long messages go back whose route takes none now, where others share the source.
const PUT_OFF: Duration = Duration::from_secs(1);
/// How long a source waits for a route that is busy before its messages are put off, and how often it looks meanwhile.
const BUSY: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// One source and the lanes it feeds.
#[derive(Debug)]
pub(super) struct Feed {
    broker: Arc<dyn Broker>,
    request: Subscribe,
    subscription: Mutex<Option<Box<dyn Subscription>>>,
    /// Of the subscription.
    keep_alive: ArcSwap<Arc<dyn KeepAlive>>,
    routes: Vec<Arc<Route>>,
    /// For each route, whether its lanes take messages now.
    gates: Vec<Gate>,
    /// For each route the inboxes of its lanes; one for all of them where it keeps no order.
    inboxes: Vec<Vec<Inbox>>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Inbox {
    send: async_channel::Sender<Deliveries>,
    receive: async_channel::Receiver<Deliveries>,
    /// It was full for as long as a source waits, and has not been seen with room since.
    stuck: AtomicBool,
}

/// Whether the lanes of a route take messages: they wait while nothing serves, and while the brake is on.
#[derive(Debug)]
pub(super) struct Gate {
    /// What the source is.
    pub(super) kind: Kind,
    pub(super) slot: Arc<Slot>,
    pub(super) brake: Arc<Brake>,
}

impl Gate {
    fn is_open(&self) -> bool {
        self.brake.state() == BrakeState::Open
            && self.slot.serving().is_some_and(|version| version.handler.handles(self.kind))
    }
}

/// A lane's place at its feed.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    /// Place of its route among those of the source.
    pub(super) route: usize,
    /// Place of its inbox among those of the route.
    inbox: usize,
    receive: async_channel::Receiver<Deliveries>,
}

/// What a lane got.
#[derive(Debug)]
pub(super) enum Taken {
    /// For this lane's route.
    Batch(Deliveries),
    /// No route takes these; and what else is for this lane's route.
    Unrouted(Deliveries, Option<Deliveries>),
    /// The feed has ended.
    End,
}

impl Feed {
    pub(super) fn new(
        broker: Arc<dyn Broker>,
        request: Subscribe,
        subscription: Box<dyn Subscription>,
        routes: Vec<Arc<Route>>,
        gates: Vec<Gate>,
        stop: CancellationToken,
    ) -> Self {
        let inbox = || {
            let (send, receive) = async_channel::bounded(INBOX_BATCHES);
            Inbox { send, receive, stuck: AtomicBool::new(false) }
        };
        let keep_alive = ArcSwap::from_pointee(subscription.keep_alive());
        let inboxes = routes
            .iter()
            .map(|route| {
                let count = if route.order == Order::None { 1 } else { route.concurrency.max(1) };
                (0..count).map(|_| inbox()).collect()
            })
            .collect();
        Self { broker, request, subscription: Mutex::new(Some(subscription)), keep_alive, routes, gates, inboxes, stop }
    }

    /// What keeps the leases of everything that is out.
    pub(super) fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::clone(&self.keep_alive.load())
    }

    /// The seats of one route, one a lane.
    pub(super) fn seats(&self, route: usize) -> Vec<Seat> {
        let (Some(inboxes), Some(of)) = (self.inboxes.get(route), self.routes.get(route)) else { return Vec::new() };
        (0..of.concurrency.max(1))
            .filter_map(|lane| {
                let inbox = lane % inboxes.len();
                let receive = inboxes.get(inbox)?.receive.clone();
                Some(Seat { route, inbox, receive })
            })
            .collect()
    }

    /// The next batch for a lane; at most about `count` deliveries where the lane leads.
    ///
    /// # Cancel safety
    /// Cancel safe up to the moment a batch was fetched; after that what was not handed over goes back to its broker.
    pub(super) async fn take(&self, seat: &Seat, max: BatchMax) -> Taken {
        loop {
            let mut lead = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Taken::End,
                Ok(batch) = seat.receive.recv() => return Taken::Batch(batch),
                lead = self.subscription.lock() => lead,
            };
            // Inboxes are filled under the lead only: what is in ours now came before what we would fetch.
            if let Ok(batch) = seat.receive.try_recv() {
                return Taken::Batch(batch);
            }
            let Some(subscription) = lead.as_mut() else {
                *lead = self.subscribe_again().await;
                if lead.is_none() {
                    return Taken::End;
                }
                continue;
            };
            let fetched = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Taken::End,
                fetched = subscription.next(max) => fetched,
            };
            match fetched {
                Ok(Some(deliveries)) => match self.hand_out(seat, deliveries).await {
                    Some(taken) => return taken,
                    None => continue,
                },
                // The broker ended it, or has been closed: the next subscription shows which.
                Ok(None) => *lead = None,
                Err(error) => {
                    tracing::warn!(source = %self.request.from, "reading failed, will subscribe again: {error}");
                    *lead = None;
                }
            }
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    async fn subscribe_again(&self) -> Option<Box<dyn Subscription>> {
        let mut pause = RESUBSCRIBE_MIN;
        loop {
            let jittered = pause.mul_f64(crate::message::random());
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(jittered) => {}
            }
            match self.broker.subscribe(self.request.clone()).await {
                Ok(subscription) => {
                    self.keep_alive.store(Arc::new(subscription.keep_alive()));
                    return Some(subscription);
                }
                Err(BrokerError::Closed) => return None,
                Err(error) => tracing::warn!(source = %self.request.from, "cannot subscribe yet: {error}"),
            }
            pause = (pause * 2).min(RESUBSCRIBE_MAX);
        }
    }

    /// Keeps what is for the leading lane and hands the rest to the lanes it belongs to. `None`: nothing was its own.
    async fn hand_out(&self, seat: &Seat, deliveries: Deliveries) -> Option<Taken> {
        if let [route] = self.routes.as_slice()
            && route.matches.takes_all()
            && (route.order == Order::None || route.concurrency <= 1)
        {
            return Some(Taken::Batch(deliveries));
        }
        let offsets: Vec<usize> = self
            .inboxes
            .iter()
            .scan(1, |next, inboxes| {
                let offset = *next;
                *next += inboxes.len();
                Some(offset)
            })
            .collect();
        let groups = 1 + self.inboxes.iter().map(Vec::len).sum::<usize>();
        let mut spread = 0_usize;
        let mut parts: Vec<Option<Deliveries>> = deliveries
            .split(groups, |delivery| {
                let Some(place) = self.routes.iter().position(|route| route.matches.takes(&delivery.message)) else {
                    return 0;
                };
                let (Some(route), Some(offset)) = (self.routes.get(place), offsets.get(place)) else { return 0 };
                let lanes = self.inboxes.get(place).map_or(1, Vec::len);
                offset + lane_of(sequence(route.order, delivery).as_ref(), lanes, &mut spread)
            })
            .into_iter()
            .map(|part| (!part.is_empty()).then_some(part))
            .collect();
        let mine = offsets.get(seat.route).and_then(|offset| parts.get_mut(offset + seat.inbox)).and_then(Option::take);
        let unrouted = parts.first_mut().and_then(Option::take);
        let owners = self
            .inboxes
            .iter()
            .enumerate()
            .flat_map(|(route, inboxes)| inboxes.iter().map(move |inbox| (route, inbox)));
        for (part, (route, inbox)) in parts.into_iter().skip(1).zip(owners) {
            let Some(part) = part else { continue };
            tokio::select! {
                // Dropped, it goes back to the broker.
                () = self.stop.cancelled() => return Some(Taken::End),
                () = self.hand_to(inbox, part, route) => {}
            }
        }
        match (unrouted, mine) {
            (Some(unrouted), mine) => Some(Taken::Unrouted(unrouted, mine)),
            (None, Some(mine)) => Some(Taken::Batch(mine)),
            (None, None) => None,
        }
    }
}

impl Feed {
    /// Puts a part into an inbox. While that is full the whole source waits: for long only where no other route shares
    /// it, or where the route keeps order, as what is put off could be overtaken. A route that is busy, whose handler is
    /// away or keeps crashing does not hold up the others.
    async fn hand_to(&self, inbox: &Inbox, part: Deliveries, route: usize) {
        let ordered = self.routes.get(route).is_some_and(|route| route.order != Order::None);
        if self.routes.len() == 1 || ordered {
            // Fails only when the feed is gone, and then it goes back.
            return drop(inbox.send.send(part).await);
        }
        let is_open = self.gates.get(route).is_none_or(Gate::is_open);
        let patience = if is_open && !inbox.stuck.load(Ordering::Relaxed) { BUSY } else { Duration::ZERO };
        let until = Instant::now() + patience;
        let mut part = part;
        loop {
            part = match inbox.send.try_send(part) {
                Err(TrySendError::Full(part)) => part,
                sent => {
                    inbox.stuck.store(false, Ordering::Relaxed);
                    // As above.
                    return drop(sent);
                }
            };
            if Instant::now() >= until {
                inbox.stuck.store(true, Ordering::Relaxed);
                return self.put_off(part).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Gives deliveries back for a while, as the same attempt.
    async fn put_off(&self, deliveries: Deliveries) {
        let later = deliveries.as_slice().iter().map(|_| Settlement::Release { after: PUT_OFF }).collect();
        if let Err(error) = deliveries.settle(later).await {
            tracing::warn!(source = %self.request.from, "messages of a waiting route could not be put off and come again: {error}");
        }
    }
}

/// The same sequence always goes to the same lane; what has none is spread.
fn lane_of(sequence: Option<&Sequence>, lanes: usize, spread: &mut usize) -> usize {
    use std::hash::BuildHasher;
    if lanes <= 1 {
        return 0;
    }
    match sequence {
        Some(Sequence::Partition(partition)) => *partition as usize % lanes,
        // The upper half: the lower bits of this hash are the weaker ones.
        Some(Sequence::Key(key)) => (FxBuildHasher.hash_one(key) >> 32) as usize % lanes,
        None => {
            *spread += 1;
            *spread % lanes
        }
    }
}
