//! `doctor`: what on this machine, or in this configuration, would keep the engine from doing its work.

mod store;
mod systems;

use std::{
    borrow::Cow,
    fmt::Display,
    fs,
    io::{self, ErrorKind},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    fs::inotify,
    process::{Resource, getrlimit},
};
use serde::Serialize;
use serde_json::json;

use super::{Context, Exit, Failure, context::engine_address};
use crate::{config::Config, handler::component::ComponentEngine};

/// Address space that running components reserve, in bytes; a limit below it keeps the engine from starting.
const ADDRESS_SPACE: u64 = 16 << 40;
/// Files that an engine under load holds open.
const OPEN_FILES: u64 = 1024;
/// How long an engine may take to say that it is one.
const ANSWER: Duration = Duration::from_secs(2);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    name: Cow<'static, str>,
    level: Level,
    found: String,
    /// What to do; empty where there is nothing to do.
    fix: String,
}

impl Finding {
    fn ok(name: impl Into<Cow<'static, str>>, found: impl Display) -> Self {
        Self { name: name.into(), level: Level::Ok, found: found.to_string(), fix: String::new() }
    }

    fn warn(name: impl Into<Cow<'static, str>>, found: impl Display, fix: impl Display) -> Self {
        Self { name: name.into(), level: Level::Warn, found: found.to_string(), fix: fix.to_string() }
    }

    fn fail(name: impl Into<Cow<'static, str>>, found: impl Display, fix: impl Display) -> Self {
        Self { name: name.into(), level: Level::Fail, found: found.to_string(), fix: fix.to_string() }
    }
}

