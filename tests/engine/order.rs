//! Same key, same order; different keys side by side, also while one is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use helixmq::{
    broker::Broker,
    handler::Call,
    message::{Address, FailureKind, Message, Outbound, Outcome, Settlement},
    route::Order,
};

use crate::support::*;

/// Keeps what was called, in order: key (or partition) and number of each call, and whether it was the last one.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(String, u32, bool)>>>);

impl Recorder {
    fn note(&self, call: &Call<'_>, done: bool) {
        let (key, number) = name(call.message);
        self.0.lock().unwrap().push((key, number, done));
    }

    fn calls(&self) -> Vec<(String, u32, bool)> {
        self.0.lock().unwrap().clone()
    }

    /// The numbers of one key as they were handled.
    fn done(&self, key: &str) -> Vec<u32> {
        self.calls().into_iter().filter(|(of, _, done)| of == key && *done).map(|(_, number, _)| number).collect()
    }

    /// Every key was handled in order, each number once, and no call of it came after a call of a later number.
    fn check(&self, keys: &BTreeSet<String>, count: u32) {
        for key in keys {
            assert_eq!(self.done(key), (0..count).collect::<Vec<_>>(), "key {key}");
            let calls: Vec<_> =
                self.calls().into_iter().filter(|(of, ..)| of == key).map(|(_, number, _)| number).collect();
            assert!(calls.is_sorted(), "key {key}: {calls:?}");
        }
    }
}

/// Key and number of a message.
fn name(message: &Message) -> (String, u32) {
    let text = text(message);
    let (key, number) = text.rsplit_once('-').expect("a name");
    (key.to_owned(), number.parse().expect("a number"))
}

fn numbered(key: &str, number: u32) -> Message {
    keyed(key, format!("{key}-{number}"))
}

fn retry(ms: u64) -> Outcome {
    Outcome::Retry { reason: "not yet".into(), delay: Some(Duration::from_millis(ms)) }
}

