//! A disk that is full, and one that fails.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

use rusqlite::{Connection, ffi};

use super::support::{admitted, ask, commit, flush, follows, message, open, put, submit, texts};
use crate::store::{Batch, Change, LaneId, Need, Noted, Settings, Store, StoreError, StoreStatus, check, open::marker};

fn lane(store: &Store) -> LaneId {
    LaneId::new(store.create_queue("orders").unwrap(), 5)
}

/// The next commits come to these.
fn fault(store: &Store, codes: &[i32]) {
    *store.shared.faults.lock().unwrap() = codes.iter().rev().copied().collect();
}

/// The most that the database may grow to, as a disk would have it.
fn pages_max(store: &Store, pages: i64) {
    let set =
        |connection: &mut Connection| connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()));
    store.shared.owner.with(set).unwrap().unwrap();
}

#[test]
fn nothing_is_confirmed_after_a_flush_that_failed_until_the_store_was_verified() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    commit(&store, vec![put(lane.key(1), &message("safe"))]);
    fault(&store, &[ffi::SQLITE_IOERR_FSYNC]);
    let answer = submit(&store, Need::MustHappen, vec![put(lane.key(2), &message("not safe"))]);
    assert!(matches!(&*answer.blocking_recv().unwrap().unwrap_err(), StoreError::Failed { .. }));
    // Everything that comes later as well, and readers do not show what may not be there tomorrow.
    let later = submit(&store, Need::MayFail, vec![put(lane.key(3), &message("later"))]);
    assert!(matches!(&*later.blocking_recv().unwrap().unwrap_err(), StoreError::Failed { .. }));
    assert!(matches!(flush(&store), Err(StoreError::Failed { .. })));
    assert!(matches!(admitted(&store), Err(StoreError::Failed { .. })));
    assert!(matches!(store.create_queue("another"), Err(StoreError::Failed { .. })));
    assert!(matches!(store.catalog(), Err(StoreError::Failed { .. })));
    assert!(matches!(store.status(), StoreStatus::Failed { .. }));
    let (sender, answer) = mpsc::sync_channel(1);
    store.read(
        move |reader| reader.queue_page(lane, 0, 1, 1).map(|page| page.messages),
        move |result| sender.send(result).unwrap(),
    );
    assert!(matches!(answer.recv().unwrap(), Err(StoreError::Failed { .. })));
    drop(store);
    let marked = marker::find(directory.path()).unwrap().unwrap();
    assert!(marked.starts_with("at 20") && marked.contains("Z: "), "{marked}");
    let store = open(directory.path());
    assert_eq!(marker::find(directory.path()).unwrap(), None, "verified");
    assert_eq!(texts(&store, lane, 0), ["safe"]);
    admitted(&store).unwrap();
}

#[test]
fn a_page_that_cannot_be_read_stops_everything_before_more_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    commit(&store, (1..=300).map(|sequence| put(lane.key(sequence), &message(&"x".repeat(1000)))).collect());
    let torn: StoreError = StoreError::Damaged { what: "page 7 is torn".to_owned() };
    let (sender, answer) = mpsc::sync_channel(1);
    store.read(move |_| Err::<(), _>(torn), move |result| sender.send(result).unwrap());
    assert!(matches!(answer.recv().unwrap(), Err(StoreError::Damaged { .. })));
    assert!(matches!(store.status(), StoreStatus::Failed { what } if what.contains("page 7")));
    assert!(matches!(admitted(&store), Err(StoreError::Failed { .. })));
}

#[test]
fn nothing_is_confirmed_into_files_that_were_deleted() {
    let lose: [fn(&Path); 4] = [
        |directory| fs::remove_dir_all(directory).unwrap(),
        |directory| fs::remove_file(directory.join("store.db")).unwrap(),
        |directory| fs::remove_file(directory.join("store.db-wal")).unwrap(),
        |directory| {
            fs::copy(directory.join("store.db"), directory.join("other")).unwrap();
            fs::rename(directory.join("other"), directory.join("store.db")).unwrap();
        },
    ];
    for (round, lose) in lose.into_iter().enumerate() {
        let around = tempfile::tempdir().unwrap();
        let directory = around.path().join("store");
        let store = open(&directory);
        let lane = lane(&store);
        commit(&store, vec![put(lane.key(1), &message("first"))]);
        lose(&directory);
        if round % 2 == 0 {
            let answer = submit(&store, Need::MustHappen, vec![put(lane.key(2), &message("second"))]);
            let error = answer.blocking_recv().unwrap().unwrap_err();
            assert!(matches!(&*error, StoreError::Failed { what } if what.contains("while it was in use")), "{error}");
        } else {
            // Noticed as well while nothing comes.
            store.shared.look();
        }
        assert!(matches!(store.status(), StoreStatus::Failed { .. }));
        assert!(matches!(admitted(&store), Err(StoreError::Failed { .. })));
        assert!(matches!(store.create_queue("another"), Err(StoreError::Failed { .. })));
    }
}

