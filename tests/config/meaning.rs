//! What accepted configurations mean.

use std::{path::Path, time::Duration};

use helixmq::{
    broker::{Declaration, Overflow, QueueSettings, Start, Storage},
    config::{self, Loaded},
    message::Address,
};

fn load(text: &str) -> Loaded {
    let text = format!("plugins: {{directory: tests/fixtures/config/no-plugins}}\n{text}");
    config::load_text(Path::new("messaging.yaml"), &text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"))
}

fn queue(loaded: &Loaded, wanted: &str) -> QueueSettings {
    let queues = loaded.config.embedded.declarations.iter().filter_map(|declaration| match declaration {
        Declaration::Queue(name, settings) if &**name == wanted => Some(settings.clone()),
        _ => None,
    });
    let all: Vec<_> = queues.collect();
    assert_eq!(all.len(), 1, "{wanted}");
    all[0].clone()
}

#[test]
fn a_standard_queue_keeps_what_is_not_named() {
    let loaded = load("embedded: {queues: {helixagent.tasks.verification: {ttl_ms: null, lease_ms: 1000}}}");
    let settings = queue(&loaded, "helixagent.tasks.verification");
    assert_eq!((settings.priority_max, settings.ttl, settings.lease), (5, None, Duration::from_secs(1)));
}

#[test]
fn other_queues_take_the_defaults_of_the_file() {
    let loaded =
        load("embedded: {queue_defaults: {length_max: 7, lease_ms: 500}, queues: {mine: {length_max: null}, yours: }}");
    assert_eq!(queue(&loaded, "mine").length_max, None);
    assert_eq!(queue(&loaded, "mine").lease, Duration::from_millis(500));
    assert_eq!(queue(&loaded, "yours").length_max, Some(7));
    assert_eq!(queue(&loaded, "helixagent.tasks.llm").length_max, Some(7));
    assert_eq!(queue(&loaded, "helixagent.dlq").length_max, Some(100_000));
}

#[test]
fn storage_is_a_queues_own_then_its_defaults_then_the_brokers() {
    let of = |loaded: &Loaded| ["mine", "helixagent.tasks.llm"].map(|name| queue(loaded, name).storage);
    for (text, wanted, any) in [
        ("queues: {mine: {}}", [Storage::Memory; 2], false),
        ("storage: disk, queues: {mine: {}}", [Storage::Disk; 2], true),
        ("storage: disk, queues: {mine: {storage: memory}}", [Storage::Memory, Storage::Disk], true),
        ("queues: {mine: {storage: disk}}", [Storage::Disk, Storage::Memory], true),
        ("storage: disk, queue_defaults: {storage: memory}, queues: {mine: }", [Storage::Memory; 2], true),
        (
            "topic_defaults: {storage: disk}, standard_topology: false, queues: {mine: , helixagent.tasks.llm: }",
            [Storage::Memory; 2],
            true,
        ),
        (
            "topic_defaults: {storage: disk}, auto_create: false, standard_topology: false, queues: {mine: , helixagent.tasks.llm: }",
            [Storage::Memory; 2],
            false,
        ),
    ] {
        let loaded = load(&format!("embedded: {{{text}}}"));
        assert_eq!((of(&loaded), loaded.config.embedded.any_on_disk()), (wanted, any), "{text}");
    }
}

#[test]
fn what_a_queue_without_limits_does_beyond_them_is_a_warning() {
    for (queue, warnings) in [
        ("{overflow: drop-oldest}", 1),
        ("{overflow: dead-letter-oldest, length_max: 5}", 0),
        ("{overflow: dead-letter-oldest, bytes_max: 5}", 0),
        ("{}", 0),
    ] {
        let loaded = load(&format!("embedded: {{queues: {{mine: {queue}, helixagent.tasks.llm: {queue}}}}}"));
        assert_eq!(loaded.warnings.len(), 2 * warnings, "{queue}: {:?}", loaded.warnings);
    }
}

#[test]
fn the_dead_letter_queue_refuses_what_does_not_fit_whatever_the_others_do() {
    let loaded = load("embedded: {queue_defaults: {overflow: dead-letter-oldest}}");
    assert_eq!(queue(&loaded, "helixagent.dlq").overflow, Overflow::RejectPublish);
    assert_eq!(queue(&loaded, "helixagent.tasks.llm").overflow, Overflow::DeadLetterOldest);
}

#[test]
fn without_the_standard_topology_only_the_operators_own_is_declared() {
    let loaded = load("embedded: {standard_topology: false, queues: {mine: {}}}");
    assert_eq!(loaded.config.embedded.declarations.len(), 1);
}

#[test]
fn a_queue_kept_in_order_is_handled_by_one_call_at_a_time() {
    let route = "routes: [{name: a, queue: a, handler: a, order: partition";
    for (text, warnings) in [
        (format!("{route}}}]"), 0),
        (format!("{route}, concurrency: 1}}]"), 0),
        (format!("{route}, concurrency: 8}}]"), 1),
    ] {
        let loaded = load(&text);
        assert_eq!(loaded.config.routes.iter().next().map(|route| route.concurrency), Some(1), "{text}");
        assert_eq!(loaded.warnings.len(), warnings, "{text}: {:?}", loaded.warnings);
    }
}

#[test]
fn starts_are_read_in_four_ways_and_shared_by_the_routes_of_a_topic() {
    for (text, wanted) in [
        ("earliest", Start::Earliest),
        ("latest", Start::Latest),
        ("offset:7", Start::Offset(7)),
        ("1970-01-01T00:00:01.5Z", Start::Time(1500)),
        ("1970-01-01T01:00:00+01:00", Start::Time(0)),
    ] {
        let loaded = load(&format!(
            "routes:\n  - {{name: a, topic: a, handler: a, match: {{type: x}}}}\n  - {{name: b, topic: a, handler: a, start: \"{text}\"}}"
        ));
        let starts: Vec<_> =
            loaded.config.routes.of(&Address::topic("a")).iter().map(|route| route.source.start).collect();
        assert_eq!(starts, [wanted, wanted], "{text}");
    }
}

#[test]
fn an_open_engine_that_others_reach_is_a_warning() {
    assert_eq!(load("http: {open: true}").warnings.len(), 0);
    assert_eq!(load("http: {open: true, listen: \"0.0.0.0:7061\"}").warnings.len(), 1);
    assert_eq!(load("http: {token: short}").warnings.len(), 1);
}
