//! Messages on disk: what survives the engine, and what is told of the store.

use std::fs;

use rustix::process::Signal;

use crate::sandbox::{ANY_PORT, Sandbox, eventually};

const DISK: &str = "embedded: {storage: disk, disk: {free_min: 16 MiB}}\n";
const ROUTES: &str =
    "routes:\n  - {name: orders, queue: orders, handler: echo, destinations: {out: 'queue:results'}}\n";

fn sandbox() -> Sandbox {
    Sandbox::with_config(&format!("{ANY_PORT}{DISK}{ROUTES}"))
}

/// How many messages lie in a queue.
fn count(sandbox: &Sandbox, queue: &str) -> usize {
    sandbox.run(&["tail", "--queue", queue, "--json"]).ended(0).stdout.lines().count()
}

#[test]
fn what_was_confirmed_is_handled_after_a_kill() {
    let sandbox = sandbox();
    let engine = sandbox.serve();
    let input: String = (0..500).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let published = sandbox.feed(&["publish", "--queue", "orders", "--raw"], &input).ended(0);
    assert_eq!(published.stdout.lines().count(), 500);
    engine.signal(Signal::KILL);
    // At once: the one that dies may hold its locks yet. Until now there was no handler.
    let engine = sandbox.serve();
    sandbox.plug("echo");
    let handled = || {
        // Made with the first result.
        let shown = sandbox.run(&["tail", "--queue", "results", "--json"]);
        (shown.code == Some(0) && shown.stdout.lines().count() == 500).then_some(())
    };
    eventually(handled, || engine.log());
    assert_eq!(count(&sandbox, "orders"), 0);
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));
}

#[test]
fn a_store_in_use_is_said_in_a_sentence() {
    let sandbox = sandbox();
    let _engine = sandbox.serve();
    sandbox.write("other.yaml", format!("{ANY_PORT}{DISK}engine: {{data_directory: other}}\n"));
    let second = sandbox.run(&["serve", "--config", "other.yaml"]).ended(1);
    assert!(second.sentence().contains("the store data/store is in use by process "), "{}", second.stderr);
}

#[test]
fn a_first_queue_on_disk_waits_for_a_restart() {
    let sandbox = Sandbox::with_config(ANY_PORT);
    let engine = sandbox.serve();
    let first = format!("{ANY_PORT}embedded: {{queues: {{orders: {{storage: disk}}}}, disk: {{free_min: 16 MiB}}}}\n");
    sandbox.write("configs/messaging.yaml", first);
    engine.says("the configuration is refused");
    assert!(engine.log().contains("storage is disk, and the store is opened when the engine starts: restart it"));
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));
    let engine = sandbox.serve();
    assert!(sandbox.path("data/store/store.db").exists());
    // What is there stays as it is: the change would need its messages to go elsewhere.
    sandbox
        .write("configs/messaging.yaml", format!("{ANY_PORT}embedded: {{queues: {{orders: {{storage: memory}}}}}}\n"));
    engine.says("the configuration is refused");
    assert!(engine.log().contains("storage is"), "{}", engine.log());
}

#[test]
fn what_is_left_on_disk_is_not_passed_over() {
    let sandbox = sandbox();
    let engine = sandbox.serve();
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));
    // Nothing is in it: memory it is.
    sandbox.write("configs/messaging.yaml", ANY_PORT);
    let engine = sandbox.serve();
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));

    sandbox.write("configs/messaging.yaml", format!("{ANY_PORT}{DISK}"));
    let engine = sandbox.serve();
    let kept = sandbox.feed(&["publish", "--queue", "helixagent.tasks.llm", "--raw"], "{}\n{}\n");
    kept.ended(0);
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));
    sandbox.write("configs/messaging.yaml", ANY_PORT);
    let refused = sandbox.run(&["serve"]).ended(3);
    let said = "storage is disk, with 2 messages in it, wanted is memory";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
}

#[test]
fn a_check_leaves_the_store_alone() {
    let sandbox = sandbox();
    sandbox.run(&["serve", "--check"]).ended(0);
    assert!(!sandbox.path("data").exists());
    let _engine = sandbox.serve();
    sandbox.run(&["serve", "--check"]).ended(0);
    assert!(fs::metadata(sandbox.path("data/store")).unwrap().is_dir());
}

