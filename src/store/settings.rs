//! What an operator decides about a store.

use std::path::PathBuf;

/// Where a store lies, and how much of the disk it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A directory for it alone; made where it is not there.
    pub directory: PathBuf,
    /// Publishers are refused while the file system has fewer bytes free than this.
    pub free_min: u64,
    /// Publishers are refused while what is kept takes more bytes than this. `None`: no limit but the disk's. The
    /// write-ahead log comes on top: 64 MiB, more only while a long read holds it.
    pub bytes_max: Option<u64>,
    /// Only the test that shows why it must be `Full` says otherwise.
    #[doc(hidden)]
    pub synchronous: Synchronous,
}

/// When a commit waits for the disk.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// Always: what is confirmed survives a power loss.
    #[default]
    Full,
    /// Only at checkpoints: what was confirmed in between is lost with the power.
    Normal,
}

/// Room that is left for settlements, and for whoever has to clear up. Source: RabbitMQ's `disk_free_limit` is 50 MB,
/// which one write-ahead log of ours can take at once.
const FREE_MIN: u64 = 256 * 1024 * 1024;

impl Settings {
    /// The defaults, in that directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), free_min: FREE_MIN, bytes_max: None, synchronous: Synchronous::default() }
    }
}
