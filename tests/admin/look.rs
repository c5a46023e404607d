//! Plugins, numbers, metrics.

use helixmq::message::{Address, Outcome};
use serde_json::{Value, json};

use crate::{
    served::{options, problem, served, usual, with},
    support::{
        engine::{queue, route},
        eventually,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn plugins_say_how_they_are_doing() {
    let parts = usual()
        .declare(queue("absent"))
        .route(route("absent", Address::queue("absent"), "ghost"))
        .native("idle", |_| Outcome::Done(Vec::new()));
    std::fs::write(parts.settings.plugins_directory.join("junk.wasm"), b"not a component").unwrap();
    let served = with(parts, options()).await;
    let plugins = eventually("the file is refused", async || {
        let plugins = served.get("/v1/messaging/plugins").await.json();
        plugins["items"].as_array()?.iter().any(|plugin| plugin["name"] == "junk").then_some(plugins)
    })
    .await;
    let states: Vec<(&str, &str)> = plugins["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| (plugin["name"].as_str().unwrap(), plugin["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states, [("ghost", "missing"), ("idle", "waiting"), ("junk", "refused"), ("worker", "serving")]);
    assert_eq!(plugins["count"], 4);
    let junk = served.get("/v1/messaging/plugins/junk").await.json();
    assert!(junk["reason"].as_str().unwrap().contains("refused"), "{junk}");
    assert_eq!(junk["receipts"][0]["result"], "refused");
    let worker = served.get("/v1/messaging/plugins/worker").await.json();
    assert_eq!(
        (&worker["routes"], &worker["digest"], &worker["reason"]),
        (&json!(["work"]), &Value::Null, &Value::Null)
    );
    assert!(worker["since"].is_string());
    problem(&served.get("/v1/messaging/plugins/none").await, 404, "NOT_FOUND");
    assert_eq!(served.get("/v1/messaging/plugins").await.json()["count"], 4, "asking for one does not make it");
    std::fs::remove_file(served.plugins().join("junk.wasm")).unwrap();
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_say_what_lies_where() {
    let served = served().await;
    served
        .post_lines("/v1/messaging/tasks/quiet", "{\"payload\":1}\n{\"scheduled_at\":\"2999-01-01T00:00:00Z\"}\n")
        .await;
    served.post("/v1/messaging/events/events", "{}").await;
    let stats = served.get("/v1/messaging/stats").await.json();
    let find = |kind: &str, name: &str| {
        stats[kind].as_array().unwrap().iter().find(|item| item["name"] == name).cloned().unwrap()
    };
    let quiet = find("queues", "quiet");
    assert_eq!((&quiet["ready"], &quiet["delayed"], &quiet["unsettled"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!(find("topics", "events")["kept"], 1);
    assert_eq!(stats["broker"], "embedded");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_prometheus_text_and_count_what_was_published() {
    let served = served().await;
    served.post_lines("/v1/messaging/events/events", "{}\n{}\n").await;
    for path in ["/metrics", "/v1/messaging/metrics"] {
        let reply = served.bare("GET", path).send().await;
        assert_eq!(reply.status, 200);
        assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
        let line = r#"messaging_messages_published_total{broker="embedded",destination="topic:events"}"#;
        assert!(reply.text().lines().any(|other| other.starts_with(line)), "{}", reply.text());
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_not_to_be_kept_or_guessed_at() {
    let served = served().await;
    for path in ["/health", "/none", "/v1/messaging/stats"] {
        let reply = served.get(path).await;
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
    served.end().await;
}
