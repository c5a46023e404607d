//! The engine itself is killed, again and again, as its own binary: a message that takes it down uses up its own attempts,
//! exactly, and nobody else's.

use std::{cell::RefCell, collections::BTreeSet};

use helixmq::broker::rabbitmq::topology::QueueKind::{self, Classic, Quorum};
use lapin::BasicProperties;
use serde_json::Value;

use crate::{
    raw::{Raw, table, text},
    server::{Server, Vhost},
    support::{eventually, host::Place},
};

const ATTEMPTS_MAX: u64 = 4;
/// Lives after which it is held for endless: one for each attempt, and those to take up what is left.
const LIVES_MAX: u64 = ATTEMPTS_MAX + 4;
const INNOCENT: usize = 50;

fn config(vhost: &Vhost, kind: QueueKind) -> String {
    let (port, name, kind) = (vhost.server().amqp().port(), vhost.name(), kind.as_str());
    format!(
        "http: {{listen: '127.0.0.1:0', token: killed-again-and-again}}\nplugins: {{directory: plugins}}\n\
         engine: {{data_directory: data}}\ntelemetry: {{filter: warn, format: json}}\n\
         rabbitmq:\n  host: 127.0.0.1\n  port: {port}\n  username: guest\n  password: guest\n  vhost: {name}\n  \
         queues: {{work: {{type: {kind}}}, handled: {{type: {kind}}}, runs: {{type: {kind}}}}}\n\
         routes:\n  - {{name: work, queue: work, handler: witness, concurrency: 2, \
         destinations: {{out: 'queue:handled', runs: 'queue:runs'}}, \
         retry: {{attempts_max: {ATTEMPTS_MAX}, delay_ms: 10}}}}\n"
    )
}

/// What is in a queue by now, in the fields of the payload.
async fn said(raw: &Raw, queue: &str) -> Vec<(String, u64)> {
    let all = raw.drain(queue).await.into_iter();
    all.map(|one| {
        let json: Value = serde_json::from_slice(&one.data).expect("a witness's words");
        (json["id"].as_str().expect("an id").to_owned(), json["attempt"].as_u64().expect("an attempt"))
    })
    .collect()
}

async fn gives_up_only_the_killer(kind: QueueKind) {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let place = Place::new(&config(&vhost, kind), &["witness"]);
    let mut host = place.start();
    let raw = Raw::connect(&vhost).await;
    for queue in ["work", "handled", "runs", "helixagent.dlq"] {
        eventually(&format!("there is {queue}\n{}", place.log()), async || raw.depth(queue).await).await;
    }
    let properties = |id: &str| BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
    let ids: Vec<_> = (0..INNOCENT).map(|number| format!("innocent.{number}")).collect();
    for id in &ids[..INNOCENT / 2] {
        raw.publish("work", b"{}", properties(id)).await;
    }
    let lingers = properties("killer").with_headers(table(&[("ends", text("linger"))]));
    raw.publish("work", b"{}", lingers).await;
    for id in &ids[INNOCENT / 2..] {
        raw.publish("work", b"{}", properties(id)).await;
    }

    // Attempts of the killer, and of the others.
    let (killer, others) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let mut lives = 1;
    let dead = loop {
        let begun = killer.borrow().len();
        let dead = eventually(&format!("it begins again, or is given up\n{}", place.log()), async || {
            for (id, attempt) in said(&raw, "runs").await {
                let of = if id == "killer" { &killer } else { &others };
                of.borrow_mut().push(attempt);
            }
            let dead = crate::site::ids(&raw.drain("helixagent.dlq").await);
            (killer.borrow().len() > begun || !dead.is_empty()).then_some(dead)
        })
        .await;
        if !dead.is_empty() {
            break dead;
        }
        drop(host);
        lives += 1;
        assert!(lives <= LIVES_MAX, "it takes the engine down for ever, begun at attempts {:?}", killer.borrow());
        host = place.start();
    };
    let (killer, others) = (killer.into_inner(), others.into_inner());
    assert_eq!(dead, BTreeSet::from(["killer".to_owned()]), "dead because of another; its attempts: {killer:?}");
    assert_eq!(killer, (1..=ATTEMPTS_MAX).collect::<Vec<_>>(), "{kind:?}: N attempts mean N");

    let handled = RefCell::new(BTreeSet::new());
    eventually("all others are handled", async || {
        let said = said(&raw, "handled").await;
        handled.borrow_mut().extend(said.into_iter().map(|(id, _)| id));
        (handled.borrow().len() == INNOCENT).then_some(())
    })
    .await;
    let late = crate::site::ids(&raw.drain("helixagent.dlq").await);
    assert!(late.is_empty(), "dead because of another: {late:?}");
    let worst = others.iter().copied().max();
    assert!(worst <= Some(2), "{kind:?}: others were out once, and paid with more than one attempt: {worst:?}");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_the_engine_is_given_up_alone_on_classic_queues() {
    gives_up_only_the_killer(Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_the_engine_is_given_up_alone_on_quorum_queues() {
    gives_up_only_the_killer(Quorum).await;
}
