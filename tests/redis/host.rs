//! The engine itself is killed, again and again, as its own binary: a message that takes it down uses up its own attempts,
//! exactly, and nobody else's; what was out is handled by whoever comes next.

use std::collections::BTreeSet;

use helixmq::message::{Address, Message, MessageId, now_ms};
use serde_json::Value;

use crate::{raw::Raw, server::Server, site::Site, support::host::Place};

const ATTEMPTS_MAX: u64 = 4;
/// Lives after which it is held for endless: one for each attempt, and those to take up what is left.
const LIVES_MAX: u64 = ATTEMPTS_MAX + 4;
const INNOCENT: usize = 50;

/// `more`: further keys of the section.
fn config(site: &Site, more: &str) -> String {
    let (port, prefix) = (site.server.plain().port(), &site.settings.key_prefix);
    format!(
        "http: {{listen: '127.0.0.1:0', token: killed-again-and-again}}\nplugins: {{directory: plugins}}\n\
         engine: {{data_directory: data}}\ntelemetry: {{filter: warn, format: json}}\n\
         redis:\n  host: 127.0.0.1\n  port: {port}\n  key_prefix: '{prefix}'\n  lease_ms: 1000\n  {more}\n  \
         queues: {{work: {{}}, handled: {{}}, runs: {{}}}}\n\
         routes:\n  - {{name: work, queue: work, handler: witness, concurrency: 2, \
         destinations: {{out: 'queue:handled', runs: 'queue:runs'}}, \
         retry: {{attempts_max: {ATTEMPTS_MAX}, delay_ms: 10}}}}\n"
    )
}

/// What witnesses wrote to a queue by now: id and attempt.
async fn said(raw: &Raw, prefix: &str, queue: &str) -> Vec<(String, u64)> {
    let all = raw.entries(prefix, queue).await.into_iter();
    all.map(|one| {
        let payload = one.field("payload").expect("a payload");
        let json: Value = serde_json::from_str(&payload).expect("a witness's words");
        (json["id"].as_str().expect("an id").to_owned(), json["attempt"].as_u64().expect("an attempt"))
    })
    .collect()
}

fn message(id: &str, ends: Option<&str>) -> std::sync::Arc<Message> {
    let mut message = Message::new("test.message", "{}", now_ms());
    message.id = MessageId::parse(id);
    if let Some(ends) = ends {
        message.headers.append("ends", ends);
    }
    std::sync::Arc::new(message)
}

/// `more`: further keys of the section. `innocent_max`: the highest attempt of the others.
async fn gives_up_only_the_killer(more: &str) {
    let server = Server::shared();
    let site = Site::new(&server);
    let (raw, prefix) = (site.raw().await, site.settings.key_prefix.as_str());
    let place = Place::new(&config(&site, more), &["witness"]);
    let mut host = place.start();
    let made = async || (raw.keys(prefix).await.iter().any(|key| key.contains("work"))).then_some(());
    place.eventually("its queues are there", made).await;
    let broker = site.broker().await;
    let ids: Vec<_> = (0..INNOCENT).map(|number| format!("innocent.{number}")).collect();
    let mut messages: Vec<_> = ids.iter().map(|id| message(id, None)).collect();
    messages.insert(INNOCENT / 2, message("killer", Some("linger")));
    broker.publish(&Address::queue("work"), messages).await.expect("published");

    let attempts = async |of_killer: bool| -> Vec<u64> {
        let runs = said(&raw, prefix, "runs").await.into_iter();
        runs.filter(|(id, _)| (id == "killer") == of_killer).map(|(_, attempt)| attempt).collect()
    };
    let (mut lives, mut begun) = (1, 0);
    let dead = loop {
        let (runs, dead) = place
            .eventually("it begins again, or is given up", async || {
                let (runs, dead) = (attempts(true).await.len(), raw.ids(prefix, "helixagent.dlq").await);
                (runs > begun || !dead.is_empty()).then_some((runs, dead))
            })
            .await;
        if !dead.is_empty() {
            break dead;
        }
        begun = runs;
        drop(host);
        lives += 1;
        assert!(lives <= LIVES_MAX, "it takes the engine down for ever, begun {begun} times");
        host = place.start();
    };
    let killer = attempts(true).await;
    assert_eq!(dead, BTreeSet::from(["killer".to_owned()]), "dead because of another; its attempts: {killer:?}");
    assert_eq!(killer, (1..=ATTEMPTS_MAX).collect::<Vec<_>>(), "N attempts mean N");

    let all = async || {
        let handled: BTreeSet<_> = said(&raw, prefix, "handled").await.into_iter().map(|(id, _)| id).collect();
        (handled.len() == INNOCENT).then_some(())
    };
    place.eventually("all others are handled", all).await;
    let nothing_left = async || raw.ids(prefix, "work").await.is_empty().then_some(());
    place.eventually("all are settled", nothing_left).await;
    let dead = raw.ids(prefix, "helixagent.dlq").await;
    assert_eq!(dead.len(), 1, "dead because of another: {dead:?}");
    drop(host);
    broker.close().await;
}

/// One that comes back under another name: what was out comes when its lease has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_the_engine_is_given_up_alone() {
    gives_up_only_the_killer("").await;
}

/// One that comes back under its name: what was out comes at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_an_engine_with_a_name_is_given_up_alone() {
    gives_up_only_the_killer("engine: one").await;
}

/// Killed again and again with messages out, while another engine works on: each message is handled, none is dead, and
/// nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_engine_handles_what_a_killed_one_had_out() {
    const COUNT: usize = 2_000;
    let server = Server::shared();
    let site = Site::new(&server);
    let (raw, prefix) = (site.raw().await, site.settings.key_prefix.as_str());
    let places = [Place::new(&config(&site, ""), &["witness"]), Place::new(&config(&site, ""), &["witness"])];
    let stays = places[0].start();
    let made = async || (raw.keys(prefix).await.iter().any(|key| key.contains("work"))).then_some(());
    places[0].eventually("its queues are there", made).await;
    let broker = site.broker().await;
    let handled =
        async || -> BTreeSet<String> { said(&raw, prefix, "handled").await.into_iter().map(|(id, _)| id).collect() };
    let ids: BTreeSet<_> = (0..COUNT).map(|number| format!("message.{number}")).collect();
    let mut left = ids.iter();
    // Fewer than attempts: a message may be out each time.
    for _ in 0..ATTEMPTS_MAX - 1 {
        let goes = places[1].start();
        let batch = left.by_ref().take(COUNT / 4).map(|id| message(id, None)).collect();
        let before = handled().await.len();
        broker.publish(&Address::queue("work"), batch).await.expect("published");
        places[1].eventually("it goes on", async || (handled().await.len() > before + 100).then_some(())).await;
        drop(goes);
    }
    broker.publish(&Address::queue("work"), left.map(|id| message(id, None)).collect()).await.expect("published");
    places[0].eventually("all are handled", async || (handled().await == ids).then_some(())).await;
    let nothing_left = async || raw.ids(prefix, "work").await.is_empty().then_some(());
    places[0].eventually("all are settled", nothing_left).await;
    let dead = raw.ids(prefix, "helixagent.dlq").await;
    assert!(dead.is_empty(), "an engine that is killed is nobody's last attempt: {dead:?}");
    drop(stays);
    broker.close().await;
}
