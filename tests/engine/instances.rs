//! How long instances live, and what a handler may ask of the engine while it runs.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use helixmq::{
    handler::{Call, Isolation},
    message::{Message, MessageId, Outbound, Outcome, ReasonCode, Settlement},
    route::Order,
};
use serde_json::Value;

use crate::{logs, support::*};

/// How many calls each instance had, read from what `counts-calls` returned for so many messages.
async fn lives(isolation: Isolation, messages: u32, messages_max: u32) -> Vec<u32> {
    let route = from_queue("work", "counts-calls")
        .isolated(isolation)
        .limits(|limits| limits.instance_messages_max = messages_max);
    let engine = Plan::new().plugin("counts-calls").route(route).start().await;
    engine.send_to_queue("work", (0..messages).map(|number| message(number.to_string()))).await;
    engine.queue_done("work").await;
    let counts: Vec<u32> = engine.out().iter().map(|text| text.parse().expect("a number")).collect();
    assert_eq!(counts.len(), messages as usize);
    let mut lives = Vec::new();
    for count in counts {
        match lives.last_mut() {
            Some(life) if count == *life + 1 => *life = count,
            _ if count == 1 => lives.push(1),
            _ => panic!("call {count} after {lives:?}"),
        }
    }
    engine.stop().await;
    lives
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_lives_as_long_as_its_isolation_says() {
    assert_eq!(lives(Isolation::Message, 20, 256).await, [1; 20]);
    assert_eq!(lives(Isolation::Instance, 25, 10).await, [10, 10, 5]);
    assert_eq!(lives(Isolation::Instance, 300, 256).await, [256, 44]);
    let batches = lives(Isolation::Batch, 100, 1).await;
    assert!(batches.len() > 1 && batches.len() < 100, "{batches:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_does_not_outlive_a_failure() {
    let engine =
        Plan::new().plugin("flaky").route(from_queue("work", "flaky").named("renewed").attempts(2)).start().await;
    let trap = |name: &str| with_headers(message(name), &[("fail-attempts", "1"), ("fail-by", "trap")]);
    engine.send_to_queue("work", [trap("one"), message("two"), trap("three")]).await;
    engine.queue_done("work").await;
    let mut out = engine.out();
    out.sort();
    assert_eq!((out, engine.dead().len()), (["one", "three", "two"].map(str::to_owned).to_vec(), 0));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_instance_is_told_when_it_begins_and_when_it_ends() {
    logs::keep();
    let route = from_queue("work", "init-ok").named("lifecycle").limits(|limits| limits.instance_messages_max = 4);
    let engine = Plan::new().plugin("init-ok").route(route).start().await;
    engine.send_to_queue("work", (0..10).map(|number| message(number.to_string()))).await;
    engine.queue_done("work").await;
    let reports: Vec<Value> = engine.out().iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    assert!(reports.iter().all(|report| report["inits"] == 1));
    assert_eq!(
        reports.iter().map(|report| report["calls"].as_u64().unwrap()).collect::<Vec<_>>(),
        [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    );
    engine.stop().await;
    let lines: Vec<_> = logs::of_route("lifecycle").into_iter().map(|line| line.text).collect();
    // The first one is the trial before the version may serve.
    assert_eq!(lines, ["init", "shutdown"].repeat(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_handler_answers_for_each_event() {
    let engine = Plan::new()
        .plugin("echo-event-batch")
        .route(from_topic("events", "echo-event-batch").attempts(2))
        .start()
        .await;
    let events = (0..40).map(|number| {
        let kind = match number {
            7 => "retry",
            13 => "reject",
            _ => "event",
        };
        of_type(kind, keyed("one partition", number.to_string()))
    });
    let sent = engine.send_to_topic("events", events).await;
    engine.topic_done("events").await;
    let mut out: Vec<u32> = engine.out().iter().map(|text| text.parse().unwrap()).collect();
    out.sort_unstable();
    assert_eq!(out, (0..40).filter(|number| ![7, 13].contains(number)).collect::<Vec<_>>());
    let dead = engine.some_dead(2).await;
    let code = |place: usize| dead.iter().find(|dead| dead.message.id == sent[place].id).map(Dead::history);
    assert_eq!(code(7), Some(vec![(1, ReasonCode::HandlerRetryExhausted), (2, ReasonCode::HandlerRetryExhausted)]));
    assert_eq!(code(13), Some(vec![(1, ReasonCode::HandlerRejected)]));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_kills_its_batch_dies_alone() {
    for (kind, code) in [("trap", ReasonCode::HandlerTrapped), ("spin", ReasonCode::HandlerTimeout)] {
        let route = from_topic("events", "echo-event-batch").attempts(2).timeout(500);
        let engine = Plan::new().plugin("echo-event-batch").route(route).start().await;
        let events = (0..30).map(|number| {
            of_type(if number == 11 { kind } else { "event" }, keyed("one partition", number.to_string()))
        });
        let sent = engine.send_to_topic("events", events).await;
        engine.topic_done("events").await;
        let dead = engine.one_dead().await;
        assert_eq!((&dead.message.id, dead.history()), (&sent[11].id, vec![(1, code), (2, code)]));
        let settled = engine.broker.settlements(&sent[12]);
        assert_eq!(settled, [Settlement::Accept], "the innocent are handled on their first attempt");
        assert_eq!(engine.out().len(), 29);
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_the_wrong_length_is_a_failure_of_all() {
    let route = from_topic("events", "echo-event-batch").attempts(1);
    let engine = Plan::new().plugin("echo-event-batch").route(route).start().await;
    engine
        .send_to_topic(
            "events",
            (0..5).map(|number| of_type("wrong-length", keyed("one partition", number.to_string()))),
        )
        .await;
    let dead = engine.some_dead(5).await;
    assert!(
        dead.iter().all(|dead| dead.code() == ReasonCode::HandlerContract && dead.letter.text.contains("answered"))
    );
    assert_eq!(engine.out(), Vec::<String>::new());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_batch_keeps_the_order_of_its_keys() {
    let route = from_topic("events", "echo-event-batch").ordered(Order::Key).attempts(2);
    let engine = Plan::new().plugin("echo-event-batch").route(route).start().await;
    let events = (0..60).map(|number| {
        of_type(if number % 10 == 4 { "retry" } else { "event" }, keyed(["a", "b"][number % 2], format!("{number:02}")))
    });
    engine.send_to_topic("events", events).await;
    engine.topic_done("events").await;
    engine.some_dead(6).await;
    for parity in [0, 1] {
        let of_key: Vec<_> =
            engine.out().into_iter().filter(|text| text.parse::<usize>().unwrap() % 2 == parity).collect();
        assert!(of_key.is_sorted() && of_key.len() == 30 - if parity == 0 { 6 } else { 0 }, "{of_key:?}");
    }
    engine.stop().await;
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_publishes_asks_and_extends_while_it_runs() {
    let engine = Plan::new().plugin("publisher").route(from_queue("work", "publisher").timeout(500)).start().await;
    let first = with_headers(message("first"), &[("traceparent", PARENT), ("extend-ms", "2000")]);
    let elsewhere = with_headers(message("elsewhere"), &[("destination", "secret"), ("extend-ms", "60000")]);
    let sent = engine.send_to_queue("work", [first, elsewhere]).await;
    engine.queue_done("work").await;
    let published = engine.published("out");
    assert_eq!(published.len(), 3);
    assert_eq!(text(&published[0]), format!("sent by {}", sent[0].id));
    assert_ne!(published[0].id, MessageId::default(), "it has an id of its own");
    assert_eq!(published[0].headers.get("traceparent"), Some(PARENT));
    assert_eq!((published[0].hops(), published[0].correlation_id.as_deref()), (1, Some(&*sent[0].id.to_string())));
    let report: Value = serde_json::from_str(&text(&published[1])).expect("JSON");
    assert_eq!(
        (&report["published"], &report["extended"], &report["traceparent"]),
        (&"ok".into(), &"ok".into(), &PARENT.into())
    );
    let (before, after) = (report["remaining_ms"].as_u64().unwrap(), report["remaining_ms_after"].as_u64().unwrap());
    assert!(before <= 501 && (501..=2001).contains(&after), "{report}");
    let report: Value = serde_json::from_str(&text(&published[2])).expect("JSON");
    assert!(report["published"].as_str().unwrap().starts_with("denied: "), "{report}");
    assert!(report["extended"].as_str().unwrap().contains("no more than"), "{report}");
    assert!(report["remaining_ms_after"].as_u64().unwrap() <= 5001, "{report}");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_while_it_runs_stays_published_when_it_fails() {
    let engine = Plan::new().plugin("publisher").route(from_queue("work", "publisher").attempts(2)).start().await;
    let sent = engine
        .send_to_queue("work", [of_type("then-trap", message("one")), of_type("then-retry", message("two"))])
        .await;
    engine.some_dead(2).await;
    let mut out = engine.out();
    out.sort();
    let mut wanted: Vec<_> = sent.iter().flat_map(|message| vec![format!("sent by {}", message.id); 2]).collect();
    wanted.sort();
    assert_eq!(out, wanted, "once for each attempt");
    let published = engine.published("out");
    assert_eq!(ids(published.iter().map(|message| &**message)).len(), 4, "each with an id of its own");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_by_who_handles_it() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    let answering = move |call: &Call<'_>| {
        kept.lock().unwrap().push(call.message.reply_to.clone());
        let mut answer = Message::new("answer", format!("answer to {}", text(call.message)), call.message.timestamp);
        answer.id = call.message.id.derive("answer", 0);
        answer.correlation_id = call.message.correlation_id.clone();
        match call.message.payload == "ignored" {
            true => Outcome::Done(Vec::new()),
            false => Outcome::Done(vec![Outbound { destination: "reply-to".into(), message: answer }]),
        }
    };
    let requests = helixmq::message::Address::queue("requests");
    let engine = Plan::new()
        .plugin("requester")
        .native("answering", answering)
        .route(from_queue("work", "requester").to("requests", requests.clone()).timeout(2_000).lanes(2))
        .route(from_queue("requests", "answering").terms(|terms| terms.may_reply = true))
        .start()
        .await;
    let names: Vec<String> = (0..10).map(|number| format!("question {number}")).collect();
    engine
        .send_to_queue("work", names.iter().map(|name| with_headers(message(name), &[("timeout-ms", "20000")])))
        .await;
    engine.send_to_queue("work", [with_headers(message("ignored"), &[("timeout-ms", "100")])]).await;
    engine.queue_done("work").await;
    let mut out = engine.out();
    out.sort();
    let mut wanted: Vec<_> = names.iter().map(|name| format!("answer to {name}")).collect();
    wanted.push("error: timeout".to_owned());
    wanted.sort();
    assert_eq!((out, engine.dead().len()), (wanted, 0));
    let published = engine.published("requests");
    assert_eq!(ids(published.iter().map(|message| &**message)).len(), 11, "each request has an id of its own");
    let correlations: std::collections::BTreeSet<_> =
        published.iter().map(|message| message.correlation_id.clone()).collect();
    assert_eq!(correlations.len(), 11);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_an_answer_ends_with_the_calls_own_time() {
    let requests = helixmq::message::Address::queue("nobody");
    let route = from_queue("work", "requester").to("requests", requests).timeout(300).attempts(1);
    let engine = Plan::new().plugin("requester").route(route).start().await;
    engine.send_to_queue("work", [with_headers(message("one"), &[("timeout-ms", "60000")])]).await;
    engine.queue_done("work").await;
    match engine.dead().first() {
        // Told that there is no answer, or ended in the same moment.
        Some(dead) => assert_eq!(dead.code(), ReasonCode::HandlerTimeout),
        None => assert_eq!(engine.out(), ["error: timeout"]),
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_setting_reaches_the_handler() {
    let engine = Plan::new()
        .plugin("env-peek")
        .settings("env-peek", &[("greeting", "one")])
        .route(from_queue("work", "env-peek"))
        .start()
        .await;
    let calls = AtomicU32::new(0);
    let greeting = async || {
        engine.send_to_queue("work", [message("peek")]).await;
        engine.queue_done("work").await;
        let place = calls.fetch_add(1, Ordering::SeqCst) as usize;
        serde_json::from_str::<Value>(&engine.out()[place]).expect("JSON")["greeting"].clone()
    };
    assert_eq!(greeting().await, "one");
    let mut settings = engine.hub.settings();
    settings.plugins.get_mut("env-peek").unwrap().config.insert("greeting".into(), "two".into());
    engine.hub.apply(settings.clone(), None).await.expect("applied");
    eventually("it is loaded again", || engine.receipts("env-peek").len() == 2).await;
    assert_eq!(greeting().await, "two");
    settings.plugins.clear();
    engine.hub.apply(settings, None).await.expect("applied");
    eventually("it is loaded again", || engine.receipts("env-peek").len() == 3).await;
    assert_eq!(greeting().await, Value::Null);
    assert!(
        engine
            .receipts("env-peek")
            .iter()
            .skip(1)
            .all(|receipt| receipt.cached && receipt.took < Duration::from_secs(10))
    );
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_changes_while_its_plugin_is_loaded_holds() {
    let cache = tempfile::tempdir().expect("a directory");
    let compiled = cache.path().join("cache");
    let engine = Plan::new()
        .cold(compiled.clone())
        .settings("env-peek", &[("greeting", "one")])
        .route(from_queue("work", "env-peek"))
        .start()
        .await;
    engine.install(&fixture("env-peek"), "env-peek");
    eventually("it is being compiled", || compiled.read_dir().is_ok_and(|mut files| files.next().is_some())).await;
    let mut settings = engine.hub.settings();
    settings.plugins.get_mut("env-peek").unwrap().config.insert("greeting".into(), "two".into());
    engine.hub.apply(settings, None).await.expect("applied");
    eventually("it is loaded once more", || engine.receipts("env-peek").len() == 2).await;
    engine.send_to_queue("work", [message("peek")]).await;
    engine.queue_done("work").await;
    assert_eq!(serde_json::from_str::<Value>(&engine.out()[0]).expect("JSON")["greeting"], "two");
    engine.stop().await;
}
