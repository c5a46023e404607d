//! Stopping gives back what is not done: nothing lost, nothing doubled, no attempt spent.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use helixmq::{
    broker::Broker,
    handler::{Call, Handler, LaneContext, OpenError, Runner},
    message::{Address, HandlerIdentity, Kind, Message, Outbound, Outcome, Settlement},
    route::{Order, Route},
};

use crate::support::*;

/// How often each message was accepted.
fn accepted(broker: &Tap) -> BTreeMap<String, u32> {
    let mut accepted = BTreeMap::new();
    for passed in broker.ledger() {
        if let Passed::Settled(id, _, Settlement::Accept) = passed {
            *accepted.entry(id).or_default() += 1;
        }
    }
    accepted
}

fn slow(_: &Call<'_>) -> Outcome {
    std::thread::sleep(Duration::from_micros(300));
    Outcome::Done(Vec::new())
}

/// Engines come and go on one broker while messages come in: each message is handled once.
async fn hand_over(source: Address, make: impl Fn() -> Route) {
    let broker = Arc::new(Tap::new(helixmq::broker::embedded::Settings { auto_create: true, ..Default::default() }));
    let mut sent = Vec::new();
    for round in 0..4 {
        let engine = Plan::new().native("native", slow).route(make()).start_on(Arc::clone(&broker)).await;
        let keys = ["a", "b", "c", "d", "e"];
        for number in 0..400 {
            let message = keyed(keys[number % keys.len()], format!("{round} {number}"));
            sent.extend(engine.send(&source, [message]).await);
        }
        engine.stop().await;
    }
    let handled = accepted(&broker).len();
    assert!(handled < sent.len(), "stopped under load");
    let unsettled: u64 = broker.stats().iter().map(|stats| stats.unsettled).sum();
    assert_eq!(unsettled, 0, "everything went back");
    let engine =
        Plan::new().native("native", |_| Outcome::Done(Vec::new())).route(make()).start_on(Arc::clone(&broker)).await;
    if source.kind == Kind::Queue {
        engine.queue_done(&source.name).await
    } else {
        engine.topic_done(&source.name).await
    }
    engine.stop().await;
    let accepted = accepted(&broker);
    assert_eq!(
        accepted.keys().cloned().collect::<std::collections::BTreeSet<_>>(),
        ids(sent.iter().map(|message| &**message))
    );
    assert!(accepted.values().all(|times| *times == 1));
    let attempts = broker
        .ledger()
        .into_iter()
        .filter(|passed| matches!(passed, Passed::Settled(_, attempt, _) if *attempt != 1))
        .count();
    assert_eq!(attempts, 0, "none of them spent an attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_that_stop_hand_a_queue_over_without_loss_or_double() {
    hand_over(Address::queue("work"), || from_queue("work", "native").lanes(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_that_stop_hand_a_topic_over_without_loss_or_double() {
    hand_over(Address::topic("work"), || from_topic("work", "native").lanes(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_that_stop_hand_an_ordered_topic_over_without_loss_or_double() {
    hand_over(Address::topic("work"), || from_topic("work", "native").ordered(Order::Key).lanes(3)).await;
}

/// A guest that is in the middle of a call when the grace period ends: it is ended, and its message goes back unspent.
async fn ended(plugin: &str) {
    let engine = Plan::new().plugin(plugin).route(from_queue("work", plugin).timeout(600_000)).grace(100).start().await;
    let sent = engine.send_to_queue("work", [message("one"), message("two")]).await;
    let work = Address::queue("work");
    eventually("it is being handled", || engine.stats(&work).unsettled > 0).await;
    let begin = Instant::now();
    let broker = engine.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{plugin}: {:?}", begin.elapsed());
    let stats = broker.stats().into_iter().find(|stats| stats.address == work).unwrap();
    assert_eq!((stats.unsettled, stats.ready + stats.delayed), (0, 2), "{plugin}");
    for message in &sent {
        let settled = broker.settlements(message);
        assert!(settled.iter().all(|how| matches!(how, Settlement::Release { .. })), "{plugin}: {settled:?}");
    }
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let engine = Plan::new()
        .native("native", move |call| {
            seen.fetch_add(call.attempt, Ordering::SeqCst);
            Outcome::Done(Vec::new())
        })
        .route(from_queue("work", "native"))
        .start_on(broker)
        .await;
    engine.queue_done("work").await;
    assert_eq!(attempts.load(Ordering::SeqCst), 2, "{plugin}: both on their first attempt");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_spins_is_ended_when_the_engine_stops() {
    ended("spin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_sleeps_in_the_host_is_ended_when_the_engine_stops() {
    ended("sleep").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_waits_for_an_answer_is_ended_when_the_engine_stops() {
    let nobody = Address::queue("nobody");
    let route = from_queue("work", "requester").to("requests", nobody.clone()).timeout(600_000);
    let engine = Plan::new().plugin("requester").route(route).grace(100).start().await;
    engine.send_to_queue("work", [with_headers(message("one"), &[("timeout-ms", "600000")])]).await;
    eventually("it waits", || engine.broker.published(&nobody).len() == 1).await;
    let begin = Instant::now();
    let broker = engine.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(broker.lies_at(&Address::queue("work")).await.len(), 1);
    assert!(broker.stats().iter().all(|stats| stats.unsettled == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_of_one_source_does_not_end_the_calls_of_another() {
    let (running, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (began, ended) = (Arc::clone(&running), Arc::clone(&ends));
    // The guest sleeps longer than its route allows: its call ends as a timeout, and not sooner.
    let route = from_queue("other", "sleep").timeout(1500).attempts(1);
    let engine = Plan::new()
        .plugin("spin")
        .plugin("sleep")
        .native("native", move |_| {
            began.store(true, Ordering::SeqCst);
            ended.fetch_add(1, Ordering::SeqCst);
            Outcome::Done(Vec::new())
        })
        .route(from_queue("work", "spin").timeout(600_000))
        .route(route)
        .grace(100)
        .start()
        .await;
    engine.send_to_queue("work", [message("spins")]).await;
    let other = engine.send_to_queue("other", [message("sleeps")]).await;
    eventually("both are being handled", || {
        ["work", "other"].iter().all(|queue| engine.stats(&Address::queue(*queue)).unsettled == 1)
    })
    .await;
    let mut settings = engine.hub.settings();
    let rest = settings.routes.iter().filter(|route| &*route.name == "other-sleep").map(|route| Route::clone(route));
    settings.routes = helixmq::route::RouteTable::new(rest.chain([from_queue("work", "native")]).collect()).unwrap();
    engine.hub.apply(settings, None).await.expect("applied");
    engine.queue_done("work").await;
    assert_eq!(ends.load(Ordering::SeqCst), 1, "the new handler has the message of the old one");
    let dead = engine.one_dead().await;
    engine.queue_done("other").await; // Its letter is kept before it is settled.
    assert_eq!((&dead.message.id, dead.letter.attempts.len()), (&other[0].id, 1));
    assert_eq!(engine.broker.settlements(&other[0]).len(), 1, "its call was not disturbed");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_calls_that_end_in_time() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |_: &Call<'_>| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        Outcome::Done(Vec::new())
    };
    let engine = Plan::new().native("native", handler).route(from_queue("work", "native")).start().await;
    let sent = engine.send_to_queue("work", [message("one")]).await;
    eventually("it is being handled", || calls.load(Ordering::SeqCst) == 1).await;
    let broker = engine.stop().await;
    assert_eq!(broker.settlements(&sent[0]), [Settlement::Accept]);
}

/// A lane whose results are not confirmed gives up when the grace period is over; its message comes again.
async fn a_destination_hangs(destination: Address, handler: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static) {
    let out = Address::queue("out");
    let route = from_queue("work", "native").to("out", out).attempts(1);
    let engine = Plan::new().native("native", handler).route(route).grace(100).start().await;
    engine.broker.hang(Some(destination));
    let sent = engine.send_to_queue("work", [message("one"), message("two")]).await;
    let work = Address::queue("work");
    eventually("it is being handled", || engine.stats(&work).unsettled > 0).await;
    let broker = tokio::time::timeout(PATIENCE, engine.stop()).await.expect("an end");
    let stats = broker.stats().into_iter().find(|stats| stats.address == work).unwrap();
    assert_eq!((stats.unsettled, stats.ready + stats.delayed), (0, 2), "both are there");
    for message in &sent {
        let settled = broker.settlements(message);
        let comes_again = |how: &Settlement| matches!(how, Settlement::Release { .. } | Settlement::Redeliver { .. });
        assert!(settled.iter().all(comes_again), "{settled:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_hangs_does_not_hold_up_the_end() {
    let one = |_: &Call<'_>| Outcome::Done(vec![Outbound { destination: "out".into(), message: message("result") }]);
    a_destination_hangs(Address::queue("out"), one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_hang_do_not_hold_up_the_end() {
    let reject = |_: &Call<'_>| Outcome::Reject { reason: "bad".into(), code: None };
    a_destination_hangs(Address::queue(DEAD), reject).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_the_drain_of_a_reload_first() {
    let engine =
        Plan::new().plugin("spin").route(from_queue("work", "spin").timeout(600_000)).grace(2_000).start().await;
    engine.send_to_queue("work", [message("spins")]).await;
    eventually("it is being handled", || engine.stats(&Address::queue("work")).unsettled == 1).await;
    let mut settings = engine.hub.settings();
    settings.routes = helixmq::route::RouteTable::new(Vec::new()).unwrap();
    settings.grace = Duration::from_secs(600);
    let (applied, broker) = tokio::join!(engine.hub.apply(settings, None), async {
        // The drain of the reload, which may take ten minutes, has begun.
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::time::timeout(PATIENCE, engine.hub.stop()).await.expect("an end");
        Arc::clone(&engine.broker)
    });
    assert!(applied.is_err(), "nothing was changed");
    assert_eq!(broker.lies_at(&Address::queue("work")).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_to_be_tried_again_goes_back_when_the_engine_stops() {
    let handler = |_: &Call<'_>| Outcome::Retry { reason: "later".into(), delay: Some(Duration::from_secs(3600)) };
    let route = from_queue("work", "native").ordered(Order::Key);
    let engine = Plan::new().native("native", handler).route(route).start().await;
    engine.send_to_queue("work", (0..10).map(|number| keyed("one", number.to_string()))).await;
    let work = Address::queue("work");
    eventually("all are held", || engine.stats(&work).unsettled == 10).await;
    let broker = engine.stop().await;
    let stats = broker.stats().into_iter().find(|stats| stats.address == work).unwrap();
    assert_eq!((stats.unsettled, stats.ready), (0, 10));
}

/// A handler whose runner breaks its promise and panics, the first few times.
#[derive(Debug)]
struct Broken {
    identity: HandlerIdentity,
    panics: AtomicU32,
}

struct BrokenRunner(Arc<Broken>);

impl Handler for Broken {
    fn identity(&self) -> &HandlerIdentity {
        &self.identity
    }

    fn handles(&self, _: Kind) -> bool {
        true
    }

    fn open(self: Arc<Self>, _: &LaneContext, _: Kind) -> Result<Box<dyn Runner>, OpenError> {
        Ok(Box::new(BrokenRunner(self)))
    }
}

impl Runner for BrokenRunner {
    fn handle(&mut self, call: &Call<'_>) -> Outcome {
        let left = |left: u32| left.checked_sub(1);
        if call.message.payload == "bad" && self.0.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok()
        {
            panic!("a runner that breaks its promise");
        }
        Outcome::Done(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_panics_is_replaced_and_loses_nothing() {
    let handler = Broken {
        identity: HandlerIdentity { name: "broken".into(), ..HandlerIdentity::default() },
        panics: AtomicU32::new(3),
    };
    let engine =
        Plan::new().handler("broken", Arc::new(handler)).route(from_queue("work", "broken").lanes(2)).start().await;
    let sent = engine
        .send_to_queue(
            "work",
            (0..100).map(|number| if number == 40 { message("bad") } else { Message::new("good", "good", 1) }),
        )
        .await;
    engine.queue_done("work").await;
    let accepted = accepted(&engine.broker);
    assert_eq!(accepted.len(), sent.len());
    assert!(accepted.values().all(|times| *times == 1));
    assert_eq!(engine.status("work-broken").lanes, 2);
    engine.stop().await;
}
