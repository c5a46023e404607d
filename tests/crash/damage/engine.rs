//! The whole program on a disk that fails.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    api::{Api, Published},
    power::shim::{Fault, Shim},
    site::{PATIENCE, Site},
};

const QUEUE: &str = "/v1/messaging/tasks/work";

/// An engine's place, whose store lies where the shim looks.
fn site(shim: &Shim) -> Site {
    let site = Site::new(&format!(
        "embedded:\n  standard_topology: false\n  dead_letter: dead\n  storage: disk\n  disk: {{directory: {}}}\n\
         routes:\n  - {{name: work, queue: work, handler: witness, destinations: {{out: 'queue:handled', runs: 'topic:runs'}}}}\n",
        shim.directory().join("store").display()
    ));
    site.plug("witness", "witness", 0);
    site
}

fn publish(api: &Api, name: &str, count: usize) -> Published {
    // Not empty, so that a full disk is soon full.
    let filling = "x".repeat(1000);
    let line = |number| {
        json!({"id": format!("{name}.{number}"), "headers": {"quiet": "1", "filling": filling}}).to_string() + "\n"
    };
    api.publish(QUEUE, (0..count).map(line).collect())
}

/// Waits until all of these are handled.
#[track_caller]
fn handled(api: &Api, wanted: &BTreeSet<String>) {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut found = BTreeSet::new();
        api.tail("queue=handled", |message| found.extend(message["payload"]["id"].as_str().map(str::to_owned)));
        let missing: Vec<_> = wanted.difference(&found).collect();
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "not handled: {missing:?}, of {} that are", found.len());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_refuses_publishers_with_507_and_is_recovered_from() {
    let shim = Shim::new();
    let site = site(&shim);
    let mut engine = site.spawn_as(|command| shim.before(command));
    let api = engine.ready();
    let mut confirmed = BTreeSet::from_iter(publish(&api, "before", 20).confirmed);
    assert_eq!(confirmed.len(), 20);
    shim.faults().on(Fault::Full);
    let end = Instant::now() + PATIENCE;
    let refused = (0..).find_map(|round| {
        assert!(Instant::now() < end, "a full disk is never full");
        let mut published = publish(&api, &format!("full.{round}"), 10);
        confirmed.extend(published.confirmed);
        published.refused.pop()
    });
    let refused = refused.unwrap();
    let detail = refused.to_string();
    assert!(detail.contains("PUBLISH_REJECTED") && detail.contains("room"), "{detail}");
    let health = api.get("/health").expect("it is degraded, and fit");
    assert_eq!(
        (&health["status"], &health["brokers"][0]["status"]),
        (&json!("degraded"), &json!("degraded")),
        "{health}"
    );
    assert!(engine.runs());

    shim.faults().off(Fault::Full);
    let end = Instant::now() + PATIENCE;
    while api.get("/health").is_none_or(|health| health["status"] != "ok") {
        assert!(Instant::now() < end, "it does not recover\n{}", engine.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = publish(&api, "after", 20);
    assert_eq!(after.confirmed.len(), 20, "{after:?}");
    confirmed.extend(after.confirmed);
    handled(&api, &confirmed);
    engine.stop();
}

#[test]
fn an_engine_whose_sync_failed_confirms_nothing_more_ends_and_goes_on_when_it_is_started_again() {
    let shim = Shim::new();
    let site = site(&shim);
    let mut engine = site.spawn_as(|command| shim.before(command));
    let api = engine.ready();
    let mut confirmed = BTreeSet::from_iter(publish(&api, "before", 20).confirmed);
    assert_eq!(confirmed.len(), 20);
    handled(&api, &confirmed);
    shim.faults().on(Fault::SyncFails);
    // One of them meets the fault; from then on nothing is confirmed, although the disk is fine again.
    let end = Instant::now() + PATIENCE;
    let mut struck = false;
    for round in 0.. {
        struck |= !shim.faults().is_on(Fault::SyncFails);
        let published = publish(&api, &format!("failing.{round}"), 5);
        assert!(!struck || published.confirmed.is_empty(), "confirmed after the fault: {published:?}");
        confirmed.extend(published.confirmed);
        if !engine.runs() {
            break;
        }
        assert!(Instant::now() < end, "it goes on as if nothing had happened\n{}", engine.log());
    }
    assert!(!shim.faults().is_on(Fault::SyncFails));
    let log = engine.log();
    assert!(log.contains("the store has failed") && log.contains("start the engine again"), "{log}");

    let (engine, api) = site.start();
    let after = publish(&api, "after", 20);
    assert_eq!(after.confirmed.len(), 20, "{after:?}");
    confirmed.extend(after.confirmed);
    handled(&api, &confirmed);
    engine.stop();
}

#[test]
fn two_engines_do_not_share_a_store() {
    let shim = Shim::new();
    let (first, second) = (site(&shim), site(&shim));
    let (engine, api) = first.start();
    let output = second.command(&["serve"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is in use by process"), "{said}");
    assert_eq!(publish(&api, "first", 5).confirmed.len(), 5, "the first one goes on");
    engine.kill();
    let (engine, _) = second.start();
    engine.stop();
}
