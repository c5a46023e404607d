//! Dead letters of messages that nobody takes: what expired in a queue that no route reads, or whose handler is away, and
//! what a queue gives up because it holds too much ([`Broker::evict`]). Lanes see to all others.
//!
//! Queues where dead letters go are left alone: a letter would become a letter of its own, and lose its cause. What
//! expires there stays, until a person decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{effects, parts::SETBACK, supervisor::Settings};
use crate::{
    broker::{BatchMax, Broker, Deliveries, Delivery},
    message::{Address, Kind, Message, ReasonCode, Settlement, UnixMs, now_ms},
    route::{Route, RouteTable},
    settle::DeadLetter,
    telemetry::metrics,
};

/// How often queues are looked through.
const EVERY: Duration = Duration::from_secs(1);
/// Of a batch.
const BATCH: BatchMax = BatchMax { count: 256, bytes: 8 << 20 };
/// Most batches of one queue before the others have their turn.
const TURN: usize = 64;

/// Looks through all queues, again and again.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) settings: Arc<Mutex<Settings>>,
}

/// Where letters go.
struct Destinations {
    routes: RouteTable,
    otherwise: Address,
}

/// Why one message leaves its queue, and the route that would have taken it.
struct Fate<'a> {
    code: ReasonCode,
    text: String,
    route: Option<&'a Route>,
}

impl Sweep {
    /// Runs until it is stopped; a batch that has begun is carried through.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.look(&stop).await,
            }
        }
    }

    async fn look(&self, stop: &CancellationToken) {
        let destinations = {
            let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            Destinations { routes: settings.routes.clone(), otherwise: settings.dead_letter.clone() }
        };
        let kept = destinations.all();
        for stats in self.broker.stats() {
            let queue = stats.address;
            if queue.kind != Kind::Queue || stats.ready + stats.delayed == 0 || kept.contains(&queue) {
                continue;
            }
            for _ in 0..TURN {
                if stop.is_cancelled() {
                    return;
                }
                if !self.evict(&queue, &destinations).await {
                    break;
                }
            }
        }
    }

    /// Evicts a batch. Whether it is worth to go on.
    async fn evict(&self, queue: &Address, destinations: &Destinations) -> bool {
        let batch = match self.broker.evict(queue, BATCH).await {
            Ok(batch) if batch.is_empty() => return false,
            Ok(batch) => batch,
            Err(error) => {
                tracing::debug!(%queue, "not looked through: {error}");
                return false;
            }
        };
        let now = now_ms();
        let fates: Vec<Fate<'_>> =
            batch.as_slice().iter().map(|delivery| Fate::of(queue, delivery, &destinations.routes, now)).collect();
        let kept = self.keep(queue, &batch, &fates, &destinations.otherwise, now).await; // Invariant 2.
        let settlements = kept
            .iter()
            .zip(&fates)
            .map(|(kept, fate)| match kept {
                true => Settlement::DeadLetter { code: fate.code },
                false => Settlement::Release { after: SETBACK },
            })
            .collect();
        if let Err(error) = batch.settle(settlements).await {
            tracing::warn!(%queue, "messages whose dead letters are kept stay in their queue as well: {error}");
            return false;
        }
        for fate in kept.iter().zip(&fates).filter_map(|(kept, fate)| kept.then_some(fate)) {
            let route = fate.route.map_or("", |route| &*route.name);
            metrics().dead_lettered.with_label_values(&[route, fate.code.as_str()]).inc();
        }
        kept.iter().all(|kept| *kept)
    }

    /// Publishes the letters of a batch, and tells for each whether it is confirmed.
    async fn keep(
        &self,
        queue: &Address,
        batch: &Deliveries,
        fates: &[Fate<'_>],
        otherwise: &Address,
        now: UnixMs,
    ) -> Vec<bool> {
        let mut groups: BTreeMap<&Address, (Vec<usize>, Vec<Arc<Message>>)> = BTreeMap::new();
        for (place, (delivery, fate)) in batch.as_slice().iter().zip(fates).enumerate() {
            let to = fate.route.map_or(otherwise, |route| &route.dead_letter);
            let (places, letters) = groups.entry(to).or_default();
            places.push(place);
            letters.push(Arc::new(self.letter(queue, delivery, fate, now).wrap(&delivery.message)));
        }
        let mut kept = vec![false; batch.len()];
        for (to, (places, letters)) in groups {
            let confirmed = effects::keep_dead_letters(&*self.broker, to, letters).await;
            for (place, confirmed) in places.into_iter().zip(confirmed) {
                kept.iter_mut().skip(place).take(1).for_each(|kept| *kept = confirmed);
            }
        }
        kept
    }

    fn letter(&self, queue: &Address, delivery: &Delivery, fate: &Fate<'_>, now: UnixMs) -> DeadLetter {
        DeadLetter {
            code: fate.code,
            text: fate.text.clone(),
            handler_code: None,
            at: now,
            broker: self.broker.name_of(queue).to_string(),
            source: queue.to_string(),
            partition: None,
            offset: None,
            route: fate.route.map(|route| route.name.to_string()),
            handler: None,
            backtrace: None,
            attempts: delivery.failures.clone(),
            trace_id: delivery.message.trace_id().map(str::to_owned),
        }
    }
}

impl Destinations {
    /// Every queue where dead letters go.
    fn all(&self) -> BTreeSet<Address> {
        let of_routes = self.routes.iter().map(|route| route.dead_letter.clone());
        of_routes.chain([self.otherwise.clone()]).collect()
    }
}

impl<'a> Fate<'a> {
    fn of(queue: &Address, delivery: &Delivery, routes: &'a RouteTable, now: UnixMs) -> Self {
        let (code, text) = match delivery.message.expires_at.filter(|at| *at <= now) {
            Some(at) => (ReasonCode::MessageExpired, format!("expired {} ms before it could be handled", now - at)),
            None => {
                let text = format!("was the oldest of the lowest priority in {queue}, which held more than its limits");
                (ReasonCode::QueueOverflow, text)
            }
        };
        Self { code, text, route: routes.find(queue, &delivery.message).map(|route| &**route) }
    }
}
