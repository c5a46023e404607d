//! The topology without a server: what is exported, and what is said where there is nothing to compare with.

use std::fs;

use crate::sandbox::{ANY_PORT, Sandbox};

#[test]
fn the_standard_topology_is_exported_as_committed() {
    let committed = fs::read_to_string("configs/rabbitmq/definitions.json").unwrap();
    let sandbox = Sandbox::with_config(ANY_PORT);
    assert_eq!(sandbox.run(&["topology", "export"]).ended(0).stdout, committed);
    sandbox.run(&["topology", "export", "--file", "written.json"]).ended(0);
    assert_eq!(fs::read_to_string(sandbox.path("written.json")).unwrap(), committed);
}

#[test]
fn the_standard_topics_are_exported_as_committed() {
    let sandbox = Sandbox::with_config(ANY_PORT);
    for (format, file) in [("kafka-init", "configs/kafka/topics.sh"), ("strimzi", "configs/kafka/topics.yaml")] {
        let committed = fs::read_to_string(file).unwrap();
        assert_eq!(sandbox.run(&["topology", "export", "--format", format]).ended(0).stdout, committed);
        let written = sandbox.run(&["topology", "export", "--format", format, "--file", "written"]).ended(0);
        assert!(written.stdout.contains("18 topics"), "{}", written.stdout);
        assert_eq!(fs::read_to_string(sandbox.path("written")).unwrap(), committed);
    }
}

#[test]
fn topics_of_the_configuration_are_exported_as_both_files() {
    let kafka = "kafka:\n  standard_topology: false\n  replication_factor: 3\n  topics:\n    \
                 My_Topic: {partitions: 2, retention: 1h, min_insync_replicas: 2, config: {cleanup.policy: \"compact,delete\", x: \"a b\"}}\n";
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{kafka}"));
    // Where only Kafka is configured, its own tools are what is meant.
    let script = sandbox.run(&["topology", "export"]).ended(0).stdout;
    let line = "topic My_Topic 2 --replication-factor 3 --config retention.ms=3600000 --config min.insync.replicas=2 \
                --config cleanup.policy=compact,delete --config 'x=a b'\n";
    assert!(script.ends_with(line), "{script}");
    let resources = sandbox.run(&["topology", "export", "--format", "strimzi"]).ended(0).stdout;
    let wanted = "  name: my-topic\n  labels:\n    strimzi.io/cluster: helixagent\nspec:\n  topicName: My_Topic\n  \
                  partitions: 2\n  replicas: 3\n  config:\n    retention.ms: 3600000\n    min.insync.replicas: 2\n    \
                  cleanup.policy: \"compact,delete\"\n    x: \"a b\"\n";
    assert!(resources.ends_with(wanted), "{resources}");
}

#[test]
fn a_kafka_that_is_not_there_is_said() {
    let kafka = "kafka: {brokers: \"127.0.0.1:1\", connect_timeout: 1s}\n";
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{kafka}"));
    for verb in ["plan", "apply"] {
        let ended = sandbox.run(&["topology", verb]).ended(4);
        assert!(ended.sentence().contains("127.0.0.1:1"), "{}", ended.stderr);
    }
}

#[test]
fn what_a_route_asks_of_kafka_is_explained() {
    let routes = "kafka: {}\nroutes:\n  - {name: r, topic: \"orders.*\", handler: h, delivery: transactional}\n  \
                  - {name: s, topic: other, handler: h, retry: {wait: topic}}\n";
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{routes}"));
    let said = |source: &str| sandbox.run(&["route", "explain", "--topic", source]).ended(0).stdout;
    let has = |text: &str, path: &str, value: &str| {
        let words = |line: &str| line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
        assert!(text.lines().any(|line| words(line) == [path, value]), "{path} is not {value}:\n{text}");
    };
    // By a topic that the pattern takes.
    let orders = said("orders.placed");
    has(&orders, "delivery", "transactional");
    has(&orders, "topic", "orders.*");
    has(&orders, "dead_letter", "topic:helixagent.dlq.events");
    has(&said("other"), "retry.wait", "topic");
}

