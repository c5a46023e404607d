//! Routes whose results, dead letters and settlements are one transaction, on a broker that carries out all of it or nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use helixmq::{
    broker::PublishError,
    handler::Call,
    message::{Message, Outbound, Outcome, ReasonCode, Settlement},
    route::{Order, Route},
};

use crate::support::*;

/// Answers each message with one of the same text.
fn answered(call: &Call<'_>) -> Outcome {
    let mut result = Message::new("result", call.message.payload.clone(), call.message.timestamp);
    result.id = call.message.id.derive("out", 0);
    result.key.clone_from(&call.message.key);
    Outcome::Done(vec![Outbound { destination: "out".into(), message: result }])
}

fn transactional() -> Route {
    from_topic("work", "native").transactional()
}

/// Texts of what came out, in order.
fn out(engine: &Engine) -> Vec<String> {
    engine.published("out").iter().map(|message| text(message)).collect()
}

fn numbers(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

/// Whether a number was accepted is in its last settlement; each has one that counts.
fn check_settled(engine: &Engine, messages: &[Arc<Message>]) {
    for message in messages {
        let settlements = engine.broker.settlements(message);
        let ends = settlements.iter().filter(|how| matches!(how, Settlement::Accept | Settlement::DeadLetter { .. }));
        assert_eq!(ends.count(), 1, "{}: {settlements:?}", text(message));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_letters_and_settlements_are_one_transaction() {
    let handler = |call: &Call<'_>| match text(call.message).parse::<usize>().unwrap() % 5 {
        0 => Outcome::Reject { reason: "not wanted".into(), code: None },
        1 if call.attempt == 1 => Outcome::Retry { reason: "not yet".into(), delay: None },
        _ => answered(call),
    };
    let engine = Plan::new().native("native", handler).route(transactional()).start().await;
    let sent = engine.send_to_topic("work", (0..50).map(|number| message(number.to_string()))).await;
    engine.topic_done("work").await;
    let mut out = out(&engine);
    out.sort_unstable();
    let mut wanted = numbers((0..50).filter(|number| number % 5 != 0));
    wanted.sort_unstable();
    assert_eq!(out, wanted, "each once");
    assert_eq!(engine.dead().len(), 10);
    assert!(engine.dead().iter().all(|dead| dead.code() == ReasonCode::HandlerRejected));
    check_settled(&engine, &sent);
    // Nothing was published or settled outside of a transaction.
    let (mut published, mut settled) = (0, 0);
    for passed in engine.broker.ledger() {
        match passed {
            Passed::Committed(messages, settlements) => {
                (published, settled) = (published + messages, settled + settlements);
            }
            Passed::Published(..) => published -= 1,
            Passed::Settled(..) => settled -= 1,
            Passed::Refused | Passed::Dropped | Passed::Aborted => panic!("nothing went wrong: {passed:?}"),
        }
    }
    assert_eq!((published, settled), (0, 0));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_published_fails_for_itself_and_the_others_go_on() {
    let engine = Plan::new().native("native", answered).route(transactional()).start().await;
    engine.broker.refuse_with(|to, message| match (&*to.name, &*text(message)) {
        ("out", "3" | "7") => Some(PublishError::TooLarge { address: to.clone(), bytes: 2, max: 1 }),
        _ => None,
    });
    let sent = engine.send_to_topic("work", (0..20).map(|number| message(number.to_string()))).await;
    engine.topic_done("work").await;
    let mut out = out(&engine);
    out.sort_unstable();
    let mut wanted = numbers((0..20).filter(|number| ![3, 7].contains(number)));
    wanted.sort_unstable();
    assert_eq!(out, wanted, "each once, though transactions were aborted");
    let dead = engine.dead();
    assert_eq!(dead.len(), 2);
    let history: Vec<_> = (1..=3).map(|attempt| (attempt, ReasonCode::PublishFailed)).collect();
    assert!(dead.iter().all(|dead| dead.history() == history), "{dead:?}");
    check_settled(&engine, &sent);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_fails_uses_up_no_attempt() {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&attempts);
    let handler = move |call: &Call<'_>| {
        noted.lock().unwrap().push(call.attempt);
        answered(call)
    };
    let engine = Plan::new().native("native", handler).route(transactional()).start().await;
    engine.broker.abort_transactions(2);
    let sent = engine.send_to_topic("work", (0..10).map(|number| message(number.to_string()))).await;
    engine.topic_done("work").await;
    let mut out = out(&engine);
    out.sort_unstable();
    assert_eq!(out, numbers(0..10), "each once");
    let attempts = attempts.lock().unwrap().clone();
    assert!(attempts.len() > 10 && attempts.iter().all(|attempt| *attempt == 1), "{attempts:?}");
    assert_eq!(engine.dead().len(), 0);
    check_settled(&engine, &sent);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_keep_their_order_whatever_is_aborted() {
    const KEYS: usize = 10;
    let handler = |call: &Call<'_>| {
        let number: usize = text(call.message).split_once('/').unwrap().1.parse().unwrap();
        match number % 9 {
            4 if call.attempt == 1 => {
                Outcome::Retry { reason: "not yet".into(), delay: Some(Duration::from_millis(5)) }
            }
            _ => answered(call),
        }
    };
    let route = transactional().ordered(Order::Key).lanes(4).attempts(10);
    let engine = Plan::new().native("native", handler).route(route).start().await;
    let mut refused = BTreeMap::new();
    engine.broker.refuse(move |to, message| {
        let times: &mut u32 = refused.entry(message.id.to_string()).or_default();
        *times += 1;
        &*to.name == "out" && text(message).ends_with('7') && *times <= 2
    });
    engine.broker.abort_transactions(3);
    for number in 0..30 {
        engine.send_to_topic("work", (0..KEYS).map(|key| keyed(&key.to_string(), format!("{key}/{number}")))).await;
    }
    engine.topic_done("work").await;
    let out = out(&engine);
    for key in 0..KEYS {
        let prefix = format!("{key}/");
        let of_key: Vec<_> = out.iter().filter_map(|text| text.strip_prefix(&prefix)).map(str::to_owned).collect();
        assert_eq!(of_key, numbers(0..30), "key {key}");
    }
    assert_eq!(engine.dead().len(), 0);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_is_refused_takes_its_message_back() {
    let handler = |call: &Call<'_>| match &*text(call.message) {
        "bad" => Outcome::Reject { reason: "not wanted".into(), code: None },
        _ => answered(call),
    };
    let engine = Plan::new().native("native", handler).route(transactional()).start().await;
    engine.broker.refuse(|to, _| &*to.name == DEAD);
    let sent = engine.send_to_topic("work", ["bad", "good"].map(message)).await;
    eventually("the letter was refused", || {
        engine.broker.settlements(&sent[0]).iter().any(|how| matches!(how, Settlement::Redeliver { .. }))
    })
    .await;
    eventually("the other went on", || engine.broker.settlements(&sent[1]) == [Settlement::Accept]).await;
    engine.broker.recover();
    engine.topic_done("work").await;
    assert_eq!(engine.dead().len(), 1);
    check_settled(&engine, &sent);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_and_dead_letters_know_the_topic_behind_a_pattern() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let handler = move |call: &Call<'_>| {
        noted.lock().unwrap().push((call.source.name.to_string(), call.topic.map(str::to_owned)));
        Outcome::Reject { reason: "not wanted".into(), code: None }
    };
    let engine = Plan::new().native("native", handler).route(from_topic("work", "native")).start().await;
    engine.broker.say_topic("work.real");
    engine.send_to_topic("work", [message("one")]).await;
    engine.topic_done("work").await;
    assert_eq!(*seen.lock().unwrap(), [("work".to_owned(), Some("work.real".to_owned()))]);
    assert_eq!(engine.dead()[0].letter.source, "topic:work.real");
    engine.stop().await;
}
