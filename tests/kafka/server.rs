//! A Kafka that runs: the one that was started for all tests, or one of a test's own, which may be killed. In: nothing, or
//! lines for its configuration. Out: where it is, for each way to connect; names that no other test has.
//!
//! Start at [`Server::shared`] and [`Server::own`].

use std::{
    env, fs,
    net::SocketAddr,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, OwnedMutexGuard},
    task::spawn_blocking,
};

use crate::support::{eventually, proxy::Proxy};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/brokers");

/// A server. Cloned, it is the same; one of a test's own ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Server(Arc<Running>);

#[derive(Debug)]
struct Running {
    directory: PathBuf,
    port: u16,
    /// Lines for its configuration; `None`: it is not ours.
    own: Option<String>,
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
        let given = (env::var("KAFKA_TEST_DIR"), env::var("KAFKA_TEST_PORT"));
        let (Ok(directory), Ok(port)) = given else {
            panic!(
                "KAFKA_TEST_DIR and KAFKA_TEST_PORT name no server: run `cargo xtask test`, or this test alone by \
                 `scripts/brokers run cargo test --features real-brokers --test kafka`"
            );
        };
        let port = port.parse().expect("KAFKA_TEST_PORT is a port");
        Self(Arc::new(Running { directory: directory.into(), port, own: None, proxied: Arc::clone(&PROXIED) }))
    }

    /// One of the test's own.
    pub(crate) async fn own() -> Self {
        Self::own_with("").await
    }

    /// The same with more lines in its server.properties, where `{certs}` is the folder of its certificates.
    pub(crate) async fn own_with(lines: &str) -> Self {
        // Beside the shared one, whose folder is cleaned up even where a test is killed.
        let beside = env::var("KAFKA_TEST_DIR").ok().and_then(|shared| Some(Path::new(&shared).parent()?.to_owned()));
        let folder = beside.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let directory = tempfile::Builder::new().prefix("own.").tempdir_in(folder).expect("a directory").keep();
        let lines = lines.replace("{certs}", &directory.join("certs").display().to_string());
        // Whatever comes of it, it is ended when this is dropped.
        let mut running = Running { directory, port: 0, own: Some(lines), proxied: Arc::default() };
        running.up().await;
        let port = fs::read_to_string(running.directory.join("port")).expect("its port");
        running.port = port.trim().parse().expect("a port");
        Self(Arc::new(running))
    }

    /// Where it listens.
    pub(crate) fn address(&self, listener: Listener) -> SocketAddr {
        ([127, 0, 0, 1], self.0.port + listener as u16).into()
    }

    /// Where everybody may connect, as clients are told it.
    pub(crate) fn bootstrap(&self) -> String {
        self.address(Listener::Plaintext).to_string()
    }

    /// Stands between the server and those that connect to where this listens. One at a time: waits for its turn.
    pub(crate) async fn proxy(&self) -> ProxiedServer {
        let alone = Arc::clone(&self.0.proxied).lock_owned().await;
        let (listen, to) = (self.address(Listener::Proxy), self.address(Listener::Proxied));
        // The one before closes its port when its task has ended.
        eventually("nobody else listens", async || TcpListener::bind(listen).await.ok()).await;
        ProxiedServer { proxy: Proxy::start_on(listen, to).await, _alone: alone }
    }

    /// One of the files that `scripts/servers/certs.sh` makes.
    pub(crate) fn certificate(&self, file: &str) -> PathBuf {
        let path = self.0.directory.join("certs").join(file);
        assert!(path.exists(), "{} is missing", path.display());
        path
    }

    /// Kills it, as losing its process does: nothing is said to anybody. Returns when its port is closed.
    pub(crate) async fn kill(&self) {
        assert!(self.0.own.is_some(), "that one is for all tests");
        let pid = fs::read_to_string(self.0.directory.join("pid")).expect("its process id");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::KILL).expect("it runs");
        let address = self.address(Listener::Plaintext);
        eventually("its port is closed", async || TcpStream::connect(address).await.err()).await;
    }

    /// Stops it in good order.
    pub(crate) async fn stop(&self) {
        assert!(self.0.own.is_some(), "that one is for all tests");
        let output = brokers("down", &self.0.directory, None, &[]).await;
        assert!(output.status.success(), "Kafka could not be stopped: {}", said(&output));
    }

    /// Starts it again, with what it had. Returns when it answers.
    pub(crate) async fn up(&self) {
        self.0.up().await;
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

impl Running {
    async fn up(&self) {
        let lines = self.own.as_deref().expect("one of a test's own");
        let output = brokers("up", &self.directory, Some("0"), &[("KAFKA_EXTRA", lines)]).await;
        assert!(output.status.success(), "Kafka could not be started: {}", said(&output));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.own.is_some() {
            let ended = Command::new(SCRIPT).arg("forget").arg("kafka").arg(&self.directory).output();
            let is_ended = ended.as_ref().is_ok_and(|output| output.status.success());
            assert!(is_ended || std::thread::panicking(), "Kafka could not be ended: {ended:?}");
        }
    }
}

async fn brokers(verb: &str, directory: &Path, port: Option<&str>, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(SCRIPT);
    command.arg(verb).arg("kafka").arg(directory).args(port).envs(environment.iter().copied());
    let output = spawn_blocking(move || command.output());
    // Longer than anything else: servers start one after the other where there are few cores.
    let output = tokio::time::timeout(Duration::from_secs(120), output).await.expect("an end of scripts/brokers");
    output.expect("no panic").expect("scripts/brokers")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
