//! Tells systemd how the engine is doing, where systemd started it (`Type=notify` or `notify-reload`): ready, reloading,
//! stopping, a line of status, and a sign of life where the unit asks for one (`WatchdogSec=`). Elsewhere it does nothing.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    broker::{BrokerStatus, Circuit, ConnectionState, System},
    hub::Hub,
};

/// How often the status is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What systemd was told.
#[derive(Debug, Default)]
pub(super) struct Systemd {
    is_ready: AtomicBool,
    status: Mutex<String>,
}

impl Systemd {
    /// The engine handles messages.
    pub(super) fn ready(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
        tell(&[NotifyState::Ready]);
    }

    /// The configuration is being loaded again. Not told before the engine is ready: the end of a reload says that it is.
    pub(super) fn reloading(&self) {
        // Without its clock systemd could not tell which reload this is.
        if let (true, Ok(now)) = (self.is_ready.load(Ordering::Relaxed), NotifyState::monotonic_usec_now()) {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    /// It was, or the one before stays.
    pub(super) fn reloaded(&self) {
        if self.is_ready.load(Ordering::Relaxed) {
            tell(&[NotifyState::Ready]);
        }
    }

    /// The engine stops, which may take that long.
    pub(super) fn stopping(&self, at_most: Duration) {
        let micros = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros), NotifyState::Status("draining")]);
    }

    /// Keeps the status, and gives signs of life, until it is dropped. They say that the engine's tasks have their turn.
    pub(super) async fn run(&self, hub: &Hub) {
        // Twice as often as asked for, so that one may come late.
        let alive_every = sd_notify::watchdog_enabled().map(|every| every / 2);
        let every = alive_every.unwrap_or(LOOK_EVERY).clamp(Duration::from_millis(10), LOOK_EVERY);
        let mut looks = interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if alive_every.is_some() {
                tell(&[NotifyState::Watchdog]);
            }
            if !hub.is_stopping() {
                self.say(status(hub));
            }
        }
    }

    fn say(&self, status: String) {
        let mut said = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != status {
            tell(&[NotifyState::Status(&status)]);
            *said = status;
        }
    }
}

/// One line, as `systemctl status` shows it.
fn status(hub: &Hub) -> String {
    let begun = if hub.is_ready() { "ready" } else { "loading plugins" };
    let mut parts = vec![format!("{begun}, {} routes", hub.routes().len())];
    parts.extend(hub.broker().systems().iter().filter_map(amiss));
    // A line break would end it.
    parts.join("; ").replace(['\n', '\r'], " ")
}

/// What is not as it should be with a system.
fn amiss(system: &System) -> Option<String> {
    let name = &system.name;
    match (&system.status, system.state, system.circuit) {
        (BrokerStatus::Failed { reason }, ..) => Some(format!("{name} has failed: {reason}")),
        (BrokerStatus::Degraded { reason }, ConnectionState::Ready | ConnectionState::Closed, _) => {
            Some(format!("{name}: {reason}"))
        }
        (_, ConnectionState::Ready, Circuit::Open) => Some(format!("nothing is published to {name} now")),
        // It is there, and stays so until somebody publishes.
        (_, ConnectionState::Ready, Circuit::HalfOpen | Circuit::Closed) => None,
        (_, state, _) => Some(format!("{name} is {}", state.as_str())),
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd was not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_that_is_back_is_not_said_to_take_nothing() {
        let said = |state, circuit| {
            let (name, status) = ("redis".to_owned(), BrokerStatus::Ready);
            amiss(&System { name, status, state, circuit, spool: None, is_durable: true })
        };
        assert_eq!(said(ConnectionState::Away, Circuit::Open).as_deref(), Some("redis is away"));
        let open = said(ConnectionState::Ready, Circuit::Open);
        assert_eq!(open.as_deref(), Some("nothing is published to redis now"));
        for circuit in [Circuit::HalfOpen, Circuit::Closed] {
            assert_eq!(said(ConnectionState::Ready, circuit), None);
        }
    }
}
