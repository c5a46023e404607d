//! Whether the files that are open are still those that the next process finds: what is deleted, or moved away, under a
//! running engine can be written and flushed all the same, and is gone with it.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The database and its write-ahead log, as they were when they were opened.
#[derive(Debug)]
pub(super) struct Identity(Vec<Known>);

#[derive(Debug)]
struct Known {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of a database that is open: SQLite keeps both files as long as that lasts.
    pub(super) fn of(database: &Path) -> Self {
        let known = |path: PathBuf| {
            let (device, inode) = look(&path).ok()?;
            Some(Known { path, device, inode })
        };
        Self([database.to_owned(), database.with_extension("db-wal")].into_iter().filter_map(known).collect())
    }

    /// What happened to one of them, if something did. What cannot be seen is no reason to fail.
    pub(super) fn lost(&self) -> Option<String> {
        self.0.iter().find_map(|known| match look(&known.path) {
            Ok(found) if found == (known.device, known.inode) => None,
            Ok(_) => Some(format!("{} was replaced by another file while it was in use", known.path.display())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Some(format!("{} was deleted or moved away while it was in use", known.path.display()))
            }
            Err(_) => None,
        })
    }
}

fn look(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_gone_or_another_is_missed() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("store.db");
        let log = directory.path().join("store.db-wal");
        [&database, &log].into_iter().for_each(|path| fs::write(path, "1").unwrap());
        let identity = Identity::of(&database);
        fs::write(&database, "changed").unwrap();
        assert_eq!(identity.lost(), None);
        let other = directory.path().join("other");
        fs::write(&other, "2").unwrap();
        fs::rename(&log, directory.path().join("kept")).unwrap();
        assert!(identity.lost().unwrap().ends_with("store.db-wal was deleted or moved away while it was in use"));
        fs::rename(other, &log).unwrap();
        assert!(identity.lost().unwrap().ends_with("store.db-wal was replaced by another file while it was in use"));
        drop(directory);
        assert!(identity.lost().unwrap().contains("store.db was deleted"));
    }
}
