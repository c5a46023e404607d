//! Publishing: what is refused, and how it is said.

use helixmq::admin::http::Options;
use serde_json::json;

use crate::served::{options, problem, served, usual, with};

const QUIET: &str = "/v1/messaging/tasks/quiet";

#[tokio::test(flavor = "multi_thread")]
async fn names_what_is_not_there() {
    let served = served().await;
    for (path, code) in
        [("tasks/none", "QUEUE_NOT_FOUND"), ("events/none", "TOPIC_NOT_FOUND"), ("events/quiet", "TOPIC_NOT_FOUND")]
    {
        let path = format!("/v1/messaging/{path}");
        assert!(problem(&served.post(&path, "{}").await, 404, code).contains("declare it"));
        problem(&served.post_lines(&path, "no json\n{}\n{}\n").await, 404, code);
    }
    problem(&served.get("/v1/messaging/none").await, 404, "NOT_FOUND");
    problem(&served.request("DELETE", QUIET).send().await, 405, "METHOD_NOT_ALLOWED");
    assert_eq!(served.request("DELETE", QUIET).send().await.header("allow"), Some("POST"));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_what_is_wrong_with_a_message() {
    let served = served().await;
    for (body, wanted) in [
        (&b"{"[..], "not JSON: EOF while parsing an object at line 1 column 1"),
        (b"", "not JSON: EOF while parsing a value at line 1 column 0"),
        (
            b"{\"id\":\"\xff\"}",
            "byte 7 is not UTF-8; send text as UTF-8, and other bytes as payload_base64 or data_base64",
        ),
        (b"{\"type\":1}", "\"type\" is a number; write it as text: \"1\""),
    ] {
        assert_eq!(problem(&served.post(QUIET, body).await, 400, "MESSAGE_INVALID"), wanted);
    }
    assert_eq!(served.tail("queue=quiet").await, [] as [serde_json::Value; 0]);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_what_is_wrong_with_a_request() {
    let served = served().await;
    for (path, wanted) in [
        ("/v1/messaging/tasks/a%20b", "is not a name for a queue or topic"),
        ("/v1/messaging/tasks/%ff", "the path cannot be read"),
        ("/v1/messaging/tasks/quiet?raw=maybe", "write true or false"),
        ("/v1/messaging/tasks/quiet?type=t", "goes with raw=true"),
        ("/v1/messaging/tasks/quiet?raw=true&header=a", "write NAME=VALUE"),
        ("/v1/messaging/tasks/quiet?raw=true&type=a&type=b", "given twice"),
        ("/v1/messaging/tasks/quiet?prio=1", "known are raw, type, key, header"),
        ("/v1/messaging/tasks/quiet?raw=true&type=%ff", ""),
    ] {
        let reply = served.post(path, "{}").await;
        if reply.status == 202 {
            // Bytes that are no text are replaced where the query is read.
            assert!(path.contains("%ff"));
            continue;
        }
        let detail = problem(&reply, 400, "REQUEST_INVALID");
        assert!(detail.contains(wanted), "{path}: {detail}");
    }
    let packed = served.request("POST", QUIET).header("Content-Encoding", "gzip").body("{}").send().await;
    problem(&packed, 415, "MEDIA_TYPE_REFUSED");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_again() {
    let served = served().await;
    let reply = served.post_lines("/v1/messaging/tasks/tiny", "{\"id\":\"1\"}\n{\"id\":\"2\"}\n{\"id\":\"3\"}\n").await;
    let answers = reply.lines();
    assert_eq!(answers[1], json!({"line": 2, "id": "2"}));
    assert_eq!(answers[2]["error"]["code"], "PUBLISH_REJECTED");
    let reply = served.post("/v1/messaging/tasks/tiny", "{}").await;
    assert!(problem(&reply, 429, "PUBLISH_REJECTED").contains("is full"));
    assert_eq!(reply.header("retry-after"), Some("1"));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused() {
    let served = served().await;
    let body = format!(r#"{{"payload":"{}"}}"#, "x".repeat((8 << 20) + 1));
    problem(&served.post(QUIET, body).await, 413, "MESSAGE_TOO_LARGE");
    problem(&served.post(&format!("{QUIET}?raw=true"), vec![0xff; (8 << 20) + 1]).await, 413, "MESSAGE_TOO_LARGE");
    let many: serde_json::Map<_, _> = (0..65).map(|n| (format!("h{n}"), json!("v"))).collect();
    let detail = problem(&served.post(QUIET, json!({ "headers": many }).to_string()).await, 413, "MESSAGE_TOO_LARGE");
    assert_eq!(detail, "65 headers, at most 64 are allowed");
    assert_eq!(served.tail("queue=quiet").await.len(), 0);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_and_the_client_reads_why() {
    let served = served().await;
    let body = vec![b' '; (64 << 20) + 1];
    problem(&served.post(QUIET, body.clone()).await, 413, "MESSAGE_TOO_LARGE");
    // Where its length is not announced.
    let mut open = served.request("POST", QUIET).body(&body[..32 << 20]);
    open = open.header("Content-Type", "application/json");
    let reply = open.open().await;
    assert_eq!(reply.status, 413);
    // Where it is announced and not sent.
    let announced =
        served.request("POST", QUIET).header("Content-Length", "99999999999").header("Expect", "100-continue");
    problem(&announced.send().await, 413, "MESSAGE_TOO_LARGE");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_share_a_bounded_room() {
    let served = with(usual(), Options { buffer_bytes_max: 64 << 10, ..options() }).await;
    let body = format!(r#"{{"payload":"{}"}}"#, "x".repeat(100 << 10));
    let reply = served.post(QUIET, body.clone()).await;
    problem(&reply, 503, "BUSY");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(served.post(QUIET, "{}").await.status, 202, "what a refused body took is free again");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_stops_takes_nothing_new() {
    let served = served().await;
    served.hub.stop().await;
    let reply = served.post(QUIET, "{}").await;
    problem(&reply, 503, "OPERATION_CANCELED");
    assert_eq!(reply.header("retry-after"), Some("1"));
    problem(&served.post_lines(QUIET, "{}\n").await, 503, "OPERATION_CANCELED");
    served.end().await;
}
