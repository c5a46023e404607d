//! The directory of a store: made for this user alone, used by one process at a time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{DATABASE, LOCK, LOCK_TEXT, inspect::failed};
use crate::store::StoreError;

/// How long a lock is waited for: a process that was killed holds its own until the system has taken its memory back.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Between two tries.
const LOCK_STEP: Duration = Duration::from_millis(20);

/// A directory in use by this process, until it is dropped.
#[derive(Debug)]
pub(in crate::store) struct Directory {
    path: PathBuf,
    /// Kept: closing it gives the lock back, and so does a crash.
    _lock: File,
}

impl Directory {
    /// Makes it where it is not there, and keeps other processes out.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |cause| failed(path, "making", cause);
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
            sync(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
                .map_err(failed)?;
        }
        let mut lock = private().create(true).truncate(false).open(path.join(LOCK)).map_err(failed)?;
        match self::lock(|| lock.try_lock()) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(path, &mut lock)),
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        say_who(&mut lock).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where the database is, or will be.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Has a file made beside its place, and puts it there once it is whole: what a crash leaves behind is no store.
    pub(super) fn make_database(&self, make: impl FnOnce(&Path) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let failed = |cause| failed(&self.path, "making", cause);
        let part = self.path.join(format!("{DATABASE}.part"));
        for left in [part.clone(), self.path.join(format!("{DATABASE}.part-journal"))] {
            match fs::remove_file(left) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(cause)),
                _ => {}
            }
        }
        // SQLite gives what it makes beside it the same mode.
        let file = private().create_new(true).open(&part).map_err(failed)?;
        make(&part)?;
        file.sync_all().and_then(|()| fs::rename(&part, self.database())).map_err(failed)?;
        sync(&self.path).map_err(failed)
    }
}

/// Tries a lock until it is had, or somebody means to keep it. Blocking.
///
/// # Errors
/// What the last try said.
pub fn lock(mut attempt: impl FnMut() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match attempt() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOCK_STEP),
            said => return said,
        }
    }
}

/// Makes names in a directory safe.
pub(in crate::store) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// For this user alone.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// For whoever finds it locked.
fn say_who(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{LOCK_TEXT}{}", std::process::id())
}

fn locked(path: &Path, lock: &mut File) -> StoreError {
    let mut text = String::new();
    let read = lock.read_to_string(&mut text);
    let pid = text.trim().strip_prefix(LOCK_TEXT.trim()).and_then(|pid| pid.trim().parse::<u32>().ok());
    let holder = match pid.filter(|_| read.is_ok()) {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    };
    StoreError::Locked { directory: path.to_owned(), holder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_a_process_that_is_dying_is_waited_for() {
        let mut tries = 0;
        let had = lock(|| {
            tries += 1;
            if tries < 4 { Err(TryLockError::WouldBlock) } else { Ok(()) }
        });
        assert!(had.is_ok() && tries == 4, "{had:?} after {tries}");
        let broken = || Err(TryLockError::Error(io::ErrorKind::Other.into()));
        assert!(matches!(lock(broken), Err(TryLockError::Error(_))));
    }
}
