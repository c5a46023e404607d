//! What routes may ask for where their topics are on Kafka, and what they must not.

use helixmq::{broker::Aside, message::Address, route::Delivery};

use crate::kafka::{load, refused};

const KAFKA: &[(&str, &str)] = &[("MESSAGING_BACKEND", "kafka")];

fn routes(section: &str, routes: &str) -> String {
    format!("{section}\nroutes:\n{routes}")
}

#[test]
fn routes_say_where_retries_wait_and_whether_all_is_one_transaction() {
    let text = routes(
        "kafka:",
        "  - {name: a, topic: t, match: {type: a}, handler: h, retry: {wait: topic}}
  - {name: b, topic: t, handler: h}
  - {name: c, topic: \"u.*\", handler: h, delivery: transactional, order: key, destinations: [\"topic:v\"]}
  - {name: d, queue: q, handler: h}
",
    );
    let config = load(&text, &[]).unwrap().config;
    let of = |name: &str| config.routes.iter().find(|route| &*route.name == name).unwrap();
    // Of the source: of those too that do not say.
    assert_eq!(
        [of("a").source.aside, of("b").source.aside, of("c").source.aside],
        [Aside::Topic, Aside::Topic, Aside::Local]
    );
    assert_eq!((of("a").delivery, of("c").delivery), (Delivery::AtLeastOnce, Delivery::Transactional));
    assert_eq!(of("c").source.address, Address::topic("u.*"));
    let dead = |name: &str| of(name).dead_letter.to_string();
    assert_eq!((dead("a").as_str(), dead("d").as_str()), ("topic:helixagent.dlq.events", "queue:helixagent.dlq"));
}

#[test]
fn dead_letters_go_to_topics_where_what_died_was_on_kafka() {
    let dead = |section: &str, variables: &[(&str, &str)]| {
        let text = routes(section, "  - {name: q, queue: q, handler: h}\n  - {name: t, topic: t, handler: h}\n");
        let config = load(&text, variables).unwrap().config;
        let of = |address: Address| config.routes.of(&address)[0].dead_letter.to_string();
        [of(Address::queue("q")), of(Address::topic("t")), config.dead_letters.tasks.to_string()]
    };
    let (queue, tasks, events) = ("queue:helixagent.dlq", "topic:helixagent.dlq.tasks", "topic:helixagent.dlq.events");
    assert_eq!(dead("", &[]), [queue, queue, queue]);
    assert_eq!(dead("kafka:", &[]), [queue, events, queue]);
    assert_eq!(dead("kafka:", KAFKA), [tasks, events, tasks]);
    assert_eq!(dead("kafka:", &[("MESSAGING_BACKEND", "inmemory")]), [queue, queue, queue]);
    let own = "embedded: {dead_letter: mine}\nkafka: {dead_letter_events: \"topic:dead\"}";
    assert_eq!(dead(own, &[]), ["queue:mine", "topic:dead", "queue:mine"]);
}

#[test]
fn what_only_kafka_can_is_refused_elsewhere() {
    for (section, route, words) in [
        ("", "topic: \"t.*\"", "\"t.*\" is a pattern, and only Kafka has many topics for one reader"),
        ("", "topic: t, retry: {wait: topic}", "routes[0].retry.wait: only what is read from Kafka waits aside"),
        ("kafka:", "queue: q, retry: {wait: local}", "routes[0].retry.wait: only what is read from Kafka"),
        ("", "topic: t, delivery: transactional", "topic:t is not on Kafka: it cannot be settled in a transaction"),
        ("kafka:", "queue: q, delivery: transactional", "queue:q is not on Kafka"),
        (
            "kafka:",
            "topic: t, delivery: transactional, destinations: [\"queue:q\"]",
            "queue:q in `destinations` is not on the same Kafka",
        ),
        (
            "kafka:",
            "topic: t, delivery: transactional, dead_letter: q",
            "dead letters go to queue:q, which is not on the same Kafka",
        ),
        ("kafka:", "topic: t, delivery: transactional, reply: true", "routes[0].reply: is true, and answers go where"),
        ("kafka: {idempotent: false}", "topic: t, delivery: transactional", "kafka.idempotent is false"),
        (
            "kafka: {publish_timeout: 60s}",
            "topic: t, delivery: transactional",
            "kafka.publish_timeout is longer than kafka.transaction_timeout",
        ),
        ("kafka:", "topic: t, delivery: exactly_once", "is not at_least_once or transactional"),
        ("kafka:", "topic: t, order: key, retry: {wait: topic}", "is topic, and this route keeps order"),
        ("kafka:", "topic: \"t*\"", "'*' and '#' stand for whole words"),
        ("kafka:", "topic: \"t .*\"", "is not a pattern for names of topics"),
        ("kafka:", "topic: helixagent.retry.events", "where the engine keeps copies"),
        ("kafka:", "topic: \"#\", dead_letter: q", "where the engine keeps copies"),
        ("kafka:", "topic: \"helixagent.#\"", "sends its dead letters back there"),
        ("kafka:", "topic: helixagent.dlq.events", "sends its dead letters back there"),
    ] {
        refused(&routes(section, &format!("  - {{name: r, {route}, handler: h}}\n")), &[], words);
    }
    // With queues there, they can be in a transaction too.
    let text =
        routes("kafka:", "  - {name: r, queue: q, handler: h, delivery: transactional, destinations: [\"queue:p\"]}\n");
    assert!(load(&text, KAFKA).is_ok());
}

#[test]
fn routes_of_one_topic_agree() {
    let two = |one: &str, other: &str| {
        routes(
            "kafka:",
            &format!("  - {{name: a, {one}, match: {{type: a}}, handler: h}}\n  - {{name: b, {other}, handler: h}}\n"),
        )
    };
    for (one, other, words) in [
        (
            "topic: t, retry: {wait: topic}",
            "topic: t, retry: {wait: local}",
            "routes[1].retry.wait: retries of another route of this source wait elsewhere",
        ),
        ("topic: t, delivery: transactional", "topic: t", "either both or neither may be transactional"),
        ("topic: \"t.*\"", "topic: t.a", "topic:t.a and topic:t.* of route \"a\" have a topic in common"),
        ("topic: \"t.#\"", "topic: \"*.a\"", "have a topic in common"),
    ] {
        refused(&two(one, other), &[], words);
    }
    for (one, other) in
        [("topic: \"t.*\"", "topic: u.a"), ("topic: \"t.*\"", "topic: t.a, group: other"), ("queue: t", "topic: t")]
    {
        assert!(load(&two(one, other), &[]).is_ok(), "{one} {other}");
    }
    refused(&two("queue: t", "topic: t"), KAFKA, "topic:t and queue:t of route \"a\" have a topic in common");
}

#[test]
fn a_topic_that_somebody_else_made_need_not_be_declared() {
    let text = routes("embedded: {auto_create: false}\nkafka:", "  - {name: r, topic: theirs, handler: h}\n");
    assert!(load(&text, &[]).is_ok());
    refused(&text, &[("MESSAGING_BACKEND", "inmemory")], "topic:theirs is not declared");
}
