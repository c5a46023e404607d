//! One version of a component, ready to serve: looked at, compiled, linked, instantiated once and initialised.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use wasmtime::component::InstancePre;

use super::{
    bindings::exports::helix::messaging::{event_batch_handler, event_handler, lifecycle, task_handler},
    compile::CompileChild,
    engine::ComponentEngine,
    host::{LogRate, SharedState, State},
    inspect::{Inspected, LoadError, inspect},
    runner::{ComponentRunner, chain},
};
use crate::{
    handler::{Handler, LaneContext, OpenError, Runner},
    message::{HandlerIdentity, Kind},
};

/// What loading a version takes.
#[derive(Clone, Debug)]
pub struct Load {
    /// Name of the plugin: of its file, without `.wasm`.
    pub name: String,
    /// What it reads through `wasi:config/store`.
    pub settings: BTreeMap<String, String>,
    /// Refuse any other file, by SHA-256 in hex.
    pub sha256: Option<String>,
    /// How to compile it.
    pub compile: CompileChild,
    /// Time for instantiation and `init`.
    pub init_timeout: Duration,
}

/// One version of a plugin.
pub struct Component {
    pub(super) engine: Arc<ComponentEngine>,
    pub(super) pre: InstancePre<State>,
    pub(super) exports: Exports,
    pub(super) shared: Arc<SharedState>,
    pub(super) init_timeout: Duration,
    /// Whether its imports ask about the message in hand.
    pub(super) needs_current: bool,
    identity: HandlerIdentity,
    inspected: Inspected,
    cached: bool,
}

/// Where the functions are that we call.
pub(super) struct Exports {
    pub(super) task: Option<task_handler::GuestIndices>,
    pub(super) event: Option<event_handler::GuestIndices>,
    pub(super) batch: Option<event_batch_handler::GuestIndices>,
    pub(super) lifecycle: Option<lifecycle::GuestIndices>,
}

impl Component {
    /// Takes a file through every check. Slow (it may compile): call it where blocking is allowed.
    ///
    /// `lane` is what a first instance is made with: the last check before this version may serve.
    ///
    /// # Errors
    /// Why it does not serve.
    pub fn load(
        engine: &Arc<ComponentEngine>,
        wasm: &[u8],
        load: &Load,
        lane: &LaneContext,
    ) -> Result<Arc<Self>, LoadError> {
        let inspected = inspect(wasm)?;
        if let Some(wanted) = load.sha256.as_ref().filter(|wanted| !wanted.eq_ignore_ascii_case(&inspected.digest)) {
            return Err(LoadError::OtherDigest { found: inspected.digest, wanted: wanted.clone() });
        }
        let (compiled, cached) = load.compile.compile(&engine.engine, wasm, &inspected.digest)?;
        let link = |error: wasmtime::Error| LoadError::Link(chain(&error));
        let pre = engine.linker.instantiate_pre(&compiled).map_err(link)?;
        let exports = Exports {
            task: inspected.handles_tasks.then(|| task_handler::GuestIndices::new(&pre)).transpose().map_err(link)?,
            event: inspected
                .handles_events
                .then(|| event_handler::GuestIndices::new(&pre))
                .transpose()
                .map_err(link)?,
            batch: inspected
                .handles_event_batches
                .then(|| event_batch_handler::GuestIndices::new(&pre))
                .transpose()
                .map_err(link)?,
            lifecycle: inspected.has_lifecycle.then(|| lifecycle::GuestIndices::new(&pre)).transpose().map_err(link)?,
        };
        let component = Arc::new(Self {
            engine: Arc::clone(engine),
            pre,
            exports,
            shared: Arc::new(SharedState {
                plugin: load.name.clone(),
                settings: load.settings.clone(),
                log_rate: LogRate::default(),
            }),
            init_timeout: load.init_timeout,
            needs_current: inspected.imports.iter().any(|import| {
                import.starts_with("helix:messaging/publisher") || import.starts_with("helix:messaging/delivery")
            }),
            identity: HandlerIdentity {
                name: load.name.clone(),
                version: inspected.version.clone(),
                digest: inspected.digest.clone(),
            },
            inspected,
            cached,
        });
        component.try_out(lane)?;
        Ok(component)
    }

    /// Makes an instance for each kind of source it handles: types that do not fit show only then.
    fn try_out(self: &Arc<Self>, lane: &LaneContext) -> Result<(), LoadError> {
        for kind in [Kind::Queue, Kind::Topic] {
            if self.handles(kind) {
                let _running = self.engine.clock.run();
                let mut runner = ComponentRunner::new(Arc::clone(self), lane.clone(), kind);
                runner.start().map_err(|error| LoadError::Start(error.text))?;
            }
        }
        Ok(())
    }

    /// What its file says of itself.
    #[must_use]
    pub fn inspected(&self) -> &Inspected {
        &self.inspected
    }

    /// Whether its code came from the cache.
    #[must_use]
    pub fn was_cached(&self) -> bool {
        self.cached
    }
}

impl Handler for Component {
    fn identity(&self) -> &HandlerIdentity {
        &self.identity
    }

    fn handles(&self, kind: Kind) -> bool {
        match kind {
            Kind::Queue => self.exports.task.is_some(),
            Kind::Topic => self.exports.event.is_some() || self.exports.batch.is_some(),
        }
    }

    fn open(self: Arc<Self>, lane: &LaneContext, source: Kind) -> Result<Box<dyn Runner>, OpenError> {
        if !self.handles(source) {
            return Err(OpenError(format!("plugin {:?} does not handle messages from a {source}", self.identity.name)));
        }
        Ok(Box::new(ComponentRunner::new(self, lane.clone(), source)))
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("identity", &self.identity).finish_non_exhaustive()
    }
}
