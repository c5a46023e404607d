//! Looking on without consuming.

use helixmq::admin::http::Options;
use serde_json::{Value, json};

use crate::{
    moody::Moody,
    served::{on, options, problem, served, usual, with},
    support::eventually,
};

const QUIET: &str = "/v1/messaging/tasks/quiet";
const EVENTS: &str = "/v1/messaging/events/events";

fn ids(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn shows_what_is_there_as_often_as_asked() {
    let served = served().await;
    let body: String = (0..600).map(|n| format!("{{\"id\":\"{n}\"}}\n")).collect();
    served.post_lines(QUIET, body).await;
    for _ in 0..2 {
        assert_eq!(served.tail("queue=quiet").await.len(), 600);
    }
    assert_eq!(ids(&served.tail("queue=quiet&limit=2").await), ["0", "1"]);
    assert_eq!(served.tail("queue=quiet&limit=300").await.len(), 300);
    assert_eq!(served.tail("queue=quiet&limit=0").await.len(), 0);
    assert_eq!(served.tail("queue=quiet&from=now").await.len(), 0);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn begins_at_a_time() {
    let served = served().await;
    let lines = "{\"id\":\"1\",\"timestamp\":\"2026-01-01T00:00:00Z\"}\n{\"id\":\"2\",\"timestamp\":\"2026-01-03T00:00:00Z\"}\n";
    served.post_lines(QUIET, lines).await;
    served.post_lines("/v1/messaging/events/events", lines.replace("\"id\"", "\"key\":\"k\",\"id\"")).await;
    for place in ["queue=quiet", "topic=events"] {
        assert_eq!(ids(&served.tail(&format!("{place}&from=2026-01-02T00:00:00Z")).await), ["2"], "{place}");
        assert_eq!(ids(&served.tail(&format!("{place}&from=beginning")).await), ["1", "2"], "{place}");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_with_line_breaks_stays_on_its_line() {
    let served = served().await;
    served.post(QUIET, "{\"id\":\"1\",\n\"payload\":{\n\"a\":\r\n\"x\\ny\"}}").await;
    assert_eq!(served.tail("queue=quiet").await[0]["payload"], json!({"a": "x\ny"}));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn follows_what_comes_until_the_limit() {
    let served = served().await;
    served.post(EVENTS, r#"{"id":"before"}"#).await;
    let mut lines = served.request("GET", "/v1/messaging/tail?topic=events&follow=true&limit=2").open().await;
    for id in ["1", "2"] {
        served.post(EVENTS, json!({ "id": id }).to_string()).await;
        assert_eq!(lines.line().await.unwrap()["id"], id);
    }
    assert_eq!(lines.line().await, None);
    let mut lines = served.request("GET", "/v1/messaging/tail?topic=events&follow&from=beginning").open().await;
    assert_eq!(lines.line().await.unwrap()["id"], "before");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_when_the_engine_stops() {
    let served = served().await;
    let mut lines = served.request("GET", "/v1/messaging/tail?queue=quiet&follow=true").open().await;
    served.stop.cancel();
    assert_eq!(lines.line().await, None);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hears_that_nothing_can_be_read_and_goes_on_afterwards() {
    let broker = Moody::new();
    let served = on(&broker, usual()).await;
    served.post(EVENTS, r#"{"id":"1"}"#).await;
    let path = "/v1/messaging/tail?topic=events&from=beginning";
    let mut lines = served.request("GET", &format!("{path}&follow=true&limit=2")).open().await;
    assert_eq!(lines.line().await.unwrap()["id"], "1");
    broker.hides(true);
    let why = json!({ "code": "CONNECTION_CLOSED", "message": "the server went away" });
    assert_eq!(lines.line().await.unwrap(), json!({ "interrupted": why }));
    served.post(EVENTS, r#"{"id":"2"}"#).await;
    broker.hides(false);
    assert_eq!(lines.line().await.unwrap(), json!({ "resumed": true }));
    assert_eq!(lines.line().await.unwrap()["id"], "2");
    assert_eq!(lines.line().await, None);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn makes_room_when_a_follower_goes() {
    let served = with(usual(), Options { streams_max: 1, ..options() }).await;
    let follow = || served.request("GET", "/v1/messaging/tail?queue=quiet&follow=true");
    let first = follow().open().await;
    assert_eq!(first.status, 200);
    problem(&follow().send().await, 503, "BUSY");
    drop(first);
    eventually("there is room again", async || (follow().open().await.status == 200).then_some(())).await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn says_what_cannot_be_read() {
    let served = served().await;
    for (query, status, code) in [
        ("queue=none", 404, "QUEUE_NOT_FOUND"),
        ("topic=none", 404, "TOPIC_NOT_FOUND"),
        ("", 400, "REQUEST_INVALID"),
        ("queue=a&topic=b", 400, "REQUEST_INVALID"),
        ("queue=quiet&from=yesterday", 400, "REQUEST_INVALID"),
        ("queue=quiet&limit=-1", 400, "REQUEST_INVALID"),
        ("queue=quiet&follow=perhaps", 400, "REQUEST_INVALID"),
    ] {
        problem(&served.get(&format!("/v1/messaging/tail?{query}")).await, status, code);
    }
    served.end().await;
}
