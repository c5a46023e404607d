//! Engines that share a queue: each message is handled by one of them, for as long as that one lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use helixmq::{
    broker::{BatchMax, Declaration, QueueSettings, Start, Subscribe},
    message::{Address, Outcome, Settlement},
};

use crate::{
    raw::Raw,
    server::Server,
    site::{Site, WORK},
    support::{
        eventually,
        ledger::{Publishing, send},
        soon,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_engines_share_a_queue_and_neither_repeats_the_other() {
    let server = Server::shared();
    let site = Site::new(&server);
    let by = [Arc::new(Mutex::new(0_usize)), Arc::new(Mutex::new(0_usize))];
    let mut engines = Vec::new();
    for count in &by {
        let count = Arc::clone(count);
        let counted = move |_: &helixmq::handler::Call<'_>| {
            *count.lock().unwrap() += 1;
            std::thread::sleep(Duration::from_millis(1));
            Outcome::Done(Vec::new())
        };
        engines.push(site.elsewhere().engine(3, counted).await);
    }
    let sent = Publishing::start(&engines[0].broker, &Address::queue(WORK), 4, 50, 10).end().await;
    let missing = site.ledger.handles(&sent).await;
    assert!(missing.is_empty(), "{} are stuck", missing.len());
    for engine in engines {
        engine.stop().await;
    }
    let dead = site.accounts(&sent, 1).await;
    assert!(dead.is_empty());
    let counts = by.map(|count| *count.lock().unwrap());
    assert_eq!(counts.iter().sum::<usize>(), sent.len(), "handled twice: {counts:?}");
    assert!(counts.iter().all(|count| *count > sent.len() / 20), "one of them has done it all: {counts:?}");
}

/// A handler that runs for much longer than a lease keeps its message: the other engine does not start it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_handler_is_not_started_twice() {
    let server = Server::shared();
    let mut site = Site::new(&server);
    site.settings.lease = Duration::from_millis(500);
    let done = Arc::new(AtomicBool::new(false));
    let mut engines = Vec::new();
    for _ in 0..2 {
        let done = Arc::clone(&done);
        let long = move |_: &helixmq::handler::Call<'_>| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
            Outcome::Done(Vec::new())
        };
        engines.push(site.elsewhere().engine(3, long).await);
    }
    let sent = send(&engines[0].broker, &Address::queue(WORK), 1).await;
    eventually("it is begun", async || (site.ledger.calls().len() == 1).then_some(())).await;
    // Six leases, by the server's own clock.
    let raw = site.raw().await;
    let time = async || -> u64 {
        let (seconds, _): (u64, u64) = raw.ask("TIME").await;
        seconds
    };
    let begun = time().await;
    eventually("leases have passed", async || (time().await > begun + 3).then_some(())).await;
    done.store(true, Ordering::Relaxed);
    assert!(site.ledger.handles(&sent).await.is_empty());
    for engine in engines {
        engine.stop().await;
    }
    assert_eq!(site.ledger.calls().into_values().collect::<Vec<_>>(), [vec![1]]);
}

/// A reader that is gone without a word: what it had out is another's when the lease has ended, as the next attempt; what it
/// had not been handed, as the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_engine_had_out_comes_to_another_as_the_next_attempt() {
    let server = Server::shared();
    let site = Site::new(&server);
    let broker = site.broker_with_queues().await;
    let sent = send(&broker, &Address::queue(WORK), 30).await;
    let out = taken_by_one_that_is_lost(site.elsewhere()).await;
    let engine = site.engine(3, |_| Outcome::Done(Vec::new())).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    engine.stop().await;
    for (id, attempts) in site.ledger.calls() {
        let wanted = if out.contains(&id) { [2] } else { [1] };
        assert_eq!(attempts, wanted, "{id}");
    }
    site.accounts(&sent, 2).await;
    soon("the broker closes", broker.close()).await;
}

/// What was out when an engine ended may be what ended it: each is handed out alone, and nothing that is new beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_engine_had_out_is_handed_out_one_by_one() {
    let server = Server::shared();
    let mut site = Site::new(&server);
    // It comes at once to one of that name.
    site.settings.engine = Some(site.settings.key_prefix.clone());
    let before = site.broker_with_queues().await;
    let sent = send(&before, &Address::queue(WORK), 30).await;
    soon("the broker closes", before.close()).await;
    let mut out = taken_by_one_that_is_lost(site.elsewhere()).await;
    let broker = site.broker_with_queues().await;
    let mut subscription = soon("a subscription", broker.subscribe(reading(100))).await.expect("a subscription");
    let max = BatchMax { count: 100, bytes: usize::MAX };
    let mut handled = BTreeSet::new();
    while !out.is_empty() {
        let one = soon("a delivery", subscription.next(max)).await.expect("deliveries").expect("some");
        let [only] = one.as_slice() else { panic!("{} together", one.len()) };
        assert!(out.remove(&only.message.id.to_string()) && only.attempt == 2, "{} out of turn", only.message.id);
        handled.insert(only.message.id.to_string());
        let beside = tokio::time::timeout(Duration::from_millis(50), subscription.next(max)).await;
        assert!(beside.is_err(), "something is out beside it");
        one.settle(vec![Settlement::Accept]).await.expect("settled");
    }
    while handled.len() < sent.len() {
        let some = soon("deliveries", subscription.next(max)).await.expect("deliveries").expect("some");
        assert!(some.as_slice().iter().all(|delivery| delivery.attempt == 1));
        handled.extend(some.as_slice().iter().map(|delivery| delivery.message.id.to_string()));
        let all = vec![Settlement::Accept; some.len()];
        some.settle(all).await.expect("settled");
    }
    assert_eq!(handled, sent);
    drop(subscription);
    soon("the broker closes", broker.close()).await;
}

