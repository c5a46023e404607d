//! Where the lanes of one source get their batches. Whichever lane is free takes the lead: it fetches from the
//! subscription, keeps what is its own and hands the rest to the lanes it belongs to. With one route and no order,
//! everything is its own, and a message is never passed between threads.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustc_hash::FxBuildHasher;
use tokio::sync::{Mutex, Notify};
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
/// How long a source waits for a route that is busy before its messages are put off.
const BUSY: Duration = Duration::from_millis(50);

/// One source and the lanes it feeds.
#[derive(Debug)]
pub(super) struct Feed {
    broker: Arc<dyn Broker>,
    request: Subscribe,
    lead: Mutex<Lead>,
    /// A lane took something from its inbox: whoever leads may go on.
    taken: Notify,
    /// Of the subscription.
    keep_alive: ArcSwap<Arc<dyn KeepAlive>>,
    routes: Vec<Arc<Route>>,
    /// For each route, whether its lanes take messages now.
    gates: Vec<Gate>,
    /// For each route the inboxes of its lanes; one for all of them where it keeps no order.
    inboxes: Vec<Vec<Inbox>>,
    stop: CancellationToken,
}

/// What belongs to whoever leads.
#[derive(Debug)]
struct Lead {
    subscription: Option<Box<dyn Subscription>>,
    /// Fetched, and not yet with the lane it belongs to: a leader that turns to something else leaves them to the next one,
    /// as they would be overtaken if they went back to the broker.
    rest: VecDeque<Part>,
}

/// Deliveries of one fetch for one inbox.
#[derive(Debug)]
struct Part {
    /// Places of route and inbox; `None`: no route takes these.
    to: Option<(usize, usize)>,
    deliveries: Deliveries,
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
        let lead = Mutex::new(Lead { subscription: Some(subscription), rest: VecDeque::new() });
        let taken = Notify::new();
        Self { broker, request, lead, taken, keep_alive, routes, gates, inboxes, stop }
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
    /// Cancel safe: what was fetched waits for the next leader.
    pub(super) async fn take(&self, seat: &Seat, max: BatchMax) -> Taken {
        loop {
            let mut lead = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Taken::End,
                Ok(batch) = seat.receive.recv() => return self.took(batch),
                lead = self.lead.lock() => lead,
            };
            // Inboxes are filled under the lead only: what is in ours now came before what we would fetch.
            if let Ok(batch) = seat.receive.try_recv() {
                return self.took(batch);
            }
            if let Some(taken) = self.hand_out(seat, &mut lead.rest).await {
                return taken;
            }
            let Some(subscription) = lead.subscription.as_mut() else {
                lead.subscription = self.subscribe_again().await;
                if lead.subscription.is_none() {
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
                Ok(Some(deliveries)) if self.is_for_one() => return Taken::Batch(deliveries),
                Ok(Some(deliveries)) => {
                    lead.rest = self.split(deliveries);
                    if let Some(taken) = self.hand_out(seat, &mut lead.rest).await {
                        return taken;
                    }
                }
                // The broker ended it, or has been closed: the next subscription shows which.
                Ok(None) => lead.subscription = None,
                Err(error) => {
                    tracing::warn!(source = %self.request.from, "reading failed, will subscribe again: {error}");
                    lead.subscription = None;
                }
            }
        }
    }

    fn took(&self, batch: Deliveries) -> Taken {
        self.taken.notify_one();
        Taken::Batch(batch)
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

    /// Whether all that is fetched is for whichever lane fetches it.
    fn is_for_one(&self) -> bool {
        let [route] = self.routes.as_slice() else { return false };
        route.matches.takes_all() && (route.order == Order::None || route.concurrency <= 1)
    }

    /// What was fetched, by the inboxes it belongs to.
    fn split(&self, deliveries: Deliveries) -> VecDeque<Part> {
        let mut owners = vec![None];
        let mut offsets = Vec::with_capacity(self.inboxes.len());
        for (route, inboxes) in self.inboxes.iter().enumerate() {
            offsets.push(owners.len());
            owners.extend((0..inboxes.len()).map(|inbox| Some((route, inbox))));
        }
        let mut spread = 0_usize;
        let parts = deliveries.split(owners.len(), |delivery| {
            let Some(place) = self.routes.iter().position(|route| route.matches.takes(&delivery.message)) else {
                return 0;
            };
            let (Some(route), Some(offset)) = (self.routes.get(place), offsets.get(place)) else { return 0 };
            let lanes = self.inboxes.get(place).map_or(1, Vec::len);
            offset + lane_of(sequence(route.order, delivery).as_ref(), lanes, &mut spread)
        });
        let parts = owners.into_iter().zip(parts).map(|(to, deliveries)| Part { to, deliveries });
        parts.filter(|part| !part.deliveries.is_empty()).collect()
    }

    /// Hands out what was fetched to the lanes it belongs to, and gives the leading lane its own. `None`: nothing was.
    ///
    /// # Cancel safety
    /// Cancel safe: what was not handed out is still in `rest`, unless it was to be put off.
    async fn hand_out(&self, seat: &Seat, rest: &mut VecDeque<Part>) -> Option<Taken> {
        let own = Some((seat.route, seat.inbox));
        let others = |part: &Part| part.to.filter(|_| part.to != own);
        while let Some((place, (route, inbox))) =
            rest.iter().enumerate().find_map(|(place, part)| Some((place, others(part)?)))
        {
            let inbox = self.inboxes.get(route).and_then(|inboxes| inboxes.get(inbox))?;
            let has_room = tokio::select! {
                () = self.stop.cancelled() => {
                    // They go back to the broker.
                    rest.clear();
                    return Some(Taken::End);
                }
                has_room = self.has_room(inbox, route) => has_room,
            };
            let Some(part) = rest.remove(place) else { continue };
            if !has_room {
                self.put_off(part.deliveries).await;
            } else if inbox.send.try_send(part.deliveries).is_err() {
                // Whoever leads is the only one to send, so it has room: its lane is gone, and they go back.
                tracing::debug!(source = %self.request.from, "a lane has ended before the others");
            }
        }
        let mut taken = (None, None);
        for part in rest.drain(..) {
            *(if part.to.is_some() { &mut taken.1 } else { &mut taken.0 }) = Some(part.deliveries);
        }
        match taken {
            (Some(unrouted), mine) => Some(Taken::Unrouted(unrouted, mine)),
            (None, Some(mine)) => Some(Taken::Batch(mine)),
            (None, None) => None,
        }
    }
}

impl Feed {
    /// Waits until an inbox takes something. While it is full the whole source waits: for long only where no other route
    /// shares it, or where the route keeps order, as what is put off could be overtaken. A route that is busy, whose handler
    /// is away or keeps crashing does not hold up the others: no.
    async fn has_room(&self, inbox: &Inbox, route: usize) -> bool {
        let waits = self.routes.len() == 1 || self.routes.get(route).is_some_and(|route| route.order != Order::None);
        let is_open = self.gates.get(route).is_none_or(Gate::is_open);
        let patience = if is_open && !inbox.stuck.load(Ordering::Relaxed) { BUSY } else { Duration::ZERO };
        let until = Instant::now() + patience;
        while inbox.send.is_full() {
            if waits {
                self.taken.notified().await;
            } else if tokio::time::timeout_at(until.into(), self.taken.notified()).await.is_err() {
                inbox.stuck.store(true, Ordering::Relaxed);
                return false;
            }
        }
        inbox.stuck.store(false, Ordering::Relaxed);
        true
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
