//! A RabbitMQ that runs: the one that was started for all tests, or one of a test's own, which may be killed. In: nothing,
//! or lines for its configuration. Out: where it is, who may connect, virtual hosts that are gone afterwards.
//!
//! Start at [`Server::shared`] and [`Server::own`]; a test works in a [`Vhost`].

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use helixmq::broker::rabbitmq::topology::QueueKind;
use tokio::{net::TcpStream, task::spawn_blocking};

use crate::{
    management::Management,
    support::{
        mnesia,
        server::{self, Running},
        soon,
    },
};

/// Looked at once a minute otherwise: consumers that take too long.
const TERMS: (&str, &str) = ("RABBITMQ_TERMS", "{channel_tick_interval, 500}");

/// A server. Cloned, it is the same; one of a test's own ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Server(Arc<Running>);

impl Server {
    /// The one for all tests. It must not be stopped, and what it holds in common with others not be changed.
    pub(crate) fn shared() -> Self {
        Self(Arc::new(Running::shared("rabbitmq")))
    }

    /// One of the test's own.
    pub(crate) async fn own() -> Self {
        Self::own_with("").await
    }

    /// The same with more lines in its rabbitmq.conf, where `{certs}` is the folder of its certificates.
    pub(crate) async fn own_with(lines: &str) -> Self {
        Self(Arc::new(Running::own("rabbitmq", lines, &[TERMS]).await))
    }

    /// One that several tests use, and which is there while one of them runs: with settings that are stricter than usual.
    pub(crate) async fn strict() -> Self {
        static STRICT: tokio::sync::Mutex<Weak<Running>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut strict = STRICT.lock().await;
        if let Some(running) = strict.upgrade() {
            return Self(running);
        }
        let server = Self::own_with(
            "consumer_timeout = 1000\nmax_message_size = 1000000\n\
             ssl_options.certfile = {certs}/expired.pem\nssl_options.keyfile = {certs}/expired.key\n",
        )
        .await;
        *strict = Arc::downgrade(&server.0);
        server
    }

    pub(crate) fn amqp(&self) -> SocketAddr {
        self.0.address(0)
    }

    pub(crate) fn amqps(&self) -> SocketAddr {
        self.0.address(1)
    }

    pub(crate) fn management(&self) -> Management {
        Management::at(self.0.address(2))
    }

    /// One of the files that `scripts/servers/certs.sh` makes.
    pub(crate) fn certificate(&self, file: &str) -> PathBuf {
        self.0.certificate(file)
    }

    /// Kills it, as losing its process does: nothing is said to anybody. Returns when its port is closed.
    pub(crate) async fn kill(&self) {
        self.0.kill().await;
    }

    /// Starts it again, with what it had. Returns when it answers.
    pub(crate) async fn up(&self) {
        self.0.up().await;
    }

    /// `rabbitmqctl`.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = server::script("ctl");
        command.arg(self.0.directory()).args(arguments);
        let output = server::run(command).await;
        assert!(output.status.success(), "{arguments:?}: {}", server::said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A virtual host of the test's own.
    pub(crate) async fn vhost(&self) -> Vhost {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let management = self.management();
        let made = name.clone();
        let make = spawn_blocking(move || {
            management.put(&format!("vhosts/{made}"), &serde_json::json!({}));
            management.permit("guest", &made);
        });
        make.await.expect("a virtual host");
        Vhost(Arc::new(Made { server: self.clone(), name }))
    }
}

/// A virtual host of a test's own, on a server that others may use. It goes with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Vhost(Arc<Made>);

#[derive(Debug)]
struct Made {
    server: Server,
    name: String,
}

impl Vhost {
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn server(&self) -> &Server {
        &self.0.server
    }

    pub(crate) fn uri(&self) -> String {
        format!("amqp://guest:guest@{}/{}", self.server().amqp(), self.name())
    }
}

impl Vhost {
    /// Waits until the server would find a queue again if it were killed.
    pub(crate) async fn remembers(&self, kind: QueueKind, queue: &str) {
        let folder = self.server().0.directory().join("data");
        mnesia::remembers(&folder, self.name(), queue, kind == QueueKind::Quorum).await;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // A server of its own is deleted whole. What a failed test was still busy with is left alone: a virtual host that goes
        // while a quorum queue is being made in it takes the dead lettering of the whole node along (3.10.8).
        if !self.server.0.is_own() && !std::thread::panicking() {
            self.server.management().delete(&format!("vhosts/{}", self.name));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn makes_virtual_hosts_that_are_gone_afterwards() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let name = vhost.name().to_owned();
    let raw = crate::raw::Raw::connect(&vhost).await;
    raw.queue("q", "classic", &[]).await;
    raw.publish("q", b"there", Default::default()).await;
    assert_eq!(raw.depth("q").await, Some(1));
    assert_eq!(raw.drain("q").await.iter().map(|one| one.data.clone()).collect::<Vec<_>>(), [b"there".to_vec()]);
    assert!(server.management().get(&format!("vhosts/{name}")).is_some());
    drop((raw, vhost));
    assert!(server.management().get(&format!("vhosts/{name}")).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_kills_and_starts_again_a_server_of_its_own() {
    let server = Server::own_with("max_message_size = 1000").await;
    let directory = server.0.directory().to_owned();
    let vhost = server.vhost().await;
    let raw = crate::raw::Raw::connect(&vhost).await;
    raw.queue("q", "quorum", &[]).await;
    raw.publish("q", b"kept", Default::default()).await;
    vhost.remembers(QueueKind::Quorum, "q").await;
    server.kill().await;
    server.up().await;
    let raw = crate::raw::Raw::connect(&vhost).await;
    // Not by its depth: RabbitMQ 3.10 says that a quorum queue is empty after a restart, until something happens to it.
    let kept = raw.drain("q").await;
    assert_eq!(kept.iter().map(|one| one.data.clone()).collect::<Vec<_>>(), [b"kept".to_vec()]);
    assert!(server.ctl(&["environment"]).await.contains("{max_message_size,1000}"));
    let address = server.amqp();
    drop((raw, vhost, server));
    assert!(!directory.exists());
    soon("nobody listens", TcpStream::connect(address)).await.unwrap_err();
}
