//! Kafka's section and variables: what they lead to, as tables.

use std::{path::Path, time::Duration};

use helixmq::{
    broker::kafka::{
        Settings,
        settings::{Acks, Assignment, Compression, Format, GroupProtocol, Mechanism, OffsetReset},
    },
    config::{self, Backend, Loaded},
    message::Kind,
};

const PLUGINS: &str = "plugins: {directory: tests/fixtures/config/no-plugins}\n";

pub(crate) fn load(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let env = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    let text = format!("{PLUGINS}{text}");
    config::load_text(Path::new("messaging.yaml"), &text, &env).map_err(|errors| errors.to_string())
}

fn settings(text: &str, variables: &[(&str, &str)]) -> Settings {
    let loaded = load(text, variables).unwrap_or_else(|said| panic!("{text}: {said}"));
    Settings::clone(&loaded.config.kafka.unwrap())
}

pub(crate) fn refused(text: &str, variables: &[(&str, &str)], words: &str) {
    let said = load(text, variables).map(|_| ()).unwrap_err();
    assert!(said.contains(words), "{text} {variables:?}: {said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn servers_are_named_in_the_file_or_the_environment() {
    for (text, variables, wanted) in [
        ("kafka:", vec![], "localhost:9092"),
        ("kafka: {brokers: k}", vec![], "k:9092"),
        ("kafka: {brokers: \"k1, k2:1\"}", vec![], "k1:9092,k2:1"),
        ("kafka: {brokers: [k1, \"k2:1\", \"[::1]:3\", \"[::2]\"]}", vec![], "k1:9092,k2:1,[::1]:3,[::2]:9092"),
        // As the first documents had it; several in one variable.
        ("kafka: {brokers: [\"${KAFKA_HOSTS:-localhost:9092}\"]}", vec![], "localhost:9092"),
        ("kafka: {brokers: [\"${KAFKA_HOSTS}\"]}", vec![("KAFKA_HOSTS", "a:1,b")], "a:1,b:9092"),
        ("", vec![("KAFKA_BROKERS", "a:1,b:2")], "a:1,b:2"),
        ("kafka: {brokers: k}", vec![("KAFKA_BROKERS", "a")], "a:9092"),
        ("", vec![("KAFKA_BROKER", "a")], "a:9092"),
        ("", vec![("MESSAGING_BACKEND", "kafka")], "localhost:9092"),
        ("kafka:", vec![("KAFKA_BROKERS", "tcp://10.0.0.1:1")], "localhost:9092"),
    ] {
        assert_eq!(settings(text, &variables).brokers.join(","), wanted, "{text} {variables:?}");
    }
}

#[test]
fn every_key_leads_to_its_setting() {
    let read = settings(
        "\
kafka:
  client_id: c
  connect_timeout: 1s
  reconnect_delay: 60ms
  metadata_interval: 2s
  compression: zstd
  required_acks: 1
  idempotent: false
  linger: 5
  in_flight_max: 7
  publish_timeout: 3s
  message_bytes_max: 2 MB
  format: cloudevents-structured
  transactional_id: t
  transaction_timeout: 4s
  assignment: range
  session_timeout: 9s
  heartbeat_interval: 2s
  poll_interval_max: 60s
  group_instance_id: i
  offset_reset: none
  fetch_bytes_max: 1 MiB
  fetch_wait: 5ms
  stalled_after: 6s
  lag_max: 8
  statistics_interval: 250ms
  revoke_wait: 0
  commit_interval: 10ms
  commit_messages_max: 11
  replication_factor: 3
  auto_create: true
  accept_differences: true
  retry_topic: again
  extra: {socket.nagle.disable: \"true\", isolation.level: read_committed}
",
        &[],
    );
    let ms = Duration::from_millis;
    assert_eq!(read.client_id, "c");
    let times = [read.connect_timeout, read.reconnect_delay_max, read.metadata_interval, read.linger];
    assert_eq!(times, [ms(1000), ms(60), ms(2000), ms(5)]);
    let times = [read.publish_timeout, read.transaction_timeout, read.session_timeout, read.heartbeat_interval];
    assert_eq!(times, [ms(3000), ms(4000), ms(9000), ms(2000)]);
    let times = [read.poll_interval_max, read.fetch_wait, read.stalled_after, read.statistics_interval];
    assert_eq!(times, [ms(60_000), ms(5), ms(6000), ms(250)]);
    assert_eq!([read.revoke_wait, read.commit_interval], [ms(0), ms(10)]);
    assert_eq!((read.compression, read.required_acks, read.idempotent), (Compression::Zstd, Acks::Leader, false));
    assert_eq!((read.in_flight_max, read.message_bytes_max, read.fetch_bytes_max), (7, 2_000_000, 1 << 20));
    assert_eq!((read.format, read.assignment), (Format::CloudEventsStructured, Assignment::Range));
    assert_eq!((read.offset_reset, read.lag_max, read.commit_messages_max), (OffsetReset::None, Some(8), 11));
    assert_eq!((read.transactional_id.as_deref(), read.group_instance_id.as_deref()), (Some("t"), Some("i")));
    assert_eq!((read.replication_factor, read.auto_create, read.accept_differences), (Some(3), true, true));
    assert!(read.topics.contains_key("again") && !read.topics.contains_key("helixagent.retry.events"));
    let extra: Vec<_> = read.extra.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(extra, [("isolation.level", "read_committed"), ("socket.nagle.disable", "true")]);
    let consumer = settings("kafka: {group_protocol: consumer}", &[]);
    assert_eq!(consumer.group_protocol, GroupProtocol::Consumer);
    for (word, wanted) in [("all", Acks::All), ("-1", Acks::All), ("leader", Acks::Leader), ("0", Acks::None)] {
        let text = format!("kafka: {{required_acks: {word}, idempotent: {}}}", wanted == Acks::All);
        assert_eq!(settings(&text, &[]).required_acks, wanted, "{word}");
    }
}

#[test]
fn variables_stand_in_place_of_the_file() {
    let read = settings(
        "kafka: {client_id: c, session_timeout: 9s, replication_factor: 1}",
        &[
            ("KAFKA_CLIENT_ID", "v"),
            ("KAFKA_TOPIC_PREFIX", "mine"),
            ("KAFKA_SASL_ENABLED", "true"),
            ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-256"),
            ("KAFKA_SASL_USERNAME", "u"),
            ("KAFKA_SASL_PASSWORD", "hunter2"),
            ("KAFKA_SESSION_TIMEOUT_MS", "45000"),
            ("KAFKA_HEARTBEAT_INTERVAL_MS", "10000"),
            ("KAFKA_REPLICATION_FACTOR", "3"),
            ("KAFKA_MIN_INSYNC_REPLICAS", "2"),
        ],
    );
    let sasl = read.sasl.unwrap();
    assert_eq!((sasl.mechanism, sasl.user.as_str(), sasl.password.reveal()), (Mechanism::ScramSha256, "u", "hunter2"));
    assert_eq!((read.client_id.as_str(), read.session_timeout.as_secs()), ("v", 45));
    assert_eq!((read.heartbeat_interval.as_secs(), read.replication_factor), (10, Some(3)));
    let partitions = |name: &str| read.topics[name].partitions;
    let prefixed = ["mine.tasks", "mine.events", "mine.completions", "mine.debates"].map(partitions);
    assert_eq!(prefixed, [4, 8, 4, 2]);
    assert_eq!(read.topics["mine.tasks"].min_insync_replicas, Some(2));
}

#[test]
fn one_group_is_that_of_all_routes_which_name_none() {
    let group = |text: &str, variables: &[(&str, &str)]| {
        let loaded = load(&format!("{text}\nroutes: [{{name: r, topic: t, handler: h}}]"), variables).unwrap();
        let route = loaded.config.routes.iter().next().unwrap();
        let shown = loaded.values.iter().find(|shown| shown.path == "kafka.group_id").map(|shown| shown.value.clone());
        (route.source.group.to_string(), shown.unwrap_or_default(), loaded.warnings.len())
    };
    let is = |group: &str, warnings| (group.to_owned(), group.to_owned(), warnings);
    assert_eq!(group("kafka:", &[]), is("helixagent-group", 0));
    assert_eq!(group("kafka: {group_id: mine}", &[]), is("mine", 0));
    assert_eq!(group("kafka: {group_id: mine}", &[("KAFKA_GROUP_ID", "other")]), is("other", 0));
    assert_eq!(group("kafka:", &[("KAFKA_CONSUMER_GROUP", "other")]), is("other", 1));
}

#[test]
fn what_cannot_be_is_refused() {
    for (section, words) in [
        ("brokers: []", "kafka.brokers: is an empty list"),
        ("brokers: [\"\"]", "is not a server of Kafka"),
        ("brokers: \"k:0\"", "is not a server of Kafka"),
        ("brokers: \"k:99999\"", "is not a server of Kafka"),
        ("brokers: \"a b\"", "is not a server of Kafka"),
        ("brokers: \"a,,b\"", "is not a server of Kafka"),
        ("brokers: \"PLAINTEXT://k:9092\"", "write it without a protocol: k:9092"),
        ("brokers: {a: b}", "kafka.brokers"),
        ("brokers:", "kafka.brokers: has no value"),
        ("required_acks: 1", "kafka.idempotent: needs required_acks: all"),
        ("required_acks: 2", "\"2\" is not all, 1 (the leader) or 0 (none)"),
        ("linger: 10s", "is not shorter than publish_timeout"),
        ("compression: brotli", "is not lz4, none, gzip, snappy or zstd"),
        ("heartbeat_interval: 30s", "is not shorter than session_timeout"),
        ("session_timeout: 10m", "kafka.poll_interval_max: is shorter than session_timeout"),
        ("group_protocol: consumer, session_timeout: 30s", "kafka.session_timeout: is for the servers to decide"),
        ("group_protocol: consumer, heartbeat_interval: 3s", "kafka.heartbeat_interval: is for the servers"),
        ("group_protocol: consumer, assignment: range", "kafka.assignment: is for the servers to decide"),
        ("group_id: \"a b\"", "kafka.group_id: \"a b\" is not a name"),
        ("topic_prefix: \"a b\"", "kafka.topic_prefix"),
        ("sasl: {username: u, password: hunter2}", "kafka.sasl.mechanism: is missing"),
        ("sasl: {enabled: true}", "kafka.sasl.password: is missing"),
        ("sasl: {mechanism: PLAIN, username: u}", "set KAFKA_SASL_PASSWORD"),
        ("sasl: {mechanism: GSSAPI, username: u, password: hunter2}", "is not PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
        ("tls: {cert_file: c}", "kafka.tls: has one of cert_file and key_file"),
        ("tls: {verify_peer: true, skip_verify: true}", "contradicts verify_peer"),
        ("replication_factor: 1, min_insync_replicas: 2", "is more than there are copies (1)"),
        ("retry_topic: \"a b\"", "kafka.retry_topic"),
        ("dead_letter_events: nowhere", "does not say whether it is a queue or a topic"),
        ("lingr: 1ms", "did you mean linger?"),
    ] {
        refused(&format!("kafka: {{{section}}}"), &[], words);
    }
    let both = [("KAFKA_BROKERS", "a"), ("KAFKA_BROKER", "b")];
    refused("", &both, "environment KAFKA_BROKER: differs from KAFKA_BROKERS");
    refused("", &[("KAFKA_BROKERS", "a b")], "environment KAFKA_BROKERS: kafka.brokers: \"a b\" is not a server");
    let protocol = [("KAFKA_SESSION_TIMEOUT_MS", "30000")];
    refused(
        "kafka: {group_protocol: consumer}",
        &protocol,
        "environment KAFKA_SESSION_TIMEOUT_MS: kafka.session_timeout",
    );
}

#[test]
fn settings_of_the_client_library_break_nothing_that_is_promised() {
    for (setting, words) in [
        ("enable.auto.commit: \"true\"", "the engine commits what has been handled"),
        ("enable.auto.offset.store: \"true\"", "the engine commits what has been handled"),
        ("group.id: g", "write group_id, or `group:` in a route"),
        ("isolation.level: read_uncommitted", "would let handlers see what a transaction took back"),
        ("acks: \"1\"", "write required_acks under kafka"),
        ("enable.idempotence: \"false\"", "write idempotent under kafka"),
        ("max.in.flight: \"6\"", "beyond which idempotence keeps no order"),
        ("dr_cb: f", "is for programs"),
        ("delivery.report.only.error: \"true\"", "the engine waits for each confirmation"),
        ("ssl.key.password: hunter2", "write tls.key_password under kafka"),
        ("ssl.keystore.password: hunter2", "is a secret, and what stands here is shown"),
        ("plugin.library.paths: /tmp/x.so", "code from elsewhere"),
    ] {
        refused(&format!("kafka: {{extra: {{{setting}}}}}"), &[], words);
    }
    assert!(load("kafka: {idempotent: false, extra: {max.in.flight: \"6\"}}", &[]).is_ok());
}

#[test]
fn topics_are_the_standard_ones_and_those_that_are_named() {
    let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
    let standard = settings("kafka:", &[]).topics;
    assert_eq!(standard.len(), 18);
    let audit = &standard["helixagent.events.audit"];
    assert_eq!((audit.partitions, audit.retention), (6, hours(90 * 24)));
    assert!(settings("kafka: {standard_topology: false}", &[]).topics.is_empty());

    let map = "mine: {partitions: 8, retention: 7d, config: {cleanup.policy: compact}}, helixagent.events.audit: {retention: 1h}";
    let list = "{name: mine, partitions: 8, retention: 7d, config: {cleanup.policy: compact}}, \
                {name: helixagent.events.audit, retention: 1h}";
    for topics in [format!("{{{map}}}"), format!("[{list}]")] {
        let read = settings(&format!("kafka: {{min_insync_replicas: 2, topics: {topics}}}"), &[]).topics;
        let mine = &read["mine"];
        assert_eq!(
            (mine.partitions, mine.retention, mine.min_insync_replicas),
            (8, hours(7 * 24), Some(2)),
            "{topics}"
        );
        assert_eq!(mine.config["cleanup.policy"], "compact");
        let audit = &read["helixagent.events.audit"];
        assert_eq!((audit.partitions, audit.retention), (6, hours(1)));
    }
    let forever = settings("kafka: {topics: {helixagent.events.audit: {config: {retention.ms: -1}}}}", &[]);
    let forever = &forever.topics["helixagent.events.audit"];
    assert_eq!((forever.retention, forever.config["retention.ms"].as_str()), (None, "-1"));
    for (topics, words) in [
        ("{__consumer_offsets: {}}", "begins with __, as only Kafka's own do"),
        ("{\"a b\": {}}", "is not a name"),
        ("{a: {partitions: 0}}", "too small"),
        ("{a: {retention: 1ms}}", "too small"),
        ("{a: {config: {retention.ms: \"5000\"}}}", "write retention: beside config"),
        ("{a: {retention: 1h, config: {retention.ms: -1}}}", "has a key of its own"),
        ("{a: {replication_factor: 1, min_insync_replicas: 2}}", "is more than there are copies (1)"),
        ("[{partitions: 3}]", "kafka.topics[0].name: is missing"),
    ] {
        refused(&format!("kafka: {{topics: {topics}}}"), &[], words);
    }
}

#[test]
fn the_backend_says_where_queues_and_topics_are() {
    let of = |text: &str, variables: &[(&str, &str)]| {
        let loaded = load(text, variables).unwrap();
        let config = &loaded.config;
        (config.system_of(Kind::Queue), config.system_of(Kind::Topic), loaded.warnings.len())
    };
    let (embedded, rabbitmq, kafka) = (Backend::Inmemory, Backend::Rabbitmq, Backend::Kafka);
    let both = "rabbitmq: {username: u, password: p}\nkafka:";
    assert_eq!(of("", &[]), (embedded, embedded, 0));
    assert_eq!(of("kafka:", &[]), (embedded, kafka, 0));
    assert_eq!(of("", &[("KAFKA_BROKERS", "k")]), (embedded, kafka, 0));
    assert_eq!(of("", &[("KAFKA_CLIENT_ID", "k")]), (embedded, embedded, 1));
    assert_eq!(of(both, &[]), (rabbitmq, kafka, 0));
    let backend = |name| [("MESSAGING_BACKEND", name)];
    assert_eq!(of("kafka:", &backend("kafka")), (kafka, kafka, 0));
    assert_eq!(of(both, &backend("kafka")), (kafka, kafka, 1));
    assert_eq!(of(both, &backend("rabbitmq")), (rabbitmq, rabbitmq, 1));
    assert_eq!(of(both, &backend("inmemory")), (embedded, embedded, 2));
    let queues = settings("kafka:", &backend("kafka")).topics;
    assert_eq!(queues["helixagent.tasks.llm"].partitions, 4);
    assert!(!settings("kafka:", &[]).topics.contains_key("helixagent.tasks.llm"));
}

#[test]
fn what_lets_others_read_or_lose_is_warned_about() {
    for (section, words) in [
        ("sasl: {mechanism: plain, username: u, password: p}", "can read the password"),
        ("tls: {skip_verify: true}", "can read and change everything"),
        ("required_acks: 0, idempotent: false", "nobody is told"),
        ("heartbeat_interval: 20s", "more than a third"),
    ] {
        let warnings = load(&format!("kafka: {{{section}}}"), &[]).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{section}: {warnings:?}");
        assert!(warnings[0].problem.contains(words), "{section}: {warnings:?}");
    }
    let switched_off = settings("kafka: {tls: {enabled: false, ca_file: c}, sasl: {enabled: false, username: u}}", &[]);
    assert!(switched_off.tls.is_none() && switched_off.sasl.is_none());
    assert!(settings("kafka: {tls: {ca_file: c}}", &[]).tls.is_some());
}

#[test]
fn passwords_are_never_shown() {
    let loaded = load(
        "kafka: {sasl: {mechanism: PLAIN, username: u, password: hunter2}, tls: {cert_file: c, key_file: k, key_password: hunter2}}",
        &[],
    )
    .unwrap();
    assert!(!format!("{loaded:?}").contains("hunter2"));
    let shown = |path: &str| loaded.values.iter().find(|shown| shown.path == path).map(|shown| shown.value.as_str());
    assert_eq!((shown("kafka.sasl.password"), shown("kafka.tls.key_password")), (Some("***"), Some("***")));
    assert_eq!((shown("kafka.sasl.enabled"), shown("kafka.brokers")), (Some("true"), Some("localhost:9092")));
}