pub(super) fn run(context: &Context) -> Result<Exit, Failure> {
    let findings = examine(context);
    let failed = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    if context.output.json() {
        context.output.value(&json!({ "ok": failed == 0, "checks": findings }))?;
    } else {
        for finding in &findings {
            let level = match finding.level {
                Level::Ok => "ok  ",
                Level::Warn => "warn",
                Level::Fail => "fail",
            };
            let fix = if finding.fix.is_empty() { String::new() } else { format!("; {}", finding.fix) };
            context.output.line(format_args!("{level}  {}: {}{fix}", finding.name, finding.found))?;
        }
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

fn examine(context: &Context) -> Vec<Finding> {
    let (config, mut findings) = configuration(context);
    findings.extend([plugins(&config.plugins.directory), data(&config.data_directory)]);
    findings.extend(store::examine(&config));
    findings.extend(systems::examine(&config));
    findings.extend(port(&config));
    findings.extend([
        engine(),
        address_space(),
        open_files(),
        cores(),
        memory_reuse(),
        file_watch(&config.plugins.directory),
        plugin_target(),
    ]);
    findings
}

/// The rest is looked at by the defaults where the configuration has mistakes.
fn configuration(context: &Context) -> (Config, Vec<Finding>) {
    const NAME: &str = "configuration";
    match context.load() {
        Ok(loaded) => {
            let file = loaded.config.file.as_ref().map_or("built in".to_owned(), |file| file.display().to_string());
            let found = format!("{file}, {} routes", loaded.config.routes.iter().count());
            let warnings = loaded.warnings.iter().map(|warning| {
                let place = if warning.path.is_empty() { warning.origin.to_string() } else { warning.path.clone() };
                Finding::warn(NAME, format_args!("{place}: {}", warning.problem), &warning.fix)
            });
            let findings = std::iter::once(Finding::ok(NAME, found)).chain(warnings).collect();
            (loaded.config, findings)
        }
        Err(failure) => (Config::default(), vec![Finding::fail(NAME, failure.message(), "see `helixmq config check`")]),
    }
}

fn plugins(directory: &Path) -> Finding {
    const NAME: &str = "plugins directory";
    let shown = directory.display();
    match fs::read_dir(directory) {
        Ok(entries) => {
            let wasm = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wasm");
            let count = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(wasm).count();
            Finding::ok(NAME, format_args!("{shown}, {count} plugins"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Finding::warn(NAME, format_args!("{shown} is not there"), "create it, or set plugins.directory")
        }
        Err(error) => Finding::fail(
            NAME,
            format_args!("{shown} cannot be read: {error}"),
            "let this user read it, or set plugins.directory",
        ),
    }
}

/// Nothing is made that a look should not make: where it is not there, what is above it counts.
fn data(directory: &Path) -> Finding {
    const NAME: &str = "data directory";
    let there = nearest(directory);
    let written = tempfile::Builder::new().prefix(".helixmq-doctor-").tempfile_in(there);
    match written {
        Ok(_) if there == directory => Finding::ok(NAME, format_args!("{} can be written", directory.display())),
        Ok(_) => Finding::ok(NAME, format_args!("{} can be made", directory.display())),
        Err(error) => Finding::fail(
            NAME,
            format_args!("{} cannot be written: {error}", there.display()),
            "set engine.data_directory to one that this user may write",
        ),
    }
}

/// The directory, or the nearest above it that is there.
fn nearest(directory: &Path) -> &Path {
    let all = directory.ancestors().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    all.into_iter().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Also how the brokers of the engine are that runs there.
fn port(config: &Config) -> Vec<Finding> {
    const NAME: &str = "port";
    let address = engine_address(config);
    let agent = ureq::Agent::config_builder().timeout_global(Some(ANSWER)).http_status_as_error(false).proxy(None);
    let answer =
        (address.port() != 0).then(|| agent.build().new_agent().get(format!("http://{address}/health")).call());
    let document =
        answer.and_then(Result::ok).map(|answer| answer.into_body().into_with_config().limit(1 << 20).read_to_string());
    let document: Option<serde_json::Value> =
        document.map(|text| text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default());
    vec![match (document, TcpListener::bind(config.http.listen)) {
        (Some(document), _) if document.is_object() => {
            let status = document.get("status").and_then(serde_json::Value::as_str).unwrap_or("answering");
            let running = Finding::ok(NAME, format_args!("an engine runs at {address}: {status}"));
            return std::iter::once(running).chain(brokers(&document)).collect();
        }
        (Some(_), _) => Finding::fail(
            NAME,
            format_args!("something that is no engine answers at {address}"),
            "stop it, or set http.listen to a free port",
        ),
        (None, Ok(_)) => Finding::ok(NAME, format_args!("{} is free, no engine runs", config.http.listen)),
        (None, Err(error)) => Finding::fail(
            NAME,
            format_args!("{} cannot be listened on: {error}", config.http.listen),
            "stop what listens there, or set http.listen to a free port",
        ),
    }]
}

/// Brokers of a running engine that do less than they claim; their reasons say what to do.
fn brokers(health: &serde_json::Value) -> Vec<Finding> {
    const NAME: &str = "broker";
    let text =
        |broker: &serde_json::Value, name| broker.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    let all = health.get("brokers").and_then(serde_json::Value::as_array).into_iter().flatten();
    all.filter_map(|broker| {
        let (name, reason) = (text(broker, "name")?, text(broker, "reason").unwrap_or_default());
        let found = format!("{name}: {reason}");
        match text(broker, "status")?.as_str() {
            "ok" => None,
            "degraded" => Some(Finding::warn(NAME, found, "")),
            _ => Some(Finding::fail(NAME, found, "")),
        }
    })
    .collect()
}

fn engine() -> Finding {
    match ComponentEngine::new() {
        Ok(_) => Finding::ok("WebAssembly", "components can be run"),
        Err(error) => Finding::fail(
            "WebAssembly",
            format_args!("components cannot be run: {error:#}"),
            "lift the limit on address space (`ulimit -v unlimited`)",
        ),
    }
}

fn address_space() -> Finding {
    const NAME: &str = "address space";
    match getrlimit(Resource::As).current {
        None => Finding::ok(NAME, "not limited"),
        Some(bytes) if bytes >= ADDRESS_SPACE => Finding::ok(NAME, format_args!("{} GiB", bytes >> 30)),
        Some(bytes) => Finding::warn(
            NAME,
            format_args!("limited to {} GiB, while instances reserve (and do not use) more", bytes >> 30),
            "lift it with `ulimit -v unlimited`, and limit memory by the system's control groups",
        ),
    }
}

fn open_files() -> Finding {
    const NAME: &str = "open files";
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < OPEN_FILES => Finding::warn(
            NAME,
            format_args!("limited to {files}"),
            format_args!("raise it to {OPEN_FILES} or more with `ulimit -n`"),
        ),
        Some(files) => Finding::ok(NAME, format_args!("{files} allowed")),
        None => Finding::ok(NAME, "not limited"),
    }
}

fn cores() -> Finding {
    const NAME: &str = "cores";
    match std::thread::available_parallelism() {
        Ok(cores) if cores.get() > 1 => Finding::ok(NAME, cores),
        Ok(_) => Finding::warn(NAME, "1", "give it two: compiling a plugin takes time from handlers otherwise"),
        Err(error) => Finding::warn(NAME, format_args!("not known: {error}"), "set `concurrency` on each route"),
    }
}

/// Source: Linux 6.7, `PAGEMAP_SCAN` in Documentation/admin-guide/mm/pagemap.rst.
fn memory_reuse() -> Finding {
    const NAME: &str = "memory reuse";
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    let new_enough = version.0.zip(version.1).is_some_and(|version| version >= (6, 7));
    if new_enough && fs::File::open("/proc/self/pagemap").is_ok() {
        Finding::ok(NAME, format_args!("Linux {release} tells which pages an instance touched"))
    } else {
        Finding::warn(
            NAME,
            format_args!(
                "Linux {release} does not tell which pages an instance touched, so that a new instance costs more"
            ),
            "use Linux 6.7 or newer with /proc/self/pagemap readable, and avoid `isolation: message` until then",
        )
    }
}

fn file_watch(plugins: &Path) -> Finding {
    const NAME: &str = "file watch";
    let watched = if plugins.is_dir() { plugins } else { Path::new(".") };
    let try_out = || {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, watched, inotify::WatchFlags::CREATE)?;
        Ok::<_, rustix::io::Errno>(())
    };
    match try_out() {
        Ok(()) => Finding::ok(NAME, "the system tells of changed files at once"),
        Err(error) => Finding::warn(
            NAME,
            format_args!(
                "the system does not tell of changed files ({}), so that they are noticed within 2 s",
                io::Error::from(error)
            ),
            "raise fs.inotify.max_user_instances and max_user_watches with sysctl",
        ),
    }
}

/// Only for who writes plugins in Rust.
fn plugin_target() -> Finding {
    const NAME: &str = "plugin target";
    let asked = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", "wasm32-wasip2"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match asked {
        Ok(answer) if answer.status.success() && Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_dir() => {
            Finding::ok(NAME, "plugins can be built here from Rust")
        }
        Ok(_) => Finding::warn(
            NAME,
            "plugins cannot be built here from Rust",
            "run `rustup target add wasm32-wasip2`, if they should be",
        ),
        Err(_) => Finding::ok(NAME, "no Rust here, which only authors of plugins need"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_makes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("a/b");
        assert_eq!(data(&missing).level, Level::Ok);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(data(&file.join("below")).level, Level::Fail);
    }

    #[test]
    fn a_port_in_use_is_no_engine() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config { data_directory: "nowhere".into(), ..Config::default() };
        config.http.listen = listener.local_addr().unwrap();
        let level = |config: &Config| port(config).iter().map(|finding| finding.level).collect::<Vec<_>>();
        assert_eq!(level(&config), [Level::Fail]);
        drop(listener);
        assert_eq!(level(&config), [Level::Ok]);
    }

    #[test]
    fn tells_how_the_brokers_of_a_running_engine_are() {
        let broker =
            |status: &str| json!({ "brokers": [{ "name": "b", "status": status, "reason": "the disk is full" }] });
        assert!(brokers(&broker("ok")).is_empty() && brokers(&json!({})).is_empty());
        for (status, level) in [("degraded", Level::Warn), ("unavailable", Level::Fail)] {
            let said = brokers(&broker(status));
            let said: Vec<_> = said.iter().map(|finding| (finding.level, finding.found.as_str())).collect();
            assert_eq!(said, [(level, "b: the disk is full")]);
        }
    }
}