#[test]
fn what_comes_at_most_once_is_explained() {
    let redis = "redis: {host: 127.0.0.1, channels: [seen], topics: {kept: {}}}\nroutes:\n  \
                 - {name: r, topic: seen, handler: h}\n  - {name: s, topic: kept, handler: h}\n";
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{redis}"));
    let said = |source: &str| sandbox.run(&["route", "explain", "--topic", source]).ended(0).stdout;
    assert!(said("seen").contains("at most once"));
    assert!(!said("kept").contains("at most once"));
}

const CONNECTIONS: &str = "connections:\n  billing: {kind: rabbitmq, host: 127.0.0.1, port: 1, username: u, password: p}\n  \
                           quakes: {kind: kafka, brokers: ['127.0.0.1:1'], connect_timeout: 1s, topics: {felt: {}}}\n  \
                           cache: {kind: redis, host: 127.0.0.1, port: 1, queues: {held: {}}}\n";

#[test]
fn every_system_in_use_is_looked_at_and_named() {
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{CONNECTIONS}"));
    let doctor = sandbox.run(&["doctor"]).ended(1).stdout;
    for name in ["billing", "quakes", "cache"] {
        let line = doctor.lines().find(|line| line.starts_with(&format!("fail  {name}: "))).unwrap_or_default();
        assert!(line.contains("127.0.0.1:1"), "{doctor}");
        for verb in ["plan", "apply"] {
            let ended = sandbox.run(&["topology", verb, "--system", name]).ended(4);
            assert!(ended.sentence().contains(&format!("{name}: ")), "{}", ended.stderr);
        }
    }
    let ended = sandbox.run(&["topology", "plan", "--system", "kafka"]).ended(5);
    assert!(ended.sentence().contains("name one that is used: billing, cache, quakes"), "{}", ended.stderr);
    assert!(sandbox.run(&["topology", "plan"]).ended(4).sentence().contains("billing: "));
}

#[test]
fn a_file_is_of_the_system_that_is_meant() {
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{CONNECTIONS}"));
    let export = |arguments: &[&str]| sandbox.run(&[&["topology", "export"], arguments].concat());
    assert!(export(&[]).ended(2).sentence().contains("--system: billing, cache, quakes"));
    assert!(export(&["--format", "strimzi"]).ended(0).stdout.contains("name: felt"));
    assert!(export(&["--system", "quakes"]).ended(0).stdout.contains("topic felt"));
    assert!(export(&["--system", "cache"]).ended(0).stdout.contains("held"));
}

#[test]
fn a_system_that_there_is_not_is_said() {
    let routes = "messaging: {backend: inmemory}\nroutes: [{name: r, topic: ch, handler: h}]\n";
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{routes}"));
    for source in ["kafka:ch", "nosuch:topic:ch"] {
        let ended = sandbox.run(&["route", "explain", "--topic", source]).ended(5);
        assert!(ended.stderr.contains("; there is embedded; "), "{}", ended.stderr);
    }
    assert!(sandbox.run(&["route", "explain", "--topic", "embedded:ch"]).ended(0).stdout.contains("route r"));
}

#[test]
fn without_a_system_there_is_nothing_to_compare_with() {
    let ended = Sandbox::with_config(ANY_PORT).run(&["topology", "plan"]).ended(3);
    assert!(ended.sentence().contains("add a section `rabbitmq:`, `kafka:` or `redis:`"), "{}", ended.stderr);
}

#[test]
fn a_server_that_is_not_there_is_said() {
    let rabbitmq = "rabbitmq: {host: 127.0.0.1, port: 1, username: u, password: hunter2}\n";
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{rabbitmq}"));
    for verb in ["plan", "apply"] {
        let ended = sandbox.run(&["topology", verb]).ended(4);
        assert!(ended.sentence().contains("127.0.0.1:1"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"));
    }
}
