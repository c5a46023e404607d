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
    engine.end();
    // Until now there was no handler.
    sandbox.plug("echo");
    let engine = sandbox.serve();
    eventually(|| (count(&sandbox, "results") == 500).then_some(()), || engine.log());
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
fn a_check_leaves_the_store_alone() {
    let sandbox = sandbox();
    sandbox.run(&["serve", "--check"]).ended(0);
    assert!(!sandbox.path("data").exists());
    let _engine = sandbox.serve();
    sandbox.run(&["serve", "--check"]).ended(0);
    assert!(fs::metadata(sandbox.path("data/store")).unwrap().is_dir());
}
