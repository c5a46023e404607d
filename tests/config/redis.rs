//! Redis' section and variables: what they lead to, as tables.

use std::{path::Path, time::Duration};

use helixmq::{
    broker::{Overflow, redis::Settings},
    config::{self, Backend, Loaded},
    message::{Address, Kind},
};

const PLUGINS: &str = "plugins: {directory: tests/fixtures/config/no-plugins}\n";

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let env = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    let text = format!("{PLUGINS}{text}");
    config::load_text(Path::new("messaging.yaml"), &text, &env).map_err(|errors| errors.to_string())
}

fn settings(text: &str, variables: &[(&str, &str)]) -> Settings {
    let loaded = load(text, variables).unwrap_or_else(|said| panic!("{text}: {said}"));
    Settings::clone(&loaded.config.redis.unwrap())
}

fn refused(text: &str, variables: &[(&str, &str)], words: &str) {
    let said = load(text, variables).map(|_| ()).unwrap_err();
    assert!(said.contains(words), "{text} {variables:?}: {said}");
    assert!(!said.contains("hunter2"), "{said}");
}

/// Where it is, and who connects.
fn reached(text: &str, variables: &[(&str, &str)]) -> String {
    let settings = settings(text, variables);
    let hosts: Vec<_> = settings.hosts.iter().map(ToString::to_string).collect();
    let password = settings.password.map(|password| password.reveal().to_owned());
    let (user, password) = (settings.username.unwrap_or_default(), password.unwrap_or_default());
    let scheme = if settings.tls.is_some() { "rediss" } else { "redis" };
    format!("{scheme}://{user}:{password}@{}/{}", hosts.join(","), settings.database)
}

#[test]
fn a_server_is_named_by_a_url_or_by_its_parts_in_the_file_or_the_environment() {
    for (text, variables, wanted) in [
        ("redis:", vec![], "redis://:@localhost:6379/0"),
        ("redis: {host: r}", vec![], "redis://:@r:6379/0"),
        ("redis: {host: r, port: 7, database: 3}", vec![], "redis://:@r:7/3"),
        ("redis: {hosts: [a, \"b:1\", \"[::1]:2\"]}", vec![], "redis://:@a:6379,b:1,::1:2/0"),
        ("redis: {url: \"redis://u:p%40@r:7/3\"}", vec![], "redis://u:p@@r:7/3"),
        ("redis: {url: \"redis://:p@r\"}", vec![], "redis://:p@r:6379/0"),
        ("redis: {url: \"rediss://a,b:2\"}", vec![], "rediss://:@a:6379,b:2/0"),
        ("redis: {url: \"redis://r\", database: 2, username: u, password: p}", vec![], "redis://u:p@r:6379/2"),
        ("redis: {tls: {enabled: true}}", vec![], "rediss://:@localhost:6379/0"),
        ("", vec![("REDIS_URL", "redis://u:p@r:7/3")], "redis://u:p@r:7/3"),
        ("", vec![("REDIS_HOST", "r"), ("REDIS_PORT", "7")], "redis://:@r:7/0"),
        ("", vec![("REDIS_HOST", "r"), ("REDIS_PASSWORD", "p"), ("REDIS_DB", "4")], "redis://:p@r:6379/4"),
        ("", vec![("REDIS_HOST", "r"), ("REDIS_USERNAME", "u"), ("REDIS_PASSWORD", "p")], "redis://u:p@r:6379/0"),
        ("", vec![("MESSAGING_BACKEND", "redis")], "redis://:@localhost:6379/0"),
        ("redis: {host: r, port: 7}", vec![("REDIS_HOST", "a")], "redis://:@a:6379/0"),
        ("redis: {host: r, port: 7}", vec![("REDIS_PORT", "8")], "redis://:@r:8/0"),
        ("redis: {url: \"redis://r:7/1\"}", vec![("REDIS_URL", "redis://b")], "redis://:@b:6379/0"),
        ("redis: {host: r}", vec![("REDIS_PORT", "tcp://10.0.0.1:1")], "redis://:@r:6379/0"),
    ] {
        assert_eq!(reached(text, &variables), wanted, "{text} {variables:?}");
    }
}

