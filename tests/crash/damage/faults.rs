//! Calls that fail under a store that is open. These are parts that another process plays with the shim in front of its
//! files, as no user, root least of all, could be kept from writing otherwise.

use std::{
    fs,
    time::{Duration, Instant},
};

use helixmq::store::{Need, Purpose, Store, StoreError, StoreStatus};

use super::{is_a_sentence, read, settings, submit, worked};
use crate::{
    power::{
        model::{Content, Model, Places},
        shim::{Fault, Shim, directory_here},
    },
    site::PATIENCE,
};

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "the part of another process; the next test starts it"]
fn works_on_a_full_disk() {
    let (directory, faults) = (directory_here(), Shim::faults_here());
    let (store, mut model) = worked(&directory, 5, 20);
    faults.on(Fault::Full);

    // There may still be room in the files themselves, so publishes are confirmed for a while; each or none.
    let mut tried = model.clone();
    let error = loop {
        match submit(&store, tried.step(), Need::MayFail) {
            Ok(()) => model = tried.clone(),
            Err(error) => break error,
        }
        assert!(tried.content.steps < 10_000, "a full disk is never full");
    };
    assert!(matches!(*error, StoreError::NoSpace { .. }), "{error:?}");
    is_a_sentence(&error, "full");
    assert!(matches!(store.status(), StoreStatus::NoSpace { .. }), "{:?}", store.status());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(store.admit(1, 100, Purpose::Publish));
    assert!(matches!(refused, Err(StoreError::NoSpace { .. })), "{refused:?}");
    // What was read goes on being read.
    assert_eq!(Content::read(&store).unwrap().unwrap().difference(&model.content), None);

    // What must happen waits for room, and is not refused.
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    let then = Box::new(move |result| answer.send(result).unwrap());
    let batch = helixmq::store::Batch { changes: model.step(), need: Need::MustHappen, permit: None, then: Some(then) };
    store.submit(batch);
    let early = answered.recv_timeout(Duration::from_millis(300));
    assert!(!matches!(early, Ok(Err(_))), "it was refused: {early:?}");
    faults.off(Fault::Full);
    if early.is_err() {
        answered.recv_timeout(PATIENCE).expect("it is done once there is room").unwrap();
    }
    eventually("it recovers by itself", || {
        runtime.block_on(store.admit(1, 100, Purpose::Publish)).is_ok() && store.status() == StoreStatus::Ready
    });
    for _ in 0..3 {
        submit(&store, model.step(), Need::MayFail).unwrap();
    }
    store.close();
    drop(store);
    assert_eq!(read(&directory).unwrap().difference(&model.content), None);
}

#[test]
fn a_full_disk_refuses_publishers_loses_nothing_and_is_recovered_from() {
    Shim::new().play("damage::faults::works_on_a_full_disk", &[]);
}

#[test]
#[ignore = "the part of another process; the next test starts it"]
fn works_where_nothing_may_be_written() {
    let (directory, faults) = (directory_here(), Shim::faults_here());
    let (store, model) = worked(&directory, 6, 10);
    store.close();
    drop(store);
    for (fault, wanted) in [(Fault::ReadOnly, "read-only"), (Fault::Denied, "may not be written")] {
        faults.on(fault);
        let before = super::files(&directory);
        let error = Store::open(settings(&directory)).unwrap_err();
        let as_expected = match fault {
            Fault::ReadOnly => matches!(error, StoreError::ReadOnly { .. }),
            _ => matches!(error, StoreError::NoPermission { .. }),
        };
        assert!(as_expected, "{error:?}");
        is_a_sentence(&error, wanted);
        assert!(super::files(&directory) == before, "not a byte is touched");
        // A store that is not there yet.
        let error = Store::open(settings(&directory.join("another"))).unwrap_err();
        is_a_sentence(&error, wanted);
        faults.off(fault);
    }
    assert_eq!(read(&directory).unwrap().difference(&model.content), None);
}

#[test]
fn where_nothing_may_be_written_it_says_so_and_touches_nothing() {
    Shim::new().play("damage::faults::works_where_nothing_may_be_written", &[]);
}

/// What the shim's switch for a failing sync does is what a system does: the call fails once, and later ones succeed.
#[test]
#[ignore = "the part of another process; the next test starts it"]
fn works_until_a_sync_fails() {
    let (directory, faults) = (directory_here(), Shim::faults_here());
    let (store, mut model) = worked(&directory, 7, 10);
    let places = Places::make(&store).unwrap();
    let confirmed = model.content.clone();
    faults.on(Fault::SyncFails);
    let error = submit(&store, model.step(), Need::MustHappen).unwrap_err();
    assert!(matches!(*error, StoreError::Failed { .. }), "{error:?}");
    is_a_sentence(&error, "failed");
    assert!(!faults.is_on(Fault::SyncFails), "the disk is fine again");
    assert!(matches!(store.status(), StoreStatus::Failed { .. }), "{:?}", store.status());
    for need in [Need::MayFail, Need::MustHappen] {
        let error = submit(&store, Vec::new(), need).err();
        assert!(matches!(error.as_deref(), None | Some(StoreError::Failed { .. })), "{error:?}");
        let error = submit(&store, model.clone().step(), need).unwrap_err();
        assert!(matches!(*error, StoreError::Failed { .. }), "{error:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(matches!(runtime.block_on(store.admit(1, 1, Purpose::Publish)), Err(StoreError::Failed { .. })));
    assert!(store.create_queue("another").is_err(), "a queue that is made is safe, too");
    drop(store);

    // Opened anew, it says what is there: all that was confirmed, and perhaps the step that failed.
    let found = read(&directory).unwrap();
    let mut wanted = Model::new(7, places);
    while wanted.content.steps < found.steps {
        wanted.step();
    }
    assert!(found.steps >= confirmed.steps && found.steps <= model.content.steps, "{} steps", found.steps);
    assert_eq!(found.difference(&wanted.content), None);
    let store = Store::open(settings(&directory)).unwrap();
    submit(&store, wanted.step(), Need::MayFail).unwrap();
    store.close();
    // No file is left of what was tried.
    assert!(fs::read_dir(&directory).unwrap().count() <= 4);
}

#[test]
fn after_a_sync_failed_nothing_is_confirmed_until_it_is_opened_anew() {
    Shim::new().play("damage::faults::works_until_a_sync_fails", &[]);
}
