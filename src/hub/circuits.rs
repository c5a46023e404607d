//! Whether everything a route may publish to takes messages now: its destinations, and where its dead letters go. Each lane
//! has its own view of it, so that asking costs one look at each circuit.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    broker::{Broker, Circuit},
    message::Address,
    route::Route,
};

/// The circuits on a route's way out.
#[derive(Clone, Debug)]
pub(super) struct Circuits {
    ways: Vec<Way>,
    /// Half-open: whichever lane has it may try one message.
    trial: Arc<Semaphore>,
    state: Circuit,
}

/// Where messages go, and whether they are taken there.
#[derive(Clone, Debug)]
struct Way {
    to: Address,
    circuit: watch::Receiver<Circuit>,
}

/// The right to try whether messages are taken.
#[derive(Debug)]
pub(super) struct Trial {
    _permit: OwnedSemaphorePermit,
}

impl Circuits {
    pub(super) fn of(broker: &dyn Broker, route: &Route) -> Self {
        let mut to: Vec<&Address> = route.terms.destinations.values().chain([&route.dead_letter]).collect();
        to.sort_unstable();
        to.dedup();
        let way = |to: &Address| Some(Way { circuit: broker.circuit(to)?, to: to.clone() });
        let ways: Vec<_> = to.into_iter().filter_map(way).collect();
        let mut circuits = Self { ways, trial: Arc::new(Semaphore::new(1)), state: Circuit::Closed };
        circuits.look();
        circuits
    }

    /// The worst of them.
    pub(super) fn state(&mut self) -> Circuit {
        // One whose system has gone says nothing any more.
        if self.ways.iter().any(|way| way.circuit.has_changed().unwrap_or(false)) {
            self.look();
        }
        self.state
    }

    fn look(&mut self) {
        let states = self.ways.iter_mut().map(|way| *way.circuit.borrow_and_update());
        self.state = states.max_by_key(|state| badness(*state)).unwrap_or(Circuit::Closed);
    }

    /// Whether messages are taken everywhere, without looking at what a lane has seen.
    pub(super) fn are_closed(&self) -> bool {
        self.ways.iter().all(|way| *way.circuit.borrow() == Circuit::Closed)
    }

    /// Where nothing is taken now.
    pub(super) fn open(&self) -> Option<&Address> {
        self.ways.iter().find(|way| *way.circuit.borrow() == Circuit::Open).map(|way| &way.to)
    }

    /// The right to try, unless another lane has it.
    pub(super) fn trial(&self) -> Option<Trial> {
        Arc::clone(&self.trial).try_acquire_owned().ok().map(|permit| Trial { _permit: permit })
    }

    /// Waits until another lane has tried.
    pub(super) fn tried(&self) -> impl Future<Output = ()> + use<> {
        let trial = Arc::clone(&self.trial);
        async move {
            // It is never closed.
            drop(trial.acquire().await);
        }
    }

    /// Waits until one of them changes.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn changed(&mut self) {
        let changes: Vec<_> = self.ways.iter_mut().map(|way| Box::pin(changed(&mut way.circuit))).collect();
        if changes.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(changes).await;
        self.look();
    }
}

async fn changed(circuit: &mut watch::Receiver<Circuit>) {
    if circuit.changed().await.is_err() {
        // Its system has gone: it stays as it is.
        std::future::pending().await
    }
}

fn badness(circuit: Circuit) -> u8 {
    match circuit {
        Circuit::Closed => 0,
        Circuit::HalfOpen => 1,
        Circuit::Open => 2,
    }
}
