//! Looks after the systems, each by itself: tells when where its connections are changes, or when it begins to do less,
//! once; keeps the metrics of both; and ends the engine when one has failed.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Broker, BrokerStatus, Circuit, ConnectionState, System},
    telemetry::metrics,
};

/// What was last seen of the systems.
#[derive(Debug)]
pub(super) struct Condition {
    seen: BTreeMap<String, Seen>,
    failure: watch::Sender<Option<String>>,
    stop: CancellationToken,
}

/// What was last seen of one of them.
#[derive(Debug, Default)]
struct Seen {
    state: ConnectionState,
    circuit: Circuit,
    /// It is connected, and does only part of its work.
    does_less: bool,
}

impl Condition {
    /// `failure` is told why one failed, `stop` is cancelled then.
    pub(super) fn new(failure: watch::Sender<Option<String>>, stop: CancellationToken) -> Self {
        Self { seen: BTreeMap::new(), failure, stop }
    }

    /// Looks, and acts on what has changed.
    pub(super) fn look(&mut self, broker: &dyn Broker) {
        let systems = broker.systems();
        for system in &systems {
            show(system);
            let seen = self.seen.entry(system.name.clone()).or_default();
            seen.update(system).into_iter().for_each(|change| change.say(system));
        }
        self.seen.retain(|name, _| {
            let is_there = systems.iter().any(|system| system.name == *name);
            if !is_there {
                forget(name);
            }
            is_there
        });
        let is_known = self.failure.borrow().is_some();
        if let (BrokerStatus::Failed { reason }, false) = (broker.status(), is_known) {
            // What it confirmed is safe; what it would confirm from here on might not be.
            self.stop.cancel();
            self.failure.send_replace(Some(reason));
        }
    }
}

/// What somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Its connections are elsewhere; before, they were here.
    State(ConnectionState),
    /// It is connected, and does only part of its work.
    DoesLess,
    DoesAll,
    Circuit(Circuit),
}

impl Seen {
    /// Takes in what is seen now, and says what of it is new.
    fn update(&mut self, system: &System) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = std::mem::replace(&mut self.state, system.state);
        if before != self.state {
            changes.push(Change::State(before));
        }
        // Otherwise its connections are the reason, and that is said.
        let does_less = self.state == ConnectionState::Ready && matches!(system.status, BrokerStatus::Degraded { .. });
        if std::mem::replace(&mut self.does_less, does_less) != does_less {
            match does_less {
                true => changes.push(Change::DoesLess),
                false if before == self.state => changes.push(Change::DoesAll),
                false => {}
            }
        }
        let before = std::mem::replace(&mut self.circuit, system.circuit);
        if before != self.circuit {
            changes.push(Change::Circuit(before));
        }
        changes
    }
}

impl Change {
    /// One line for each.
    fn say(self, system: &System) {
        let broker = &*system.name;
        let reason = match &system.status {
            BrokerStatus::Ready => "",
            BrokerStatus::Degraded { reason } | BrokerStatus::Failed { reason } => reason,
        };
        let (state, circuit) = (system.state.as_str(), system.circuit.as_str());
        match self {
            Self::State(was) => {
                let was = was.as_str();
                match system.state {
                    ConnectionState::Ready => tracing::info!(broker, was, state, "connected"),
                    ConnectionState::Connecting => tracing::info!(broker, was, state, "connecting"),
                    ConnectionState::Blocked => tracing::warn!(broker, was, state, "{reason}"),
                    ConnectionState::Away => tracing::warn!(broker, was, state, "tried again by itself: {reason}"),
                    ConnectionState::Refused => tracing::error!(broker, was, state, "tried again by itself: {reason}"),
                    ConnectionState::Closed => tracing::debug!(broker, was, state, "closed"),
                }
            }
            Self::DoesLess => tracing::warn!(broker, "{reason}"),
            Self::DoesAll => tracing::info!(broker, "the broker does all of its work again"),
            Self::Circuit(was) => {
                let was = was.as_str();
                match system.circuit {
                    Circuit::Open => tracing::warn!(broker, was, circuit, "nothing is published there now: {reason}"),
                    Circuit::HalfOpen => tracing::info!(broker, was, circuit, "one publish is tried there"),
                    Circuit::Closed => tracing::info!(broker, was, circuit, "messages are published there again"),
                }
            }
        }
    }
}

