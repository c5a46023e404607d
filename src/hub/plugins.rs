//! Takes plugin files into service as they change: looks, loads off the lanes' threads, two at a time at most, and puts
//! what passed into its slot. What fails leaves the version before it serving, and a receipt that says why.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::watch::Watcher;
use crate::{
    handler::{
        Handler, LaneContext, Loading, PluginSettings, Registry, Slot,
        component::{CompileChild, Component, ComponentEngine, Load, LoadError},
        native::panic_text,
        reload::{Change, Directory, SETTLE, Stamp},
    },
    telemetry::metrics,
};

/// Files that are loaded at a time.
const LOADS_MAX: usize = 2;
/// How soon to look again at a file that may still be written.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How soon to look again at a file that was not whole.
const LOOK_AT_PART_AGAIN: Duration = Duration::from_millis(100);

/// What loading needs, replaced when the configuration changes.
#[derive(Clone, Debug)]
pub(super) struct LoaderSettings {
    pub(super) directory: PathBuf,
    pub(super) settings: BTreeMap<String, PluginSettings>,
    pub(super) loading: Loading,
    pub(super) cache: PathBuf,
    pub(super) program: PathBuf,
}

/// Looks after the plugins directory.
pub(super) struct Loader {
    pub(super) engine: Arc<ComponentEngine>,
    pub(super) registry: Arc<Registry>,
    /// What the first instance of a version is made with, by plugin name.
    pub(super) context: Arc<dyn Fn(&str) -> LaneContext + Send + Sync>,
    pub(super) settings: Arc<Mutex<LoaderSettings>>,
    /// Names of plugins whose settings changed.
    pub(super) changed: mpsc::Receiver<Vec<String>>,
    /// True once every file that was there at the start has been looked at.
    pub(super) ready: watch::Sender<bool>,
}

/// Whether a file has been dealt with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finished {
    Settled,
    /// It may still be being copied: to be looked at again.
    NotWhole,
}

/// Whether what is being loaded is still wanted so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Current,
    /// Its settings have changed meanwhile.
    Outdated,
}

/// How a load ended.
struct Loaded {
    name: String,
    path: PathBuf,
    stamp: Stamp,
    began: Instant,
    digest: Option<String>,
    result: Result<Option<Arc<Component>>, LoadError>,
}

