//! Where the lanes of one source get their batches. Whichever lane is free takes the lead: it fetches from the
//! subscription, keeps what is its own and hands the rest to the lanes it belongs to. With one route and no order,
//! everything is its own, and a message is never passed between threads.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use super::{
    brake::{Brake, BrakeState},
    budget::{Account, Counting},
    circuits::Circuits,
    inbox::{Backlog, Inbox},
    lane::BATCH_MAX,
    places::Places,
    pulse::{Idle, Pulse},
};
use crate::{
    broker::{BatchMax, Broker, BrokerError, Deliveries, KeepAlive, Subscribe, Subscription},
    handler::Slot,
    message::{Kind, Settlement},
    route::{Order, Route},
};

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
    pulse: Pulse,
    routes: Vec<Arc<Route>>,
    /// For each route, whether its lanes take messages now.
    gates: Vec<Gate>,
    /// For each route what leads to its lanes.
    ways: Vec<Way>,
    /// What it has out of the memory budget.
    account: Arc<Account>,
    stop: CancellationToken,
}

/// What belongs to whoever leads.
#[derive(Debug)]
struct Lead {
    subscription: Option<Box<dyn Subscription>>,
    counting: Counting,
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

/// What leads to the lanes of one route.
#[derive(Debug)]
struct Way {
    /// One for each lane; one for all of them where it keeps no order.
    inboxes: Vec<Arc<Inbox>>,
    backlog: Arc<Backlog>,
    /// Where it keeps order on several lanes.
    places: Option<Arc<Places>>,
}

impl Way {
    fn to(route: &Route) -> Self {
        let is_ordered = route.order != Order::None;
        let count = if is_ordered { route.concurrency.max(1) } else { 1 };
        let inboxes = (0..count).map(|_| Arc::new(Inbox::new(is_ordered))).collect();
        let places = (count > 1).then(|| Arc::new(Places::new(route.order, count)));
        Self { inboxes, backlog: Arc::default(), places }
    }
}

/// Whether the lanes of a route take messages: they wait while nothing serves, while the brake is on, and while what they
/// publish is not taken.
#[derive(Debug)]
pub(super) struct Gate {
    /// What the source is.
    pub(super) kind: Kind,
    pub(super) slot: Arc<Slot>,
    pub(super) brake: Arc<Brake>,
    pub(super) circuits: Circuits,
}

impl Gate {
    fn is_open(&self) -> bool {
        self.brake.state() == BrakeState::Open
            && self.circuits.are_closed()
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
    mine: Arc<Inbox>,
    backlog: Arc<Backlog>,
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
        account: Arc<Account>,
        stop: CancellationToken,
    ) -> Self {
        let keep_alive = ArcSwap::from_pointee(subscription.keep_alive());
        let ways = routes.iter().map(|route| Way::to(route)).collect();
        let lead =
            Mutex::new(Lead { subscription: Some(subscription), counting: Counting::default(), rest: VecDeque::new() });
        let (taken, pulse) = (Notify::new(), Pulse::default());
        Self { broker, request, lead, taken, keep_alive, pulse, routes, gates, ways, account, stop }
    }

    /// What keeps the leases of everything that is out.
    pub(super) fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::clone(&self.keep_alive.load())
    }

