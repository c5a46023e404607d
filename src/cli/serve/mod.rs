//! `serve`: runs the engine until it is told to stop. In: a configuration. Out: an exit code. Everything it starts is
//! joined or dropped here; what runs messages is the hub's.

mod brokers;
mod check;
mod data;
mod files;
mod guard;
mod settings;
mod systemd;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    brokers::Systems,
    data::DataDirectory,
    files::{Files, Seen},
    systemd::Systemd,
};
use super::{Context, Exit, Failure, store};
use crate::{
    admin::http,
    broker::{BrokerError, Declaration, Storage},
    config::{ApiRole, ApiToken, Config, Loaded, LogFormat},
    hub::{Hub, StartError},
    message::{Address, Kind},
    telemetry::{
        logs::{self, Format, Logs},
        metrics,
    },
};

/// How long answers that are under way may take to end, once the engine stops.
const HTTP_END: Duration = Duration::from_secs(5);
/// How long the rest of a stop may take once the grace period is over: calls that are ended, connections that are closed.
const CLOSE_MAX: Duration = Duration::from_secs(30);

/// What `serve` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Check the configuration and load every plugin, start nothing
    #[arg(long)]
    check: bool,
    /// Directory of the plugins, in place of `plugins.directory`
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
}

pub(super) fn run(args: &Args, mut context: Context) -> Result<Exit, Failure> {
    context.plugins.clone_from(&args.plugins);
    if let Some(directory) = &args.plugins {
        bare(directory)?;
    }
    if args.check {
        return check::run(&context);
    }
    // Where to look is known once it is loaded; loaded again after the look, no change can go unnoticed in between.
    let first = context.load()?.config;
    let seen = Seen::look(first.file.as_deref(), &first.plugins.directory);
    let loaded = context.load()?;
    readable(&loaded.config.plugins.directory)?;
    let logs = start_logs(&loaded.config, &context);
    loaded.warnings.iter().for_each(files::warn);
    let data = DataDirectory::open(&loaded.config.data_directory)?;
    let runtime = runtime()?;
    let exit = runtime.block_on(engine(loaded, seen, &data, logs, context));
    // What is left is blocked in a system call, or was told to end at once.
    runtime.shutdown_background();
    exit
}

/// Refuses a directory for `--plugins` that is not there, or holds what would not be read: the configuration is loaded
/// with the plugins' own files of `plugins.directory`.
fn bare(directory: &Path) -> Result<(), Failure> {
    let entries = fs::read_dir(directory).map_err(|error| {
        let message = format!("the directory {} cannot be read: {error}", directory.display());
        Failure::new(
            Exit::Refused,
            "PLUGINS_UNREADABLE",
            message,
            "let --plugins name one that plugins are dropped into",
        )
    })?;
    let mut names = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    match names.find(|path| path.extension().is_some_and(|extension| extension == "toml")) {
        None => Ok(()),
        Some(settings) => Err(Failure::new(
            Exit::Refused,
            "PLUGINS_HAVE_SETTINGS",
            format!("{} would not be read, as --plugins is for plugins without files of their own", settings.display()),
            "set plugins.directory in the configuration instead",
        )),
    }
}

/// Refuses a plugins directory that is there and would never show its plugins. One that is not there may be made later.
fn readable(directory: &Path) -> Result<(), Failure> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::new(
            Exit::Refused,
            "PLUGINS_UNREADABLE",
            format!("the plugins directory {} cannot be read: {error}", directory.display()),
            "let it be read, or set plugins.directory",
        )),
        _ => Ok(()),
    }
}

/// The runtime of everything that waits.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Failure::new(
            Exit::Failed,
            "NO_THREADS",
            format!("the system gives no threads: {error}"),
            "raise the limit on threads",
        )
    })
}

fn start_logs(config: &Config, context: &Context) -> Option<Logs> {
    let format = match config.telemetry.format {
        LogFormat::Auto => logs::suitable(),
        LogFormat::Pretty => Format::Pretty,
        LogFormat::Json => Format::Json,
    };
    let started = logs::init(&config.telemetry.filter, format);
    started.map_err(|error| context.output.note(format_args!("warning: logs stay as they are: {error}"))).ok()
}

