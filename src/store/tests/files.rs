//! The files stay small, open fast, and those of earlier layouts stay readable.

use std::{
    fs,
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use flate2::read::GzDecoder;

use super::support::{ask, commit, message, open, put, texts};
use crate::store::{Change, LaneId, Noted, Store, StoreError, check, write::Files};

/// A store of each layout that was ever released, made by the version that
/// released it, with two messages in a queue, one that waits, and one in a topic that a group tries again.
const LAYOUTS: &[&str] = &["tests/fixtures/store/layout-1.db.gz"];

#[test]
fn a_store_of_every_earlier_layout_opens_with_all_that_is_in_it() {
    for layout in LAYOUTS {
        let directory = tempfile::tempdir().unwrap();
        let mut database = Vec::new();
        GzDecoder::new(fs::File::open(layout).unwrap()).read_to_end(&mut database).unwrap();
        fs::write(directory.path().join("store.db"), database).unwrap();
        let store = open(directory.path());
        let catalog = store.catalog().unwrap();
        let lane = LaneId::new(catalog.queues[0].id, 5);
        assert_eq!(texts(&store, lane, 0), ["first", "second"], "{layout}");
        let partition = catalog.topics[0].partitions[0].id;
        let page = ask(&store, move |reader| reader.log_page(partition, 0, 9, 9, 999));
        assert_eq!(page[0].message.headers.get("a"), Some("1"), "{layout}");
        let group = &catalog.groups[0];
        assert_eq!((group.progress.len(), group.retries.len()), (1, 1), "{layout}");
        let waiting = ask(&store, move |reader| reader.queue_later(lane.queue(), None, 9));
        assert_eq!(waiting.len(), 1, "{layout}");
        drop(store);
        assert_eq!(check(directory.path()).unwrap().findings, [""; 0], "{layout}");
    }
}

fn lane(store: &Store) -> LaneId {
    LaneId::new(store.create_queue("orders").unwrap(), 5)
}

fn database_bytes(directory: &Path) -> u64 {
    fs::metadata(directory.join("store.db")).unwrap().len()
}

#[test]
fn a_backlog_that_was_handled_gives_its_space_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    let large = message(&"x".repeat(8000));
    commit(&store, (1..=4000).map(|sequence| put(lane.key(sequence), &large)).collect());
    let remove = |sequence| Change::Remove { key: lane.key(sequence), bytes: 8000, noted: Noted::Nothing };
    commit(&store, (1..=3900).map(remove).collect());
    let mut files = Files::new(directory.path().join("store.db"));
    files.tend(&store.shared, true);
    while files.has_work() {
        files.tend(&store.shared, true);
    }
    store.close();
    let kept = 100 * 8192;
    let free = 8 * 1024 * 1024;
    assert!(database_bytes(directory.path()) < 2 * kept + free, "{}", database_bytes(directory.path()));
    assert_eq!(check(directory.path()).unwrap().findings, [""; 0]);
}

#[test]
fn space_is_reused_and_the_log_begins_anew_however_much_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    let reads = Arc::new(AtomicBool::new(true));
    // Two readers, one after the other without a gap: some state of the database is always in use.
    for _ in 0..2 {
        read_on(&store, lane, &reads);
    }
    let large = message(&"x".repeat(32_000));
    let (mut log_max, each) = (0, 64);
    for round in 0..60 {
        let first = round * each + 1;
        commit(&store, (first..first + each).map(|sequence| put(lane.key(sequence), &large)).collect());
        let remove = |sequence| Change::Remove { key: lane.key(sequence), bytes: 32_000, noted: Noted::Nothing };
        commit(&store, (first..first + each).map(remove).collect());
        log_max = log_max.max(fs::metadata(directory.path().join("store.db-wal")).unwrap().len());
    }
    reads.store(false, Ordering::Relaxed);
    store.close();
    assert!(log_max < 96 * 1024 * 1024, "the log has grown to {log_max}");
    assert!(database_bytes(directory.path()) < 16 * 1024 * 1024, "{}", database_bytes(directory.path()));
}

/// Reads, and when that is done reads again.
fn read_on(store: &Arc<Store>, lane: LaneId, reads: &Arc<AtomicBool>) {
    let again = (Arc::downgrade(store), Arc::clone(reads));
    store.read(
        move |reader| reader.queue_page(lane, 0, 100, usize::MAX).map(|page| page.messages),
        move |page: Result<_, StoreError>| {
            let (store, reads) = again;
            if let Some(store) = store.upgrade().filter(|_| page.is_ok() && reads.load(Ordering::Relaxed)) {
                read_on(&store, lane, &reads);
            }
        },
    );
}
