//! Several systems in one configuration: what has a name of its own, and what addresses may say.

use std::path::Path;

use helixmq::{
    config::{self, Backend, Config, Connection},
    message::{Address, Kind},
};

const BILLING: &str = "connections: {billing: {kind: rabbitmq, host: b, username: u, password: p, prefetch_count: 7}}";
const RABBITMQ: &str = "rabbitmq: {host: a, username: u, password: p}";

fn load_with(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, String> {
    let text = format!("plugins: {{directory: tests/fixtures/config/no-plugins}}\n{text}");
    let loaded = config::load_text(Path::new("messaging.yaml"), &text, env);
    loaded.map(|loaded| loaded.config).map_err(|errors| errors.to_string())
}

fn load(text: &str) -> Config {
    load_with(text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refused(text: &str) -> String {
    load_with(text, &|_| None).expect_err("is accepted")
}

#[test]
fn a_connection_has_the_keys_of_its_kind_and_none_of_the_standard_topology() {
    let config = load(&format!("{BILLING}\n{RABBITMQ}"));
    let all = config.connections_in_use();
    assert_eq!(all.keys().map(|name| &**name).collect::<Vec<_>>(), ["billing", "rabbitmq"]);
    let [Connection::Rabbitmq(billing), Connection::Rabbitmq(usual)] = ["billing", "rabbitmq"].map(|name| &all[name])
    else {
        panic!("{all:?}");
    };
    assert_eq!((billing.prefetch_count, billing.topology.queues.len()), (7, 0));
    assert!(usual.topology.queues.contains_key("helixagent.tasks.llm"));
    assert_eq!(config.system_name_of(&Address::queue("q")).as_ref(), "rabbitmq");
    // A connection alone has what names it, and nothing else.
    assert_eq!(load(BILLING).system_of(Kind::Queue), Backend::Inmemory);
}

#[test]
fn routes_may_name_another_system_at_each_end() {
    let config = load(&format!(
        "{BILLING}\nkafka: {{brokers: ['k:1']}}\nroutes:\n  - {{name: r, queue: \"billing:invoices\", handler: h, \
         dead_letter: \"embedded:queue:dead\", destinations: [\"kafka:sent\"]}}"
    ));
    let route = config.routes.iter().next().expect("a route");
    assert_eq!(route.source.address, Address::queue("invoices").on("billing"));
    // Queues that name no system are there.
    assert_eq!(route.dead_letter, Address::queue("dead"));
    let destinations: Vec<_> = route.terms.destinations.iter().collect();
    assert_eq!(destinations, [(&"sent".to_owned().into(), &Address::topic("sent"))]);
}

#[test]
fn a_system_that_is_not_configured_is_refused_with_those_that_are() {
    let said = refused(&format!("{BILLING}\nroutes: [{{name: r, queue: \"redmine:a\", handler: h}}]"));
    assert!(said.contains("no messaging system is called \"redmine\""), "{said}");
    assert!(said.contains("there are embedded and billing"), "{said}");
    for (written, hint) in [
        ("biling:queue:a", "did you mean billing?"),
        ("rabitmq:a", "did you mean rabbitmq, which needs a section `rabbitmq:`?"),
        ("redis:a", "configure `redis:`"),
        ("elsewhere:a", "add it under `connections:`"),
    ] {
        for backend in ["", "messaging: {backend: inmemory}\n"] {
            let said = refused(&format!("{backend}{BILLING}\nroutes: [{{name: r, queue: \"{written}\", handler: h}}]"));
            assert!(said.contains(&format!("hint: there are embedded and billing; {hint}")), "{said}");
        }
    }
}

#[test]
fn a_kind_that_is_none_is_the_only_mistake() {
    for (kind, hint) in
        [("kind: rabitmq, ", "did you mean rabbitmq?"), ("", "add `kind:` with rabbitmq, kafka or redis")]
    {
        let said = refused(&format!(
            "messaging: {{require: [x]}}\nconnections: {{x: {{{kind}host: b, username: u, password: p}}}}\n\
             routes: [{{name: r, queue: \"x:a\", handler: h}}]"
        ));
        assert!(said.contains(hint) && said.matches("hint: ").count() == 1, "{said}");
    }
}

#[test]
fn names_with_a_meaning_of_their_own_are_refused() {
    for name in ["rabbitmq", "embedded", "queue"] {
        let said = refused(&format!("connections: {{{name}: {{kind: rabbitmq, host: b, username: u, password: p}}}}"));
        assert!(said.contains("has a meaning of its own"), "{said}");
    }
    assert!(refused("connections: {a: {host: b}}").contains("kind"));
}

#[test]
fn with_a_backend_everything_is_there_whatever_addresses_say() {
    let text = format!("{BILLING}\n{RABBITMQ}\nroutes: [{{name: r, queue: \"billing:a\", handler: h}}]");
    let config = load_with(&text, &|name| (name == "MESSAGING_BACKEND").then(|| "inmemory".to_owned())).unwrap();
    assert_eq!(config.routes.iter().next().expect("a route").source.address, Address::queue("a"));
    assert_eq!(config.connections_in_use().len(), 0);
    let text = text.replace("password: p}\nroutes", "password: p, auto_create: true}\nroutes");
    let config = load(&format!("messaging: {{backend: rabbitmq}}\n{text}"));
    assert_eq!(config.system_of(Kind::Topic), Backend::Rabbitmq);
    assert_eq!(config.connections_in_use().len(), 1);
}

#[test]
fn a_transaction_stays_on_one_kafka() {
    let kafka = "kafka: {brokers: ['k:1']}\nconnections: {other: {kind: kafka, brokers: ['o:1']}}";
    let route = |topic: &str, to: &str| {
        format!(
            "{kafka}\nroutes: [{{name: r, topic: \"{topic}\", delivery: transactional, handler: h, \
             dead_letter: \"{to}\", destinations: [\"{to}\"]}}]"
        )
    };
    load(&route("other:a", "other:topic:b"));
    let said = refused(&route("other:a", "topic:b"));
    assert!(said.contains("topic:b in `destinations` is not on the same Kafka"), "{said}");
    load(&format!("{kafka}\nroutes: [{{name: r, topic: \"other:orders.*\", handler: h}}]"));
}
