//! One source that is running: its feed, its lanes with their threads, and what keeps its leases.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    brake::{Brake, BrakeState},
    budget::{Account, Budget},
    circuits::Circuits,
    doing::Doing,
    feed::{Feed, Gate, Seat},
    lane::{BATCH_MAX, Lane},
    meters::Meters,
    outage::OutageSeen,
    parts::{Ending, Parts},
    watchdog::{Seen, Watchdog},
};
use crate::{
    broker::{AddressStats, Broker, BrokerError, Subscribe},
    handler::{LaneContext, Slot},
    message::{Address, Kind, UnixMs, now_ms},
    route::{self, Route, Source},
    telemetry::metrics,
};

/// A source with its lanes.
#[derive(Debug)]
pub(super) struct Running {
    source: Address,
    group: Arc<str>,
    feed: Arc<Feed>,
    stop: CancellationToken,
    ending: Ending,
    /// Lanes that run, of each route.
    lanes: Vec<usize>,
    shared: Vec<Arc<Parts>>,
    watchdog: Watchdog,
}

/// How one route is doing.
#[derive(Clone, Debug, Serialize)]
pub struct RouteStatus {
    /// Its name.
    pub route: Arc<str>,
    /// Where it reads.
    pub source: Address,
    /// Its handler.
    pub handler: Arc<str>,
    /// Whether a version of it serves that takes what the source brings.
    pub serving: bool,
    /// Whether a version serves, and takes messages of the other kind only: tasks for events, or events for tasks.
    pub other_kind: bool,
    /// Whether it is slowed or held.
    pub brake: BrakeState,
    /// What slows it, where that is an outage behind its handler.
    pub outage: Option<OutageSeen>,
    /// Where it publishes and nothing is taken now: its messages wait for that.
    pub waits_for: Option<Address>,
    /// Its lanes that run.
    pub lanes: usize,
    /// How often the subscription of its source was begun anew because it brought nothing.
    pub restarts: u64,
    /// When it was last.
    pub last_restart: Option<UnixMs>,
    /// Why the engine is not ready, where that did not help.
    pub stalled: Option<String>,
}

/// The longest pause between two looks at what has to be kept alive.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// Says of all sources that everything that is out is being worked on. Returns when to say so again.
pub(super) fn keep_alive(running: &BTreeMap<Address, Running>) -> Instant {
    running.values().for_each(Running::keep_alive);
    let every = running.values().filter_map(Running::keep_alive_every).min();
    Instant::now() + every.unwrap_or(KEEP_EVERY).min(KEEP_EVERY)
}

/// A lane's thread has ended.
#[derive(Debug)]
pub(super) struct LaneEnd {
    pub(super) source: Address,
    route: usize,
    seat: Seat,
    /// Which start of the source it belongs to: an end that comes late is of no interest any more.
    feed: Arc<Feed>,
    panicked: bool,
}

impl Running {
    pub(super) async fn start(
        broker: &Arc<dyn Broker>,
        source: &Source,
        routes: Vec<(Arc<Route>, Arc<Slot>, LaneContext)>,
        ending: Ending,
        ended: &mpsc::Sender<LaneEnd>,
        budget: &Arc<Budget>,
    ) -> Result<Self, BrokerError> {
        let lanes: usize = routes.iter().map(|(route, ..)| route.concurrency.max(1)).sum();
        let request = Subscribe {
            from: source.address.clone(),
            group: Arc::clone(&source.group),
            start: source.start,
            // A batch in each lane, one in front of it, and what ordered lanes hold.
            prefetch: lanes * (2 * BATCH_MAX + super::held::HELD_MAX),
            workers: lanes,
            aside: source.aside,
        };
        let subscription = broker.subscribe(request.clone()).await?;
        let stop = CancellationToken::new();
        let of_source: Vec<_> = routes.iter().map(|(route, ..)| Arc::clone(route)).collect();
        let gates: Vec<_> = routes
            .iter()
            .map(|(route, slot, _)| Gate {
                kind: source.address.kind,
                slot: Arc::clone(slot),
                brake: Arc::new(Brake::new(route.crash_budget, route.outage)),
                circuits: Circuits::of(&**broker, route),
            })
            .collect();
        let ways: Vec<_> = gates.iter().map(|gate| (Arc::clone(&gate.brake), gate.circuits.clone())).collect();
        let feed = Arc::new(Feed::new(
            Arc::clone(broker),
            request,
            subscription,
            of_source,
            gates,
            Account::open(budget),
            stop.clone(),
        ));
        let lanes = vec![0; routes.len()];
        let (group, watchdog) = (Arc::clone(&source.group), Watchdog::default());
        let source = source.address.clone();
        let mut running = Self { source, group, feed, stop, ending, lanes, shared: Vec::new(), watchdog };
        for (place, ((route, slot, context), (brake, circuits))) in routes.into_iter().zip(ways).enumerate() {
            let shared = Arc::new(Parts {
                broker: Arc::clone(broker),
                brake,
                circuits,
                meters: Meters::new(&broker.name_of(&running.source), &route),
                route,
                slot,
                context,
                doing: Doing::default(),
            });
            running.shared.push(shared);
            for seat in running.feed.seats(place) {
                running.start_lane(place, seat, ended);
            }
        }
        Ok(running)
    }