    /// What there is to see of it for whoever looks whether it has stalled.
    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// A lane with nothing to do waits, until this is dropped.
    pub(super) fn idle(&self) -> Idle<'_> {
        self.pulse.idle()
    }

    /// The seats of one route, one a lane.
    pub(super) fn seats(&self, route: usize) -> Vec<Seat> {
        let (Some(way), Some(of)) = (self.ways.get(route), self.routes.get(route)) else { return Vec::new() };
        (0..of.concurrency.max(1))
            .filter_map(|lane| {
                let inbox = lane % way.inboxes.len();
                let mine = Arc::clone(way.inboxes.get(inbox)?);
                Some(Seat { route, inbox, mine, backlog: Arc::clone(&way.backlog) })
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
                () = seat.mine.arrived() => match seat.mine.pop(&seat.backlog) {
                    Some(batch) => return self.took(batch),
                    None => continue,
                },
                lead = self.lead.lock() => lead,
            };
            // Inboxes are filled under the lead only: what is in ours now came before what we would fetch.
            if let Some(batch) = seat.mine.pop(&seat.backlog) {
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
            // One that waits for its share is not one that brings nothing.
            let max = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Taken::End,
                max = self.account.may_fetch(self.for_all(seat, max)) => max,
            };
            let listening = self.pulse.listening();
            let fetched = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Taken::End,
                fetched = subscription.next(max) => fetched,
                // It has stalled: another one may not.
                () = self.pulse.given_up() => Ok(None),
            };
            drop(listening);
            if let Ok(Some(deliveries)) = &fetched {
                self.pulse.fetched(deliveries.len());
            }
            let counted = |deliveries| lead.counting.count(&self.account, deliveries);
            match fetched.map(|fetched| fetched.map(counted)) {
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

    /// What one lane asks for, for as many as share what is fetched.
    fn for_all(&self, seat: &Seat, max: BatchMax) -> BatchMax {
        let sharing = self.ways.get(seat.route).map_or(1, |way| way.inboxes.len());
        BatchMax { count: max.count.saturating_mul(sharing).min(BATCH_MAX.max(max.count)), ..max }
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
        let mut offsets = Vec::with_capacity(self.ways.len());
        for (route, way) in self.ways.iter().enumerate() {
            offsets.push(owners.len());
            owners.extend((0..way.inboxes.len()).map(|inbox| Some((route, inbox))));
        }
        let parts = deliveries.split(owners.len(), |delivery| {
            let Some(place) = self.routes.iter().position(|route| route.matches.takes(&delivery.message)) else {
                return 0;
            };
            let (Some(way), Some(offset)) = (self.ways.get(place), offsets.get(place)) else { return 0 };
            offset + way.places.as_ref().map_or(0, |places| places.place(delivery))
        });
        let parts = owners.into_iter().zip(parts).filter(|(_, deliveries)| !deliveries.is_empty());
        let placed = |(to, deliveries): (Option<(usize, usize)>, Deliveries)| {
            let places = to.and_then(|(route, _)| self.ways.get(route)?.places.as_ref());
            let deliveries = match places {
                Some(places) => places.settled(deliveries),
                None => deliveries,
            };
            Part { to, deliveries }
        };
        parts.map(placed).collect()
    }

    /// Hands out what was fetched to the lanes it belongs to, and gives the leading lane its own. `None`: nothing was.
    ///
    /// # Cancel safety
    /// Cancel safe: what was not handed out is still in `rest`, unless it was to be put off.
    async fn hand_out(&self, seat: &Seat, rest: &mut VecDeque<Part>) -> Option<Taken> {
        let own = Some((seat.route, seat.inbox));
        let mut patience = None;
        loop {
            // Whoever has room gets theirs: none waits for one that is busy.
            let mut full = None;
            for mut part in std::mem::take(rest) {
                let to = part.to.filter(|_| part.to != own).and_then(|to| Some((to, self.inbox(to)?)));
                match to {
                    Some((_, (inbox, backlog))) if inbox.has_room(backlog) => {
                        let deliveries = std::mem::replace(&mut part.deliveries, Deliveries::none());
                        inbox.stuck.store(false, Ordering::Relaxed);
                        inbox.push(deliveries, backlog);
                        continue;
                    }
                    Some((to, _)) => full = full.or(Some((rest.len(), to))),
                    None => {}
                }
                rest.push_back(part);
            }
            let mut taken = (None, None);
            let others = std::mem::take(rest).into_iter().filter_map(|part| match part.to {
                None => {
                    taken.0 = Some(part.deliveries);
                    None
                }
                to if to == own => {
                    taken.1 = Some(part.deliveries);
                    None
                }
                _ => Some(part),
            });
            *rest = others.collect();
            match taken {
                // What is left is for whoever leads next.
                (Some(unrouted), mine) => return Some(Taken::Unrouted(unrouted, mine)),
                (None, Some(mine)) => return Some(Taken::Batch(mine)),
                (None, None) => {}
            }
            let (_, to) = full?;
            let has_room = tokio::select! {
                () = self.stop.cancelled() => {
                    // They go back to the broker.
                    rest.clear();
                    return Some(Taken::End);
                }
                has_room = self.has_room(to, &mut patience) => has_room,
            };
            if !has_room && let Some(place) = rest.iter().position(|part| part.to == Some(to)) {
                let Some(part) = rest.remove(place) else { continue };
                self.put_off(part.deliveries).await;
            }
        }
    }

    fn inbox(&self, (route, inbox): (usize, usize)) -> Option<(&Inbox, &Backlog)> {
        let way = self.ways.get(route)?;
        Some((way.inboxes.get(inbox)?, &way.backlog))
    }

    /// Waits until an inbox may take something. While it is full the whole source waits: for long only where no other route
    /// shares it, or where the route keeps order, as what is put off could be overtaken. A route that is busy, whose handler
    /// is away or keeps crashing does not hold up the others: no.
    /// `since`: what was waited for until now, and until when it is.
    async fn has_room(&self, to: (usize, usize), since: &mut Option<((usize, usize), Instant)>) -> bool {
        let route = to.0;
        let Some((inbox, _)) = self.inbox(to) else { return false };
        let waits = self.routes.len() == 1 || self.routes.get(route).is_some_and(|route| route.order != Order::None);
        if waits {
            self.taken.notified().await;
            return true;
        }
        let is_open = self.gates.get(route).is_none_or(Gate::is_open);
        let patience = if is_open && !inbox.stuck.load(Ordering::Relaxed) { BUSY } else { Duration::ZERO };
        let until = match *since {
            Some((waited, until)) if waited == to => until,
            _ => Instant::now() + patience,
        };
        *since = Some((to, until));
        let is_told = tokio::time::timeout_at(until.into(), self.taken.notified()).await.is_ok();
        inbox.stuck.store(!is_told, Ordering::Relaxed);
        is_told
    }

    /// Gives deliveries back for a while, as the same attempt.
    async fn put_off(&self, deliveries: Deliveries) {
        let later = deliveries.as_slice().iter().map(|_| Settlement::Release { after: PUT_OFF }).collect();
        if let Err(error) = deliveries.settle(later).await {
            tracing::warn!(source = %self.request.from, "messages of a waiting route could not be put off and come again: {error}");
        }
    }
}
