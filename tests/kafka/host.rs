//! The engine itself is killed, again and again, as its own binary: a message that takes it down uses up its own attempts,
//! exactly, and nobody else's; what it returns in transactions is there once.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    raw::{Raw, Record},
    server::Server,
    support::host,
};

const ATTEMPTS_MAX: u64 = 4;
/// Lives after which it is held for endless: one for each attempt, and those to take up what is left.
const LIVES_MAX: u64 = ATTEMPTS_MAX + 4;
const INNOCENT: usize = 50;
const PARTITIONS: i32 = 2;

/// Where engines run one after the other, and the names that they use.
struct Place {
    lives: host::Place,
    work: String,
    handled: String,
    runs: String,
    dead: String,
    group: String,
}

impl Place {
    /// `member`: more lines of the section `kafka`. `delivery`: how the route has its results published.
    async fn new(server: &Server, member: &str, delivery: &str) -> Self {
        let [work, handled, runs, dead, group] =
            ["work", "handled", "runs", "dead", "group"].map(|base| server.name(base));
        let raw = Raw::new(server);
        for (topic, partitions) in [(&work, PARTITIONS), (&handled, 1), (&runs, 1), (&dead, 1)] {
            raw.topic(topic, partitions).await;
        }
        let brokers = server.bootstrap();
        let config = format!(
            "http: {{listen: '127.0.0.1:0', token: killed-again-and-again}}\nplugins: {{directory: plugins}}\n\
             engine: {{data_directory: data}}\ntelemetry: {{filter: warn, format: json}}\n\
             kafka:\n  brokers: ['{brokers}']\n  {member}\n\
             routes:\n  - {{name: work, topic: {work}, group: {group}, handler: witness-event, concurrency: 2, \
             delivery: {delivery}, \
             destinations: {{out: 'topic:{handled}', runs: 'topic:{runs}'}}, dead_letter: 'topic:{dead}', \
             retry: {{attempts_max: {ATTEMPTS_MAX}, delay_ms: 10}}}}\n"
        );
        Self { lives: host::Place::new(&config, &["witness-event"]), work, handled, runs, dead, group }
    }
}

/// What witnesses wrote to a topic by now: id and attempt.
async fn said(raw: &Raw, topic: &str) -> Vec<(String, u64)> {
    let words = raw.read(topic).await.into_iter();
    words
        .map(|one| {
            let json: Value = serde_json::from_slice(&one.value.expect("a value")).expect("a witness's words");
            (json["id"].as_str().expect("an id").to_owned(), json["attempt"].as_u64().expect("an attempt"))
        })
        .collect()
}

async fn gives_up_only_the_killer(member: &str) {
    let server = Server::shared();
    let place = Place::new(&server, member, "at_least_once").await;
    let raw = Raw::new(&server);
    let record = |id: &str, number: usize| {
        Record::new("{}").header("x-helix-id", id).on(i32::try_from(number).expect("few") % PARTITIONS)
    };
    let mut records: Vec<_> = (0..INNOCENT).map(|number| record(&format!("innocent.{number}"), number)).collect();
    records.insert(INNOCENT / 2, record("killer", 0).header("ends", "linger"));
    raw.publish(&place.work, records).await;

    let attempts = async |of_killer: bool| -> Vec<u64> {
        let runs = said(&raw, &place.runs).await.into_iter();
        runs.filter(|(id, _)| (id == "killer") == of_killer).map(|(_, attempt)| attempt).collect()
    };
    let mut host = place.lives.start();
    let (mut lives, mut begun) = (1, 0);
    let dead = loop {
        let (runs, dead) = place
            .lives
            .eventually("it begins again, or is given up", async || {
                let (runs, (dead, _)) = (attempts(true).await.len(), raw.ids(&place.dead).await);
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
        host = place.lives.start();
    };
    let killer = attempts(true).await;
    assert_eq!(dead, BTreeSet::from(["killer".to_owned()]), "dead because of another; its attempts: {killer:?}");
    assert_eq!(killer, (1..=ATTEMPTS_MAX).collect::<Vec<_>>(), "N attempts mean N");

    let all = async || {
        let handled: BTreeSet<_> = said(&raw, &place.handled).await.into_iter().map(|(id, _)| id).collect();
        (handled.len() == INNOCENT).then_some(())
    };
    place.lives.eventually("all others are handled", all).await;
    raw.commits_all(&place.group, &place.work).await;
    let (dead, letters) = raw.ids(&place.dead).await;
    assert_eq!((dead.len(), letters), (1, 1), "dead because of another, or twice: {dead:?}");
    let others = attempts(false).await;
    let worst = others.iter().copied().max();
    assert!(worst <= Some(2), "others were out once, and paid with more than one attempt: {worst:?}");
    drop(host);
}

/// One that comes back under another name: its partitions are free once the one that is gone has been silent for too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_the_engine_is_given_up_alone() {
    gives_up_only_the_killer("session_timeout: 2s\n  heartbeat_interval: 300ms").await;
}

/// One that comes back as the same member: its partitions are its own at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_a_member_by_name_is_given_up_alone() {
    gives_up_only_the_killer("group_instance_id: one").await;
}

/// Servers decide about membership, and the rest is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_a_member_of_the_new_protocol_is_given_up_alone() {
    gives_up_only_the_killer("group_protocol: consumer").await;
}

/// Killed in the middle of transactions: what was begun is taken back, and what was committed is not done again. Readers of
/// what is committed see one result for each message, whatever the attempt it came of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_result_is_there_once_whenever_the_engine_is_killed() {
    const COUNT: usize = 2_000;
    // Fewer than attempts: a message may be out each time.
    const KILLS: u64 = ATTEMPTS_MAX - 1;
    let server = Server::shared();
    let id = server.name("host");
    let member = format!("transactional_id: {id}\n  group_instance_id: {id}");
    let place = Place::new(&server, &member, "transactional").await;
    let raw = Raw::new(&server);
    let record = |number: usize| {
        let record = Record::new("{}").header("x-helix-id", format!("message.{number}")).header("quiet", "1");
        record.on(i32::try_from(number).expect("few") % PARTITIONS)
    };
    raw.publish(&place.work, (0..COUNT).map(record).collect()).await;
    let written = async || raw.ends(&place.handled).await.values().map(|(_, end)| *end).sum::<i64>();
    for _ in 0..KILLS {
        let before = written().await;
        let host = place.lives.start();
        // Not waiting for a commit: there is something, and nobody can know yet whether it will hold.
        place.lives.eventually("it publishes", async || (written().await > before).then_some(())).await;
        drop(host);
    }
    let host = place.lives.start();
    let results = async || {
        let mut results = BTreeMap::<_, Vec<_>>::new();
        for (id, attempt) in said(&raw, &place.handled).await {
            results.entry(id).or_default().push(attempt);
        }
        results
    };
    place.lives.eventually("all have a result", async || (results().await.len() == COUNT).then_some(())).await;
    raw.commits_all(&place.group, &place.work).await;
    drop(host);
    let results = results().await;
    let doubled: Vec<_> = results.iter().filter(|(_, attempts)| attempts.len() != 1).collect();
    assert!(doubled.is_empty(), "{} have several results, as {:?}", doubled.len(), doubled.first());
    let dead = raw.ids(&place.dead).await;
    assert_eq!(dead.1, 0, "a kill used up all attempts of {:?}", dead.0);
}