#[test]
fn every_key_leads_to_its_setting() {
    let read = settings(
        "\
redis:
  key_prefix: \"mine:\"
  engine: one
  connect_timeout: 1s
  reconnect_delay: 60ms
  publish_timeout: 3s
  prefetch_count: 7
  message_bytes_max: 2 MB
  min_replicas: 1
  lease_ms: 5000
  auto_create: true
  accept_differences: true
  standard_topology: false
  tls: {enabled: true, ca_file: ca, cert_file: c, key_file: k, verify_peer: true, server_name: r.example}
  queues:
    a: {priority_max: 3, ttl_ms: 10, length_max: 11, bytes_max: 12 KiB, overflow: drop-oldest, lease_ms: 500}
    b: {}
  topics:
    c: {retention_ms: 13, retention_bytes_max: 14, lease_ms: 700}
    d: {retention_ms: null}
  channels: [e, f]
",
        &[],
    );
    let ms = Duration::from_millis;
    assert_eq!((read.key_prefix.as_str(), read.engine.as_deref()), ("mine:", Some("one")));
    let times = [read.connect_timeout, read.reconnect_delay_max, read.publish_timeout, read.lease];
    assert_eq!(times, [ms(1000), ms(60), ms(3000), ms(5000)]);
    assert_eq!((read.prefetch_count, read.message_bytes_max, read.min_replicas), (7, 2_000_000, 1));
    assert!(read.auto_create && read.accept_differences);
    let tls = read.tls.unwrap();
    let files = [tls.ca_file, tls.cert_file, tls.key_file].map(|file| file.unwrap().display().to_string());
    assert_eq!(
        (files, tls.server_name.as_deref(), tls.skip_verify),
        (["ca", "c", "k"].map(str::to_owned), Some("r.example"), false)
    );
    // The dead letter queue is there, whatever the operator leaves out.
    assert_eq!(read.queues.keys().map(|name| &**name).collect::<Vec<_>>(), ["a", "b", "helixagent.dlq"]);
    let a = &read.queues["a"];
    assert_eq!((a.priority_max, a.ttl, a.length_max, a.bytes_max), (3, Some(ms(10)), Some(11), Some(12 << 10)));
    assert_eq!((a.overflow, a.lease, read.queues["b"].lease), (Overflow::DropOldest, ms(500), ms(5000)));
    assert_eq!(read.topics.keys().map(|name| &**name).collect::<Vec<_>>(), ["c", "d"]);
    let c = &read.topics["c"];
    assert_eq!((c.retention, c.retention_bytes, c.lease, c.partitions), (Some(ms(13)), Some(14), ms(700), 1));
    assert_eq!(read.topics["d"].retention, None);
    assert_eq!(read.channels.iter().map(|name| &**name).collect::<Vec<_>>(), ["e", "f"]);
}

#[test]
fn the_standard_topology_is_there_and_can_be_changed() {
    let read =
        settings("redis: {queues: {helixagent.tasks.llm: {length_max: 5}}, channels: [helixagent.stream.sse]}", &[]);
    assert_eq!(read.queues.len(), 6);
    let llm = &read.queues["helixagent.tasks.llm"];
    assert_eq!((llm.length_max, llm.ttl, llm.priority_max), (Some(5), Some(Duration::from_secs(300)), 10));
    assert_eq!(read.queues["helixagent.dlq"].length_max, Some(100_000));
    assert!(read.topics.contains_key("helixagent.events.audit"));
    // A channel keeps nothing: it is no topic with a retention.
    assert!(!read.topics.contains_key("helixagent.stream.sse"));
    assert!(read.topics.values().all(|topic| topic.partitions == 1));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (text, words) in [
        ("redis: {url: \"redis://a:hunter2@h?x\"}", "parameters"),
        ("redis: {url: \"redis://h\", host: i}", "differs from what the URL says"),
        ("redis: {url: \"redis://h/1\", database: 2}", "differs from what the URL says"),
        ("redis: {url: \"redis://h:1\", port: 2}", "differs from the port"),
        ("redis: {url: \"redis://h\", tls: {enabled: true}}", "the URL begins with redis://"),
        ("redis: {url: \"rediss://h\", tls: {enabled: false}}", "write rediss:// and enabled: true"),
        ("redis: {host: a, hosts: [b]}", "is given beside host"),
        ("redis: {hosts: []}", "is not a list of hosts"),
        ("redis: {host: \"redis://h\"}", "is not a host"),
        ("redis: {username: u}", "redis.password: is missing, and there is a user"),
        ("redis: {username: \"a b\", password: p}", "is not the name of a user"),
        ("redis: {password: \"\"}", "the password is empty"),
        ("redis: {key_prefix: \"a{b}\"}", "is not text that keys begin with"),
        ("redis: {key_prefix: \"\"}", "is not text that keys begin with"),
        ("redis: {lease_ms: 99}", "too small"),
        ("redis: {lease_ms: 30s}", "write milliseconds: 30000"),
        ("redis: {prefetch_count: 0}", "too small"),
        ("redis: {min_replicas: 101}", "too large"),
        ("redis: {database: 65536}", "too large"),
        ("redis: {tls: {cert_file: c}}", "has one of cert_file and key_file"),
        ("redis: {topics: {a: {partitions: 3}}}", "whose topics are not divided"),
        ("redis: {topics: {\"a b\": {}}}", "is not a name for a queue or topic"),
        ("redis: {channels: a}", "is not a list of names"),
        ("redis: {channels: [\"a*\"]}", "is not a name for a queue or topic"),
        ("redis: {topics: {a: {}}, channels: [a]}", "is under topics, too"),
        ("redis: {queues: {helixagent.dlq: {overflow: dead-letter-oldest}}}", "would send its dead letters to itself"),
        ("redis: {prefetch: 3}", "did you mean prefetch_count?"),
    ] {
        refused(text, &[], words);
    }
    refused("", &[("REDIS_URL", "http://a:hunter2@h")], "environment REDIS_URL: redis.url: begins neither");
    refused("", &[("REDIS_HOST", "h"), ("REDIS_PORT", "many")], "environment REDIS_PORT: redis.port");
}

