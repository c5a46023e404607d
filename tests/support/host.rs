//! `helixmq serve` as a program of its own, which may be killed. In: a configuration, the fixture plugins that it needs. Out:
//! lives of it, one after the other in one folder, and its last words.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{PATIENCE, api::Api, eventually};

/// How long a start may take where many start at once.
const START_MAX: Duration = Duration::from_secs(60);

/// Where engines run one after the other.
#[derive(Debug)]
pub(crate) struct Place(TempDir);

impl Place {
    /// With this configuration, and plugins of `tests/fixtures/plugins`.
    pub(crate) fn new(config: &str, plugins: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        fs::write(path.join("messaging.yaml"), config).expect("written");
        fs::create_dir(path.join("plugins")).expect("made");
        for name in plugins {
            let name = format!("{name}.wasm");
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/plugins/target/plugins").join(&name);
            let copied = fs::copy(&file, path.join("plugins").join(&name));
            copied.unwrap_or_else(|error| panic!("{}: {error}; build it: cargo xtask plugins", file.display()));
        }
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Starts one. Nothing of the environment reaches it but the path.
    pub(crate) fn start(&self) -> Host {
        let log = File::options().create(true).append(true).open(self.0.path().join("log")).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_helixmq"));
        command.args(["--config", "messaging.yaml", "serve"]).current_dir(self.0.path()).env_clear();
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path))).stdin(Stdio::null()).stdout(Stdio::null());
        Host(command.stderr(log).spawn().expect("started"))
    }

    /// Starts one, and waits until it takes messages and its plugins are loaded.
    pub(crate) async fn ready(&self) -> Host {
        fs::remove_file(self.0.path().join("data/address")).ok();
        let host = self.start();
        self.within(START_MAX, "the engine is ready", async || self.api().filter(Api::is_ready)).await;
        host
    }

    /// The interface of the one that runs, once it listens.
    pub(crate) fn api(&self) -> Option<Api> {
        let address = fs::read_to_string(self.0.path().join("data/address")).ok()?;
        address.ends_with('\n').then(|| Api::new(&format!("http://{}", address.trim())))
    }

    /// The last lines that it said.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
        log.lines().rev().take(12).map(|line| format!("{line}\n")).collect()
    }

    /// Asks until there is an answer; where none comes, the engine's last words are shown.
    pub(crate) async fn eventually<T>(&self, what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
        self.within(PATIENCE, what, ask).await
    }

    async fn within<T>(&self, most: Duration, what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
        let asking = async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let answer = tokio::time::timeout(most, asking).await;
        answer.unwrap_or_else(|_| panic!("never happened: {what}; {}", self.log()))
    }
}

/// A running engine. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Host(Child);

impl Host {
    /// Stops it where it is.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Stops it in good order.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let child = Mutex::new(&mut self.0);
        eventually("the engine ends", async || child.lock().expect("no panic").try_wait().expect("ours")).await
    }

    /// The most memory that it has had, in bytes; `None`: it has ended.
    pub(crate) fn memory_max(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
