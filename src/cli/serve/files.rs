//! The files of the configuration: when their content changes, they are loaded anew. Valid: the engine runs by them.
//! Invalid: every mistake is logged, and the engine runs by what it had.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::signal::unix::Signal;

use super::{brokers::Systems, settings, systemd::Systemd};
use crate::{
    cli::Context,
    config::{Config, FILE_BYTES_MAX, Warning},
    handler::component::digest,
    hub::{Hub, watch::Watcher},
    telemetry::{logs::Logs, metrics},
};

/// Files are still being written while they change more often than this.
const SETTLE: Duration = Duration::from_millis(50);

/// Watches the configuration of a running engine.
pub(super) struct Files {
    pub(super) context: Context,
    pub(super) hub: Arc<Hub>,
    pub(super) systems: Systems,
    /// What is in force.
    pub(super) config: Config,
    /// What the files held when it was loaded.
    pub(super) seen: Seen,
    pub(super) logs: Option<Logs>,
    pub(super) systemd: Arc<Systemd>,
}

/// Each file by name, with a digest of what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(BTreeMap<PathBuf, String>);

impl Files {
    /// Runs until it is dropped. A hang-up loads the files whether they changed or not.
    pub(super) async fn run(mut self, mut hang_up: Signal) {
        let mut watcher = Watcher::new();
        loop {
            let file = self.file();
            for directory in file.iter().filter_map(|file| file.parent()) {
                watcher.watch(if directory.as_os_str().is_empty() { Path::new(".") } else { directory });
            }
            watcher.watch(&self.config.plugins.directory);
            let forced = tokio::select! {
                () = watcher.changed() => false,
                _ = hang_up.recv() => true,
            };
            let Some(seen) = self.settled().await else { continue };
            if forced || seen != self.seen {
                self.seen = seen;
                self.systemd.reloading();
                self.load().await;
                self.systemd.reloaded();
            }
        }
    }

    /// The file in force; where there was none, the one that appears where it is looked for.
    fn file(&self) -> Option<PathBuf> {
        self.config.file.clone().or_else(|| self.context.file().ok().flatten())
    }

    /// What the files hold, once they are still. `None`: they could not be looked at.
    async fn settled(&self) -> Option<Seen> {
        let mut last = None;
        loop {
            let (file, directory) = (self.file(), self.config.plugins.directory.clone());
            let looked = tokio::task::spawn_blocking(move || Seen::look(file.as_deref(), &directory)).await;
            let seen =
                looked.inspect_err(|error| tracing::error!("looking at the configuration panicked: {error}")).ok()?;
            if seen == self.seen || last.as_ref() == Some(&seen) {
                return Some(seen);
            }
            last = Some(seen);
            tokio::time::sleep(SETTLE).await;
        }
    }

    async fn load(&mut self) {
        let began = Instant::now();
        let (context, file) = (self.context.clone(), self.file());
        let named = file.as_ref().map_or("built in".to_owned(), |file| file.display().to_string());
        let refused = |why: &dyn std::fmt::Display| {
            metrics().config_reloads.with_label_values(&["refused"]).inc();
            tracing::error!(file = named, "the configuration is refused, what was in force stays: {why}");
        };
        let mut loaded = match tokio::task::spawn_blocking(move || context.load_file(file.as_deref())).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(errors)) => {
                for mistake in errors.mistakes() {
                    tracing::error!("{mistake}");
                }
                return refused(&"correct what is named above");
            }
            Err(error) => return refused(&error),
        };
        loaded.warnings.iter().for_each(warn);
        let fixed = settings::needs_restart(&self.config, &loaded.config);
        settings::keep_fixed(&mut loaded.config, &self.config);
        if let Some(why) = self.systems.hindrance(&loaded.config) {
            return refused(&why);
        }
        let exchange = self.systems.exchange(&self.config, &loaded.config);
        if let Err(error) = self.hub.apply(settings::hub(&loaded.config), exchange).await {
            return refused(&error);
        }
        if let Some(logs) =
            self.logs.as_ref().filter(|_| loaded.config.telemetry.filter != self.config.telemetry.filter)
            && let Err(error) = logs.set_filter(&loaded.config.telemetry.filter)
        {
            tracing::error!("the filter of logs stays as it was: {error}");
        }
        for path in fixed {
            tracing::warn!("{path} changed: restart the engine for it");
        }
        metrics().config_reloads.with_label_values(&["applied"]).inc();
        tracing::info!(
            file = named,
            routes = loaded.config.routes.iter().count(),
            took_ms = began.elapsed().as_secs_f64() * 1000.0,
            "the configuration is in force"
        );
        self.config = loaded.config;
    }
}

impl Seen {
    /// Looks at the configuration file and at every `*.toml` beside the plugins.
    pub(super) fn look(file: Option<&Path>, plugins: &Path) -> Self {
        let beside =
            fs::read_dir(plugins).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let beside = beside.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
        Self(file.map(Path::to_path_buf).into_iter().chain(beside).map(|path| (path.clone(), content(&path))).collect())
    }
}

/// A digest of a file's content, or why there is none.
fn content(path: &Path) -> String {
    let read = || {
        // A pipe would be waited for.
        if !fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(Some(bytes))
    };
    match read() {
        Ok(Some(bytes)) => digest(&bytes),
        Ok(None) => "not a file".to_owned(),
        Err(error) => error.kind().to_string(),
    }
}

/// Logs a warning of the configuration.
pub(super) fn warn(warning: &Warning) {
    tracing::warn!("{warning}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides_and_plugins_are_not_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let (file, beside) = (directory.path().join("messaging.yaml"), directory.path().join("triage.toml"));
        let look = || Seen::look(Some(&file), directory.path());
        let before = look();
        fs::write(&file, "a").unwrap();
        let written = look();
        assert_ne!(before, written);
        fs::write(&file, "a").unwrap();
        fs::write(directory.path().join("triage.wasm"), "a").unwrap();
        assert_eq!(written, look());
        fs::write(&beside, "a").unwrap();
        assert_ne!(written, look());
        fs::remove_file(&beside).unwrap();
        assert_eq!(written, look());
    }
}
