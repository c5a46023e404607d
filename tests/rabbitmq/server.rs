//! A RabbitMQ that runs: the one that was started for all tests, or one of a test's own, which may be killed. In: nothing,
//! or lines for its configuration. Out: where it is, who may connect, virtual hosts that are gone afterwards.
//!
//! Start at [`Server::shared`] and [`Server::own`]; a test works in a [`Vhost`].

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{net::TcpStream, task::spawn_blocking};

use crate::{
    management::Management,
    support::{eventually, soon},
};

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
}

impl Server {
    /// The one for all tests. It must not be stopped, and what it holds in common with others not be changed.
    pub(crate) fn shared() -> Self {
        let given = (env::var("RABBITMQ_TEST_DIR"), env::var("RABBITMQ_TEST_PORT"));
        let (Ok(directory), Ok(port)) = given else {
            panic!(
                "RABBITMQ_TEST_DIR and RABBITMQ_TEST_PORT name no server: run `cargo xtask test`, or this test alone by \
                 `scripts/brokers run cargo test --features real-brokers --test rabbitmq`"
            );
        };
        let port = port.parse().expect("RABBITMQ_TEST_PORT is a port");
        Self(Arc::new(Running { directory: directory.into(), port, own: None }))
    }

    /// One of the test's own.
    pub(crate) async fn own() -> Self {
        Self::own_with("").await
    }

    /// The same with more lines in its rabbitmq.conf, where `{certs}` is the folder of its certificates.
    pub(crate) async fn own_with(lines: &str) -> Self {
        // Beside the shared one, whose folder is cleaned up even where a test is killed.
        let beside =
            env::var("RABBITMQ_TEST_DIR").ok().and_then(|shared| Some(Path::new(&shared).parent()?.to_owned()));
        let folder = beside.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let directory = tempfile::Builder::new().prefix("own.").tempdir_in(folder).expect("a directory").keep();
        let lines = lines.replace("{certs}", &directory.join("certs").display().to_string());
        // Whatever comes of it, it is ended when this is dropped.
        let mut running = Running { directory, port: 0, own: Some(lines) };
        running.up().await;
        let port = fs::read_to_string(running.directory.join("port")).expect("its port");
        running.port = port.trim().parse().expect("a port");
        Self(Arc::new(running))
    }

    /// One that several tests use, and which is there while one of them runs: with settings that are stricter than usual.
    pub(crate) async fn strict() -> Self {
        static STRICT: tokio::sync::Mutex<Weak<Running>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut strict = STRICT.lock().await;
        if let Some(running) = strict.upgrade() {
            return Self(running);
        }
        let server = Self::own_with(
            "consumer_timeout = 1000\nchannel_tick_interval = 500\nmax_message_size = 1000000\n\
             ssl_options.certfile = {certs}/expired.pem\nssl_options.keyfile = {certs}/expired.key\n",
        )
        .await;
        *strict = Arc::downgrade(&server.0);
        server
    }

    pub(crate) fn amqp(&self) -> SocketAddr {
        self.address(0)
    }

    pub(crate) fn amqps(&self) -> SocketAddr {
        self.address(1)
    }

    fn address(&self, offset: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.0.port + offset).into()
    }

    pub(crate) fn management(&self) -> Management {
        Management::at(self.address(2))
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
        eventually("its port is closed", async || TcpStream::connect(self.amqp()).await.err()).await;
    }

    /// Starts it again, with what it had. Returns when it answers.
    pub(crate) async fn up(&self) {
        self.0.up().await;
    }

    /// `rabbitmqctl`.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(SCRIPT);
        command.arg("ctl").arg(&self.0.directory).args(arguments);
        let output = run(command).await;
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
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

impl Running {
    async fn up(&self) {
        let mut command = Command::new(SCRIPT);
        command.arg("up").arg("rabbitmq").arg(&self.directory).arg("0");
        if let Some(lines) = &self.own {
            command.env("RABBITMQ_EXTRA", lines);
        }
        let output = run(command).await;
        assert!(output.status.success(), "RabbitMQ could not be started: {}", said(&output));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.own.is_some() {
            let ended = Command::new(SCRIPT).arg("forget").arg("rabbitmq").arg(&self.directory).output();
            if let Ok(output) = ended
                && !output.status.success()
            {
                eprintln!("RabbitMQ could not be ended: {}", said(&output));
            }
        }
    }
}

async fn run(mut command: Command) -> Output {
    let output = spawn_blocking(move || command.output());
    // Longer than anything else: servers start one after the other where there are few cores.
    let output = tokio::time::timeout(Duration::from_secs(120), output).await.expect("an end of scripts/brokers");
    output.expect("no panic").expect("scripts/brokers")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
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
    /// Waits until the server would find a quorum queue again if it were killed. It confirms what is published to a new one
    /// at once, and writes down that there is such a queue up to a second later: killed in between, it has a queue that
    /// nobody leads, with all that it confirmed. Measured on 3.10 and 4.x; the library is `ra`, the file its `names.dets`.
    pub(crate) async fn remembers(&self, queue: &str) {
        let name = format!("{}_{queue}", self.name());
        let folder = self.server().0.directory.join("data");
        let is_written = async || {
            let nodes = fs::read_dir(&folder).ok()?.flatten();
            let mut quorum = nodes.flat_map(|node| fs::read_dir(node.path().join("quorum"))).flatten().flatten();
            let has_it = |file: Vec<u8>| file.windows(name.len()).any(|part| part == name.as_bytes());
            quorum.any(|one| fs::read(one.path().join("names.dets")).is_ok_and(has_it)).then_some(())
        };
        eventually("the queue is written down", is_written).await;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // A server of its own is deleted whole. What a failed test was still busy with is left alone: a virtual host that goes
        // while a quorum queue is being made in it takes the dead lettering of the whole node along (3.10.8).
        if self.server.0.own.is_none() && !std::thread::panicking() {
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
    let directory = server.0.directory.clone();
    let vhost = server.vhost().await;
    let raw = crate::raw::Raw::connect(&vhost).await;
    raw.queue("q", "quorum", &[]).await;
    raw.publish("q", b"kept", Default::default()).await;
    vhost.remembers("q").await;
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
