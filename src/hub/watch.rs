//! Tells that something in a directory changed. What changed, and whether it matters, is found out by looking (content
//! decides): events are lost, doubled and differ between file systems, and a ConfigMap swaps a symbolic link.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// How often to look without being told: for file systems that tell nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Watches directories. Dropping it ends the watching.
#[derive(Debug)]
pub struct Watcher {
    /// Kept: dropping it ends its thread.
    inner: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    changed: mpsc::Receiver<()>,
    /// Kept, so that `changed` never ends.
    _changed: mpsc::Sender<()>,
}

impl Watcher {
    /// Watches nothing yet. Where the system has no way to tell, looking from time to time has to do.
    #[must_use]
    pub fn new() -> Self {
        let (tell, changed) = mpsc::channel(1);
        let teller = tell.clone();
        let inner = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| !event.kind.is_access() || is_close_after_write(&event)) {
                // Full: somebody has been told already and has not looked yet.
                teller.try_send(()).ok();
            }
        });
        let inner = inner
            .map_err(|error| {
                tracing::warn!("the system does not tell of changes, looking every {LOOK_EVERY:?}: {error}")
            })
            .ok();
        Self { inner, watched: BTreeSet::new(), changed, _changed: tell }
    }

    /// Watches one more directory; one that is not there (yet) is only looked at from time to time.
    pub fn watch(&mut self, directory: &Path) {
        if self.watched.contains(directory) {
            return;
        }
        let Some(inner) = &mut self.inner else { return };
        match inner.watch(directory, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(directory.to_owned());
            }
            Err(error) => tracing::debug!(directory = %directory.display(), "not watched: {error}"),
        }
    }

    /// Waits until something may have changed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn changed(&mut self) {
        tokio::select! {
            _ = self.changed.recv() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl Default for Watcher {
    fn default() -> Self {
        Self::new()
    }
}

fn is_close_after_write(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    matches!(event.kind, EventKind::Access(AccessKind::Close(AccessMode::Write)))
}
