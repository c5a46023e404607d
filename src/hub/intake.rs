//! When a lane may take messages, and when it may call the handler for those that it has: not while nothing serves, while the
//! [brake](super::brake) is on, or while what comes of it would not be taken ([circuits](super::circuits)). What waits here
//! uses up no attempt.

use std::{sync::Arc, time::Instant};

use super::{
    brake::{BrakeState, Permit, Probe},
    circuits::{Circuits, Trial},
    feed::Feed,
    parts::Parts,
};
use crate::broker::Circuit;

/// One lane's way to its messages.
#[derive(Debug)]
pub(super) struct Intake {
    shared: Arc<Parts>,
    feed: Arc<Feed>,
    circuits: Circuits,
    /// The version that cannot handle what the route brings, once that has been said.
    complained_of: u64,
}

/// The right to call the handler now, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Turn {
    probe: Option<Probe>,
    _trial: Option<Trial>,
}

impl Turn {
    /// Whether the first call is to show whether the handler has recovered.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

impl Intake {
    pub(super) fn new(shared: Arc<Parts>, feed: Arc<Feed>) -> Self {
        let circuits = shared.circuits.clone();
        Self { shared, feed, circuits, complained_of: 0 }
    }

    /// Whether one message at a time goes through.
    pub(super) fn is_narrow(&mut self) -> bool {
        self.shared.brake.state() != BrakeState::Open || self.circuits.state() != Circuit::Closed
    }

    /// Waits until there is a version to run, the route is not held, and what it publishes is taken; false when the feed
    /// stops first.
    pub(super) async fn until_permitted(&mut self) -> bool {
        let shared = &self.shared;
        loop {
            let mut versions = shared.slot.changes();
            let mut brake = shared.brake.changes();
            if self.feed.is_stopped() {
                return false;
            }
            let kind = shared.route.source.address.kind;
            let serving = shared.slot.serving();
            if let Some(version) = serving.as_ref().filter(|version| !version.handler.handles(kind))
                && std::mem::replace(&mut self.complained_of, version.generation) != version.generation
            {
                tracing::error!(route = %shared.route.name, handler = %shared.route.handler, "the handler does not take messages from a {kind}: they wait until another version does, or the route changes");
            }
            if let Some(version) = serving.filter(|version| version.handler.handles(kind)) {
                shared.brake.serves(version.generation);
                let brake = shared.brake.state();
                if brake == BrakeState::Open && shared.meters.released() {
                    tracing::info!(route = %shared.route.name, "messages flow again");
                }
                if brake != BrakeState::Held && self.circuits.state() != Circuit::Open {
                    return true;
                }
            }
            tokio::select! {
                () = self.feed.stopped() => return false,
                // Their senders live as long as `shared`.
                _ = versions.changed() => {}
                _ = brake.changed() => {}
                () = self.circuits.changed() => {}
            }
        }
    }

    /// The right to call the handler for what is in hand; `None`: not now, it has to wait.
    pub(super) fn turn(&mut self) -> Option<Turn> {
        if !self.is_narrow() {
            return Some(Turn::default());
        }
        let runtime = self.shared.context.runtime.clone();
        runtime.block_on(self.until_turn())
    }

    /// Waits with a message in hand until it is this lane's turn to try it.
    async fn until_turn(&mut self) -> Option<Turn> {
        let mut versions = self.shared.slot.changes();
        let mut brake = self.shared.brake.changes();
        loop {
            let circuit = self.circuits.state();
            let trial = if circuit == Circuit::HalfOpen { self.circuits.trial() } else { None };
            let may_publish = circuit == Circuit::Closed || trial.is_some();
            let permit = may_publish.then(|| self.shared.brake.permit());
            let until = match permit {
                Some(Permit::Go) => return Some(Turn { probe: None, _trial: trial }),
                Some(Permit::Probe(probe)) => return Some(Turn { probe: Some(probe), _trial: trial }),
                Some(Permit::Held) => return None,
                Some(Permit::Wait(until)) => Some(until),
                None => None,
            };
            // Whoever waits for the brake does not keep others from trying.
            drop(trial);
            let tried = self.circuits.tried();
            tokio::select! {
                () = self.feed.stopped() => return None,
                _ = versions.changed() => return None,
                _ = brake.changed() => {}
                () = self.circuits.changed() => {}
                () = tried, if circuit == Circuit::HalfOpen && until.is_none() => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
