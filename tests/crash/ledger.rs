//! What was confirmed, in a file that has nothing to do with the engine. Written and synced before it counts as sent.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

pub(crate) struct Ledger {
    path: PathBuf,
    file: Mutex<File>,
}

impl Ledger {
    pub(crate) fn new(path: PathBuf) -> Self {
        let file = File::options().create_new(true).append(true).open(&path).unwrap();
        Self { path, file: Mutex::new(file) }
    }

    /// These were confirmed.
    pub(crate) fn record(&self, ids: &[String]) {
        if ids.is_empty() {
            return;
        }
        let lines = ids.join("\n") + "\n";
        let mut file = self.file.lock().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        file.sync_data().unwrap();
    }

    /// All that was recorded, read from the file.
    pub(crate) fn read(&self) -> BTreeSet<String> {
        read(&self.path)
    }
}

fn read(path: &Path) -> BTreeSet<String> {
    BufReader::new(File::open(path).unwrap()).lines().map(Result::unwrap).collect()
}
