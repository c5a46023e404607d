//! Which routes there are, and which one a message would take.

use helixmq::message::Address;
use serde_json::{Value, json};

use crate::{
    served::{Served, options, problem, usual, with},
    support::engine::{queue, route},
};

const EXPLAIN: &str = "/v1/messaging/routes/explain";

async fn routed() -> Served {
    let mut orders = route("orders", Address::topic("events"), "worker");
    orders.matches.types.push("order.#".parse().unwrap());
    let mut eu = route("eu", Address::topic("events"), "ghost");
    eu.matches.headers.insert("region".into(), "eu".parse().unwrap());
    let rest = route("rest", Address::topic("events"), "worker");
    let mut picky = route("picky", Address::queue("picky"), "worker");
    picky.matches.types.push("only.this".parse().unwrap());
    with(usual().declare(queue("picky")).route(orders).route(eu).route(rest).route(picky), options()).await
}

async fn ask(served: &Served, question: Value) -> Value {
    let reply = served.post(EXPLAIN, question.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn explains_which_route_and_why_not_the_others() {
    let served = routed().await;
    let answer =
        ask(&served, json!({"topic": "events", "type": "invoice", "key": "k", "headers": {"region": "eu"}})).await;
    assert_eq!(
        (&answer["source"], &answer["route"], &answer["group"]),
        (&json!("topic:events"), &json!("eu"), &json!("group"))
    );
    assert_eq!(answer["explanation"], "eu takes it and hands it to ghost");
    let considered: Vec<(&Value, &Value, &str)> = answer["considered"]
        .as_array()
        .unwrap()
        .iter()
        .map(|route| (&route["route"], &route["takes"], route["why"].as_str().unwrap()))
        .collect();
    assert_eq!(
        considered,
        [
            (&json!("orders"), &json!(false), "type \"invoice\" matches none of order.#"),
            (&json!("eu"), &json!(true), "all its conditions hold"),
            (&json!("rest"), &json!(false), "not asked: eu comes before it and takes the message"),
        ]
    );
    assert_eq!((&answer["handler"]["name"], &answer["handler"]["state"]), (&json!("ghost"), &json!("missing")));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shows_every_value_that_holds() {
    let served = routed().await;
    let answer = ask(&served, json!({"topic": "events", "type": "order.created"})).await;
    assert_eq!((&answer["route"], &answer["handler"]["state"]), (&json!("orders"), &json!("serving")));
    let policy = &answer["policy"];
    for (path, wanted) in [
        ("/order", json!("none")),
        ("/concurrency", json!(1)),
        ("/isolation", json!("instance")),
        ("/timeout_ms", json!(30_000)),
        ("/limits/memory_bytes_max", json!(64 << 20)),
        ("/limits/results_max", json!(1000)),
        ("/limits/hops_max", json!(16)),
        ("/retry/attempts_max", json!(1)),
        ("/retry/delay_ms", json!(1000)),
        ("/retry/factor", json!(2.0)),
        ("/dead_letter", json!("queue:dlq")),
        ("/destinations", json!({})),
        ("/reply", json!(false)),
        ("/crash_budget/failures_max", json!(5)),
        ("/crash_budget/rollback_within_ms", json!(600_000)),
        ("/outage/failures_max", json!(0)),
        ("/outage/probe_ms", json!(30_000)),
    ] {
        assert_eq!(policy.pointer(path), Some(&wanted), "{path}");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explains_what_no_route_takes() {
    let served = routed().await;
    let unmatched = ask(&served, json!({"queue": "picky", "type": "other"})).await;
    assert_eq!(
        (&unmatched["route"], &unmatched["policy"], &unmatched["handler"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(
        unmatched["explanation"],
        "no route of queue:picky takes it: it becomes a dead letter in queue:dlq with NO_ROUTE"
    );
    let unread = ask(&served, json!({"queue": "quiet"})).await;
    assert_eq!(unread["explanation"], "no route reads queue:quiet: messages wait there until one does");
    for question in [
        json!({}),
        json!({"queue": "a", "topic": "b"}),
        json!({"queue": "a", "kind": "b"}),
        json!([]),
        json!({"queue": "a b"}),
    ] {
        problem(&served.post(EXPLAIN, question.to_string()).await, 400, "REQUEST_INVALID");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_routes_in_the_order_in_which_they_are_asked() {
    let served = routed().await;
    let routes = served.get("/v1/messaging/routes").await.json();
    let names: Vec<&str> =
        routes["items"].as_array().unwrap().iter().map(|route| route["name"].as_str().unwrap()).collect();
    assert_eq!(routes["count"], 5);
    let of_events: Vec<&str> = names.iter().copied().filter(|name| ["orders", "eu", "rest"].contains(name)).collect();
    assert_eq!(of_events, ["orders", "eu", "rest"]);
    let eu = routes["items"].as_array().unwrap().iter().find(|route| route["name"] == "eu").unwrap();
    assert_eq!((&eu["source"], &eu["serving"], &eu["brake"]), (&json!("topic:events"), &json!(false), &json!("open")));
    assert_eq!(eu["match"], json!({"types": [], "headers": {"region": "eu"}}));
    served.end().await;
}
