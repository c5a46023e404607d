//! A subscription that brings nothing although messages wait is begun anew, and monitoring hears of it.

use std::time::Duration;

use helixmq::{broker::BrokerStatus, message::Address, route::Watchdog, telemetry::metrics};
use serde_json::{Value, json};

use crate::{
    moody::Moody,
    served::{Served, on, usual},
    support::{
        engine::{Parts, queue, route},
        eventually,
    },
};

/// A queue of its own, so that its count is nobody else's.
fn watched(name: &str, rule: Watchdog) -> Parts {
    let mut parts = usual().declare(queue(name)).route(route(name, Address::queue(name), "worker"));
    parts.settings.watchdog = rule;
    parts
}

/// Looks once a second: what is seen twice has stalled.
fn soon(restarts_max: u32) -> Watchdog {
    Watchdog { stalled: Duration::from_millis(1), restarts_max }
}

async fn send(served: &Served, queue: &str) {
    assert_eq!(served.post_lines(&format!("/v1/messaging/tasks/{queue}"), "{}\n{}\n{}\n").await.status, 202);
}

async fn shown(served: &Served, route: &str) -> Value {
    let health = served.bare("GET", "/health").send().await.json();
    health["routes"].as_array().unwrap().iter().find(|item| item["name"] == route).cloned().unwrap()
}

async fn is_empty(served: &Served, queue: &str) -> bool {
    let stats = served.hub.broker().stats();
    stats.iter().any(|stats| *stats.address.name == *queue && stats.ready + stats.unsettled == 0)
}

fn counted(queue: &str) -> u64 {
    metrics().stall_restarts.with_label_values(&[&format!("queue:{queue}")]).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_has_stalled_is_begun_anew() {
    let broker = Moody::new();
    // All of the first: which of them is which is not known.
    broker.stalls(2);
    let served = on(&broker, watched("once", soon(3))).await;
    send(&served, "once").await;
    eventually("it brings what waits", async || is_empty(&served, "once").await.then_some(())).await;
    let route = eventually("it is shown", async || {
        let route = shown(&served, "once").await;
        (route["restarts"] == 1).then_some(route)
    })
    .await;
    assert!(route["last_restart"].as_str().is_some_and(|at| at.starts_with("20")), "{route}");
    assert_eq!((&route["status"], counted("once")), (&json!("ok"), 1));
    let other = shown(&served, "work").await;
    assert_eq!((&other["restarts"], &other["last_restart"]), (&json!(0), &Value::Null), "nothing waits there");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_recovers_makes_the_engine_unready_until_something_comes() {
    let broker = Moody::new();
    broker.stalls(u32::MAX);
    let served = on(&broker, watched("never", soon(2))).await;
    send(&served, "never").await;
    let refused = eventually("it is not ready", async || {
        let reply = served.bare("GET", "/health/ready").send().await;
        let reason = reply.json()["reason"].as_str().unwrap_or_default().to_owned();
        (reply.status == 503 && reason.contains("stalled")).then_some(reason)
    })
    .await;
    assert!(refused.contains("queue:never has stalled: 3 messages wait"), "{refused}");
    assert_eq!(shown(&served, "never").await["status"], "degraded");
    assert!(counted("never") >= 2);
    broker.stalls(0);
    eventually("it brings what waits", async || is_empty(&served, "never").await.then_some(())).await;
    let ready = async || (served.bare("GET", "/health/ready").send().await.status == 200).then_some(());
    eventually("it is ready again", ready).await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_begun_anew_while_its_system_is_unwell_or_its_handler_is_away() {
    let broker = Moody::new();
    let parts =
        watched("ill", soon(3)).declare(queue("absent")).route(route("absent", Address::queue("absent"), "ghost"));
    broker.stalls(u32::MAX);
    let served = on(&broker, parts).await;
    for queue in ["ill", "absent"] {
        send(&served, queue).await;
    }
    broker.is(BrokerStatus::Degraded { reason: "it is away".to_owned() });
    let looks = broker.looks();
    eventually("it has looked some times", async || (broker.looks() >= looks + 5).then_some(())).await;
    assert_eq!((counted("ill"), counted("absent")), (0, 0));
    broker.is(BrokerStatus::Ready);
    eventually("it is begun anew", async || (counted("ill") > 0).then_some(())).await;
    assert_eq!(counted("absent"), 0);
    served.end().await;
}
