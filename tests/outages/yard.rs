//! The systems that engines are on, and what befalls them. In: which system, whether it may be killed. Out: where it is; a
//! fault that begins and ends.
//!
//! There is one server of each system that is killed and frozen, by one scenario at a time, and one, that of all tests, before
//! which a network can fail for many at once. Start at [`Yard::own`] and [`Yard::shared`].

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Mutex, OwnedMutexGuard},
    time::sleep,
};

use crate::support::{
    proxy::{Cut, Proxy},
    server::Running,
};

/// A system outside of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum System {
    RabbitMq,
    Kafka,
    Redis,
}

impl System {
    pub(crate) const ALL: [Self; 3] = [Self::RabbitMq, Self::Kafka, Self::Redis];

    /// As configuration, health and `scripts/brokers` call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Kafka => "kafka",
            Self::Redis => "redis",
        }
    }
}

/// What befalls a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its process is gone, and said nothing.
    Killed,
    /// It holds its connections and answers nobody.
    Frozen,
    /// Its connections are reset, and new ones refused.
    Cut,
}

/// Servers of this run.
#[derive(Debug, Default)]
pub(crate) struct Yard {
    /// Those that are killed, by place in [`System::ALL`]; started when they are first needed.
    own: [Arc<Mutex<Option<Running>>>; System::ALL.len()],
    /// Held by who is before the shared Kafka: its clients are told of one way through a proxy.
    proxied: Arc<Mutex<()>>,
}

/// A server, for one scenario.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) system: System,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Own(OwnedMutexGuard<Option<Running>>),
    Shared(Running),
    Proxied { to: Running, proxy: Proxy, _alone: Option<OwnedMutexGuard<()>> },
}

/// Where the Kafka of tests listens for who comes through a proxy, and where it says that it is. Source: `scripts/brokers`.
const KAFKA_PROXIED: u16 = 6;
const KAFKA_PROXY: u16 = 7;

impl Yard {
    /// The one that may be killed and frozen. Waits until nobody else does. Who needs several asks in the order of
    /// [`System::ALL`].
    pub(crate) async fn own(&self, system: System) -> Server {
        let mut own = Arc::clone(&self.own[system as usize]).lock_owned().await;
        if own.is_none() {
            // What it acknowledged has to be on disk, as with the others.
            let lines = if system == System::Redis { "appendfsync always\\n" } else { "" };
            *own = Some(Running::own(system.name(), lines, &[]).await);
        }
        Server { system, place: Place::Own(own) }
    }

    /// The one of all tests, to which nothing happens.
    pub(crate) fn shared(system: System) -> Server {
        Server { system, place: Place::Shared(Running::shared(system.name())) }
    }

    /// The same, with a network before it that may be cut.
    pub(crate) async fn proxied(&self, system: System) -> Server {
        let to = Running::shared(system.name());
        let (proxy, alone) = match system {
            System::RabbitMq | System::Redis => (Proxy::start(to.address(0)).await, None),
            System::Kafka => {
                let alone = Arc::clone(&self.proxied).lock_owned().await;
                let listen = to.address(KAFKA_PROXY);
                // The one before closes its port when its task has ended.
                let is_free = async || TcpListener::bind(listen).await.ok();
                crate::support::eventually("nobody else listens", is_free).await;
                (Proxy::start_on(listen, to.address(KAFKA_PROXIED)).await, Some(alone))
            }
        };
        Server { system, place: Place::Proxied { to, proxy, _alone: alone } }
    }
}

impl Server {
    /// Where engines connect.
    pub(crate) fn address(&self) -> SocketAddr {
        match &self.place {
            Place::Proxied { proxy, .. } => proxy.address(),
            Place::Own(_) | Place::Shared(_) => self.direct(),
        }
    }

    /// Where others connect, past the network that fails.
    pub(crate) fn direct(&self) -> SocketAddr {
        self.running().address(0)
    }

    pub(crate) fn running(&self) -> &Running {
        match &self.place {
            Place::Own(own) => own.as_ref().expect("it was started"),
            Place::Shared(running) | Place::Proxied { to: running, .. } => running,
        }
    }

    /// Whether it may be killed.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self.place, Place::Own(_))
    }

    pub(crate) async fn begin(&mut self, fault: Fault) {
        match (fault, &mut self.place) {
            (Fault::Killed, _) => self.running().kill().await,
            (Fault::Frozen, _) => self.running().freeze(),
            (Fault::Cut, Place::Proxied { proxy, .. }) => {
                proxy.refuse().await;
                proxy.cut(Cut::Reset);
            }
            (Fault::Cut, _) => panic!("there is no network before it"),
        }
    }

    /// Returns when it answers again.
    pub(crate) async fn end(&mut self, fault: Fault) {
        match (fault, &mut self.place) {
            (Fault::Killed, _) => self.running().up().await,
            (Fault::Frozen, _) => self.running().thaw(),
            (Fault::Cut, Place::Proxied { proxy, .. }) => proxy.accept().await,
            (Fault::Cut, _) => panic!("there is no network before it"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A scenario that failed in the middle of its fault must not take the next one along.
        if let Place::Own(own) = &mut self.place
            && std::thread::panicking()
        {
            own.take();
        }
    }
}

/// The outage itself: so long it lasts.
pub(crate) async fn lasts(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}
