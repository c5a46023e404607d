//! The topology on a real server: what differs is found field by field, what is missing is made, nothing is changed, and
//! the exported file is one that the server imports. Each test has a virtual host of its own.

use std::time::Duration;

use crate::{
    management::Management,
    server::{Server, Vhost},
};
use futures_util::StreamExt as _;
use helixmq::broker::rabbitmq::topology::{
    Argument, Binding, DeclareError, Exchange, How, Options, Queue, QueueKind, RUNG_DELAYS, State, Topology, What,
    declare, export, rung, standard,
};
use lapin::{BasicProperties, Connection, ConnectionProperties, options::*, types::FieldTable};
use serde_json::{Value, json};

/// A virtual host, and its server's HTTP interface.
async fn vhost() -> (Vhost, Management) {
    let server = Server::shared();
    (server.vhost().await, server.management())
}

async fn connect(vhost: &Vhost) -> Connection {
    Connection::connect(&vhost.uri(), ConnectionProperties::default()).await.unwrap()
}

fn options(how: How) -> Options {
    Options { how, timeout: Duration::from_secs(10) }
}

async fn states(connection: &Connection, all: &Topology, how: How) -> Vec<(What, String, State)> {
    let entities = declare(connection, all, options(how)).await.unwrap();
    entities.into_iter().map(|entity| (entity.what, entity.name, entity.state)).collect()
}

fn queue(kind: QueueKind, arguments: &[(&str, Argument)]) -> Queue {
    let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Queue::durable(kind, arguments)
}

fn with_queue(name: &str, queue: Queue) -> Topology {
    let mut all = Topology::default();
    all.queues.insert(name.into(), queue);
    all
}

#[tokio::test]
async fn what_is_missing_is_made_and_is_then_the_same() {
    let (vhost, management) = vhost().await;
    let connection = connect(&vhost).await;
    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        let mut all = standard(kind);
        RUNG_DELAYS
            .iter()
            .map(|delay| rung(*delay))
            .filter(|rung| &*rung.name != "helixagent.retry")
            .for_each(|rung| all.add_rung(rung));
        for (how, entity, binding) in [
            (How::Look, State::Missing, State::Unknown),
            (How::MakeUnlessDifferent, State::Made, State::Made),
            (How::Look, State::Same, State::Unknown),
            (How::Make, State::Same, State::Made),
        ] {
            for (what, name, state) in states(&connection, &all, how).await {
                let wanted = if what == What::Binding { &binding } else { &entity };
                assert_eq!(&state, wanted, "{name} {how:?}");
            }
        }
        let bindings = management.get(&format!("bindings/{}", vhost.name())).unwrap();
        let ours = bindings.as_array().unwrap().iter().filter(|binding| binding["source"] != "").count();
        assert_eq!(ours, all.bindings.len());
        for name in all.queues.keys() {
            management.delete(&format!("queues/{}/{name}", vhost.name()));
        }
        for name in all.exchanges.keys() {
            management.delete(&format!("exchanges/{}/{name}", vhost.name()));
        }
    }
}

#[tokio::test]
async fn every_field_that_differs_is_named_with_both_values_and_nothing_changes() {
    let (vhost, management) = vhost().await;
    let connection = connect(&vhost).await;
    let classic = |arguments: &[(&str, Argument)]| queue(QueueKind::Classic, arguments);
    let quorum = |arguments: &[(&str, Argument)]| queue(QueueKind::Quorum, arguments);
    let cases = [
        (
            classic(&[
                ("x-max-priority", 10.into()),
                ("x-message-ttl", 1000.into()),
                ("x-dead-letter-exchange", "a".into()),
            ]),
            classic(&[
                ("x-max-priority", 5.into()),
                ("x-max-length", 9.into()),
                ("x-dead-letter-exchange", "b".into()),
            ]),
            vec!["x-dead-letter-exchange a b", "x-max-length none 9", "x-max-priority 10 5", "x-message-ttl 1000 none"],
        ),
        (
            classic(&[("x-max-priority", 10.into())]),
            quorum(&[("x-delivery-limit", 7.into()), ("x-overflow", "reject-publish".into())]),
            vec!["x-max-priority 10 none", "x-overflow none reject-publish", "x-queue-type classic quorum"],
        ),
        (
            quorum(&[
                ("x-delivery-limit", 7.into()),
                ("x-dead-letter-exchange", "".into()),
                ("x-dead-letter-routing-key", "k".into()),
            ]),
            classic(&[]),
            vec![
                "x-dead-letter-exchange  none",
                "x-dead-letter-routing-key k none",
                "x-delivery-limit 7 none",
                "x-queue-type quorum classic",
            ],
        ),
        (
            queue(QueueKind::Stream, &[("x-max-age", "7D".into())]),
            queue(QueueKind::Stream, &[("x-max-age", "1D".into()), ("x-max-length-bytes", 5000.into())]),
            vec!["x-max-age 7D 1D", "x-max-length-bytes none 5000"],
        ),
        (
            Queue { durable: false, auto_delete: true, ..classic(&[]) },
            classic(&[("x-single-active-consumer", Argument::Flag(true))]),
            vec!["auto_delete true false", "durable false true", "x-single-active-consumer none true"],
        ),
    ];
    for (there, wanted, differences) in cases {
        states(&connection, &with_queue("q", there.clone()), How::Make).await;
        for how in [How::Look, How::Make] {
            let found = states(&connection, &with_queue("q", wanted.clone()), how).await;
            let [(_, _, State::Differs(found))] = found.as_slice() else { panic!("{found:?}") };
            let mut said: Vec<_> =
                found.iter().map(|one| format!("{} {} {}", one.field, one.current, one.configured)).collect();
            said.sort();
            // Servers of some versions compare what means nothing for the kind that is there, others do not.
            said.retain(|one| !one.starts_with("x-delivery-limit none"));
            assert_eq!(said, differences, "{there:?}");
        }
        let still = states(&connection, &with_queue("q", there), How::Look).await;
        assert_eq!(still[0].2, State::Same);
        management.delete(&format!("queues/{}/q", vhost.name()));
    }
}

