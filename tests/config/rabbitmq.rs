//! RabbitMQ's section and variables: what they lead to, as tables.

use std::path::Path;

use helixmq::{
    broker::rabbitmq::{
        Credentials, Settings,
        topology::{Argument, QueueKind},
    },
    config::{self, Backend, Loaded},
};

const PLUGINS: &str = "plugins: {directory: tests/fixtures/config/no-plugins}\n";

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let env = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    let text = format!("{PLUGINS}{text}");
    config::load_text(Path::new("messaging.yaml"), &text, &env).map_err(|errors| errors.to_string())
}

fn settings(text: &str, variables: &[(&str, &str)]) -> Settings {
    let loaded = load(text, variables).unwrap_or_else(|said| panic!("{text}: {said}"));
    Settings::clone(&loaded.config.rabbitmq.unwrap())
}

/// Scheme, user, hosts and virtual host, as a URL would have them.
fn reached(text: &str, variables: &[(&str, &str)]) -> String {
    let settings = settings(text, variables);
    let hosts: Vec<_> = settings.hosts.iter().map(|host| format!("{}:{}", host.name, host.port)).collect();
    let user = match &settings.credentials {
        Credentials::Plain { user, password } => format!("{user}:{}", password.reveal()),
        Credentials::External => "external".to_owned(),
    };
    let scheme = if settings.tls.is_some() { "amqps" } else { "amqp" };
    format!("{scheme} {user} {} {}", hosts.join(","), settings.vhost)
}

fn refused(text: &str, variables: &[(&str, &str)], words: &str) {
    let said = load(text, variables).map(|_| ()).unwrap_err();
    assert!(said.contains(words), "{text} {variables:?}: {said}");
    assert!(!said.contains("hunter2"), "{said}");
}

const USER: &str = "username: u, password: p";

#[test]
fn a_server_is_named_by_a_url_or_its_parts_in_the_file_or_the_environment() {
    let user = [("RABBITMQ_USER", "u"), ("RABBITMQ_PASSWORD", "p")];
    let with = |more: &[(&'static str, &'static str)]| [&user, more].concat();
    for (text, variables, wanted) in [
        (format!("rabbitmq: {{{USER}}}"), vec![], "amqp u:p localhost:5672 /"),
        (format!("rabbitmq: {{{USER}, host: h, port: 1, vhost: v}}"), vec![], "amqp u:p h:1 v"),
        (
            format!("rabbitmq: {{{USER}, hosts: [a, \"b:2\", \"[::1]:3\"], port: 9}}"),
            vec![],
            "amqp u:p a:9,b:2,::1:3 /",
        ),
        (format!("rabbitmq: {{{USER}, tls: {{enabled: true}}}}"), vec![], "amqps u:p localhost:5671 /"),
        ("rabbitmq: {url: \"amqps://u%40x:p%2F@h1,h2:7/a%2Fb\"}".to_owned(), vec![], "amqps u@x:p/ h1:5671,h2:7 a/b"),
        ("rabbitmq: {url: \"amqp://u:p@h/v\", host: h, vhost: v, username: u}".to_owned(), vec![], "amqp u:p h:5672 v"),
        ("rabbitmq:".to_owned(), with(&[]), "amqp u:p localhost:5672 /"),
        (
            String::new(),
            with(&[("RABBITMQ_HOST", "h"), ("RABBITMQ_PORT", "1"), ("RABBITMQ_VHOST", "v")]),
            "amqp u:p h:1 v",
        ),
        (String::new(), vec![("RABBITMQ_URL", "amqp://u:p@h/%2f")], "amqp u:p h:5672 /"),
        (String::new(), with(&[("RABBITMQ_URL", "amqp://h")]), "amqp u:p h:5672 /"),
        (String::new(), with(&[("RABBITMQ_HOST", "h"), ("RABBITMQ_PORT", "tcp://10.0.0.1:1")]), "amqp u:p h:5672 /"),
        // The environment wins over the file, as a whole and part by part.
        (format!("rabbitmq: {{{USER}, host: h}}"), vec![("RABBITMQ_HOST", "other")], "amqp u:p other:5672 /"),
        (
            format!("rabbitmq: {{{USER}, host: h}}"),
            vec![("RABBITMQ_URL", "amqp://x:y@other/v")],
            "amqp x:y other:5672 v",
        ),
        ("rabbitmq: {url: \"amqp://u:p@h:1/v\"}".to_owned(), vec![("RABBITMQ_PORT", "2")], "amqp u:p h:2 v"),
        (
            "rabbitmq: {auth: external, tls: {enabled: true, cert_file: c, key_file: k}}".to_owned(),
            vec![],
            "amqps external localhost:5671 /",
        ),
    ] {
        assert_eq!(reached(&text, &variables), wanted, "{text} {variables:?}");
    }
}