async fn engine(
    loaded: Loaded,
    seen: Seen,
    data: &DataDirectory,
    logs: Option<Logs>,
    context: Context,
) -> Result<Exit, Failure> {
    let config = loaded.config;
    let mut signals = Signals::new()?;
    let hang_up = signal(SignalKind::hangup()).map_err(|error| no_signals(&error))?;
    let listener = TcpListener::bind(config.http.listen).await.map_err(|error| not_listening(&config, &error))?;
    let address = listener.local_addr().map_err(|error| not_listening(&config, &error))?;
    let token = token(&config, data)?;
    let cache = settings::cache_directory(&config);
    data::make(&cache).map_err(|error| data::unusable(&cache, &error))?;
    // In a task of its own: what takes long, or hangs, must not keep a signal from being heard.
    let mut starting = JoinSet::new();
    starting.spawn(started(config.clone()));
    let (hub, systems) = tokio::select! {
        Some(started) = starting.join_next() => started.map_err(|error| not_run(&error))??,
        ending = signals.next() => {
            tracing::warn!("stopped while starting");
            return Ok(ending.exit());
        }
    };
    data.write_address(address)?;
    metrics().uptime.set(i64::try_from(crate::message::now_ms() / 1000).unwrap_or(i64::MAX));
    tracing::info!(
        %address,
        version = env!("CARGO_PKG_VERSION"),
        file = config.file.as_ref().map(|file| file.display().to_string()),
        plugins = %config.plugins.directory.display(),
        data = %config.data_directory.display(),
        routes = config.routes.iter().count(),
        enabled = config.enabled,
        "listening"
    );

    let systemd = Arc::new(Systemd::default());
    let mut telling = JoinSet::new();
    let (told, of) = (Arc::clone(&systemd), Arc::clone(&hub));
    telling.spawn(async move { told.run(&of).await });
    let http_stop = CancellationToken::new();
    let mut answering = JoinSet::new();
    let api = Arc::new(http::Api::new(Arc::clone(&hub), http_options(&config, token)));
    answering.spawn(http::serve(listener, api, http_stop.clone()));
    let mut watching = JoinSet::new();
    let files = Files {
        context,
        hub: Arc::clone(&hub),
        systems,
        config: config.clone(),
        seen,
        logs,
        systemd: Arc::clone(&systemd),
    };
    watching.spawn(files.run(hang_up));

    let why = wait(&hub, &systemd, &mut signals, &mut answering, &mut watching).await;
    drop(watching);
    http_stop.cancel();
    systemd.stopping(config.shutdown_grace + CLOSE_MAX);
    tracing::info!(
        "draining: nothing new is taken, calls may end within {:?}; a second signal ends them",
        config.shutdown_grace
    );
    let drained = async {
        hub.stop().await;
        while answering.join_next().await.is_some() {}
    };
    tokio::select! {
        () = drained => {}
        second = signals.next() => {
            tracing::warn!("ended at once: what was in flight is not settled");
            return Ok(if matches!(second, Ending::Interrupted) { Exit::Interrupted } else { Exit::Failed });
        }
    }
    let left = in_memory(&hub, config.embedded.queue_defaults.storage);
    if left > 0 {
        tracing::warn!(messages = left, "those that waited in queues with `storage: memory` are gone");
    }
    tracing::info!("stopped");
    match why {
        Ending::Broken(failure) => Err(*failure),
        signal => Ok(signal.exit()),
    }
}

/// Opens the systems, and starts an engine on them.
async fn started(config: Config) -> Result<(Arc<Hub>, Systems), Failure> {
    let systems =
        Systems::open(&config).await.map_err(|(broker, error)| not_started(&StartError::Broker { broker, error }))?;
    let broker = systems.broker();
    if let Some(failure) = systems.absent(&config.require) {
        broker.close().await;
        return Err(failure);
    }
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(
            Exit::Failed,
            "NO_PROGRAM",
            format!("the engine's own program cannot be found: {error}"),
            "start it by its full path",
        )
    })?;
    let hub = Hub::start(broker, settings::hub(&config), Vec::new(), program).await;
    let hub = hub.map_err(|error| not_started(&error))?;
    Ok((Arc::new(hub), systems))
}

/// Why the engine stops.
#[derive(Debug)]
enum Ending {
    Terminated,
    Interrupted,
    Broken(Box<Failure>),
}

impl Ending {
    fn exit(&self) -> Exit {
        match self {
            Self::Terminated => Exit::Done,
            Self::Interrupted => Exit::Interrupted,
            Self::Broken(_) => Exit::Failed,
        }
    }
}

/// Waits for a reason to stop.
async fn wait(
    hub: &Hub,
    systemd: &Systemd,
    signals: &mut Signals,
    answering: &mut JoinSet<io::Result<()>>,
    watching: &mut JoinSet<()>,
) -> Ending {
    let mut said_ready = false;
    loop {
        tokio::select! {
            ending = signals.next() => return ending,
            reason = hub.failed() => {
                let what = format!("the {} broker has failed: {reason}", hub.broker().name());
                return Ending::Broken(Box::new(Failure::new(Exit::Failed, "BROKER_FAILED", what, "")));
            }
            () = hub.ready(), if !said_ready => {
                said_ready = true;
                say_ready(hub);
                systemd.ready();
            }
            Some(ended) = answering.join_next() => {
                let why = match ended {
                    Ok(Ok(())) => "it ended by itself".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                return Ending::Broken(Box::new(Failure::new(Exit::Failed, "HTTP_FAILED", format!("HTTP ended: {why}"), "start the engine again")));
            }
            Some(ended) = watching.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("watching the configuration panicked, changes are not noticed any more: {error}");
                }
            }
        }
    }
}