#[tokio::test]
async fn an_exchange_that_differs_is_left_alone_and_stops_the_rest_unless_it_is_accepted() {
    let (vhost, _) = vhost().await;
    let connection = connect(&vhost).await;
    let mut there = Topology::default();
    there.exchanges.insert("e".into(), Exchange { durable: false, internal: true, ..Exchange::durable("fanout") });
    states(&connection, &there, How::Make).await;
    let mut wanted = with_queue("new", queue(QueueKind::Quorum, &[]));
    wanted.exchanges.insert("e".into(), Exchange::durable("topic"));
    let found = states(&connection, &wanted, How::MakeUnlessDifferent).await;
    let State::Differs(differences) = &found[0].2 else { panic!("{found:?}") };
    let fields: std::collections::BTreeSet<_> = differences.iter().map(|one| one.field.as_str()).collect();
    assert_eq!(fields, ["durable", "internal", "type"].into());
    assert_eq!(found[1].2, State::Missing);
    assert_eq!(states(&connection, &wanted, How::Look).await[1].2, State::Missing, "nothing was made");
    assert_eq!(states(&connection, &wanted, How::Make).await[1].2, State::Made);
    assert_eq!(states(&connection, &there, How::Look).await[0].2, State::Same, "it was not changed");
}

#[tokio::test]
async fn a_value_that_the_server_cannot_tell_is_said_to_differ_all_the_same() {
    let (vhost, _) = vhost().await;
    let connection = connect(&vhost).await;
    let name = "n".repeat(200);
    states(&connection, &with_queue(&name, queue(QueueKind::Classic, &[("x-max-length", 5.into())])), How::Make).await;
    let wanted = with_queue(&name, queue(QueueKind::Classic, &[("x-max-length", 6.into())]));
    let found = states(&connection, &wanted, How::Look).await;
    let State::Differs(differences) = &found[0].2 else { panic!("{found:?}") };
    assert_eq!((differences[0].field.as_str(), differences[0].configured.as_str()), ("x-max-length", "6"));
}

#[tokio::test]
async fn what_belongs_to_another_connection_or_is_not_permitted_has_a_sentence_of_its_own() {
    let (vhost, management) = vhost().await;
    let (connection, other) = (connect(&vhost).await, connect(&vhost).await);
    let exclusive = with_queue("mine", Queue { exclusive: true, ..queue(QueueKind::Classic, &[]) });
    states(&other, &exclusive, How::Make).await;
    let refused = declare(&connection, &exclusive, options(How::Make)).await.unwrap_err();
    assert!(matches!(refused, DeclareError::Locked { .. }), "{refused}");
    assert!(refused.to_string().starts_with("the queue mine belongs to another connection"), "{refused}");

    let user = vhost.name();
    management.put(&format!("users/{user}"), &json!({ "password": "secret", "tags": "" }));
    let only_reads = json!({ "configure": "^$", "write": ".*", "read": ".*" });
    management.put(&format!("permissions/{user}/{user}"), &only_reads);
    let uri = vhost.uri().replace("guest:guest", &format!("{user}:secret"));
    let reader = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let wanted = with_queue("q", queue(QueueKind::Quorum, &[]));
    let refused = declare(&reader, &wanted, options(How::Make)).await.unwrap_err();
    assert!(matches!(refused, DeclareError::NotAllowed { .. }), "{refused}");
    management.delete(&format!("users/{user}"));

    let mut unknown = Topology::default();
    unknown.exchanges.insert("e".into(), Exchange::durable("no-such-type"));
    let refused = declare(&connection, &unknown, options(How::Make)).await.unwrap_err();
    assert!(matches!(refused, DeclareError::Refused { .. }), "{refused}");

    let connection = connect(&vhost).await;
    let negative = with_queue("q", queue(QueueKind::Quorum, &[("x-max-length", (-1).into())]));
    let refused = declare(&connection, &negative, options(How::Make)).await.unwrap_err();
    assert!(refused.to_string().contains("x-max-length"), "{refused}");

    connection.close(200, "done".into()).await.unwrap();
    let refused = declare(&connection, &wanted, options(How::Look)).await.unwrap_err();
    assert!(matches!(refused, DeclareError::Unreachable { .. }), "{refused}");
}

