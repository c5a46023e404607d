//! Keys find lanes: as many run at once as there are lanes, and each on one of them at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use helixmq::{
    handler::{Call, Handler, native::Native},
    message::{Address, Outcome},
    route::{Order, Route},
};

use crate::support::*;

const KEYS: usize = 100;

/// A topic of one partition.
fn one_partition(plan: Plan) -> Plan {
    plan.embedded(|embedded| embedded.topic.partitions = 1)
}

fn many_lanes() -> Route {
    from_topic("work", "native").ordered(Order::Key).lanes(KEYS)
}

/// Lets calls go on once so many are in it at a time; none waits for ever.
#[derive(Clone, Default)]
struct Meeting(Arc<(Mutex<HashMap<ThreadId, String>>, Condvar)>);

impl Meeting {
    /// Whether so many met.
    fn meet(&self, key: String, count: usize) -> bool {
        let (here, all) = &*self.0;
        let mut here = here.lock().unwrap();
        here.insert(thread::current().id(), key);
        all.notify_all();
        !all.wait_timeout_while(here, PATIENCE, |here| here.len() < count).unwrap().1.timed_out()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_keys_run_on_a_hundred_lanes_at_once() {
    let (meeting, seen) = (Meeting::default(), Arc::new(Mutex::new(Vec::new())));
    let (met, noted) = (meeting.clone(), Arc::clone(&seen));
    let handler = move |call: &Call<'_>| {
        let met = met.meet(text(call.message), KEYS);
        noted.lock().unwrap().push(met);
        Outcome::Done(Vec::new())
    };
    let engine = one_partition(Plan::new()).native("native", handler).route(many_lanes()).start().await;
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key}")).collect();
    engine.send_to_topic("work", keys.iter().map(|key| keyed(key, key.clone()))).await;
    engine.topic_done("work").await;
    assert_eq!(*seen.lock().unwrap(), [true; KEYS], "all of them were in their calls at one time");
    let mut met: Vec<String> = meeting.0.0.lock().unwrap().values().cloned().collect();
    let mut keys = keys;
    met.sort_unstable();
    keys.sort_unstable();
    assert_eq!(met, keys, "each on a lane of its own");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_key_does_not_keep_the_others_waiting() {
    let (open, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (gate, noted) = (Arc::clone(&open), Arc::clone(&done));
    let handler = move |call: &Call<'_>| {
        while text(call.message).starts_with("busy") && !gate.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        noted.lock().unwrap().push(text(call.message));
        Outcome::Done(Vec::new())
    };
    let route = from_topic("work", "native").ordered(Order::Key).lanes(4);
    let engine = one_partition(Plan::new()).native("native", handler).route(route).start().await;
    let busy: Vec<String> = (0..2000).map(|number| format!("busy {number}")).collect();
    engine.send_to_topic("work", busy.iter().map(|name| keyed("busy", name.clone()))).await;
    let others: Vec<String> = (0..300).map(|number| format!("other {number}")).collect();
    engine.send_to_topic("work", others.iter().map(|name| keyed(name, name.clone()))).await;
    eventually("the others are through", || done.lock().unwrap().len() == others.len()).await;
    open.store(true, Ordering::SeqCst);
    engine.topic_done("work").await;
    let done = done.lock().unwrap().clone();
    let of_busy: Vec<&String> = done.iter().filter(|name| name.starts_with("busy")).collect();
    assert_eq!(of_busy, busy.iter().collect::<Vec<_>>(), "in their order");
    assert_eq!(done.len(), busy.len() + others.len());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_keep_their_order_on_many_lanes_through_retries_and_reloads() {
    const EACH: u32 = 30;
    let seen: Arc<Mutex<BTreeMap<String, Vec<u32>>>> = Arc::default();
    let running: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let version = || -> Arc<dyn Handler> {
        let (seen, running) = (Arc::clone(&seen), Arc::clone(&running));
        Native::new("native", move |call: &Call<'_>| {
            let name = text(call.message);
            let (key, number) = name.split_once('/').unwrap();
            let number: u32 = number.parse().unwrap();
            *running.lock().unwrap().entry(key.to_owned()).or_default() += 1;
            thread::yield_now();
            let alone = running.lock().unwrap().insert(key.to_owned(), 0) == Some(1);
            let fails = (number * 7 + key.len() as u32).is_multiple_of(10) && call.attempt == 1;
            if fails {
                return Outcome::Retry { reason: "not yet".into(), delay: Some(Duration::from_millis(3)) };
            }
            // Two at a time would show as a number that is none.
            seen.lock().unwrap().entry(key.to_owned()).or_default().push(if alone { number } else { u32::MAX });
            Outcome::Done(Vec::new())
        })
    };
    let engine = one_partition(Plan::new()).handler("native", version()).route(many_lanes()).start().await;
    let slot = engine.hub.registry().slot("native");
    let keys: Vec<String> = (0..KEYS).map(|key| "k".repeat(key % 7) + &key.to_string()).collect();
    for number in 0..EACH {
        let messages = keys.iter().map(|key| keyed(key, format!("{key}/{number}")));
        engine.send(&Address::topic("work"), messages).await;
        if number % 5 == 0 {
            slot.serve(version(), Duration::ZERO, false);
        }
    }
    engine.topic_done("work").await;
    for key in &keys {
        assert_eq!(seen.lock().unwrap()[key], (0..EACH).collect::<Vec<_>>(), "key {key}");
    }
    assert_eq!(engine.dead().len(), 0);
    engine.stop().await;
}
