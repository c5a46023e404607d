//! Which handler a message goes to, and what becomes of one that has none.

use helixmq::{
    message::{Address, Outcome, ReasonCode},
    route::{Match, Pattern, Route},
};

use crate::support::*;

fn matching(mut route: Route, types: &[&str], headers: &[(&str, &str)]) -> Route {
    let pattern = |text: &str| text.parse::<Pattern>().expect("a pattern");
    route.matches = Match {
        types: types.iter().map(|text| pattern(text)).collect(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), pattern(value))).collect(),
    };
    route
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_route_that_matches_has_the_message() {
    let to = |handler: &str| from_queue("work", "echo").named(handler).to("out", Address::queue(handler));
    let engine = Plan::new()
        .plugin("echo")
        .route(matching(to("created"), &["order.*.created"], &[]))
        .route(matching(to("audit"), &["audit.#", "log"], &[]))
        .route(matching(to("green"), &[], &[("colour", "green"), ("size", "*")]))
        .start()
        .await;
    let cases = [
        ("order.book.created", "", "created"),
        ("order.created", "green", "green"),
        ("audit", "green", "audit"),
        ("audit.a.b", "", "audit"),
        ("log", "", "audit"),
        ("log.line", "green", "green"),
    ];
    for (kind, colour, _) in cases {
        let one = with_headers(of_type(kind, message(kind)), &[("colour", colour), ("size", "large")]);
        engine.send_to_queue("work", [one]).await;
    }
    let unrouted = [of_type("order.created", message("no header")), of_type("", message("nothing"))];
    engine.send_to_queue("work", unrouted).await;
    engine.queue_done("work").await;
    for (kind, _, route) in cases {
        assert!(engine.published(route).iter().any(|message| text(message) == kind), "{kind} is not at {route}");
    }
    assert_eq!(
        ["created", "audit", "green"].map(|route| engine.published(route).len()).iter().sum::<usize>(),
        cases.len()
    );
    for dead in engine.some_dead(2).await {
        assert_eq!((dead.code(), dead.letter.route, dead.letter.handler), (ReasonCode::NoRoute, None, None));
        assert_eq!((dead.letter.source.as_str(), dead.letter.attempts.len()), ("queue:work", 0));
        assert!(dead.letter.text.contains(&*dead.message.kind), "{}", dead.letter.text);
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_is_not_there_keeps_its_messages_waiting_and_no_others() {
    let engine = Plan::new()
        .native("native", |_| Outcome::Done(Vec::new()))
        .route(matching(from_queue("work", "echo"), &["for.echo"], &[]))
        .route(from_queue("work", "native"))
        .start()
        .await;
    for number in 0..600 {
        let kind = if number % 2 == 0 { "for.echo" } else { "for.native" };
        engine.send_to_queue("work", [of_type(kind, message(number.to_string()))]).await;
    }
    let work = Address::queue("work");
    eventually("the others are handled", || engine.left(&work) == 300).await;
    assert!(!engine.status("work-echo").serving);
    assert_eq!(engine.dead().len(), 0);
    engine.install(&fixture("echo"), "echo");
    engine.queue_done("work").await;
    assert_eq!(engine.out().len(), 300);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_of_the_wrong_kind_keeps_its_messages_waiting() {
    let engine = Plan::new().plugin("echo").route(from_topic("events", "echo")).start().await;
    engine.send_to_topic("events", [message("one")]).await;
    engine.install(&fixture("echo-event"), "echo");
    engine.topic_done("events").await;
    assert_eq!((engine.out(), engine.dead().len()), (vec!["one".to_owned()], 0));
    engine.stop().await;
}
