//! A Kafka that runs: the one that was started for all tests, or one of a test's own, which may be killed. In: nothing, or
//! lines for its configuration. Out: where it is, for each way to connect; names that no other test has.
//!
//! Start at [`Server::shared`] and [`Server::own`].

use std::{
    net::SocketAddr,
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{
    net::TcpListener,
    sync::{Mutex, OwnedMutexGuard},
};

use crate::support::{eventually, proxy::Proxy, server::Running};

/// A server. Cloned, it is the same; one of a test's own ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    running: Arc<Running>,
    /// Held by who is between it and its clients.
    proxied: Arc<Mutex<()>>,
}

/// Where clients of a server connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    Plaintext = 0,
    /// User `test`, password `secret`, by any of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512.
    Sasl = 2,
    /// A client's certificate is checked where there is one.
    Tls = 3,
    /// A client's certificate is demanded.
    Mutual = 4,
    /// As `Sasl`, over TLS.
    SaslTls = 5,
    /// Says that it is at `Proxy`.
    Proxied = 6,
    /// Where [`Server::proxy`] listens.
    Proxy = 7,
}

/// A network that fails, before a server whose clients know no other way.
#[derive(Debug)]
pub(crate) struct ProxiedServer {
    // Gone before somebody else can be there.
    proxy: Proxy,
    _alone: OwnedMutexGuard<()>,
}

impl Server {
    /// The one for all tests. It must not be stopped, and what it holds in common with others not be changed.
    pub(crate) fn shared() -> Self {
        static PROXIED: std::sync::LazyLock<Arc<Mutex<()>>> = std::sync::LazyLock::new(Arc::default);
        Self { running: Arc::new(Running::shared("kafka")), proxied: Arc::clone(&PROXIED) }
    }

    /// One of the test's own.
    pub(crate) async fn own() -> Self {
        Self::own_with("").await
    }

    /// The same with more lines in its server.properties, where `{certs}` is the folder of its certificates.
    pub(crate) async fn own_with(lines: &str) -> Self {
        Self { running: Arc::new(Running::own("kafka", lines, &[]).await), proxied: Arc::default() }
    }

    /// Where it listens.
    pub(crate) fn address(&self, listener: Listener) -> SocketAddr {
        self.running.address(listener as u16)
    }

    /// Where everybody may connect, as clients are told it.
    pub(crate) fn bootstrap(&self) -> String {
        self.address(Listener::Plaintext).to_string()
    }

    /// Stands between the server and those that connect to where this listens. One at a time: waits for its turn.
    pub(crate) async fn proxy(&self) -> ProxiedServer {
        let alone = Arc::clone(&self.proxied).lock_owned().await;
        let (listen, to) = (self.address(Listener::Proxy), self.address(Listener::Proxied));
        // The one before closes its port when its task has ended.
        eventually("nobody else listens", async || TcpListener::bind(listen).await.ok()).await;
        ProxiedServer { proxy: Proxy::start_on(listen, to).await, _alone: alone }
    }

    /// One of the files that `scripts/servers/certs.sh` makes.
    pub(crate) fn certificate(&self, file: &str) -> PathBuf {
        self.running.certificate(file)
    }

    /// Kills it, as losing its process does: nothing is said to anybody. Returns when its port is closed.
    pub(crate) async fn kill(&self) {
        self.running.kill().await;
    }

    /// Stops it in good order.
    pub(crate) async fn stop(&self) {
        self.running.stop().await;
    }

    /// Starts it again, with what it had. Returns when it answers.
    pub(crate) async fn up(&self) {
        self.running.up().await;
    }

    /// A name of the test's own, for topics and groups: there are no rooms of one's own on a Kafka.
    pub(crate) fn name(&self, base: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("{base}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Deref for ProxiedServer {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

impl std::ops::DerefMut for ProxiedServer {
    fn deref_mut(&mut self) -> &mut Proxy {
        &mut self.proxy
    }
}
