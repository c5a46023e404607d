//! A file that says that the disk failed: it outlives the process, so that whoever opens the store next verifies it
//! before anything is confirmed again.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use super::directory::{private, sync};
use crate::message::{UnixMs, now_ms};

/// Its name in the store's directory.
const MARKER: &str = "failed";

/// Leaves it. The disk that failed may not take it: then the log is all that says so.
pub(in crate::store) fn leave(directory: &Path, what: &str) {
    let write = || -> io::Result<()> {
        let mut file = private().create(true).truncate(true).open(directory.join(MARKER))?;
        writeln!(file, "at {}: {what}", time(now_ms()))?;
        file.sync_all()?;
        sync(directory)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, "it could not be written down that the store has failed");
    }
}

/// For people, in UTC.
fn time(at: UnixMs) -> String {
    let found = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    found.map_or_else(|| format!("{at} ms since 1970"), |time| time.to_string())
}

/// What it says, if it is there.
pub(in crate::store) fn find(directory: &Path) -> io::Result<Option<String>> {
    match fs::read(directory.join(MARKER)) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes it away: the store was verified.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    fs::remove_file(directory.join(MARKER))?;
    sync(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_can_be_read() {
        assert_eq!(time(1_767_225_600_123), "2026-01-01T00:00:00.123Z");
        assert_eq!(time(u64::MAX), "18446744073709551615 ms since 1970");
    }
}