#[test]
fn what_is_accepted_and_should_be_looked_at_is_said() {
    for (text, variables, words) in [
        ("redis: {host: r, password: hunter2}", vec![], Some("without TLS")),
        ("redis: {host: 127.0.0.1, password: hunter2}", vec![], None),
        ("redis: {url: \"rediss://:hunter2@r\"}", vec![], None),
        ("redis: {url: \"rediss://r\", tls: {skip_verify: true}}", vec![], Some("can read and change everything")),
        ("redis: {queues: {a: {overflow: drop-oldest}}}", vec![], Some("without limits")),
        ("redis:", vec![("MESSAGING_BACKEND", "inmemory")], Some("messaging.backend is inmemory")),
        ("", vec![("REDIS_PASSWORD", "hunter2")], Some("Redis is not configured")),
    ] {
        let loaded = load(text, &variables).unwrap();
        let said: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
        let right = match words {
            None => said.is_empty(),
            Some(words) => said.len() == 1 && said[0].contains(words),
        };
        assert!(right, "{text} {variables:?}: {said:?}");
        assert!(!format!("{loaded:?}").contains("hunter2"), "{text}");
    }
}

#[test]
fn redis_has_what_no_other_system_has() {
    let of = |text: &str, variables: &[(&str, &str)]| {
        let config = load(text, variables).unwrap_or_else(|said| panic!("{text}: {said}")).config;
        ([Kind::Queue, Kind::Topic].map(|kind| config.system_of(kind)), config.redis_in_use().is_some())
    };
    let (embedded, redis) = (Backend::Inmemory, Backend::Redis);
    assert_eq!(of("redis:", &[]), ([redis, redis], true));
    assert_eq!(of("", &[("REDIS_HOST", "r")]), ([redis, redis], true));
    assert_eq!(of("", &[("MESSAGING_BACKEND", "redis")]), ([redis, redis], true));
    assert_eq!(of("redis:", &[("MESSAGING_BACKEND", "inmemory")]), ([embedded, embedded], false));
    #[cfg(all(feature = "rabbitmq", feature = "kafka"))]
    {
        const RABBITMQ: &str = "rabbitmq: {username: u, password: p}\n";
        let (rabbitmq, kafka) = (Backend::Rabbitmq, Backend::Kafka);
        assert_eq!(of(&format!("{RABBITMQ}redis:"), &[]), ([rabbitmq, redis], true));
        assert_eq!(of("kafka:\nredis:", &[]), ([redis, kafka], true));
        assert_eq!(of(&format!("{RABBITMQ}redis:"), &[("MESSAGING_BACKEND", "redis")]), ([redis, redis], true));
    }
}

#[test]
fn a_route_to_what_is_not_declared_is_refused() {
    let route = "routes: [{name: a, queue: work, handler: h, destinations: [topic:seen]}]";
    refused(&format!("redis:\n{route}"), &[], "queue:work is not declared, and redis.auto_create is false");
    for declared in
        ["{queues: {work: {}}, topics: {seen: {}}}", "{queues: {work: {}}, channels: [seen]}", "{auto_create: true}"]
    {
        let loaded = load(&format!("redis: {declared}\n{route}"), &[]).unwrap();
        let dead: Vec<_> = loaded.config.all_dead_letters().into_iter().collect();
        assert_eq!(dead, [Address::queue("helixagent.dlq")]);
    }
}