#[test]
fn a_check_says_what_no_start_would_open() {
    let sandbox = sandbox();
    let database = sandbox.path("data/store/store.db");
    sandbox.write("data/store/store.db", "This is a text, and a rather long one, for no database begins as it does.");
    let foreign = sandbox.run(&["serve", "--check"]).ended(3);
    assert!(foreign.stderr.contains("store.db is no database"), "{}", foreign.stderr);
    fs::remove_file(&database).unwrap();

    let engine = sandbox.serve();
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));
    let mut bytes = fs::read(&database).unwrap();
    bytes[60..64].copy_from_slice(&1000_u32.to_be_bytes());
    fs::write(&database, &bytes).unwrap();
    let newer = sandbox.run(&["serve", "--check", "--json"]).ended(3);
    assert_eq!(newer.json()["error"]["code"], "STORE_REFUSED");
    assert!(newer.stderr.contains("newer"), "{}", newer.stderr);
    assert_eq!(fs::read(&database).unwrap(), bytes);
}

#[test]
fn a_store_is_verified_measured_and_copied_while_the_engine_runs() {
    let sandbox = sandbox();
    let engine = sandbox.serve();
    let input: String = (0..100).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    sandbox.feed(&["publish", "--queue", "orders", "--raw"], &input).ended(0);
    sandbox.feed(&["publish", "--topic", "events", "--raw"], &input).ended(0);
    for running in [true, false] {
        let checked = sandbox.run(&["store", "check"]).ended(0).stdout;
        assert_eq!(
            checked, "data/store is whole: every page, and what is noted of 200 messages\n",
            "running: {running}"
        );
        let figures = sandbox.run(&["store", "stats", "--json"]).ended(0).json();
        let of = |kind: &str, name: &str| {
            figures[kind].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap()["messages"].clone()
        };
        assert_eq!((of("queues", "orders"), of("topics", "events")), (100.into(), 100.into()));
        let shown = sandbox.run(&["store", "stats"]).ended(0).stdout;
        let row = shown.lines().find(|line| line.starts_with("orders ")).unwrap();
        assert!(row.contains(" 100 ") && row.ends_with(" ago"), "{shown}");
        if running {
            engine.signal(Signal::TERM);
            eventually(|| (!sandbox.path(".helixmq/address").exists()).then_some(()), || engine.log());
        }
    }
    assert_eq!(engine.end().code(), Some(0));

    // A backup is a store again, and the messages are in it.
    let made = sandbox.run(&["store", "backup", "copy.db", "--json"]).ended(0).json();
    assert_eq!(made["bytes"].as_u64(), Some(fs::metadata(sandbox.path("copy.db")).unwrap().len()));
    let again = sandbox.run(&["store", "backup", "copy.db"]).ended(1);
    assert!(again.sentence().contains("copy.db is there already"), "{}", again.stderr);
    fs::create_dir(sandbox.path("restored")).unwrap();
    fs::rename(sandbox.path("copy.db"), sandbox.path("restored/store.db")).unwrap();
    let restored = sandbox.run(&["store", "check", "--directory", "restored", "--json"]).ended(0).json();
    assert_eq!((&restored["whole"], &restored["messages"]), (&true.into(), &200.into()));
    sandbox.write(
        "configs/messaging.yaml",
        format!("{ANY_PORT}{ROUTES}embedded: {{storage: disk, disk: {{directory: restored}}}}\n"),
    );
    let _engine = sandbox.serve();
    assert_eq!(count(&sandbox, "orders"), 100);
}

#[test]
fn what_is_no_store_or_no_whole_one_is_said_in_a_sentence() {
    let sandbox = sandbox();
    for verb in [&["store", "check"][..], &["store", "stats"], &["store", "backup", "copy.db"]] {
        let none = sandbox.run(verb).ended(5);
        assert!(none.sentence().contains("data/store holds no store; name the directory"), "{}", none.stderr);
    }
    assert!(!sandbox.path("data").exists() && !sandbox.path("copy.db").exists(), "a look makes nothing");
    sandbox.write("text/store.db", "This is a text, and a rather long one, for no database begins as it does.");
    let text = sandbox.run(&["store", "check", "--directory", "text", "--json"]).ended(5);
    assert_eq!(text.json()["error"]["code"], "NO_STORE");

    let engine = sandbox.serve();
    // Enough that some pages hold nothing but messages.
    let input: String = (0..500).map(|n| format!("{{\"n\":{n},\"text\":\"{}\"}}\n", "x".repeat(500))).collect();
    sandbox.feed(&["publish", "--queue", "orders", "--raw"], &input).ended(0);
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));
    let database = sandbox.path("data/store/store.db");
    let mut bytes = fs::read(&database).unwrap();
    let end = bytes.len();
    bytes[end - 40_000..end - 8000].fill(0xa5);
    fs::write(&database, bytes).unwrap();
    let damaged = sandbox.run(&["store", "check"]).ended(1);
    assert!(damaged.stderr.starts_with("error: the store data/store is damaged, with "), "{}", damaged.stderr);
    let said = sandbox.run(&["store", "check", "--json"]).ended(1).json();
    assert_eq!(said["error"]["code"], "STORE_DAMAGED");
    assert!(!said["error"]["findings"].as_array().unwrap().is_empty());
}
