//! The directory of a store: made for this user alone, used by one process at a time.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::DATABASE;
use crate::store::StoreError;

/// Held locked by the process that has the store.
const LOCK: &str = "store.lock";

/// A directory in use by this process, until it is dropped.
#[derive(Debug)]
pub(in crate::store) struct Directory {
    path: PathBuf,
    /// Kept: closing it gives the lock back, a crash as well.
    _lock: File,
}

impl Directory {
    /// Makes it where it is not there, and keeps other processes out.
    pub(in crate::store) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |cause| StoreError::io(format!("making {}", path.display()), cause);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(path.join(LOCK));
        let mut lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(path, &mut lock)),
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        say_who(&mut lock).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::store) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }
}

/// For whoever finds it locked.
fn say_who(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())
}

fn locked(path: &Path, lock: &mut File) -> StoreError {
    let mut text = String::new();
    let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
    let holder = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    StoreError::Locked { directory: path.to_owned(), holder }
}