impl Loader {
    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut watcher = Watcher::new();
        let mut directory = Directory::default();
        let mut loads: JoinSet<Loaded> = JoinSet::new();
        let mut loading: BTreeMap<String, Wanted> = BTreeMap::new();
        let mut complained = false;
        let mut again = true;
        let mut not_before = Instant::now();
        loop {
            let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
            watcher.watch(&settings.directory);
            if again && not_before <= Instant::now() {
                again = false;
                match directory.changes(&settings.directory) {
                    Ok(changes) => {
                        complained = false;
                        for change in changes {
                            again |= self.act(change, &settings, &mut directory, &mut loads, &mut loading);
                        }
                    }
                    Err(error) if !complained => {
                        complained = true;
                        tracing::warn!(directory = %settings.directory.display(), "the plugins directory cannot be read; create it, or set plugins.directory: {error}");
                    }
                    Err(_) => {}
                }
            }
            if loads.is_empty() && !again {
                self.ready.send_replace(true);
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = watcher.changed() => again = true,
                Some(names) = self.changed.recv() => {
                    for name in names {
                        directory.forget(&name);
                        // What is being loaded is loaded with the settings before.
                        if let Some(loading) = loading.get_mut(&name) {
                            *loading = Wanted::Outdated;
                        }
                    }
                    again = true;
                }
                Some(loaded) = loads.join_next() => {
                    match loaded {
                        Ok(loaded) => {
                            let outdated = loading.remove(&loaded.name) == Some(Wanted::Outdated);
                            let name = loaded.name.clone();
                            if self.finish(loaded, &mut directory) == Finished::NotWhole {
                                not_before = Instant::now() + LOOK_AT_PART_AGAIN;
                            }
                            if outdated {
                                directory.forget(&name);
                            }
                        }
                        Err(error) => tracing::error!("loading a plugin panicked: {error}"),
                    }
                    again = true;
                }
                () = tokio::time::sleep_until(not_before.max(Instant::now() + LOOK_AGAIN).into()), if again => {}
            }
        }
    }

    /// Begins what a change asks for. Returns whether to look again soon.
    fn act(
        &self,
        change: Change,
        settings: &LoaderSettings,
        directory: &mut Directory,
        loads: &mut JoinSet<Loaded>,
        loading: &mut BTreeMap<String, Wanted>,
    ) -> bool {
        match change {
            Change::Gone { name } => {
                directory.forget(&name);
                let slot = self.registry.slot(&name);
                let served = slot.identity();
                if !is_native(&slot) && slot.remove() {
                    if let Some(served) = &served {
                        forget_version(&name, served);
                    }
                    metrics().reloads.with_label_values(&[name.as_str(), "removed"]).inc();
                    tracing::warn!(plugin = name, "its file is gone: messages for it wait until it is back");
                }
                false
            }
            Change::Look { ref name, .. } if loading.contains_key(name) => false,
            Change::Look { .. } if loads.len() >= LOADS_MAX => false,
            Change::Look { ref stamp, .. } if stamp.age().is_some_and(|age| age < SETTLE) => true,
            Change::Look { name, path, stamp, known } => {
                loading.insert(name.clone(), Wanted::Current);
                let load = Load {
                    name: name.clone(),
                    settings: settings.settings.get(&name).map(|settings| settings.config.clone()).unwrap_or_default(),
                    sha256: settings.settings.get(&name).and_then(|settings| settings.sha256.clone()),
                    compile: CompileChild {
                        program: settings.program.clone(),
                        cache: settings.cache.clone(),
                        cpu_max: settings.loading.compile_cpu_max,
                        memory_bytes_max: settings.loading.compile_memory_bytes_max,
                    },
                    init_timeout: settings.loading.init_timeout,
                };
                let (engine, context) = (Arc::clone(&self.engine), (self.context)(&name));
                let bytes_max = settings.loading.file_bytes_max;
                loads.spawn_blocking(move || {
                    let began = Instant::now();
                    // A panic is a defect of the engine, or of a library: it costs the file, not its name.
                    let load = || read_and_load(&engine, &path, &stamp, known.as_deref(), bytes_max, &load, &context);
                    let (digest, result) = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
                        (None, Err(LoadError::Start(format!("loading it {}", panic_text(&*panic)))))
                    });
                    Loaded { name, path, stamp, began, digest, result }
                });
                false
            }
        }
    }

    /// Puts what passed into service; says why the rest does not serve.
    fn finish(&self, loaded: Loaded, directory: &mut Directory) -> Finished {
        let Loaded { name, path, stamp, began, digest, result } = loaded;
        let slot = self.registry.slot(&name);
        let took = began.elapsed();
        let count = |result| metrics().reloads.with_label_values(&[name.as_str(), result]).inc();
        match result {
            Ok(None) => directory.saw(&name, stamp, digest),
            Ok(Some(_)) if is_native(&slot) => {
                count("refused");
                tracing::error!(plugin = name, file = %path.display(), "refused: a handler of the embedding program has this name");
                slot.refuse(digest.clone(), took, "a handler of the embedding program has this name".to_owned());
                directory.saw(&name, stamp, digest);
            }
            Ok(Some(component)) => {
                let identity = component.identity().clone();
                let cached = component.was_cached();
                let before = slot.identity();
                let version = slot.serve(component, took, cached);
                count("loaded");
                metrics().reload_time.observe(took.as_secs_f64());
                show_version(&name, before.as_ref(), &identity, version.since);
                directory.saw(&name, stamp, digest);
                tracing::info!(
                    plugin = name,
                    digest = identity.digest,
                    took_ms = took.as_secs_f64() * 1000.0,
                    cached,
                    "serves"
                );
            }
            // Perhaps it is still being copied: wait until it has been still for a while.
            Err(LoadError::Truncated(_))
                if Stamp::of(&path).is_ok_and(|now| now != stamp || directory.saw_part(&name, &stamp)) =>
            {
                return Finished::NotWhole;
            }
            Err(error) => {
                count("refused");
                // Pinned to another file: not even the one that serves may go on.
                if let LoadError::OtherDigest { wanted, .. } = &error
                    && let Some(served) = slot.identity().filter(|served| !served.digest.eq_ignore_ascii_case(wanted))
                {
                    slot.remove();
                    forget_version(&name, &served);
                }
                let serving = slot.identity().map_or_else(
                    || "nothing serves".to_owned(),
                    |identity| format!("{} goes on serving", short(&identity.digest)),
                );
                tracing::error!(plugin = name, file = %path.display(), "refused, {serving}: {error}");
                slot.refuse(digest.clone(), took, error.to_string());
                directory.saw(&name, stamp, digest);
            }
        }
        Finished::Settled
    }
}

/// Whether a handler of the embedding program has this name: no file takes it, and none that goes takes it away.
fn is_native(slot: &Slot) -> bool {
    slot.identity().is_some_and(|serving| serving.digest.is_empty())
}

fn read_and_load(
    engine: &Arc<ComponentEngine>,
    path: &std::path::Path,
    stamp: &Stamp,
    known: Option<&str>,
    bytes_max: u64,
    load: &Load,
    context: &LaneContext,
) -> (Option<String>, Result<Option<Arc<Component>>, LoadError>) {
    if stamp.bytes() > bytes_max {
        let (value, max) =
            (usize::try_from(stamp.bytes()).unwrap_or(usize::MAX), usize::try_from(bytes_max).unwrap_or(usize::MAX));
        return (None, Err(LoadError::TooLarge { what: "the length of its file in bytes", value, max }));
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return (None, Err(LoadError::Read(error.to_string()))),
    };
    let digest = crate::handler::component::digest(&bytes);
    if known == Some(digest.as_str()) {
        return (Some(digest), Ok(None));
    }
    let result = Component::load(engine, &bytes, load, context);
    (Some(digest), result.map(Some))
}

fn show_version(
    name: &str,
    before: Option<&crate::message::HandlerIdentity>,
    now: &crate::message::HandlerIdentity,
    since: u64,
) {
    if let Some(before) = before {
        forget_version(name, before);
    }
    let version = now.version.clone().unwrap_or_default();
    metrics().plugin_info.with_label_values(&[name, &version, short(&now.digest)]).set(1);
    metrics().plugin_loaded_at.with_label_values(&[name]).set(i64::try_from(since / 1000).unwrap_or(i64::MAX));
}

/// It serves no more.
fn forget_version(name: &str, served: &crate::message::HandlerIdentity) {
    let version = served.version.clone().unwrap_or_default();
    metrics().plugin_info.remove_label_values(&[name, &version, short(&served.digest)]).ok();
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