    fn start_lane(&mut self, route: usize, seat: Seat, ended: &mpsc::Sender<LaneEnd>) {
        let Some(shared) = self.shared.get(route).map(Arc::clone) else { return };
        let feed = Arc::clone(&self.feed);
        let name = format!("lane {}", shared.route.name);
        let end = LaneEnd {
            source: self.source.clone(),
            route,
            seat: seat.clone(),
            feed: Arc::clone(&feed),
            panicked: false,
        };
        let ended = ended.clone();
        let started = thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
            let lane = std::panic::AssertUnwindSafe(|| Lane::new(shared, feed, seat).run());
            let panicked = std::panic::catch_unwind(lane).is_err();
            // The supervisor is gone only when nobody waits for this lane any more.
            ended.blocking_send(LaneEnd { panicked, ..end }).ok();
        });
        match started {
            Ok(_) => self.lanes.iter_mut().skip(route).take(1).for_each(|lanes| *lanes += 1),
            Err(error) => tracing::error!(source = %self.source, "no thread for a lane, there are fewer: {error}"),
        }
    }

    /// No new deliveries from here on.
    pub(super) fn stop_taking(&self) {
        self.stop.cancel();
    }

    /// Lanes whose threads run.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.iter().sum()
    }

    /// What its lanes are doing, by route, of those that are in the middle of something.
    pub(super) fn doing(&self) -> impl Iterator<Item = String> {
        let texts = self.shared.iter().map(|shared| (&shared.route.name, shared.doing.text()));
        texts.filter_map(|(route, text)| text.map(|text| format!("route {route}: {text}")))
    }

    /// How many of its lanes wait for their handlers.
    pub(super) fn handling(&self) -> usize {
        self.shared.iter().map(|shared| shared.doing.handling()).sum()
    }

    /// Ends the calls that are running.
    pub(super) fn end_calls(&self) {
        self.ending.cancel();
    }

    /// Everything that is out is still being worked on.
    pub(super) fn keep_alive(&self) {
        self.feed.keep_alive().renew();
    }

    /// How often to say so.
    pub(super) fn keep_alive_every(&self) -> Option<Duration> {
        self.feed.keep_alive().every()
    }

    /// A lane that panicked is replaced: what it had out has gone back already.
    pub(super) fn lane_ended(&mut self, end: &LaneEnd, ended: &mpsc::Sender<LaneEnd>) {
        if !Arc::ptr_eq(&end.feed, &self.feed) {
            return;
        }
        self.lanes.iter_mut().skip(end.route).take(1).for_each(|lanes| *lanes = lanes.saturating_sub(1));
        if end.panicked {
            tracing::error!(source = %self.source, "a lane panicked, which is a defect of the engine; its messages went back");
            if !self.stop.is_cancelled() {
                self.start_lane(end.route, end.seat.clone(), ended);
            }
        }
    }

    /// Looks whether its subscription has stalled, and begins it anew then. `is_well`: whether its system is.
    pub(super) fn look_for_stall(
        &mut self,
        rule: route::Watchdog,
        broker: &dyn Broker,
        stats: &[AddressStats],
        is_well: bool,
    ) {
        let pulse = self.feed.pulse();
        let seen = Seen {
            waiting: self.feed.keep_alive().waiting().unwrap_or_else(|| self.waiting(broker, stats)),
            delivered: pulse.count(),
            only_waits: is_well && pulse.only_waits(self.lanes()),
        };
        let Some(stalled) = self.watchdog.look(rule, seen, Instant::now(), now_ms()) else { return };
        metrics().stall_restarts.with_label_values(&[&self.source.to_string()]).inc();
        tracing::warn!(
            source = %self.source, waiting = stalled.waiting, lanes = self.lanes(), restarts_in_vain = stalled.in_vain,
            "messages wait, and none has come for {:?} though no handler runs: the subscription begins anew", stalled.after
        );
        pulse.give_up();
    }

    /// How many messages wait for its subscription, by what is known of the whole queue or topic.
    fn waiting(&self, broker: &dyn Broker, stats: &[AddressStats]) -> u64 {
        let source = &self.source;
        // The same place, whether its system was named or not.
        let is_it = |stats: &&AddressStats| {
            let address = &stats.address;
            (address.kind, &address.name) == (source.kind, &source.name)
                && (address == source || broker.name_of(address) == broker.name_of(source))
        };
        let Some(stats) = stats.iter().find(is_it) else { return 0 };
        match self.source.kind {
            Kind::Queue => stats.ready,
            Kind::Topic => {
                let lag = stats.lag.iter().find(|(group, _)| *group == self.group).map_or(0, |(_, lag)| *lag);
                lag.saturating_sub(stats.unsettled).saturating_sub(stats.delayed)
            }
        }
    }

    pub(super) fn statuses(&self) -> impl Iterator<Item = RouteStatus> {
        let kind = self.source.kind;
        let restarts = self.watchdog.restarts();
        self.shared.iter().zip(&self.lanes).map(move |(shared, lanes)| (shared, lanes, shared.slot.serving())).map(
            move |(shared, lanes, serving)| RouteStatus {
                route: Arc::clone(&shared.route.name),
                source: self.source.clone(),
                handler: Arc::clone(&shared.route.handler),
                serving: serving.as_ref().is_some_and(|version| version.handler.handles(kind)),
                other_kind: serving.as_ref().is_some_and(|version| !version.handler.handles(kind)),
                brake: shared.brake.state(),
                outage: shared.brake.outage(),
                waits_for: shared.circuits.open().cloned(),
                lanes: *lanes,
                restarts: restarts.count,
                last_restart: restarts.last,
                stalled: restarts.unfit.clone(),
            },
        )
    }
}
