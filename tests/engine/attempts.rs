//! N attempts means N, in their time, and the dead letter tells all of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use helixmq::{
    broker::{BatchMax, Broker, Start, Subscribe},
    message::{Address, Message, Outcome, ReasonCode, Settlement, now_ms},
    settle::{DeadLetter, RetryPolicy},
};

use crate::support::*;

/// The delays after which a message was tried again.
fn delays(settlements: &[Settlement]) -> Vec<u64> {
    let delay = |settlement: &Settlement| match settlement {
        Settlement::Redeliver { after, .. } => Some(u64::try_from(after.as_millis()).unwrap()),
        _ => None,
    };
    settlements.iter().filter_map(delay).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n_attempts_means_n() {
    let engine = Plan::new().plugin("flaky").route(from_queue("work", "flaky").attempts(3)).start().await;
    let flaky = |name: &str, fail_attempts: &str, fail_by: &str| {
        with_headers(message(name), &[("fail-attempts", fail_attempts), ("fail-by", fail_by)])
    };
    let asked_for = |retries_max, message| Message { retries_max: Some(retries_max), ..message };
    // Name of the message, and which attempt ended it how.
    let handled = [
        (flaky("at once", "0", "retry"), 1),
        (flaky("retried", "2", "retry"), 3),
        (flaky("trapped", "2", "trap"), 3),
        (asked_for(5, flaky("longer", "5", "retry")), 6),
    ];
    let dead = [
        (flaky("dead by retry", "3", "retry"), 3, ReasonCode::HandlerRetryExhausted),
        (flaky("dead by trap", "3", "trap"), 3, ReasonCode::HandlerTrapped),
        (asked_for(0, flaky("no retry", "1", "retry")), 1, ReasonCode::HandlerRetryExhausted),
        (asked_for(1, flaky("one retry", "2", "trap")), 2, ReasonCode::HandlerTrapped),
    ];
    engine.send_to_queue("work", handled.iter().map(|(message, _)| message.clone())).await;
    engine.send_to_queue("work", dead.iter().map(|(message, ..)| message.clone())).await;
    engine.queue_done("work").await;
    for (message, attempts) in &handled {
        let settled = engine.broker.settlements(message);
        assert_eq!(settled.len(), *attempts, "{}: {settled:?}", text(message));
        assert_eq!(settled.last(), Some(&Settlement::Accept));
    }
    let letters = engine.some_dead(dead.len()).await;
    for (message, attempts, code) in &dead {
        let letter = letters.iter().find(|letter| letter.message.id == message.id).expect("a letter");
        let history: Vec<_> = (1..=*attempts).map(|attempt| (attempt, *code)).collect();
        assert_eq!(letter.history(), history, "{}", text(message));
        assert_eq!(letter.code(), *code);
        assert!(letter.letter.text.contains(&format!("attempt {attempts} of")), "{:?}", letter.letter.text);
    }
    let mut out = engine.out();
    out.sort();
    assert_eq!(out, ["at once", "longer", "retried", "trapped"]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handlers_own_delay_is_kept_within_its_bounds() {
    let engine = Plan::new().plugin("retries").route(from_queue("work", "retries").attempts(2)).start().await;
    let after = |delay_ms: &str| with_headers(message(delay_ms), &[("delay-ms", delay_ms)]);
    let sent = engine.send_to_queue("work", [after("0"), after("300"), after("4000000000"), message("none")]).await;
    let dead = engine.some_dead(3).await;
    assert!(dead.iter().all(|dead| dead.code() == ReasonCode::HandlerRetryExhausted));
    let took = |message: &Message| {
        let letter = &dead.iter().find(|dead| dead.message.id == message.id).expect("a letter").letter;
        letter.attempts[1].at - letter.attempts[0].at
    };
    assert_eq!(delays(&engine.broker.settlements(&sent[0])), [10]);
    assert_eq!(delays(&engine.broker.settlements(&sent[1])), [300]);
    assert!(took(&sent[1]) >= 299, "{} ms", took(&sent[1]));
    assert_eq!(delays(&engine.broker.settlements(&sent[2])), [24 * 3600 * 1000]);
    assert_eq!(delays(&engine.broker.settlements(&sent[3])), [10]);
    assert_eq!(engine.left(&Address::queue("work")), 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delays_grow_to_their_maximum_where_the_handler_names_none() {
    let mut route = from_queue("work", "retries");
    let (delay, delay_max) = (Duration::from_millis(15), Duration::from_millis(50));
    route.retry = RetryPolicy { attempts_max: 6, delay, factor: 2.0, delay_max, jitter: 0.0 };
    let engine = Plan::new().plugin("retries").route(route).start().await;
    let sent = engine.send_to_queue("work", [message("one")]).await;
    engine.one_dead().await;
    assert_eq!(delays(&engine.broker.settlements(&sent[0])), [15, 30, 50, 50, 50]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_carries_everything_there_is_to_know() {
    let engine = Plan::new()
        .plugin("echo-event-batch")
        .route(from_topic("events", "echo-event-batch").attempts(2))
        .start()
        .await;
    let mut sent = with_headers(
        of_type("trap", keyed("a key", "the payload")),
        &[
            ("colour", "green"),
            ("colour", "blue"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ],
    );
    sent.correlation_id = Some("a correlation".into());
    sent.content_type = Some("text/plain".into());
    sent.priority = 7;
    let begin = now_ms();
    engine.send_to_topic("events", [keyed("a key", "before"), sent.clone()]).await;
    let Dead { letter, message } = engine.one_dead().await;
    assert_eq!(
        (letter.code, letter.broker.as_str(), letter.source.as_str()),
        (ReasonCode::HandlerTrapped, "embedded", "topic:events")
    );
    assert!(letter.partition.is_some() && letter.offset == Some(1));
    assert_eq!((letter.route.as_deref(), letter.handler_code), (Some("events-echo-event-batch"), None));
    let handler = letter.handler.expect("a handler");
    assert_eq!((handler.name.as_str(), Some(handler.digest)), ("echo-event-batch", engine.digest("echo-event-batch")));
    assert!(letter.text.contains("an event of the type `trap`"), "{}", letter.text);
    assert!(letter.backtrace.as_ref().is_some_and(|trace| trace.contains("0: ")), "{:?}", letter.backtrace);
    assert_eq!(letter.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    let times: Vec<_> = letter.attempts.iter().map(|attempt| attempt.at).collect();
    assert_eq!(times.len(), 2);
    assert!(begin <= times[0] && times[0] <= times[1] && times[1] <= letter.at && letter.at <= now_ms());
    assert!(
        letter.attempts.iter().all(|attempt| attempt.code == ReasonCode::HandlerTrapped && !attempt.text.is_empty())
    );
    assert_eq!(DeadLetter::unwrap(&message), sent);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_is_final_and_its_words_are_bounded() {
    let engine = Plan::new().plugin("rejects").route(from_queue("work", "rejects")).start().await;
    let long = "c".repeat(200);
    engine
        .send_to_queue(
            "work",
            [
                with_headers(message("short"), &[("reason", "a quarry\nblast"), ("code", "NOT_MINE")]),
                with_headers(message("long"), &[("reason-bytes", "5000"), ("code", &long)]),
            ],
        )
        .await;
    let dead = engine.some_dead(2).await;
    assert!(dead.iter().all(|dead| dead.history() == [(1, ReasonCode::HandlerRejected)]));
    assert_eq!(
        (dead[0].letter.text.as_str(), dead[0].letter.handler_code.as_deref()),
        ("a quarry\\nblast", Some("NOT_MINE"))
    );
    let long = &dead[1].letter;
    assert_eq!((long.text.len(), long.handler_code.as_ref().map(String::len)), (1024, Some(64)));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_ended_without_an_answer_count_too() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let plan = Plan::new().embedded(|embedded| embedded.queue.lease = Duration::from_millis(60));
    let settings = helixmq::broker::embedded::Settings {
        auto_create: true,
        queue: helixmq::broker::QueueSettings { lease: Duration::from_millis(60), ..Default::default() },
        ..Default::default()
    };
    let broker = Arc::new(Tap::new(settings));
    let work = Address::queue("work");
    broker.inner.publish(&work, vec![Arc::new(message("lost"))]).await.expect("published");
    // Somebody takes it again and again, and dies each time without a word.
    let request = Subscribe {
        from: work,
        group: "".into(),
        start: Start::Earliest,
        prefetch: 1000,
        workers: 1,
        aside: Default::default(),
    };
    let mut subscription = broker.inner.subscribe(request).await.expect("a subscription");
    let mut lost = Vec::new();
    loop {
        let taken = subscription.next(BatchMax { count: 1, bytes: usize::MAX }).await.expect("works").expect("goes on");
        if taken.as_slice()[0].attempt > 3 {
            break;
        }
        lost.push(taken);
    }
    drop((subscription, lost));
    let engine = plan
        .native("native", move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Outcome::Done(Vec::new())
        })
        .route(from_queue("work", "native").attempts(3))
        .start_on(broker)
        .await;
    let dead = engine.one_dead().await;
    assert_eq!(dead.history(), (1..=3).map(|attempt| (attempt, ReasonCode::Timeout)).collect::<Vec<_>>());
    assert!(dead.letter.text.contains("lease"), "{:?}", dead.letter.text);
    assert_eq!((dead.code(), calls.load(Ordering::SeqCst)), (ReasonCode::Timeout, 0));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_runs_no_more_often_than_its_attempts_while_dead_letters_cannot_be_kept() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let engine = Plan::new()
        .native("native", move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Outcome::Retry { reason: "never".into(), delay: None }
        })
        .route(from_queue("work", "native").attempts(2))
        .start()
        .await;
    let refused = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&refused);
    engine.broker.refuse(move |to, _| {
        let is_letter = &*to.name == DEAD;
        counted.fetch_add(u32::from(is_letter), Ordering::SeqCst);
        is_letter
    });
    engine.send_to_queue("work", [message("one")]).await;
    eventually("its letter was refused twice", || refused.load(Ordering::SeqCst) >= 2).await;
    assert_eq!(engine.left(&Address::queue("work")), 1, "it stays until its letter is kept");
    engine.broker.recover();
    let dead = engine.one_dead().await;
    assert_eq!((dead.code(), dead.letter.text.as_str()), (ReasonCode::HandlerRetryExhausted, "never"));
    assert_eq!(dead.history()[..2], [(1, ReasonCode::HandlerRetryExhausted), (2, ReasonCode::HandlerRetryExhausted)]);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    engine.queue_done("work").await;
    engine.stop().await;
}