fn reading(prefetch: usize) -> Subscribe {
    Subscribe {
        from: Address::queue(WORK),
        group: "".into(),
        start: Start::Earliest,
        prefetch,
        workers: 1,
        aside: Default::default(),
    }
}

/// Takes ten messages on a runtime of its own, which ends as a process does: nothing is settled, given back or renewed. Their
/// ids.
async fn taken_by_one_that_is_lost(site: Site) -> BTreeSet<String> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let taking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = site.broker().await;
            let mut subscription = soon("a subscription", broker.subscribe(reading(10))).await.expect("a subscription");
            let max = BatchMax { count: 10, bytes: usize::MAX };
            let batch = soon("deliveries", subscription.next(max)).await.expect("deliveries").expect("some");
            let first = |delivery: &helixmq::broker::Delivery| {
                assert_eq!(delivery.attempt, 1);
                delivery.message.id.to_string()
            };
            let out: BTreeSet<_> = batch.as_slice().iter().map(first).collect();
            std::mem::forget((batch, subscription, broker));
            tell.send(out).unwrap();
        });
        runtime.shutdown_background();
    });
    let out = soon("they are taken", told).await.expect("their ids");
    taking.join().expect("no panic");
    assert!(!out.is_empty());
    out
}

/// The names of those who read the queue of the tests, at ordinary priority.
async fn readers(raw: &Raw, key: &str) -> BTreeSet<String> {
    let all: Vec<BTreeMap<String, redis::Value>> = raw.ask(&format!("XINFO CONSUMERS {key} helixmq")).await;
    let name = |one: &BTreeMap<String, redis::Value>| match &one["name"] {
        redis::Value::BulkString(name) => String::from_utf8(name.clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    all.iter().map(name).collect()
}

/// Readers of engines that were killed do not stay for ever; those that have something out do, until that is somebody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgets_readers_that_have_nothing_out_and_did_nothing_for_long() {
    let mut site = Site::new(&Server::shared());
    site.settings.readers_kept = Duration::from_millis(500);
    let broker = site.broker_with_queues().await;
    let (raw, key) = (site.raw().await, format!("{}queue:{{{WORK}}}:p5", site.settings.key_prefix));
    let _: redis::Value = raw.ask(&format!("XADD {key} * payload one")).await;
    let _: redis::Value = raw.ask(&format!("XREADGROUP GROUP helixmq engine/holds/0 STREAMS {key} >")).await;
    let _: redis::Value = raw.ask(&format!("XGROUP CREATECONSUMER {key} helixmq engine/gone/0")).await;
    let both = ["engine/gone/0", "engine/holds/0"].map(str::to_owned);
    assert_eq!(readers(&raw, &key).await, BTreeSet::from(both));
    let is_one = async || {
        let names = readers(&raw, &key).await;
        (names.len() == 1).then_some(names)
    };
    // Both did nothing since then, and were looked at together.
    let left = eventually("one is forgotten", is_one).await;
    assert_eq!(left, BTreeSet::from(["engine/holds/0".to_owned()]));
    soon("the broker closes", broker.close()).await;
}

/// What only this engine reads goes with it; what others may read stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_an_engines_own_does_not_outlive_it_by_more_than_an_hour() {
    let site = Site::new(&Server::shared());
    let broker = site.broker_with_queues().await;
    let own = QueueSettings { exclusive: true, ..QueueSettings::default() };
    broker.declare(&[Declaration::Queue("own".into(), own)]).await.unwrap();
    let raw = site.raw().await;
    let base = |name: &str| format!("{}queue:{{{name}}}", site.settings.key_prefix);
    let lasts = async |key: &str| raw.ask::<i64>(&format!("PTTL {key}")).await;
    let all_go = async || {
        let keys = raw.keys(&base("own")).await;
        for key in &keys {
            if !(1..=3_600_000).contains(&lasts(key).await) {
                return None;
            }
        }
        (keys.len() > 10).then_some(())
    };
    eventually("all of its keys go one day", all_go).await;
    assert_eq!(lasts(&base(WORK)).await, -1);
    soon("the broker closes", broker.close()).await;
}