#[test]
fn what_contradicts_or_is_missing_is_refused() {
    for (text, variables, words) in [
        ("rabbitmq:", vec![], "rabbitmq.username: is missing"),
        ("rabbitmq: {username: u}", vec![], "set RABBITMQ_PASSWORD"),
        ("rabbitmq: {url: \"amqp://u:hunter2@h\", host: other}", vec![], "rabbitmq.host: differs"),
        ("rabbitmq: {url: \"amqp://u:hunter2@h\", password: hunter22}", vec![], "rabbitmq.password: differs"),
        ("rabbitmq: {url: \"amqp://u:hunter2@h:1\", port: 2}", vec![], "rabbitmq.port: differs"),
        ("rabbitmq: {url: \"amqp://u:hunter2@h\", tls: {enabled: true}}", vec![], "begins with amqp://"),
        ("rabbitmq: {url: \"amqp://u:hunter2@h/\"}", vec![], "without a name"),
        (
            "",
            vec![("RABBITMQ_URL", "amqp://u:hunter2@h"), ("RABBITMQ_HOST", "x")],
            "environment RABBITMQ_HOST: rabbitmq.host",
        ),
        ("", vec![("RABBITMQ_URL", "hunter2")], "environment RABBITMQ_URL: rabbitmq.url: is not a URL"),
        ("rabbitmq: {username: u, password: p, host: a, hosts: [b]}", vec![], "rabbitmq.hosts: is given beside host"),
        ("rabbitmq: {username: u, password: p, hosts: []}", vec![], "not a list of hosts"),
        ("rabbitmq: {username: u, password: p, tls: {verify_peer: true, skip_verify: true}}", vec![], "contradicts"),
        ("rabbitmq: {username: u, password: p, tls: {cert_file: c}}", vec![], "one of cert_file and key_file"),
        ("rabbitmq: {auth: external}", vec![], "there is none"),
        (
            "rabbitmq: {auth: external, username: u, tls: {enabled: true, cert_file: c, key_file: k}}",
            vec![],
            "is not used",
        ),
        ("rabbitmq: {username: u, password: p, heartbeat: 500ms}", vec![], "whole seconds"),
        ("rabbitmq: {username: u, password: p, connect_timeout: soon}", vec![], "\"soon\" is not a time"),
        ("rabbitmq: {username: u, password: p, management_url: \"http://u:hunter2@h\"}", vec![], "has a user"),
        ("rabbitmq: {username: u, password: p, exchange: e}", vec![], "rabbitmq.exchange: \"e\" is not configured"),
        ("", vec![("MESSAGING_BACKEND", "rabbitmq")], "rabbitmq.username: is missing"),
    ] {
        refused(text, &variables, words);
    }
}

#[test]
fn the_backend_says_where_queues_and_topics_are() {
    let section = format!("rabbitmq: {{{USER}}}");
    let of = |text: &str, variables: &[(&str, &str)]| {
        let loaded = load(text, variables).unwrap();
        let config = &loaded.config;
        (config.backend, config.queues_on_rabbitmq(), config.topics_on_rabbitmq(), loaded.warnings.len())
    };
    assert_eq!(of("", &[]), (None, false, false, 0));
    assert_eq!(of(&section, &[]), (None, true, false, 0));
    let rabbitmq = [("MESSAGING_BACKEND", "rabbitmq")];
    assert_eq!(of(&section, &rabbitmq), (Some(Backend::Rabbitmq), true, true, 0));
    assert_eq!(of(&section, &[("MESSAGING_BACKEND", "inmemory")]), (Some(Backend::Inmemory), false, false, 1));
    assert_eq!(of("", &[("RABBITMQ_PASSWORD", "p")]), (None, false, false, 1));
    assert!(!settings(&section, &[]).topology.queues.contains_key("helixagent.events.audit"));
    let streams = settings(&section, &rabbitmq).topology;
    assert_eq!(streams.queues["helixagent.events.audit"].text("x-max-age"), Some("90D"));
    assert!(streams.bindings.iter().any(|binding| &*binding.queue == "helixagent.events.audit"));
}

#[test]
fn what_routes_name_must_be_declared_where_it_is() {
    let routes =
        "routes: [{name: r, queue: mine, handler: h, destinations: [topic: t]}]".replace("topic: t", "\"topic:t\"");
    refused(
        &format!("rabbitmq: {{{USER}}}\n{routes}"),
        &[],
        "queue:mine is not declared, and rabbitmq.auto_create is false",
    );
    assert!(load(&format!("rabbitmq: {{{USER}, auto_create: true}}\n{routes}"), &[]).is_ok());
    let declared = format!("rabbitmq: {{{USER}, queues: {{mine: }}}}\n{routes}");
    assert!(load(&declared, &[]).is_ok(), "the topic is on the embedded broker");
    refused(&declared, &[("MESSAGING_BACKEND", "rabbitmq")], "topic:t is not declared, and rabbitmq.auto_create");
    assert!(load(&declared, &[("MESSAGING_BACKEND", "inmemory")]).is_ok(), "the embedded broker makes it");
}