fn show(system: &System) {
    let broker = &*system.name;
    metrics().broker_state.with_label_values(&[broker]).set(match &system.status {
        BrokerStatus::Ready => 0,
        BrokerStatus::Degraded { .. } => 1,
        BrokerStatus::Failed { .. } => 2,
    });
    for state in ConnectionState::ALL {
        let is_there = i64::from(state == system.state);
        metrics().connection_state.with_label_values(&[broker, state.as_str()]).set(is_there);
    }
}

/// A system that is not there any more, by the configuration.
fn forget(broker: &str) {
    // What was never shown cannot be taken away.
    metrics().broker_state.remove_label_values(&[broker]).ok();
    for state in ConnectionState::ALL {
        metrics().connection_state.remove_label_values(&[broker, state.as_str()]).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(state: ConnectionState, reason: &str) -> System {
        let status = match reason {
            "" => BrokerStatus::Ready,
            reason => BrokerStatus::Degraded { reason: reason.to_owned() },
        };
        let circuit = Circuit::Closed;
        System { name: "a".to_owned(), status, state, circuit, spool: None, is_durable: true }
    }

    #[test]
    fn each_change_is_said_once() {
        use ConnectionState::{Away, Blocked, Ready};
        let mut seen = Seen::default();
        let steps = [
            (system(Ready, ""), vec![]),
            (system(Away, "gone"), vec![Change::State(Ready)]),
            (system(Away, "gone, and another reason"), vec![]),
            (system(Ready, ""), vec![Change::State(Away)]),
            (system(Ready, "no rights"), vec![Change::DoesLess]),
            (system(Ready, "no rights there either"), vec![]),
            (system(Blocked, "alarm"), vec![Change::State(Ready)]),
            // What was wrong beside it still is.
            (system(Ready, "no rights"), vec![Change::State(Blocked), Change::DoesLess]),
            (system(Ready, ""), vec![Change::DoesAll]),
            (System { circuit: Circuit::Open, ..system(Ready, "") }, vec![Change::Circuit(Circuit::Closed)]),
            (System { circuit: Circuit::Open, ..system(Ready, "") }, vec![]),
            (system(Ready, ""), vec![Change::Circuit(Circuit::Open)]),
        ];
        for (place, (system, expected)) in steps.into_iter().enumerate() {
            assert_eq!(seen.update(&system), expected, "step {place}");
        }
    }

    #[test]
    fn the_metric_says_where_it_is_and_goes_with_it() {
        let of =
            |state: ConnectionState| metrics().connection_state.with_label_values(&["looked-after", state.as_str()]);
        for state in ConnectionState::ALL {
            show(&System { name: "looked-after".to_owned(), ..system(state, "") });
            let there: Vec<_> = ConnectionState::ALL.into_iter().filter(|state| of(*state).get() == 1).collect();
            assert_eq!(there, [state]);
        }
        forget("looked-after");
        assert!(!metrics().render().unwrap().contains("looked-after"));
    }

    #[test]
    fn of_several_connections_the_worse_counts() {
        use ConnectionState::{Away, Blocked, Closed, Connecting, Ready, Refused};
        for (one, other, together) in [
            (Ready, Ready, Ready),
            (Ready, Blocked, Blocked),
            (Away, Blocked, Away),
            (Connecting, Away, Away),
            (Away, Refused, Refused),
            (Closed, Ready, Closed),
        ] {
            assert_eq!((one.or_worse(other), other.or_worse(one)), (together, together));
        }
    }
}
