//! A place where engines run one after the other: configuration, plugins and data stay, whatever happens to them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::api::{Api, TOKEN};

/// Longer than anything takes that does happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Of an engine's log, where a test fails.
const LINES_SHOWN: usize = 12;

/// A directory of configuration, plugins and data. It stays where a test fails.
pub(crate) struct Site {
    directory: Option<tempfile::TempDir>,
}

/// An engine; killed when it is dropped.
pub(crate) struct Engine {
    child: Child,
    data: PathBuf,
    log: PathBuf,
}

impl Site {
    /// With the sections `embedded` and `routes` of the configuration.
    pub(crate) fn new(sections: &str) -> Self {
        let site = Self { directory: Some(tempfile::tempdir().unwrap()) };
        fs::create_dir(site.path("plugins")).unwrap();
        site.configure(sections);
        site
    }

    pub(crate) fn configure(&self, sections: &str) {
        let text = format!(
            "http: {{listen: '127.0.0.1:0', token: {TOKEN}}}\nplugins: {{directory: plugins}}\n\
             engine: {{data_directory: data}}\ntelemetry: {{filter: warn, format: json}}\n{sections}"
        );
        fs::write(self.path("messaging.yaml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }

    /// Drops a fixture into the plugins directory, under a name; in place of what is there, as one file replaces another.
    /// Each mark makes another version of it.
    pub(crate) fn plug(&self, fixture: &str, name: &str, mark: u64) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/plugins/target/plugins");
        let file = folder.join(format!("{fixture}.wasm"));
        let mut component = fs::read(&file)
            .unwrap_or_else(|error| panic!("{}: {error}; build it: cargo xtask plugins", file.display()));
        if mark > 0 {
            // A custom section, which means nothing: its id, its length, the length of its name, its name, the mark.
            component.extend_from_slice(&[0, 13, 4]);
            component.extend_from_slice(b"mark");
            component.extend_from_slice(&mark.to_le_bytes());
        }
        let beside = self.path("plugin.new");
        fs::write(&beside, component).unwrap();
        fs::rename(beside, self.path(&format!("plugins/{name}.wasm"))).unwrap();
    }

    /// The binary, in this directory and with nothing of our environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_helixmq"));
        command.args(["--config", "messaging.yaml"]).args(arguments).current_dir(self.path("")).env_clear();
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path))).stdin(Stdio::null());
        command
    }

    /// Starts an engine, and waits for nothing.
    pub(crate) fn spawn(&self) -> Engine {
        self.spawn_as(|_| {})
    }

    /// The same, with more said to the command.
    pub(crate) fn spawn_as(&self, with: impl FnOnce(&mut Command)) -> Engine {
        // Of one that was killed.
        fs::remove_file(self.path("data/address")).ok();
        let log = self.path("log");
        let written = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command(&["serve"]);
        with(&mut command);
        let child = command.stdout(Stdio::null()).stderr(written).spawn().unwrap();
        Engine { child, data: self.path("data"), log }
    }

    /// Starts an engine and waits until it is ready.
    pub(crate) fn start(&self) -> (Engine, Api) {
        let mut engine = self.spawn();
        let api = engine.ready();
        (engine, api)
    }

    /// How many bytes the files of the store take.
    pub(crate) fn store_bytes(&self) -> u64 {
        let entries = fs::read_dir(self.path("store")).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.directory.take().unwrap().keep();
            crate::random::say(&format!("what it ran in is kept: {}", kept.display()));
        }
    }
}

impl Engine {
    /// Waits until it takes messages and all plugins are looked at.
    #[track_caller]
    pub(crate) fn ready(&mut self) -> Api {
        let address = self.data.join("address");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the engine does not start: {status}\n{}", self.log());
            }
            let text = fs::read_to_string(&address).unwrap_or_default();
            if text.ends_with('\n') {
                let api = Api::new(&format!("http://{}", text.trim()));
                if api.is_ready() {
                    return api;
                }
            }
            assert!(Instant::now() < end, "the engine does not become ready\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGKILL: nothing of it runs any more.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it is still there.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and its end, which has to be a good one.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let end = Instant::now() + PATIENCE;
        while self.runs() {
            assert!(Instant::now() < end, "the engine does not stop\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// The end of what it said.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
