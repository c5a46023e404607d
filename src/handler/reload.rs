//! Which plugin files there are and which of them changed, by content. Looks at a directory and remembers; loads
//! nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// A file that changed less than this ago may still be written.
pub const SETTLE: Duration = Duration::from_millis(15);
/// A file that is not whole is looked at again until it has been still for this long; then it is refused.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What was seen last of a plugins directory.
#[derive(Debug, Default)]
pub struct Directory {
    seen: BTreeMap<String, Seen>,
    /// Files that were not whole, and since when they are as they are. By our own clock: what a file says of its time may
    /// be wrong.
    parts: BTreeMap<String, (Stamp, Instant)>,
}

/// One file, as it was when it was last acted upon.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    stamp: Stamp,
    digest: Option<String>,
}

/// What changes when a file does, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

/// What to do about one plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Look at this file: it is new, or may have changed.
    Look {
        /// Name of the plugin.
        name: String,
        /// Its file.
        path: PathBuf,
        /// As it is now.
        stamp: Stamp,
        /// SHA-256 of the content that was last acted upon.
        known: Option<String>,
    },
    /// Its file is gone.
    Gone {
        /// Name of the plugin.
        name: String,
    },
}

impl Directory {
    /// What differs from what was seen last.
    ///
    /// # Errors
    /// The directory cannot be read; nothing is forgotten then.
    pub fn changes(&self, directory: &Path) -> io::Result<Vec<Change>> {
        let files = plugin_files(directory)?;
        let mut changes: Vec<Change> = self
            .seen
            .keys()
            .filter(|name| !files.contains_key(*name))
            .map(|name| Change::Gone { name: name.clone() })
            .collect();
        for (name, path) in files {
            let Ok(stamp) = Stamp::of(&path) else { continue };
            let seen = self.seen.get(&name);
            if seen.is_none_or(|seen| seen.stamp != stamp) {
                changes.push(Change::Look { name, path, stamp, known: seen.and_then(|seen| seen.digest.clone()) });
            }
        }
        Ok(changes)
    }

    /// This content of the file has been acted upon.
    pub fn saw(&mut self, name: &str, stamp: Stamp, digest: Option<String>) {
        self.parts.remove(name);
        self.seen.insert(name.to_owned(), Seen { stamp, digest });
    }

    /// This file is not whole. Returns whether it may still become so: it changed less than [`PATIENCE`] ago.
    pub fn saw_part(&mut self, name: &str, stamp: &Stamp) -> bool {
        match self.parts.get(name) {
            Some((seen, since)) if seen == stamp => since.elapsed() < PATIENCE,
            _ => {
                self.parts.insert(name.to_owned(), (stamp.clone(), Instant::now()));
                true
            }
        }
    }

    /// The next look acts upon the file again, or upon its absence.
    pub fn forget(&mut self, name: &str) {
        self.seen.remove(name);
    }
}

impl Stamp {
    /// Of a file, behind symbolic links.
    ///
    /// # Errors
    /// The file is gone or cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path)?;
        Ok(Self { modified: metadata.modified().ok(), bytes: metadata.len(), inode: metadata.ino() })
    }

    /// Time since the file was changed; `None` where the clock or the file system cannot tell.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.modified?.elapsed().ok()
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Every `<name>.wasm`, by name. Hidden and temporary files are left out.
fn plugin_files(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let is_wasm = path.extension().is_some_and(|extension| extension == "wasm");
        if let Some(name) = name.filter(|name| is_wasm && is_plugin_name(name))
            && path.is_file()
        {
            files.insert(name.to_owned(), path);
        }
    }
    Ok(files)
}

/// Whether a file may be called so: what appears in metrics, paths and logs stays plain.
#[must_use]
pub fn is_plugin_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.chars().all(|character| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changes: &[Change]) -> Vec<(&str, bool)> {
        changes
            .iter()
            .map(|change| match change {
                Change::Look { name, .. } => (name.as_str(), true),
                Change::Gone { name } => (name.as_str(), false),
            })
            .collect()
    }

    #[test]
    fn sees_new_changed_and_gone_files_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let mut seen = Directory::default();
        for name in ["a.wasm", "b.wasm", ".hidden.wasm", "notes.txt", "c.wasm.part"] {
            fs::write(path(name), "1").expect("written");
        }
        let changes = seen.changes(directory.path()).expect("changes");
        assert_eq!(names(&changes), [("a", true), ("b", true)]);
        for change in changes {
            let Change::Look { name, stamp, .. } = change else { panic!("nothing is gone") };
            seen.saw(&name, stamp, Some("1".into()));
        }
        assert_eq!(seen.changes(directory.path()).expect("changes"), []);
        fs::write(path("a.wasm"), "22").expect("written");
        fs::remove_file(path("b.wasm")).expect("removed");
        assert_eq!(names(&seen.changes(directory.path()).expect("changes")), [("b", false), ("a", true)]);
    }

    #[test]
    fn sees_a_swapped_symbolic_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("v1")).expect("made");
        fs::create_dir(path("v2")).expect("made");
        fs::write(path("v1/h.wasm"), "1").expect("written");
        fs::write(path("v2/h.wasm"), "1").expect("written");
        std::os::unix::fs::symlink(path("v1"), path("data")).expect("linked");
        std::os::unix::fs::symlink(path("data/h.wasm"), path("h.wasm")).expect("linked");
        let mut seen = Directory::default();
        seen.saw("h", Stamp::of(&path("h.wasm")).expect("a stamp"), None);
        assert_eq!(seen.changes(directory.path()).expect("changes"), []);
        std::os::unix::fs::symlink(path("v2"), path("new")).expect("linked");
        fs::rename(path("new"), path("data")).expect("swapped");
        assert_eq!(names(&seen.changes(directory.path()).expect("changes")), [("h", true)]);
    }
}
