//! Directories that are no store of ours, or cannot be used: one sentence that says what to do, and nothing touched.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use rusqlite::Connection;

use super::support::{commit, message, open, put, texts};
use crate::store::{LaneId, Settings, Store, StoreError, check, open::marker};

/// Every file of a directory with its content.
fn content(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let file = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    entries.map(file).collect()
}

/// Opens, and sees that it is refused in one sentence, with nothing touched.
fn refused(directory: &Path) -> StoreError {
    let before = content(directory);
    let error = Store::open(Settings::new(directory)).unwrap_err();
    assert_eq!(content(directory), before, "{error}");
    let text = error.to_string();
    assert!(!text.contains('\n') && !text.ends_with('.') && text.len() < 400, "{text}");
    error
}

fn a_store(directory: &Path) -> LaneId {
    let store = open(directory);
    let lane = LaneId::new(store.create_queue("orders").unwrap(), 5);
    commit(&store, (1..=3000).map(|sequence| put(lane.key(sequence), &message(&"text".repeat(50)))).collect());
    lane
}

#[test]
fn a_second_process_is_told_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lock = directory.path().join("store.lock");
    let text = fs::read_to_string(&lock).unwrap();
    let error = Store::open(Settings::new(directory.path())).unwrap_err();
    let wanted = format!("is in use by process {}; stop it, or give this engine", std::process::id());
    assert!(error.to_string().contains(&wanted), "{error}");
    assert_eq!(fs::read_to_string(&lock).unwrap(), text);
    drop(store);
    open(directory.path());
}

#[test]
fn everything_is_for_this_user_alone() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("a/b");
    let store = open(&directory);
    commit(&store, Vec::new());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let files = content(&directory);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["store.db", "store.db-shm", "store.db-wal", "store.lock"]);
    files.keys().for_each(|name| assert_eq!(mode(&directory.join(name)), 0o600, "{name}"));
}

#[test]
fn a_database_of_somebody_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    Connection::open(directory.path().join("store.db")).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let error = refused(directory.path());
    assert!(error.to_string().ends_with("is a database of another program; give the store a directory of its own"));
}

#[test]
fn files_named_like_ours_are_left_alone() {
    for name in ["store.db", "store.lock"] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(name), "a list of stores, of at least some length to look like a database")
            .unwrap();
        assert!(matches!(refused(directory.path()), StoreError::Foreign { .. }), "{name}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    File::create(&file).unwrap();
    assert!(matches!(Store::open(Settings::new(&file)), Err(StoreError::Foreign { .. })));
    assert!(matches!(
        Store::open(Settings::new(file.join("below"))),
        Err(StoreError::Foreign { .. } | StoreError::Io { .. })
    ));
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    a_store(directory.path());
    let database = directory.path().join("store.db");
    Connection::open(&database)
        .unwrap()
        .execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    let error = refused(directory.path());
    assert!(error.to_string().contains("newer helixmq (layout 99, this one knows 2); start that version"), "{error}");
}

#[test]
fn a_file_that_was_cut_is_not_taken_for_a_store() {
    let directory = tempfile::tempdir().unwrap();
    a_store(directory.path());
    let database = directory.path().join("store.db");
    let length = fs::metadata(&database).unwrap().len();
    for length in [length - 8192, 50, 0] {
        File::options().write(true).open(&database).unwrap().set_len(length).unwrap();
        let error = Store::open(Settings::new(directory.path())).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{length}: {error}");
        assert!(error.to_string().contains("restore a backup"), "{error}");
        assert_eq!(fs::metadata(&database).unwrap().len(), length, "it stays as it is");
    }
    fs::remove_file(&database).unwrap();
    fs::write(directory.path().join("store.db-wal"), "what was not moved yet").unwrap();
    assert!(matches!(refused(directory.path()), StoreError::Damaged { .. }));
}

#[test]
fn a_torn_page_is_found_where_the_disk_has_failed_before() {
    let directory = tempfile::tempdir().unwrap();
    let lane = a_store(directory.path());
    let database = directory.path().join("store.db");
    let whole = fs::read(&database).unwrap();
    let mut torn = whole.clone();
    let middle = torn.len() / 2 / 8192 * 8192;
    torn[middle..middle + 4096].fill(0);
    fs::write(&database, torn).unwrap();
    marker::leave(directory.path(), "flushing failed");
    assert!(!check(directory.path()).unwrap().findings.is_empty());
    let error = Store::open(Settings::new(directory.path())).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert_eq!(check(directory.path()).unwrap().failed.map(|text| text.ends_with("flushing failed")), Some(true));
    // With the disk replaced and the file restored it passes, and is not looked at again.
    fs::write(&database, whole).unwrap();
    let store = open(directory.path());
    assert_eq!(marker::find(directory.path()).unwrap(), None);
    assert_eq!(texts(&store, lane, 2990).len(), 10);
}

#[test]
fn a_store_that_was_begun_and_never_finished_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("store.db.part"), "half").unwrap();
    let store = open(directory.path());
    store.create_queue("orders").unwrap();
    assert!(!directory.path().join("store.db.part").exists());
}