/// A number that looks like chance and repeats.
fn chance(key: &str, number: u32) -> u64 {
    key.bytes().fold(u64::from(number) + 7, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        >> 33
}

/// Forty keys of fifty messages on four lanes, of which many are tried again, by every cause there is; handlers take their
/// time now and then, so that batches come in pieces.
async fn stress(source: Address, order: Order) {
    let recorder = Recorder::default();
    let kept = recorder.clone();
    let handler = move |call: &Call<'_>| {
        let (key, number) = name(call.message);
        let chance = chance(&key, number);
        if chance.is_multiple_of(37) {
            std::thread::sleep(Duration::from_millis(4));
        }
        let fails = match chance % 11 {
            0 => 1,
            1 => 2,
            _ => 0,
        };
        let done = call.attempt > fails;
        kept.note(call, done);
        match (done, chance % 3) {
            (true, _) => Outcome::Done(Vec::new()),
            (_, 0) => retry(10 + chance % 20),
            (_, 1) => Outcome::failed(FailureKind::Trapped, "not yet"),
            _ => Outcome::Retry { reason: "not yet".into(), delay: None },
        }
    };
    let topic = source.kind == helixmq::message::Kind::Topic;
    let engine = Plan::new()
        .native("native", handler)
        .route(route(source.clone(), "native").ordered(order).lanes(4))
        .start()
        .await;
    let keys: BTreeSet<String> = (0..40).map(|key| format!("key {key}")).collect();
    for number in 0..50 {
        engine.send(&source, keys.iter().map(|key| numbered(key, number))).await;
    }
    if topic {
        engine.topic_done(&source.name).await
    } else {
        engine.queue_done(&source.name).await
    }
    recorder.check(&keys, 50);
    assert_eq!(engine.dead().len(), 0);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_queue_keep_their_order_whatever_is_tried_again() {
    stress(Address::queue("work"), Order::Key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_topic_keep_their_order_whatever_is_tried_again() {
    stress(Address::topic("work"), Order::Key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_keep_their_order_whatever_is_tried_again() {
    stress(Address::topic("work"), Order::Partition).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_as_one_partition_keeps_its_order() {
    let recorder = Recorder::default();
    let kept = recorder.clone();
    let handler = move |call: &Call<'_>| {
        let done = !chance("one", name(call.message).1).is_multiple_of(9) || call.attempt > 1;
        kept.note(call, done);
        if done { Outcome::Done(Vec::new()) } else { retry(10) }
    };
    let engine = Plan::new()
        .native("native", handler)
        .route(from_queue("work", "native").ordered(Order::Partition))
        .start()
        .await;
    engine.send_to_queue("work", (0..200).map(|number| message(format!("one-{number}")))).await;
    engine.queue_done("work").await;
    recorder.check(&["one".to_owned()].into(), 200);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retrying_key_holds_its_followers_and_nobody_else() {
    let (open, recorder) = (Arc::new(AtomicBool::new(false)), Recorder::default());
    let (gate, kept) = (Arc::clone(&open), recorder.clone());
    let handler = move |call: &Call<'_>| {
        let held = name(call.message) == ("held".to_owned(), 3) && !gate.load(Ordering::SeqCst);
        kept.note(call, !held);
        if held { retry(20) } else { Outcome::Done(Vec::new()) }
    };
    let route = from_queue("work", "native").ordered(Order::Key).attempts(1000);
    let engine = Plan::new().native("native", handler).route(route).start().await;
    for number in 0..20 {
        engine.send_to_queue("work", ["held", "free", "other"].map(|key| numbered(key, number))).await;
    }
    eventually("the others are through", || recorder.done("free").len() + recorder.done("other").len() == 40).await;
    let times = || recorder.calls().iter().filter(|(key, number, _)| key == "held" && *number == 3).count();
    eventually("it was tried again and again", || times() >= 3).await;
    assert_eq!(recorder.done("held"), [0, 1, 2]);
    open.store(true, Ordering::SeqCst);
    engine.queue_done("work").await;
    recorder.check(&["held", "free", "other"].map(str::to_owned).into(), 20);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_in_pieces_keeps_the_order_of_its_keys() {
    // One route takes much at a time and leads, the other is slow and takes little: what it is handed comes in pieces.
    let recorder = Recorder::default();
    let kept = recorder.clone();
    let slow = move |call: &Call<'_>| {
        std::thread::sleep(Duration::from_millis(3));
        let done = !name(call.message).1.is_multiple_of(10) || call.attempt > 1;
        kept.note(call, done);
        if done { Outcome::Done(Vec::new()) } else { retry(15) }
    };
    let engine = Plan::new()
        .native("slow", slow)
        .native("fast", |_| Outcome::Done(Vec::new()))
        .route(from_queue("work", "slow").ordered(Order::Key).types(&["slow"]))
        .route(from_queue("work", "fast").ordered(Order::Key))
        .start()
        .await;
    let keys: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
    let fast = |number: u32| of_type("fast", keyed("x", number.to_string()));
    engine.send_to_queue("work", (0..1000).map(fast)).await;
    for round in 0..6 {
        let slow =
            (0..10).flat_map(|place| keys.iter().map(move |key| of_type("slow", numbered(key, round * 10 + place))));
        engine.send_to_queue("work", (0..50).map(fast).chain(slow)).await;
        engine.queue_done("work").await;
    }
    recorder.check(&keys, 60);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_not_published_holds_its_key() {
    let recorder = Recorder::default();
    let kept = recorder.clone();
    let handler = move |call: &Call<'_>| {
        kept.note(call, true);
        let mut result = Message::new("result", call.message.payload.clone(), call.message.timestamp);
        result.id = call.message.id.derive("out", 0);
        Outcome::Done(vec![Outbound { destination: "out".into(), message: result }])
    };
    let engine = Plan::new()
        .native("native", handler)
        .route(from_queue("work", "native").ordered(Order::Key).attempts(10))
        .start()
        .await;
    let mut refused = BTreeMap::new();
    engine.broker.refuse(move |to, message| {
        let (_, number) = name(message);
        let times: &mut u32 = refused.entry(message.id.to_string()).or_default();
        *times += 1;
        &*to.name == "out" && number % 7 == 3 && *times <= 2
    });
    let keys: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    for number in 0..30 {
        engine.send_to_queue("work", keys.iter().map(|key| numbered(key, number))).await;
    }
    engine.queue_done("work").await;
    assert_eq!(engine.dead().len(), 0);
    let published = engine.published("out");
    for key in &keys {
        // What was handled behind the one that failed was handled, and published, again behind it.
        let mut last = BTreeMap::new();
        let of_key = published.iter().map(|message| name(message)).filter(|(of, _)| of == key);
        last.extend(of_key.enumerate().map(|(place, (_, number))| (number, place)));
        assert_eq!(last.len(), 30);
        assert!(last.values().is_sorted(), "key {key}: {last:?}");
        let accepted: Vec<_> = engine
            .broker
            .ledger()
            .into_iter()
            .filter_map(|passed| match passed {
                Passed::Settled(id, _, Settlement::Accept) => Some(id),
                _ => None,
            })
            .collect();
        assert_eq!(accepted.len(), 90, "each is settled once");
    }
    assert_eq!(ids(published.iter().map(|message| &**message)).len(), 90);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_subscription_loses_nothing_and_keeps_the_order() {
    let (open, recorder) = (Arc::new(AtomicBool::new(false)), Recorder::default());
    let (gate, kept) = (Arc::clone(&open), recorder.clone());
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |call: &Call<'_>| {
        counted.fetch_add(1, Ordering::SeqCst);
        let held = name(call.message) == ("held".to_owned(), 1) && !gate.load(Ordering::SeqCst);
        kept.note(call, !held);
        if held { retry(400) } else { Outcome::Done(Vec::new()) }
    };
    let route = from_queue("work", "native").ordered(Order::Key).attempts(1000);
    let engine = Plan::new().native("native", handler).route(route).start().await;
    engine.send_to_queue("work", (0..5).map(|number| numbered("held", number))).await;
    eventually("one waits", || recorder.calls().len() >= 2).await;
    for round in 0..3 {
        engine.broker.break_subscriptions(1);
        engine.send_to_queue("work", [numbered("held", 5 + round), numbered("free", round)]).await;
        let wanted = round as usize + 1;
        eventually("the other key goes on", || recorder.done("free").len() == wanted).await;
    }
    open.store(true, Ordering::SeqCst);
    engine.queue_done("work").await;
    recorder.check(&["held".to_owned()].into(), 8);
    recorder.check(&["free".to_owned()].into(), 3);
    let dropped = engine.broker.ledger().iter().filter(|passed| matches!(passed, Passed::Dropped)).count();
    assert!(dropped < 20, "what waits behind another is kept, not taken and given back without end: {dropped}");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_kept_while_a_handler_works_also_after_a_broken_subscription() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |call: &Call<'_>| {
        counted.fetch_add(1, Ordering::SeqCst);
        if call.message.payload == "slow" {
            std::thread::sleep(Duration::from_millis(1500));
        }
        Outcome::Done(Vec::new())
    };
    let engine = Plan::new()
        .embedded(|embedded| embedded.queue.lease = Duration::from_millis(600))
        .native("native", handler)
        .route(from_queue("work", "native").lanes(2))
        .start()
        .await;
    engine.broker.break_subscriptions(1);
    let sent = engine.send_to_queue("work", [message("slow"), message("quick")]).await;
    engine.queue_done("work").await;
    assert_eq!(calls.load(Ordering::SeqCst), 2, "{:?}", engine.broker.settlements(&sent[0]));
    assert!(engine.broker.stats().iter().all(|stats| stats.unsettled == 0));
    engine.stop().await;
}
