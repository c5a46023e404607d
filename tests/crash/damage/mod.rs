//! What lies on the disk is broken, someone else's, or cannot be written: each time one sentence, nothing made worse, and
//! nothing confirmed that is not safe.
//!
//! [`files`] breaks files between two openings, [`faults`] makes calls fail under a store that is open, [`engine`] looks
//! at the whole program.

mod engine;
mod faults;
mod files;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc::sync_channel},
};

use helixmq::store::{Batch, Change, Need, Settings, Store, StoreError};

use crate::power::model::{Content, Model, Places};

/// The database in a store's directory.
const DATABASE: &str = "store.db";
const LOG: &str = "store.db-wal";

/// Where there is always room.
fn settings(directory: &Path) -> Settings {
    Settings { free_min: 0, ..Settings::new(directory) }
}

/// Submits changes and waits until they are safe, or refused.
fn submit(store: &Store, changes: Vec<Change>, need: Need) -> Result<(), Arc<StoreError>> {
    let (answer, answered) = sync_channel(1);
    let then = Box::new(move |result| answer.send(result).unwrap());
    store.submit(Batch { changes, need, permit: None, then: Some(then) });
    answered.recv().expect("an answer")
}

/// A store with so many steps of work in it. Still open: what was written last is in the log only.
fn worked(directory: &Path, seed: u64, steps: u64) -> (Arc<Store>, Model) {
    let store = Store::open(settings(directory)).unwrap();
    let mut model = Model::new(seed, Places::make(&store).unwrap());
    while model.content.steps < steps {
        submit(&store, model.step(), Need::MustHappen).unwrap();
    }
    (store, model)
}

/// Copies the files of a store as a crash would leave them.
fn crashed(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for (name, content) in files(from) {
        if !name.ends_with("-shm") {
            fs::write(to.path().join(name), content).unwrap();
        }
    }
    to
}

/// Every file in a directory, to see whether one is touched.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    entries.filter(|path| path.is_file()).map(file).collect()
}

/// What opening and reading all of it comes to.
fn read(directory: &Path) -> Result<Content, StoreError> {
    let store = Store::open(settings(directory))?;
    Ok(Content::read(&store)?.unwrap_or_default())
}

/// One sentence that says what to do: what is wrong, then what helps.
#[track_caller]
fn is_a_sentence(error: &StoreError, wanted: &str) {
    let text = error.to_string();
    assert!(text.contains(wanted) && text.contains("; ") && !text.contains('\n'), "{text}");
}
