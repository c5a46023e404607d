//! Takes a plugin's file through everything that it passes before it may serve, without an engine that runs.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{Exit, Failure},
    config::Config,
    handler::{
        Isolation, LaneContext, Limits, Outlet, OutletError, Terms,
        component::{CompileChild, Component, ComponentEngine, Load, LoadError},
    },
    message::{Address, Message},
};

/// Loads plugins, and serves none.
pub(in crate::cli) struct Loader<'c> {
    config: &'c Config,
    engine: Arc<ComponentEngine>,
    runtime: Runtime,
    program: PathBuf,
    cache: PathBuf,
}

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").finish_non_exhaustive()
    }
}

impl<'c> Loader<'c> {
    /// `cache`: where compiled code is kept.
    pub(in crate::cli) fn new(config: &'c Config, cache: PathBuf) -> Result<Self, Failure> {
        let failed = |what: &str, error: &dyn fmt::Display| {
            let message = format!("WebAssembly cannot be run here: {what}: {error}");
            Failure::new(Exit::Failed, "NO_ENGINE", message, "see `helixmq doctor` for the limits of this machine")
        };
        let engine = ComponentEngine::new().map_err(|error| failed("the address space", &format_args!("{error:#}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self {
            config,
            engine: Arc::new(engine),
            runtime: runtime.map_err(|error| failed("threads", &error))?,
            program: std::env::current_exe().map_err(|error| failed("its own program", &error))?,
            cache,
        })
    }

    /// Loads the plugin of that name from a file. Returns how long that took.
    pub(in crate::cli) fn load(&self, name: &str, file: &Path) -> Result<(Arc<Component>, Duration), LoadError> {
        let unreadable = |error: std::io::Error| LoadError::Read(error.to_string());
        let loading = &self.config.plugins.loading;
        let metadata = fs::metadata(file).map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(LoadError::Read("it is a directory".to_owned()));
        }
        if metadata.len() > loading.file_bytes_max {
            let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
            let (value, max) = (bytes(metadata.len()), bytes(loading.file_bytes_max));
            return Err(LoadError::TooLarge { what: "the length of its file in bytes", value, max });
        }
        let wasm = fs::read(file).map_err(unreadable)?;
        let settings = self.config.plugins.settings.get(name).cloned().unwrap_or_default();
        let load = Load {
            name: name.to_owned(),
            settings: settings.config,
            sha256: settings.sha256,
            compile: CompileChild {
                program: self.program.clone(),
                cache: self.cache.clone(),
                cpu_max: loading.compile_cpu_max,
                memory_bytes_max: loading.compile_memory_bytes_max,
            },
            init_timeout: loading.init_timeout,
        };
        let began = Instant::now();
        let component = Component::load(&self.engine, &wasm, &load, &self.lane(name))?;
        Ok((component, began.elapsed()))
    }

    /// As the engine makes a first instance: by the terms of a route that names it, else by the plugin's own limits.
    fn lane(&self, name: &str) -> LaneContext {
        let route = self.config.routes.iter().find(|route| &*route.handler == name);
        let limits = || match self.config.plugins.settings.get(name) {
            Some(settings) => settings.limits.over(&Limits::default()),
            None => Limits::default(),
        };
        let terms = route.map_or_else(
            || {
                Arc::new(Terms {
                    route: "".into(),
                    isolation: Isolation::Instance,
                    limits: limits(),
                    destinations: BTreeMap::new(),
                    may_reply: false,
                })
            },
            |route| Arc::clone(&route.terms),
        );
        LaneContext {
            terms,
            outlet: Arc::new(NoOutlet),
            runtime: self.runtime.handle().clone(),
            ending: CancellationToken::new(),
        }
    }
}

/// Publishes nothing: there is no broker.
#[derive(Debug)]
struct NoOutlet;

#[async_trait]
impl Outlet for NoOutlet {
    async fn publish(&self, _to: &Address, _message: Message) -> Result<(), OutletError> {
        Err(nothing_is_published())
    }

    async fn request(&self, _to: &Address, _message: Message, _timeout: Duration) -> Result<Arc<Message>, OutletError> {
        Err(nothing_is_published())
    }
}

fn nothing_is_published() -> OutletError {
    OutletError::Unavailable("this is a check: nothing is published".to_owned())
}