#[test]
fn another_process_that_writes_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    let other = Connection::open(directory.path().join("store.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; INSERT INTO meta VALUES ('operator', 'was here')").unwrap();
    let answer = submit(&store, Need::MayFail, vec![put(lane.key(1), &message("text"))]);
    other.execute_batch("COMMIT").unwrap();
    answer.blocking_recv().unwrap().unwrap();
}

#[test]
fn what_was_confirmed_is_there_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    commit(&store, (1..=100).map(|sequence| put(lane.key(sequence), &message("x"))).collect());
    // As the files are now, without being closed.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.db-wal", "store.lock"] {
        fs::copy(directory.path().join(name), crashed.path().join(name)).unwrap();
    }
    let store = open(crashed.path());
    let queue = &store.catalog().unwrap().queues[0];
    assert_eq!((queue.lanes[0].count, queue.sequence_next > 100), (100, true));
}

#[test]
fn a_full_disk_refuses_publishers_keeps_settlements_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Settings { free_min: 0, ..Settings::new(directory.path()) }).unwrap();
    let lane = lane(&store);
    commit(&store, vec![put(lane.key(1), &message("first"))]);
    // Twice without room: with the publish, and for the settlement alone.
    fault(&store, &[ffi::SQLITE_FULL, ffi::SQLITE_IOERR_SHMSIZE]);
    let both = store.shared.owner.with(|_| {
        // The writer cannot begin before both are there.
        let publish = submit(&store, Need::MayFail, vec![put(lane.key(2), &message("second"))]);
        let remove = Change::Remove { key: lane.key(1), bytes: 5, noted: Noted::Nothing };
        (publish, submit(&store, Need::MustHappen, vec![remove]))
    });
    let (publish, settle) = both.unwrap();
    let error = publish.blocking_recv().unwrap().unwrap_err();
    assert!(matches!(&*error, StoreError::NoSpace { limit } if limit.contains("free some")), "{error}");
    settle.blocking_recv().unwrap().unwrap();
    assert_eq!(texts(&store, lane, 0), [""; 0]);
    store.shared.space.ran_out(&store.shared.state, "again");
    assert!(matches!(follows(&store), Err(StoreError::NoSpace { .. })), "there really is no room");
    store.shared.space.look(&store.shared.state);
    assert_eq!(store.status(), StoreStatus::Ready);
    admitted(&store).unwrap();
    commit(&store, vec![put(lane.key(3), &message("third"))]);
    drop(store);
    assert_eq!(check(directory.path()).unwrap().findings, [""; 0], "what was refused has left no trace");
}

#[test]
fn results_and_letters_have_room_where_publishers_have_none() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { free_min: 0, bytes_max: Some(1 << 20), ..Settings::new(directory.path()) };
    let store = Store::open(settings).unwrap();
    let kept = |bytes| {
        store.shared.space.keeps(bytes);
        store.shared.space.look(&store.shared.state);
        (admitted(&store), follows(&store))
    };
    assert!(matches!(kept(1 << 20), (Ok(()), Ok(()))));
    assert!(matches!(kept((1 << 20) + (1 << 18)), (Err(StoreError::NoSpace { .. }), Ok(()))));
    assert!(matches!(kept(1 << 21), (Err(StoreError::NoSpace { .. }), Err(StoreError::NoSpace { .. }))));
    store.close();
    assert!(matches!(follows(&store), Err(StoreError::NoSpace { .. } | StoreError::Closed)));
}

#[test]
fn a_disk_that_really_is_full_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Settings { free_min: 0, ..Settings::new(directory.path()) }).unwrap();
    let lane = lane(&store);
    pages_max(&store, 200);
    let large = message(&"x".repeat(20_000));
    let answers =
        (1..=200).map(|sequence| (sequence, submit(&store, Need::MayFail, vec![put(lane.key(sequence), &large)])));
    let (kept, refused): (Vec<_>, Vec<_>) =
        answers.map(|(sequence, answer)| (sequence, answer.blocking_recv().unwrap().is_ok())).partition(|kept| kept.1);
    assert!(kept.len() > 10 && refused.len() > 10, "{} and {}", kept.len(), refused.len());
    // Those that are there are handled, and then there is room again.
    let remove =
        |(sequence, _): &(u64, bool)| Change::Remove { key: lane.key(*sequence), bytes: 20_000, noted: Noted::Nothing };
    commit(&store, kept.iter().map(remove).collect());
    let answer = submit(&store, Need::MayFail, vec![put(lane.key(201), &large)]);
    answer.blocking_recv().unwrap().unwrap();
    drop(store);
    assert_eq!(check(directory.path()).unwrap().findings, [""; 0]);
}

