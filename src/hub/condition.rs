//! Looks after the systems, each by itself: tells when where its connections are changes, or when it begins to do less,
//! once; keeps the metrics of both; and ends the engine when one has failed.

use std::{collections::BTreeMap, time::Duration};

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
    /// `None`: it has not been looked at.
    state: Option<ConnectionState>,
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
    /// Its connections are elsewhere; before, they were here. `None`: it was not there.
    State(Option<ConnectionState>),
    /// It is connected, and does only part of its work.
    DoesLess,
    DoesAll,
    Circuit(Circuit),
}

impl Seen {
    /// Takes in what is seen now, and says what of it is new.
    fn update(&mut self, system: &System) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = self.state.replace(system.state);
        // One that is well from the beginning is nothing to speak of.
        if before.unwrap_or_default() != system.state {
            changes.push(Change::State(before));
        }
        // Otherwise its connections, or its circuit, are the reason, and that is said.
        let does_less = system.state == ConnectionState::Ready
            && system.circuit == Circuit::Closed
            && matches!(system.status, BrokerStatus::Degraded { .. });
        if std::mem::replace(&mut self.does_less, does_less) != does_less {
            match does_less {
                true => changes.push(Change::DoesLess),
                // Otherwise something else has begun, and that is said.
                false if before == self.state && system.circuit == Circuit::Closed => changes.push(Change::DoesAll),
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
                let was = was.map(ConnectionState::as_str);
                match system.state {
                    ConnectionState::Ready => tracing::info!(broker, was, state, "connected"),
                    ConnectionState::Connecting => tracing::info!(broker, was, state, "begins to connect"),
                    ConnectionState::Blocked => tracing::warn!(broker, was, state, "{reason}"),
                    ConnectionState::Away => tracing::warn!(broker, was, state, "tried again by itself: {reason}"),
                    ConnectionState::Refused => tracing::error!(broker, was, state, "tried again by itself: {reason}"),
                    // What waits for one that is not used.
                    ConnectionState::Closed if !reason.is_empty() => tracing::warn!(broker, was, state, "{reason}"),
                    ConnectionState::Closed => tracing::debug!(broker, was, state, "closed"),
                }
            }
            Self::DoesLess => tracing::warn!(broker, "{reason}"),
            Self::DoesAll => tracing::info!(broker, "the broker does all of its work again"),
            Self::Circuit(was) => {
                let was = was.as_str();
                match system.circuit {
                    Circuit::Open => tracing::warn!(broker, was, circuit, "nothing is published there now: {reason}"),
                    Circuit::HalfOpen => {
                        tracing::info!(broker, was, circuit, "whether messages are taken there is tried")
                    }
                    Circuit::Closed => tracing::info!(broker, was, circuit, "messages are published there again"),
                }
            }
        }
    }
}

fn show(system: &System) {
    let broker = &*system.name;
    metrics().circuit_state.with_label_values(&[broker]).set(match system.circuit {
        Circuit::Closed => 0,
        Circuit::HalfOpen => 1,
        Circuit::Open => 2,
    });
    let spool = system.spool.clone().unwrap_or_default();
    let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    metrics().spool_messages.with_label_values(&[broker]).set(whole(spool.messages));
    metrics().spool_bytes.with_label_values(&[broker]).set(whole(spool.bytes));
    metrics().spool_oldest.with_label_values(&[broker]).set(Duration::from_millis(spool.oldest_ms).as_secs_f64());
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
    metrics().circuit_state.remove_label_values(&[broker]).ok();
    metrics().spool_messages.remove_label_values(&[broker]).ok();
    metrics().spool_bytes.remove_label_values(&[broker]).ok();
    metrics().spool_oldest.remove_label_values(&[broker]).ok();
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
        use ConnectionState::{Away, Blocked, Connecting, Ready};
        let mut seen = Seen::default();
        let steps = [
            (system(Ready, ""), vec![]),
            (system(Away, "gone"), vec![Change::State(Some(Ready))]),
            (system(Away, "gone, and another reason"), vec![]),
            (system(Ready, ""), vec![Change::State(Some(Away))]),
            (system(Ready, "no rights"), vec![Change::DoesLess]),
            (system(Ready, "no rights there either"), vec![]),
            (system(Blocked, "alarm"), vec![Change::State(Some(Ready))]),
            // What was wrong beside it still is.
            (system(Ready, "no rights"), vec![Change::State(Some(Blocked)), Change::DoesLess]),
            (system(Ready, ""), vec![Change::DoesAll]),
            (System { circuit: Circuit::Open, ..system(Ready, "") }, vec![Change::Circuit(Circuit::Closed)]),
            (System { circuit: Circuit::Open, ..system(Ready, "not published to") }, vec![]),
            (system(Ready, ""), vec![Change::Circuit(Circuit::Open)]),
        ];
        assert_eq!(Seen::default().update(&system(Connecting, "")), [Change::State(None)], "it was nowhere before");
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
