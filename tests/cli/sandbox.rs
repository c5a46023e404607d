//! A directory of its own for each test, and the binary run in it with nothing of our environment.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Listens where there is room, and says so in `.helixmq/address`.
pub(crate) const ANY_PORT: &str = "http: {listen: '127.0.0.1:0'}\n";
/// Longer than anything takes that does happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory to run in.
pub(crate) struct Sandbox {
    directory: tempfile::TempDir,
}

/// What a run left behind.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// An engine that runs; ended when it is dropped.
pub(crate) struct Engine {
    running: Running,
    log: PathBuf,
}

/// A process; killed when it is dropped.
struct Running(Child);

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// With a configuration in the place where it is looked for.
    pub(crate) fn with_config(text: &str) -> Self {
        let sandbox = Self::new();
        sandbox.write("configs/messaging.yaml", text);
        fs::create_dir(sandbox.path("plugins-enabled")).unwrap();
        sandbox
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Drops a fixture into the plugins directory.
    pub(crate) fn plug(&self, fixture: &str) {
        fs::copy(plugin(fixture), self.path(&format!("plugins-enabled/{fixture}.wasm"))).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_helixmq"));
        command.args(arguments).current_dir(self.directory.path()).env_clear().stdin(Stdio::null());
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments))
    }

    /// With lines on standard input.
    pub(crate) fn feed(&self, arguments: &[&str], input: &str) -> Ran {
        let mut input_file = tempfile::tempfile().unwrap();
        input_file.write_all(input.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut input_file).unwrap();
        let mut command = self.command(arguments);
        command.stdin(input_file);
        Ran::of(command)
    }

    /// Starts an engine and waits until it has looked at its plugins.
    pub(crate) fn serve(&self) -> Engine {
        let engine = self.begin();
        engine.says("\"ready\"");
        engine
    }

    /// Starts an engine.
    pub(crate) fn begin(&self) -> Engine {
        self.begin_with(&[])
    }

    /// The same with an environment.
    pub(crate) fn begin_with(&self, environment: &[(&str, &str)]) -> Engine {
        let log = self.path("log");
        let mut command = self.command(&["serve"]);
        command.envs(environment.iter().copied());
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Engine { running: Running(command.spawn().unwrap()), log }
    }
}

impl Ran {
    /// Runs it to its end, which comes or is a failure.
    #[track_caller]
    pub(crate) fn of(mut command: Command) -> Self {
        let (stdout, stderr) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        command.stdout(stdout.reopen().unwrap()).stderr(stderr.reopen().unwrap());
        let read = |file: &tempfile::NamedTempFile| fs::read_to_string(file).unwrap();
        let mut running = Running(command.spawn().unwrap());
        let status = eventually(
            || running.0.try_wait().unwrap(),
            || format!("{command:?} does not end; stdout:\n{}\nstderr:\n{}", read(&stdout), read(&stderr)),
        );
        Self { code: status.code(), stdout: read(&stdout), stderr: read(&stderr) }
    }

    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard error, which is one line.
    #[track_caller]
    pub(crate) fn sentence(&self) -> &str {
        let line = self.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("nothing was said"));
        assert!(line.starts_with("error: ") && !line.contains('\n') && line.contains("; "), "{line}");
        line
    }

    /// Standard output, which is one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

impl Engine {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until its log has that text.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) {
        eventually(|| self.log().contains(text).then_some(()), || format!("{text} is not in\n{}", self.log()));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.running.0), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> ExitStatus {
        eventually(|| self.running.0.try_wait().unwrap(), || "it does not end".to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Asks again until there is an answer.
#[track_caller]
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Option<T>, otherwise: impl FnOnce() -> String) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A fixture's file, as its build makes it.
pub(crate) fn plugin(name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/plugins/target/plugins/{name}.wasm"));
    assert!(
        file.exists(),
        "{} is missing: build the fixtures as tests/fixtures/plugins/README.md says",
        file.display()
    );
    file
}
