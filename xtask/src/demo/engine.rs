//! The engine that the demo runs: started as a child, spoken to, stopped by its own id.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use super::{CONFIG, ENGINE};
use crate::Result;

/// The plugin as routes call it.
const HANDLER: &str = "quake-triage";
/// How long it may take until every plugin has been looked at.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to drain.
const STOPPED_WITHIN: Duration = Duration::from_secs(45);
/// How long one reply may take.
const REPLY_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at something that is waited for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Lines of its log that are shown when something went wrong.
const LOG_LINES: usize = 20;

/// A running engine. One that is dropped is killed.
pub(super) struct Engine {
    child: Child,
    log: PathBuf,
    address: SocketAddr,
    token: Option<String>,
}

impl Engine {
    /// Starts it, and waits until it is ready.
    pub(super) fn start(log: &Path) -> Result<Self> {
        let data = PathBuf::from(env::var("HELIXMQ_DATA").unwrap_or_else(|_| ".helixmq".to_owned()));
        // The engine writes down where it listens; what lies there now is of an earlier one.
        let (address, before) = (data.join("address"), written_at(&data.join("address")));
        let child = Command::new(ENGINE)
            .args(["--config", CONFIG, "serve"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log)?)
            .spawn()
            .map_err(|error| format!("{ENGINE} cannot be started: {error}"))?;
        let mut engine = Self { child, log: log.to_owned(), address: ([127, 0, 0, 1], 0).into(), token: None };
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if written_at(&address) != before {
                engine.address = fs::read_to_string(&address)?.trim().parse()?;
                engine.token = env::var("HELIXMQ_TOKEN").ok().or_else(|| fs::read_to_string(data.join("token")).ok());
                if let Ok(health) = engine.get("/health") {
                    engine.must_serve(&serde_json::from_str(&health)?)?;
                    return Ok(engine);
                }
            }
            if let Some(status) = engine.child.try_wait()? {
                return Err(engine.failure(&format!("the engine ended at once ({status})")));
            }
            if Instant::now() > deadline {
                return Err(engine.failure(&format!("the engine is not ready after {READY_WITHIN:?}")));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Whether the demo's handler serves, and if not, why.
    fn must_serve(&self, health: &Value) -> Result {
        let handlers = health.get("handlers").and_then(Value::as_array);
        let ours =
            handlers.into_iter().flatten().find(|handler| handler.get("name").is_some_and(|name| name == HANDLER));
        let text = |name: &str| ours.and_then(|handler| handler.get(name)?.as_str()).unwrap_or("unknown");
        if text("state") == "serving" {
            return Ok(());
        }
        Err(self.failure(&format!("the handler {HANDLER} does not serve: {}", text("reason"))))
    }

    /// Where it answers.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What went wrong, with the end of the engine's log.
    pub(super) fn failure(&self, what: &str) -> Box<dyn std::error::Error> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).map(|line| format!("\n  {line}"));
        format!("{what}; its log, {}, ends with:{}", self.log.display(), end.collect::<String>()).into()
    }

    /// Asks it over HTTP. Version 1.0, so that a reply is whatever comes until the connection ends.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        let mut connection = TcpStream::connect_timeout(&self.address, REPLY_WITHIN)?;
        connection.set_read_timeout(Some(REPLY_WITHIN))?;
        let token = self.token.iter().map(|token| format!("Authorization: Bearer {}\r\n", token.trim()));
        let token = token.collect::<String>();
        write!(connection, "GET {path} HTTP/1.0\r\nHost: {}\r\n{token}\r\n", self.address)?;
        let mut reply = String::new();
        connection.read_to_string(&mut reply)?;
        let (head, body) = reply.split_once("\r\n\r\n").ok_or("a reply without an end to its headers")?;
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) == Some("200") {
            Ok(body.to_owned())
        } else {
            Err(format!("{path}: {status}").into())
        }
    }

    /// What `helixmq --json ARGUMENTS` prints, a document a line.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut command = Command::new(ENGINE);
        command.args(["--config", CONFIG, "--json"]).args(arguments);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(self.failure(&format!("`helixmq {}` failed ({})", arguments.join(" "), output.status)));
        }
        let lines = String::from_utf8(output.stdout)?;
        Ok(lines.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
    }

    /// Waits until it ends by itself, or by somebody's Ctrl-C.
    pub(super) fn wait(mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Stops it in good order.
    pub(super) fn stop(mut self) -> Result {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        if !told.success() {
            return Err(self.failure("the engine is gone"));
        }
        let deadline = Instant::now() + STOPPED_WITHIN;
        while Instant::now() < deadline {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure(&format!("the engine did not end well ({status})"))),
                None => thread::sleep(LOOK_AGAIN),
            }
        }
        Err(self.failure(&format!("the engine did not stop within {STOPPED_WITHIN:?}")))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Fails where it has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn written_at(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}
