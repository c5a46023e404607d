//! Publishing: what is accepted, and how it comes back.

use serde_json::{Value, json};

use crate::{
    served::{options, served, usual, with},
    support::eventually,
};

const WORK: &str = "/v1/messaging/tasks/work";
const QUIET: &str = "/v1/messaging/tasks/quiet";
const EVENTS: &str = "/v1/messaging/events/events";

#[tokio::test(flavor = "multi_thread")]
async fn answers_with_the_id_when_the_message_is_confirmed() {
    let served = served().await;
    let reply = served.post(QUIET, r#"{"id":"task-1","type":"completion","payload":{"a":  1}}"#).await;
    assert_eq!((reply.status, reply.json()), (202, json!({"id": "task-1"})));
    let made = served.post(EVENTS, r#"{"type":"e","data":null}"#).await;
    assert_eq!(made.status, 202);
    let [task] = &served.tail("queue=quiet").await[..] else { panic!("one task") };
    assert_eq!(
        (&task["id"], &task["type"], &task["payload"]),
        (&json!("task-1"), &json!("completion"), &json!({"a": 1}))
    );
    let [event] = &served.tail("topic=events").await[..] else { panic!("one event") };
    assert_eq!((&event["id"], &event["data"], &event["offset"]), (&made.json()["id"], &Value::Null, &json!(0)));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_task_is_handled() {
    let served = served().await;
    assert_eq!(served.post(WORK, r#"{"type":"good"}"#).await.status, 202);
    eventually("the task is handled", async || {
        let stats = served.get("/v1/messaging/stats").await.json();
        let work = stats["queues"].as_array()?.iter().find(|queue| queue["name"] == "work")?.clone();
        (work["ready"] == 0 && work["unsettled"] == 0).then_some(())
    })
    .await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_come_back_as_they_came() {
    let served = served().await;
    let task = json!({
        "id": "t", "type": "order.created", "priority": "critical", "payload": "text", "content_type": "application/json",
        "key": "k", "created_at": "2999-01-01T00:00:00Z", "scheduled_at": 4102444800000_u64, "deadline": "2999-01-02T00:00:00.5Z",
        "max_retries": 7, "delivery_mode": "transient", "metadata": {"a": "b"}, "trace_id": "tr", "correlation_id": "c",
        "reply_to": "r", "parent_task_id": "p", "state": "queued", "nested": {"z": [1, null, {"y": 2.5}], "a": true},
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    });
    assert_eq!(served.post(QUIET, task.to_string()).await.status, 202);
    let shown = served.tail("queue=quiet").await.remove(0);
    for (name, wanted) in task.as_object().unwrap() {
        let wanted = match name.as_str() {
            "priority" => json!(10),
            "scheduled_at" => json!("2100-01-01T00:00:00Z"),
            "metadata" | "traceparent" => continue,
            _ => wanted.clone(),
        };
        assert_eq!(shown[name], wanted, "{name}");
    }
    assert_eq!(shown["headers"], json!({"a": "b", "traceparent": task["traceparent"]}));

    // And once more, from what was shown.
    let mut again = shown.clone();
    again["id"] = json!("u");
    assert_eq!(served.post(QUIET, again.to_string()).await.status, 202);
    assert_eq!(served.tail("queue=quiet").await[1], again);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_out_of_range_is_clamped_and_counted() {
    let served = served().await;
    let counted = async || {
        let text = served.get("/metrics").await.text().to_owned();
        let line = text.lines().find(|line| line.starts_with("messaging_priority_clamped_total ")).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let before = counted().await;
    assert_eq!(served.post(QUIET, r#"{"priority":11}"#).await.status, 202);
    assert_eq!(served.tail("queue=quiet").await[0]["priority"], 10);
    assert!(counted().await > before);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_engine_are_not_a_publishers_to_set() {
    let served = served().await;
    served.post(QUIET, r#"{"headers":{"x-helix-attempt":"9","x-death":"1","mine":"2"}}"#).await;
    served.post(&format!("{QUIET}?raw=true&header=x-helix-hops=3&header=mine=a=b"), "x").await;
    let shown = served.tail("queue=quiet").await;
    assert_eq!((&shown[0]["headers"], &shown[1]["headers"]), (&json!({"mine": "2"}), &json!({"mine": "a=b"})));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_cloud_events() {
    let served = served().await;
    let event = r#"{"specversion":"1.0","id":"e","source":"/s","type":"t","time":"2026-01-16T10:00:00Z",
        "datacontenttype":"application/json","subject":"x","data":{"a":1},"region":"eu"}"#;
    let reply =
        served.request("POST", EVENTS).header("Content-Type", "application/cloudevents+json").body(event).send().await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    let shown = served.tail("topic=events").await.remove(0);
    for (name, wanted) in [
        ("id", "e"),
        ("source", "/s"),
        ("type", "t"),
        ("timestamp", "2026-01-16T10:00:00Z"),
        ("subject", "x"),
        ("region", "eu"),
        ("data_content_type", "application/json"),
    ] {
        assert_eq!(shown[name], wanted, "{name}");
    }
    assert_eq!(shown["data"], json!({"a": 1}));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn good_lines_are_published_between_bad_ones() {
    let served = served().await;
    let body = [
        &br#"{"id":"1","payload":1}"#[..],
        b"",
        b"not json",
        br#"{"id":"2","payload":"2"}"#,
        b"{\"id\":\"\xff\"}",
        b"[]",
        br#"{"priority":"urgent"}"#,
        br#"{"id":"3"}"#,
    ]
    .join(&b"\n"[..]);
    let reply = served.post_lines(QUIET, body).await;
    assert_eq!((reply.status, reply.header("content-type")), (202, Some("application/x-ndjson")));
    let answers: Vec<(u64, String)> = reply
        .lines()
        .iter()
        .map(|answer| {
            let what = answer["id"].as_str().or(answer["error"]["code"].as_str()).unwrap();
            assert!(answer["error"].is_null() || answer["error"]["message"].is_string());
            (answer["line"].as_u64().unwrap(), what.to_owned())
        })
        .collect();
    let invalid = "MESSAGE_INVALID";
    let wanted = [(1, "1"), (3, invalid), (4, "2"), (5, invalid), (6, invalid), (7, invalid), (8, "3")];
    assert_eq!(answers, wanted.map(|(line, what)| (line, what.to_owned())));
    let ids: Vec<Value> = served.tail("queue=quiet").await.iter().map(|task| task["id"].clone()).collect();
    assert_eq!(ids, ["1", "2", "3"]);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_stops_nothing_else() {
    let served = served().await;
    let long = format!(r#"{{"payload":"{}"}}"#, "x".repeat(16 << 20));
    let large = format!(r#"{{"payload":"{}"}}"#, "x".repeat(9 << 20));
    let fits = format!(r#"{{"id":"b","payload":"{}"}}"#, "x".repeat(8_000_000));
    let reply =
        served.post_lines(QUIET, format!("{{\"id\":\"a\"}}\n{long}\n{large}\n{fits}\n{{\"id\":\"c\"}}\n")).await;
    let answers = reply.lines();
    let codes: Vec<&Value> = answers.iter().map(|answer| &answer["error"]["code"]).collect();
    assert_eq!(
        codes,
        [&Value::Null, &json!("MESSAGE_TOO_LARGE"), &json!("MESSAGE_TOO_LARGE"), &Value::Null, &Value::Null]
    );
    assert_eq!(served.tail("queue=quiet").await.len(), 3);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_answered_while_others_are_still_to_come() {
    let served = served().await;
    let mut lines = served
        .request("POST", QUIET)
        .header("Content-Type", "application/x-ndjson")
        .body("{\"id\":\"1\"}\n")
        .open()
        .await;
    assert_eq!(lines.status, 202);
    assert_eq!(lines.line().await, Some(json!({"line": 1, "id": "1"})));
    assert_eq!(served.tail("queue=quiet").await.len(), 1);
    lines.push(b"{\"id\":\"2\"}\n{\"id\":").await;
    assert_eq!(lines.line().await, Some(json!({"line": 2, "id": "2"})));
    lines.push(b"\"3\"}").await;
    lines.finish().await;
    assert_eq!(lines.line().await, Some(json!({"line": 3, "id": "3"})));
    assert_eq!(lines.line().await, None);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lines_are_answered_in_order() {
    let served = served().await;
    let body: String = (1..=5000).map(|n| format!("{{\"id\":\"{n}\",\"type\":\"t\"}}\r\n")).collect();
    let answers = served.post_lines(QUIET, body).await.lines();
    assert!(answers.iter().zip(1..).all(|(answer, n)| *answer == json!({"line": n, "id": n.to_string()})));
    assert_eq!(answers.len(), 5000);
    assert_eq!(served.tail("queue=quiet").await.len(), 5000);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_payload_is_kept_as_it_is() {
    let served = served().await;
    let path = format!("{QUIET}?raw=true&type=order.created&key=k%26&header=a=1&header=b=%C3%A9");
    let reply = served.request("POST", &path).header("Content-Type", "image/png").body(&b"\xff\x00"[..]).send().await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    let reply = served.post_lines(&format!("{QUIET}?raw=true&type=line"), "{\"a\":1}\nplain\n\n\"x\"\r\n").await;
    assert_eq!(reply.lines().len(), 3);
    let shown = served.tail("queue=quiet").await;
    assert_eq!(shown[0]["id"], served.tail("queue=quiet&limit=1").await[0]["id"]);
    for (name, wanted) in [
        ("payload_base64", json!("/wA=")),
        ("type", json!("order.created")),
        ("key", json!("k&")),
        ("content_type", json!("image/png")),
        ("headers", json!({"a": "1", "b": "é"})),
    ] {
        assert_eq!(shown[0][name], wanted, "{name}");
    }
    assert_eq!(shown[1]["payload"], json!({"a": 1}));
    assert_eq!(shown[2]["payload_text"], "plain");
    assert_eq!(shown[3]["payload"], "x");
    assert!(shown[1..].iter().all(|task| task["type"] == "line" && task["content_type"].is_null()));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_nothing_more_is_told_so() {
    let options = helixmq::admin::http::Options { idle_timeout: std::time::Duration::from_millis(50), ..options() };
    let served = with(usual(), options).await;
    let mut lines = served
        .request("POST", QUIET)
        .header("Content-Type", "application/x-ndjson")
        .body("{\"id\":\"1\"}\n{\"id\"")
        .open()
        .await;
    assert_eq!(lines.line().await, Some(json!({"line": 1, "id": "1"})));
    assert_eq!(lines.line().await.unwrap()["error"]["code"], "TIMEOUT");
    assert_eq!(lines.line().await, None);
    served.end().await;
}
