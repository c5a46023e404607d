//! How the engine is doing, as monitoring sees it.

use helixmq::{
    broker::{BrokerStatus, Circuit, ConnectionState, SpoolStats, System},
    message::{Address, Outcome},
};
use serde_json::{Value, json};

use crate::{
    described::fits,
    moody::Moody,
    served::{on, options, problem, served, usual, with},
    support::{
        engine::{queue, route},
        eventually, soon,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_handles_messages_is_well() {
    let served = served().await;
    soon_ready(&served).await;
    for path in ["/health", "/v1/messaging/health"] {
        let reply = served.bare("GET", path).send().await;
        let health = reply.json();
        assert_eq!((reply.status, &health["status"], &health["reasons"]), (200, &json!("ok"), &json!([])));
        assert_eq!(health["version"], "9.9.9");
        assert_eq!(health["brokers"][0]["name"], "embedded");
        let route = &health["routes"][0];
        assert_eq!((&route["name"], &route["brake"], &route["status"]), (&json!("work"), &json!("open"), &json!("ok")));
        assert_eq!(health["handlers"][0]["state"], "serving");
    }
    assert_eq!(served.bare("GET", "/health/live").send().await.status, 200);
    assert_eq!(served.bare("GET", "/health/ready").send().await.json(), json!({"status": "ok"}));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_handler_degrades_and_is_named() {
    let parts = usual().declare(queue("absent")).route(route("absent", Address::queue("absent"), "ghost"));
    let served = with(parts, options()).await;
    soon_ready(&served).await;
    let reply = served.bare("GET", "/health").send().await;
    let health = reply.json();
    assert_eq!((reply.status, &health["status"]), (200, &json!("degraded")));
    let reasons = health["reasons"].to_string();
    assert!(reasons.contains("route absent: no version of handler ghost serves"), "{reasons}");
    assert!(reasons.contains("handler ghost: no file ghost.wasm is there"), "{reasons}");
    let route = find(&health["routes"], "absent");
    assert_eq!((&route["status"], &route["serving"]), (&json!("degraded"), &json!(false)));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_keeps_dying_degrades_its_route() {
    let mut dying = route("dying", Address::queue("dying"), "dying");
    dying.crash_budget.failures_max = 1;
    let parts = usual().declare(queue("dying")).route(dying).native("dying", |_| panic!("on purpose"));
    let served = with(parts, options()).await;
    soon_ready(&served).await;
    served.post_lines("/v1/messaging/tasks/dying", "{}\n{}\n{}\n").await;
    let route = eventually("the route is slowed", async || {
        let health = served.bare("GET", "/health").send().await.json();
        let route = find(&health["routes"], "dying");
        (route["brake"] != "open").then_some(route)
    })
    .await;
    assert_eq!(route["status"], "degraded");
    assert!(route["reason"].as_str().unwrap().contains("handler dying"), "{route}");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_behind_a_handler_is_named_where_people_look() {
    let mut needing = route("needing", Address::queue("needing"), "needing");
    needing.outage.failures_max = 2;
    needing.retry.attempts_max = 2;
    let parts = usual()
        .declare(queue("needing"))
        .route(needing)
        .native("needing", |call| Outcome::Retry { reason: format!("no answer to {}", call.message.id), delay: None });
    let served = with(parts, options()).await;
    soon_ready(&served).await;
    served.post_lines("/v1/messaging/tasks/needing", "{}\n{}\n{}\n").await;
    let route = eventually("the route is slowed", async || {
        let health = served.bare("GET", "/health").send().await.json();
        let route = find(&health["routes"], "needing");
        (route["brake"] == "slowed").then_some(route)
    })
    .await;
    let reason = route["reason"].as_str().unwrap();
    assert!(reason.contains(" times") && reason.contains("HANDLER_RETRY_EXHAUSTED: no answer to "), "{reason}");
    let explained = served.post("/v1/messaging/routes/explain", r#"{"queue": "needing"}"#).await.json();
    assert_eq!((&explained["status"]["reason"], &explained["status"]["brake"]), (&route["reason"], &json!("slowed")));
    assert_eq!(explained["policy"]["outage"], json!({"failures_max": 2, "probe_ms": 30_000}));
    let listed = served.get("/v1/messaging/routes").await.json();
    assert_eq!(find(&listed["items"], "needing")["reason"], route["reason"]);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_room_degrades_and_publishers_hear_why() {
    let broker = Moody::new();
    let served = on(&broker, usual()).await;
    soon_ready(&served).await;
    broker.is(BrokerStatus::Degraded { reason: "10 MiB are free, make room".to_owned() });
    let reply = served.bare("GET", "/health").send().await;
    let health = reply.json();
    assert_eq!((reply.status, &health["status"]), (200, &json!("degraded")));
    assert_eq!(health["reasons"], json!(["broker moody: 10 MiB are free, make room"]));
    let shown = &health["brokers"][0];
    assert_eq!((&shown["status"], &shown["reason"]), (&json!("degraded"), &json!("10 MiB are free, make room")));
    assert_eq!(served.bare("GET", "/health/ready").send().await.status, 200, "what is there is still handled");
    let reply = served.post("/v1/messaging/tasks/quiet", "{}").await;
    let said = problem(&reply, 507, "PUBLISH_REJECTED");
    assert_eq!(said, "queue:quiet is on a disk without room: it is full; make room on it");
    assert!(reply.header("retry-after").is_some());
    broker.is(BrokerStatus::Ready);
    assert_eq!(served.bare("GET", "/health").send().await.json()["status"], "ok");
    assert_eq!(served.post("/v1/messaging/tasks/quiet", "{}").await.status, 202);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_is_away_is_shown_with_its_circuit_and_what_waits_for_it() {
    let broker = Moody::new();
    let served = on(&broker, usual()).await;
    soon_ready(&served).await;
    let document = served.bare("GET", "/v1/messaging/openapi.json").send().await.json();
    let schema = &document["components"]["schemas"]["Health"];
    let spool = SpoolStats { is_durable: true, messages: 7, bytes: 700, oldest_ms: 1500, refused: None };
    let away = System {
        name: "billing".to_owned(),
        status: BrokerStatus::Degraded { reason: "no server answers".to_owned() },
        state: ConnectionState::Away,
        circuit: Circuit::Open,
        spool: Some(spool.clone()),
        is_durable: true,
    };
    broker.shows(away.clone());
    let reply = served.bare("GET", "/health").send().await;
    let health = reply.json();
    assert_eq!((reply.status, &health["status"]), (200, &json!("degraded")));
    assert_eq!(health["reasons"], json!(["broker billing: no server answers"]));
    let shown = &health["brokers"][0];
    assert_eq!((&shown["state"], &shown["circuit"]), (&json!("away"), &json!("open")));
    let waits = json!({"durable": true, "messages": 7, "bytes": 700, "oldest_ms": 1500, "refused": null});
    assert_eq!(shown["spool"], waits);
    fits(&health, schema, &document, "health");
    // It is there again, and is being tried.
    let (status, state, circuit) = (BrokerStatus::Ready, ConnectionState::Ready, Circuit::HalfOpen);
    broker.shows(System { status, state, circuit, spool: None, ..away });
    let health = served.bare("GET", "/health").send().await.json();
    assert!(
        health["reasons"][0].as_str().unwrap().starts_with("broker billing: nothing is published there for now"),
        "{health}"
    );
    assert_eq!((&health["status"], &health["brokers"][0]["spool"]), (&json!("degraded"), &Value::Null));
    fits(&health, schema, &document, "health");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_has_failed_ends_the_engine() {
    let broker = Moody::new();
    let served = on(&broker, usual()).await;
    soon_ready(&served).await;
    broker.is(BrokerStatus::Failed { reason: "a flush failed".to_owned() });
    for path in ["/health", "/health/ready"] {
        let reply = served.bare("GET", path).send().await;
        assert_eq!(reply.status, 503, "{path}");
        assert!(reply.text().contains("broker moody: a flush failed"), "{path}: {}", reply.text());
    }
    assert_eq!(soon("its end", served.hub.failed()).await, "a flush failed");
    assert!(served.hub.is_stopping());
    problem(&served.post("/v1/messaging/tasks/quiet", "{}").await, 503, "OPERATION_CANCELED");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn is_not_ready_before_the_plugins_are_looked_at_nor_while_stopping() {
    let parts = usual();
    // It is looked at until it has been still for a while: only then is it known to be no plugin.
    std::fs::write(parts.settings.plugins_directory.join("half.wasm"), b"\0asm").unwrap();
    let served = with(parts, options()).await;
    for path in ["/health", "/health/ready"] {
        let reply = served.bare("GET", path).send().await;
        assert_eq!((reply.status, &reply.json()["status"]), (503, &json!("unavailable")), "{path}");
        assert!(reply.text().contains("the plugins are still being loaded"), "{path}");
    }
    assert_eq!(served.bare("GET", "/health/live").send().await.status, 200);
    soon_ready(&served).await;
    served.hub.stop().await;
    for path in ["/health", "/health/ready"] {
        let reply = served.bare("GET", path).send().await;
        assert_eq!(reply.status, 503);
        assert!(reply.text().contains("the engine is stopping"), "{path}");
    }
    assert_eq!(served.bare("GET", "/health/live").send().await.status, 200);
    served.end().await;
}

async fn soon_ready(served: &crate::served::Served) {
    eventually("it is ready", async || (served.bare("GET", "/health/ready").send().await.status == 200).then_some(()))
        .await;
}

fn find(items: &Value, name: &str) -> Value {
    items.as_array().unwrap().iter().find(|item| item["name"] == name).cloned().unwrap_or_else(|| panic!("no {name}"))
}
