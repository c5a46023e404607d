//! Room on disk: publishers are refused while there is some left for those who consume and clear up, and for what
//! follows from messages that are there.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Settings, StoreStatus, state::State};

/// How long what was seen holds, unless much is written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much is written before the next look, at most.
const LOOK_BYTES: u64 = 16 * 1024 * 1024;
/// What follows from messages that are there may take this part of a limit beyond it: of what must stay free it leaves
/// as much, and of what may be kept it takes as much more.
const RESERVE_SHARE: u64 = 4;

/// What there is, and how much must be left.
#[derive(Debug)]
pub(super) struct Space {
    directory: PathBuf,
    free_min: u64,
    bytes_max: Option<u64>,
    /// Of the database, without pages that are free for reuse.
    kept: AtomicU64,
    /// Written since the last look.
    written: AtomicU64,
    looked: Mutex<Option<Instant>>,
    /// Not even what follows from messages that are there has room.
    used_up: AtomicBool,
}

impl Space {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            directory: settings.directory.clone(),
            free_min: settings.free_min,
            bytes_max: settings.bytes_max,
            kept: AtomicU64::new(0),
            written: AtomicU64::new(0),
            looked: Mutex::new(None),
            used_up: AtomicBool::new(false),
        }
    }

    /// So many bytes go to the disk.
    pub(super) fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many are kept.
    pub(super) fn keeps(&self, bytes: u64) {
        self.kept.store(bytes, Ordering::Relaxed);
    }

    /// Whether there is room for what follows from messages that are there.
    pub(super) fn has_reserve(&self) -> bool {
        !self.used_up.load(Ordering::Relaxed)
    }

    /// A write has found no room: that holds for a while, whatever the file system says.
    pub(super) fn ran_out(&self, state: &State, cause: &str) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.used_up.store(true, Ordering::Relaxed);
        let limit = format!("there is no room for the store {} ({cause}); free some", self.directory.display());
        announce(state, StoreStatus::NoSpace { limit: limit.into() });
    }

    /// Whether a look is due.
    pub(super) fn is_stale(&self) -> bool {
        let bytes = self.bytes_max.map_or(LOOK_BYTES, |max| LOOK_BYTES.min(max / 16));
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) || self.written.load(Ordering::Relaxed) > bytes
    }

    /// Looks, and says so where it changes what publishers are told.
    pub(super) fn look(&self, state: &State) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.written.store(0, Ordering::Relaxed);
        let low = !matches!(state.status(), StoreStatus::Ready);
        // Once it is low there must be some more than the limit, or every message would turn it.
        let margin = |limit: u64| if low { limit / 16 } else { 0 };
        let kept = self.kept.load(Ordering::Relaxed);
        let free = free(&self.directory);
        let is_over = self.bytes_max.is_some_and(|max| kept > max.saturating_add(max / RESERVE_SHARE));
        let is_under = free.as_ref().is_ok_and(|free| *free < self.free_min / RESERVE_SHARE);
        self.used_up.store(is_over || is_under, Ordering::Relaxed);
        if let Some(max) = self.bytes_max.filter(|max| kept > max - margin(*max)) {
            let limit = format!(
                "the store {} keeps {} MiB and may keep {} MiB (bytes_max); let messages be handled, or raise it",
                self.directory.display(),
                mib(kept),
                mib(max)
            );
            return announce(state, StoreStatus::NoSpace { limit: limit.into() });
        }
        match free {
            Ok(free) if free < self.free_min.saturating_add(margin(self.free_min)) => {
                let limit = format!(
                    "the file system of the store {} has {} MiB free and must keep {} MiB (free_min); free some",
                    self.directory.display(),
                    mib(free),
                    mib(self.free_min)
                );
                announce(state, StoreStatus::NoSpace { limit: limit.into() });
            }
            Ok(_) => announce(state, StoreStatus::Ready),
            // What cannot be seen is no reason to refuse: a write that finds no room says so itself.
            Err(error) => tracing::debug!(%error, "the free space of the store could not be read"),
        }
    }
}

/// Bytes free for this user.
fn free(directory: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(directory)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

fn mib(bytes: u64) -> u64 {
    bytes / (1024 * 1024)
}

/// Sets it, and logs what is news.
fn announce(state: &State, status: StoreStatus) {
    let text = match &status {
        StoreStatus::NoSpace { limit } => Some(std::sync::Arc::clone(limit)),
        _ => None,
    };
    if state.set(status) {
        match text {
            Some(limit) => tracing::warn!(%limit, "publishers are refused until there is room"),
            None => tracing::info!("there is room again, publishers are accepted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(settings: Settings, kept: u64, before: StoreStatus) -> StoreStatus {
        let (space, state) = (Space::new(&settings), State::new(&settings.directory));
        state.set(before);
        space.keeps(kept);
        assert!(space.is_stale());
        space.look(&state);
        assert!(!space.is_stale());
        state.status()
    }

    #[test]
    fn room_must_be_there_with_a_margin_once_it_was_not() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { free_min: 0, bytes_max: Some(1000), ..Settings::new(directory.path()) };
        let low = || StoreStatus::NoSpace { limit: "low".into() };
        assert_eq!(looked(settings.clone(), 1000, StoreStatus::Ready), StoreStatus::Ready);
        assert!(matches!(looked(settings.clone(), 1001, StoreStatus::Ready), StoreStatus::NoSpace { .. }));
        assert!(matches!(looked(settings.clone(), 1000, low()), StoreStatus::NoSpace { .. }));
        assert_eq!(looked(settings, 900, low()), StoreStatus::Ready);
    }

    #[test]
    fn the_reserve_is_used_up_long_after_publishers_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let of = |free_min, bytes_max, kept| {
            let settings = Settings { free_min, bytes_max, ..Settings::new(directory.path()) };
            let (space, state) = (Space::new(&settings), State::new(&settings.directory));
            space.keeps(kept);
            space.look(&state);
            (matches!(state.status(), StoreStatus::NoSpace { .. }), space.has_reserve())
        };
        assert_eq!(of(0, Some(1000), 1000), (false, true));
        assert_eq!(of(0, Some(1000), 1250), (true, true));
        assert_eq!(of(0, Some(1000), 1251), (true, false));
        let free = free(directory.path()).unwrap();
        // Others use the disk as well.
        assert_eq!(of(free * 2, None, 0), (true, true));
        assert_eq!(of(free * 8, None, 0), (true, false));
        assert_eq!(of(free * 8, Some(1000), 1100), (true, false), "either is enough");
    }

    #[test]
    fn a_file_system_with_too_little_left_refuses_in_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { free_min: u64::MAX, ..Settings::new(directory.path()) };
        let StoreStatus::NoSpace { limit } = looked(settings, 0, StoreStatus::Ready) else { panic!("refuses") };
        assert!(limit.contains("MiB free and must keep 17592186044415 MiB"), "{limit}");
    }
}