/// Every plugin that was there has been looked at.
fn say_ready(hub: &Hub) {
    let slots = hub.registry().slots();
    let serving = slots.iter().filter(|slot| slot.serving().is_some()).count();
    // Asked of the registry: statuses are renewed from time to time only.
    for route in hub.routes().iter().filter(|route| hub.registry().slot(&route.handler).serving().is_none()) {
        let (route, handler) = (&route.route, &route.handler);
        tracing::warn!(%route, %handler, "nothing serves it: messages wait until its plugin is in the plugins directory");
    }
    tracing::info!(serving, "ready");
}

/// Messages that wait in queues which keep them in memory; `made` is the storage of queues that nobody declared.
fn in_memory(hub: &Hub, made: Storage) -> u64 {
    let declarations = hub.settings().declarations;
    let storage = |queue: &str| {
        let declared = declarations.iter().find_map(|declaration| match declaration {
            Declaration::Queue(name, settings) if **name == *queue => Some(settings.storage),
            _ => None,
        });
        declared.unwrap_or(made)
    };
    // Others keep theirs themselves.
    let is_ours = |address: &Address| *hub.broker().name_of(address) == *brokers::EMBEDDED;
    let queues = hub.broker().stats().into_iter().filter(|stats| stats.address.kind == Kind::Queue);
    let queues = queues.filter(|stats| is_ours(&stats.address));
    let queues = queues.filter(|stats| storage(&stats.address.name) == Storage::Memory);
    queues.map(|stats| stats.ready + stats.delayed).sum()
}

/// How HTTP answers.
fn http_options(config: &Config, token: Option<String>) -> http::Options {
    http::Options {
        token: token.map(http::Token::new),
        tokens: config.http.tokens.iter().map(named).collect(),
        open: config.http.open,
        body_bytes_max: config.http.body_bytes_max,
        drain_timeout: HTTP_END,
        ..http::Options::default()
    }
}

fn named(token: &ApiToken) -> http::NamedToken {
    let role = match token.role {
        ApiRole::Read => http::Role::Read,
        ApiRole::Operate => http::Role::Operate,
    };
    let secret = http::Token::new(token.token.reveal());
    http::NamedToken { name: Arc::clone(&token.name), token: secret, role }
}

fn token(config: &Config, data: &DataDirectory) -> Result<Option<String>, Failure> {
    match &config.http.token {
        _ if config.http.open => Ok(None),
        Some(token) => Ok(Some(token.reveal().to_owned())),
        None => data.token().map(Some),
    }
}

/// Signals that end the engine.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| no_signals(&error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.interrupt.recv() => Ending::Interrupted,
            _ = self.terminate.recv() => Ending::Terminated,
        }
    }
}

fn no_signals(error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, "NO_SIGNALS", format!("signals cannot be waited for: {error}"), "start the engine again")
}

fn not_run(error: &tokio::task::JoinError) -> Failure {
    let what = format!("the engine could not be started, which is a defect of it: {error}");
    Failure::new(Exit::Failed, "NOT_STARTED", what, "report it with its log")
}

fn not_listening(config: &Config, error: &io::Error) -> Failure {
    let listen = config.http.listen;
    let (code, what, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            "PORT_IN_USE",
            format!("something else listens on {listen} already"),
            "stop it, or set http.listen to a free port; `helixmq doctor` tells whether it is an engine",
        ),
        io::ErrorKind::PermissionDenied => (
            "PORT_NOT_ALLOWED",
            format!("this user may not listen on {listen}"),
            "set http.listen to a port from 1024 on",
        ),
        io::ErrorKind::AddrNotAvailable => (
            "NO_SUCH_ADDRESS",
            format!("this machine has no address {}", listen.ip()),
            "set http.listen to one that it has",
        ),
        _ => {
            ("NOT_LISTENING", format!("{listen} cannot be listened on: {error}"), "set http.listen to another address")
        }
    };
    Failure::new(Exit::Failed, code, what, hint)
}

fn not_started(error: &StartError) -> Failure {
    let (exit, hint) = match error {
        StartError::Broker { error: error @ BrokerError::Storage(_), .. } => {
            let (message, hint) = store::sentence(error);
            return Failure::new(Exit::Failed, "NOT_STARTED", format!("the engine cannot start: {message}"), hint);
        }
        StartError::Broker { error: BrokerError::Unreachable { .. }, .. } => {
            (Exit::Unreachable, "start it, or correct where it is looked for")
        }
        StartError::Broker { error: BrokerError::Refused { .. }, .. } => {
            (Exit::Refused, "correct it there, or in the configuration")
        }
        StartError::Broker { .. } | StartError::Missing(_) => {
            (Exit::Refused, "correct the configuration of what it names")
        }
        StartError::Engine(_) => (Exit::Failed, "see `helixmq doctor` for the limits of this machine"),
        StartError::Stopping => (Exit::Failed, "start it again"),
    };
    Failure::new(exit, "NOT_STARTED", format!("the engine cannot start: {error}"), hint)
}