#[test]
fn a_limit_on_bytes_refuses_publishers_until_messages_were_handled() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = Settings { bytes_max: Some(1024 * 1024), ..Settings::new(directory.path()) };
    settings.free_min = 0;
    let store = Store::open(settings).unwrap();
    let lane = lane(&store);
    let large = message(&"x".repeat(20_000));
    let key = |sequence| lane.key(sequence);
    let filled = (1..1000).find(|sequence| {
        commit(&store, vec![put(key(*sequence), &large)]);
        admitted(&store).is_err()
    });
    let filled = filled.expect("the limit holds");
    // No sooner; how much later is a matter of how often the space is looked at, and of how busy the machine is.
    assert!(filled >= 40, "{filled}");
    let error = admitted(&store).unwrap_err().to_string();
    assert!(error.contains("MiB and may keep 1 MiB (bytes_max); let messages be handled, or raise it"), "{error}");
    let remove = |sequence| Change::Remove { key: key(sequence), bytes: 20_000, noted: Noted::Nothing };
    commit(&store, (1..=filled).map(remove).collect());
    // The writer looks once nothing comes for a while; a look that is due comes with the next to be asked.
    let mut files = crate::store::write::Files::new(directory.path().join("store.db"));
    files.tend(&store.shared, true);
    admitted(&store).unwrap();
}

#[test]
fn what_follows_a_commit_is_called_in_order_and_may_panic() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    let order = Arc::new(Mutex::new(Vec::new()));
    for place in 1..=100 {
        let order = Arc::clone(&order);
        let then = move |result: Result<(), Arc<StoreError>>| {
            result.unwrap();
            order.lock().unwrap().push(place);
            assert_ne!(place, 50, "a broker with a bug");
        };
        let changes = vec![put(lane.key(place), &message("text"))];
        store.submit(Batch { changes, need: Need::MustHappen, permit: None, then: Some(Box::new(then)) });
    }
    flush(&store).unwrap();
    let order = order.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    assert!(order.iter().copied().eq(1..=100), "{order:?}");
    let panicked = |_: &crate::store::Reader<'_>| -> Result<(), StoreError> { panic!("a question with a bug") };
    let (sender, answer) = mpsc::sync_channel(1);
    store.read(panicked, move |result| sender.send(result).unwrap());
    assert!(answer.recv().unwrap().is_err());
    assert_eq!(
        ask(&store, move |reader| reader.queue_page(lane, 0, 200, usize::MAX).map(|page| page.messages)).len(),
        100
    );
}

#[test]
fn what_was_submitted_before_it_is_closed_is_safe_and_what_comes_later_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    let answers: Vec<_> =
        (1..=500).map(|sequence| submit(&store, Need::MayFail, vec![put(lane.key(sequence), &message("x"))])).collect();
    store.close();
    answers.into_iter().for_each(|answer| answer.blocking_recv().unwrap().unwrap());
    assert!(submit(&store, Need::MustHappen, Vec::new()).blocking_recv().is_err(), "dropped uncalled");
    assert!(matches!(flush(&store), Err(StoreError::Closed)));
    assert!(matches!(admitted(&store), Err(StoreError::Closed)));
    assert!(matches!(store.create_queue("another"), Err(StoreError::Closed)));
    store.close();
    let wal = fs::metadata(directory.path().join("store.db-wal")).map_or(0, |wal| wal.len());
    assert_eq!(wal, 0, "everything is in the database");
    assert_eq!(open(directory.path()).catalog().unwrap().queues[0].lanes[0].count, 500);
}

#[test]
fn whoever_is_answered_may_be_the_last_to_have_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = lane(&store);
    let (last, (sender, answer)) = (Arc::clone(&store), mpsc::sync_channel(1));
    let kept = Arc::clone(&store);
    let then = move |result: Result<(), Arc<StoreError>>| {
        // Submitted after this one, and safe all the same.
        let changes = vec![put(lane.key(2), &message("second"))];
        let later = move |result: Result<(), Arc<StoreError>>| sender.send(result).unwrap();
        last.submit(Batch { changes, need: Need::MayFail, permit: None, then: Some(Box::new(later)) });
        result.unwrap();
        drop(last);
    };
    let changes = vec![put(lane.key(1), &message("first"))];
    // The writer cannot begin before nobody else has the store.
    let shared = Arc::clone(&store.shared);
    shared.owner.with(|_| {
        kept.submit(Batch { changes, need: Need::MayFail, permit: None, then: Some(Box::new(then)) });
        drop((store, kept));
    });
    answer.recv().unwrap().unwrap();
    while shared.directory.lock().unwrap().is_some() {
        std::thread::yield_now();
    }
    let store = open(directory.path());
    assert_eq!(texts(&store, lane, 0), ["first", "second"]);
}
