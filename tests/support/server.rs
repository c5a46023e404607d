//! A real server that `scripts/brokers` runs: the one that was started for all tests, or one of a test's own, which may be
//! stopped, killed and frozen. In: which system, lines for its configuration. Out: its folder and ports.
//!
//! Start at [`Running::shared`] and [`Running::own`]; `tests/rabbitmq`, `tests/kafka` and `tests/redis` each have a server
//! around it that knows what the system is like.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{net::TcpStream, task::spawn_blocking};

use super::eventually;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/brokers");

/// A server. One of a test's own ends with it, and takes its folder along.
#[derive(Debug)]
pub(crate) struct Running {
    /// As `scripts/brokers` and its variables call it.
    system: &'static str,
    directory: PathBuf,
    port: u16,
    /// What it is started with; `None`: it is not ours.
    own: Option<Vec<(String, String)>>,
}

impl Running {
    /// The one for all tests. It must not be stopped, and what it holds in common with others not be changed.
    pub(crate) fn shared(system: &'static str) -> Self {
        let upper = system.to_uppercase();
        let given = (env::var(format!("{upper}_TEST_DIR")), env::var(format!("{upper}_TEST_PORT")));
        let (Ok(directory), Ok(port)) = given else {
            panic!(
                "{upper}_TEST_DIR and {upper}_TEST_PORT name no server: run `cargo xtask test`, or this test alone by \
                 `scripts/brokers run cargo test --features real-brokers --test {system}`"
            );
        };
        let port = port.parse().expect("a port");
        Self { system, directory: directory.into(), port, own: None }
    }

    /// One of the test's own, with more lines in its configuration, where `{certs}` is the folder of its certificates, and
    /// with more variables for `scripts/brokers`.
    pub(crate) async fn own(system: &'static str, lines: &str, variables: &[(&str, &str)]) -> Self {
        // Beside the shared one, whose folder is cleaned up even where a test is killed.
        let upper = system.to_uppercase();
        let shared = env::var(format!("{upper}_TEST_DIR")).ok();
        let beside = shared.and_then(|shared| Some(Path::new(&shared).parent()?.to_owned()));
        let folder = beside.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let directory = tempfile::Builder::new().prefix("own.").tempdir_in(folder).expect("a directory").keep();
        let lines = lines.replace("{certs}", &directory.join("certs").display().to_string());
        let given = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let own = given.chain([(format!("{upper}_EXTRA"), lines)]).collect();
        // Whatever comes of it, it is ended when this is dropped.
        let mut running = Self { system, directory, port: 0, own: Some(own) };
        running.up().await;
        let port = fs::read_to_string(running.directory.join("port")).expect("its port");
        running.port = port.trim().parse().expect("a port");
        running
    }

    /// Whether it is the test's own.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Its folder.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// One of its ports, counted from the first.
    pub(crate) fn address(&self, offset: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.port + offset).into()
    }

    /// One of the files that `scripts/servers/certs.sh` makes.
    pub(crate) fn certificate(&self, file: &str) -> PathBuf {
        let path = self.directory.join("certs").join(file);
        assert!(path.exists(), "{} is missing", path.display());
        path
    }

    /// Starts it, or starts it again with what it had. Returns when it answers.
    pub(crate) async fn up(&self) {
        let variables = self.own.as_deref().expect("one of a test's own");
        let mut command = Command::new(SCRIPT);
        command.arg("up").arg(self.system).arg(&self.directory).arg("0").envs(variables.iter().cloned());
        self.run("started", command).await;
    }

    /// Stops it in good order.
    pub(crate) async fn stop(&self) {
        assert!(self.is_own(), "that one is for all tests");
        let mut command = Command::new(SCRIPT);
        command.arg("down").arg(self.system).arg(&self.directory);
        self.run("stopped", command).await;
    }

    /// Kills it, as losing its process does: nothing is said to anybody. Returns when its port is closed.
    pub(crate) async fn kill(&self) {
        self.signal(Signal::KILL);
        let address = self.address(0);
        eventually("its port is closed", async || TcpStream::connect(address).await.err()).await;
    }

    /// Stops it where it is: it holds its connections, and answers nobody.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        assert!(self.is_own(), "that one is for all tests");
        let pid = fs::read_to_string(self.directory.join("pid")).expect("its process id");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    async fn run(&self, what: &str, command: Command) {
        let output = run(command).await;
        assert!(output.status.success(), "{} could not be {what}: {}", self.system, said(&output));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_own() {
            let ended = Command::new(SCRIPT).arg("forget").arg(self.system).arg(&self.directory).output();
            let is_ended = ended.as_ref().is_ok_and(|output| output.status.success());
            assert!(is_ended || std::thread::panicking(), "{} could not be ended: {ended:?}", self.system);
        }
    }
}

/// `scripts/brokers` with other arguments.
pub(crate) fn script(verb: &str) -> Command {
    let mut command = Command::new(SCRIPT);
    command.arg(verb);
    command
}

/// Runs it to its end.
pub(crate) async fn run(mut command: Command) -> Output {
    let output = spawn_blocking(move || command.output());
    // Longer than anything else: servers start one after the other where there are few cores.
    let output = tokio::time::timeout(Duration::from_secs(120), output).await.expect("an end of scripts/brokers");
    output.expect("no panic").expect("scripts/brokers")
}

/// What it printed.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