#[tokio::test]
async fn a_binding_to_what_is_not_there_is_refused() {
    let (vhost, _) = vhost().await;
    let connection = connect(&vhost).await;
    let mut all = with_queue("q", queue(QueueKind::Classic, &[]));
    let (exchange, routing_key) = ("nowhere".into(), "k".to_owned());
    all.bindings.push(Binding { exchange, queue: "q".into(), routing_key, arguments: Default::default() });
    let refused = declare(&connection, &all, options(How::Make)).await.unwrap_err();
    assert!(refused.to_string().contains("nowhere -> q"), "{refused}");
}

#[tokio::test]
async fn the_server_imports_what_is_exported_and_then_has_it() {
    let (vhost, management) = vhost().await;
    let mut all = standard(QueueKind::Classic);
    all.add_rung(rung(Duration::from_millis(100)));
    all.queues.insert("audit".into(), queue(QueueKind::Stream, &[("x-max-age", "7D".into())]));
    management.post("definitions", &export(&all, vhost.name()));
    let connection = connect(&vhost).await;
    for (what, name, state) in states(&connection, &all, How::Look).await {
        assert_eq!(state, if what == What::Binding { State::Unknown } else { State::Same }, "{name}");
    }
    let bindings = management.get(&format!("bindings/{}", vhost.name())).unwrap();
    for binding in &all.bindings {
        let is_it = |other: &&Value| {
            other["source"] == *binding.exchange
                && other["destination"] == *binding.queue
                && other["routing_key"] == *binding.routing_key
        };
        assert_eq!(bindings.as_array().unwrap().iter().filter(is_it).count(), 1, "{binding:?}");
    }
}

#[tokio::test]
async fn a_message_on_a_rung_returns_to_the_queue_that_its_routing_key_names() {
    let (vhost, _) = vhost().await;
    let connection = connect(&vhost).await;
    let mut all = with_queue("q", queue(QueueKind::Classic, &[]));
    all.add_rung(rung(Duration::from_millis(100)));
    states(&connection, &all, How::Make).await;
    let channel = connection.create_channel().await.unwrap();
    channel
        .basic_publish(
            "helixagent.retry.100".into(),
            "q".into(),
            BasicPublishOptions::default(),
            b"again",
            BasicProperties::default(),
        )
        .await
        .unwrap();
    let mut consumer = channel
        .basic_consume("q".into(), "test".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let delivery = tokio::time::timeout(Duration::from_secs(10), consumer.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((delivery.data.as_slice(), delivery.routing_key.as_str()), (b"again".as_slice(), "q"));
}

#[tokio::test]
async fn rabbitmqctl_imports_the_file_that_the_command_line_writes_and_plan_finds_nothing_to_do() {
    let (vhost, management) = vhost().await;
    // Where the server can read, which may live in a tree of its own.
    let folder = tempfile::tempdir_in(std::env::var("RABBITMQ_TEST_DIR").unwrap()).unwrap();
    let (config, file) = (folder.path().join("messaging.yaml"), folder.path().join("definitions.json"));
    let (host, api) = (vhost.server().amqp(), management_of(&vhost));
    let rabbitmq = format!(
        "rabbitmq: {{hosts: [\"{host}\"], username: guest, password: guest, vhost: {}, management_url: \"{api}\"}}\n",
        vhost.name()
    );
    std::fs::write(&config, rabbitmq).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_helixmq"));
        command.current_dir(folder.path()).arg("--json").arg("--config").arg(&config).arg("topology").args(arguments);
        let output = command.output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (output.status.code(), said["counts"].clone())
    };
    let count = |counts: &Value, name: &str| counts[name].as_u64().unwrap();
    let (code, counts) = run(&["plan"]);
    assert_eq!((code, count(&counts, "missing")), (Some(1), 19), "{counts}");
    run(&["export", "--file", "definitions.json"]);
    vhost.server().ctl(&["import_definitions", file.to_str().unwrap()]).await;
    let (code, counts) = run(&["plan"]);
    assert_eq!((code, count(&counts, "same")), (Some(0), 19), "{counts}");

    management.delete(&format!("queues/{}/helixagent.tasks.llm", vhost.name()));
    management.delete(&format!("queues/{}/helixagent.tasks.debate", vhost.name()));
    let classic = json!({ "durable": true, "arguments": { "x-max-priority": 3 } });
    management.put(&format!("queues/{}/helixagent.tasks.llm", vhost.name()), &classic);
    let (code, counts) = run(&["apply"]);
    assert_eq!((code, count(&counts, "differ"), count(&counts, "missing")), (Some(1), 1, 0), "{counts}");
    let (code, counts) = run(&["plan"]);
    assert_eq!((code, count(&counts, "same"), count(&counts, "differ")), (Some(1), 18, 1), "{counts}");
}

fn management_of(vhost: &Vhost) -> String {
    let mut address = vhost.server().amqp();
    address.set_port(address.port() + 2);
    format!("http://{address}")
}
