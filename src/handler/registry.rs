//! Which version of which handler serves. A name has a slot as soon as a route or a file mentions it; lanes look into
//! the slot between two batches, so that a new version starts between deliveries and a running call ends on the version
//! it began with (Invariant 4).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::sync::watch;

use super::Handler;
use crate::message::{HandlerIdentity, UnixMs, now_ms};

/// Receipts kept of each handler.
const RECEIPTS_MAX: usize = 16;

/// All handlers by name.
#[derive(Debug, Default)]
pub struct Registry {
    slots: Mutex<BTreeMap<Arc<str>, Arc<Slot>>>,
}

/// One name, and the version that serves under it.
#[derive(Debug)]
pub struct Slot {
    name: Arc<str>,
    serving: ArcSwapOption<Version>,
    changed: watch::Sender<u64>,
    /// Locked through every change, so that none comes between looking and changing.
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    previous: Option<Arc<Version>>,
    receipts: VecDeque<Receipt>,
}

/// A version that serves, or served.
#[derive(Debug)]
pub struct Version {
    /// What runs.
    pub handler: Arc<dyn Handler>,
    /// Counts the versions of its slot, from 1.
    pub generation: u64,
    /// Since when it serves.
    pub since: UnixMs,
}

/// What came of a change to a handler: the answer to "did my reload take?".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// When.
    pub at: UnixMs,
    /// SHA-256 of the file it is about, where there was one.
    pub digest: Option<String>,
    /// From noticing the file to the result.
    #[serde(rename = "took_ms", serialize_with = "millis")]
    pub took: Duration,
    /// Whether its code came from the compile cache.
    pub cached: bool,
    /// What came of it.
    pub result: ReloadResult,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "reason")]
pub enum ReloadResult {
    /// It serves since then.
    Loaded,
    /// It does not serve, for this reason; the version before it does.
    Refused(String),
    /// The file is gone; its messages wait.
    Removed,
    /// It kept failing; the version before it serves again.
    RolledBack,
}

fn millis<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64() * 1000.0)
}

impl Registry {
    /// The slot of that name, made where there is none.
    pub fn slot(&self, name: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(name) {
            return Arc::clone(slot);
        }
        let name: Arc<str> = name.into();
        let slot = Arc::new(Slot {
            name: Arc::clone(&name),
            serving: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            history: Mutex::default(),
        });
        slots.insert(name, Arc::clone(&slot));
        slot
    }

    /// Every slot, by name.
    #[must_use]
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect()
    }
}

impl Slot {
    /// The name routes use.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The version that serves; `None`: nothing does, and messages wait.
    #[must_use]
    pub fn serving(&self) -> Option<Arc<Version>> {
        self.serving.load_full()
    }

    /// Who serves.
    #[must_use]
    pub fn identity(&self) -> Option<HandlerIdentity> {
        self.serving().map(|version| version.handler.identity().clone())
    }

    /// Puts a version into service from the next delivery on.
    pub fn serve(&self, handler: Arc<dyn Handler>, took: Duration, cached: bool) -> Arc<Version> {
        let mut history = self.history();
        let digest = Some(handler.identity().digest.clone()).filter(|digest| !digest.is_empty());
        let version = self.replace(handler);
        history.previous = version.1;
        history.note(Receipt { at: version.0.since, digest, took, cached, result: ReloadResult::Loaded });
        version.0
    }

    /// Says that a file was not put into service; whatever serves goes on.
    pub fn refuse(&self, digest: Option<String>, took: Duration, reason: String) {
        self.history().note(Receipt {
            at: now_ms(),
            digest,
            took,
            cached: false,
            result: ReloadResult::Refused(reason),
        });
    }

    /// Takes the serving version out of service: its messages wait. Returns whether anything is different for it: a
    /// version served, or a file had been refused.
    pub fn remove(&self) -> bool {
        let mut history = self.history();
        let previous = self.serving.swap(None);
        let refused = matches!(history.receipts.back(), Some(Receipt { result: ReloadResult::Refused(_), .. }));
        if previous.is_none() && !refused {
            return false;
        }
        let digest = previous.map(|previous| previous.handler.identity().digest.clone());
        history.note(Receipt {
            at: now_ms(),
            digest,
            took: Duration::ZERO,
            cached: false,
            result: ReloadResult::Removed,
        });
        self.changed.send_modify(|generation| *generation += 1);
        true
    }

    /// Puts the version before this one into service again, if `failing` still serves and is not older than `within`.
    pub fn roll_back(&self, failing: u64, within: Duration) -> Option<Arc<Version>> {
        let mut history = self.history();
        let serving = self.serving()?;
        let age = Duration::from_millis(now_ms().saturating_sub(serving.since));
        if serving.generation != failing || age > within {
            return None;
        }
        let previous = history.previous.take()?;
        let (version, _) = self.replace(Arc::clone(&previous.handler));
        let digest = Some(version.handler.identity().digest.clone());
        history.note(Receipt {
            at: version.since,
            digest,
            took: Duration::ZERO,
            cached: true,
            result: ReloadResult::RolledBack,
        });
        Some(version)
    }

    /// The last changes, oldest first.
    #[must_use]
    pub fn receipts(&self) -> Vec<Receipt> {
        self.history().receipts.iter().cloned().collect()
    }

    /// Sees every change of the serving version.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of a handler that serves from now on, and the one before. The caller holds the history's lock.
    fn replace(&self, handler: Arc<dyn Handler>) -> (Arc<Version>, Option<Arc<Version>>) {
        let version = Arc::new(Version { handler, generation: *self.changed.borrow() + 1, since: now_ms() });
        let previous = self.serving.swap(Some(Arc::clone(&version)));
        self.changed.send_modify(|generation| *generation += 1);
        (version, previous)
    }
}

impl History {
    fn note(&mut self, receipt: Receipt) {
        if self.receipts.len() == RECEIPTS_MAX {
            self.receipts.pop_front();
        }
        self.receipts.push_back(receipt);
    }
}