#[test]
fn queues_take_what_is_written_over_the_standard_and_the_defaults() {
    let topology = settings(
        "\
rabbitmq:
  username: u
  password: p
  exchanges: {events: {type: topic, arguments: {alternate-exchange: helixagent.tasks}}}
  queues:
    orders: {length_max: 5, single_active_consumer: true, bindings: [{exchange: events, routing_key: \"orders.#\"}]}
    urgent: {priority_max: 3}
    mine: {exclusive: true, arguments: {x-dead-letter-exchange: null, x-expires: 60000, x-text: \"5\"}}
    limited: {delivery_limit: 7}
    helixagent.tasks.llm: {ttl_ms: null}
    helixagent.dlq: {type: quorum, length_max: 7}
",
        &[],
    )
    .topology;
    let queue = |name: &str| &topology.queues[name];
    assert_eq!(queue("orders").kind, QueueKind::Quorum);
    assert_eq!(queue("orders").arguments["x-max-length"], 5.into());
    assert_eq!(queue("orders").arguments["x-single-active-consumer"], Argument::Flag(true));
    assert_eq!((queue("urgent").kind, &queue("urgent").arguments["x-max-priority"]), (QueueKind::Classic, &3.into()));
    let mine: Vec<_> = queue("mine").arguments.iter().collect();
    assert_eq!(mine, [(&"x-expires".to_owned(), &60_000.into()), (&"x-text".to_owned(), &"5".into())]);
    assert!(queue("mine").exclusive);
    assert_eq!(queue("limited").arguments["x-delivery-limit"], 7.into());
    let llm = queue("helixagent.tasks.llm");
    assert_eq!(
        (llm.kind, llm.arguments.get("x-message-ttl"), &llm.arguments["x-max-priority"]),
        (QueueKind::Classic, None, &10.into())
    );
    let dlq = queue("helixagent.dlq");
    assert_eq!(
        (dlq.kind, &dlq.arguments["x-max-length"], dlq.text("x-dead-letter-exchange")),
        (QueueKind::Quorum, &7.into(), None)
    );
    assert_eq!(topology.exchanges["events"].kind, "topic");
    assert!(topology.bindings.iter().any(|binding| &*binding.queue == "orders" && binding.routing_key == "orders.#"));
}

#[test]
fn a_topology_that_cannot_be_is_refused() {
    for (section, words) in [
        ("queues: {q: {type: quorum, priority_max: 3}}", "quorum queues have no priority_max"),
        ("queues: {q: {type: quorum, exclusive: true}}", "quorum queues have no exclusive"),
        ("queues: {q: {type: classic, delivery_limit: 3}}", "only quorum queues count"),
        ("queues: {q: {bindings: [{exchange: nowhere}]}}", "\"nowhere\", which is not configured"),
        ("queues: {q: {bindings: [{routing_key: k}]}}", "bindings[0].exchange: is missing"),
        ("queues: {q: {arguments: {x-max-length: 3}}}", "write length_max: beside arguments"),
        ("queues: {q: {arguments: {x-dead-letter-exchange: gone}}}", "\"gone\" is not configured"),
        ("queues: {q: {arguments: {x-dead-letter-routing-key: gone}}}", "no binding leads to a queue"),
        ("queues: {amq.q: {}}", "begins with amq."),
        ("queues: {\"a b\": {}}", "is not a name"),
        ("exchanges: {e: {type: tpoic}}", "\"tpoic\" is not direct"),
        ("standard_topology: false, queues: {q: {}}", "dead letter exchange \"helixagent.dlx\" is not configured"),
        ("standard_topology: false, queues: {q: {}}", "hint: set standard_topology to true, or add it"),
    ] {
        refused(&format!("rabbitmq: {{{USER}, {section}}}"), &[], words);
    }
}

#[test]
fn the_password_is_never_shown() {
    let url = [("RABBITMQ_URL", "amqp://u:hunter2@h:1/v")];
    for (text, variables) in [("", url.as_slice()), ("rabbitmq: {username: u, password: hunter2}", &[])] {
        let loaded = load(text, variables).unwrap();
        assert!(!format!("{loaded:?}").contains("hunter2"));
        let shown =
            |path: &str| loaded.values.iter().find(|shown| shown.path == path).map(|shown| shown.value.as_str());
        assert_eq!(shown("rabbitmq.password"), Some("***"));
        if text.is_empty() {
            assert_eq!(shown("rabbitmq.url"), Some("amqp://u:***@h:1/v"));
            assert_eq!((shown("rabbitmq.hosts"), shown("rabbitmq.vhost")), (Some("h:1"), Some("v")));
        }
    }
}
