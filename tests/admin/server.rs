//! What the server allows its clients to take of it.

use std::time::Duration;

use helixmq::admin::http::Options;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    served::{options, served, usual, with},
    support::soon,
};

#[tokio::test(flavor = "multi_thread")]
async fn hangs_up_on_who_does_not_finish_a_request() {
    let served = with(usual(), Options { header_timeout: Duration::from_millis(50), ..options() }).await;
    let mut stream = TcpStream::connect(served.at).await.unwrap();
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: local").await.unwrap();
    let mut answer = Vec::new();
    soon("the end of the connection", stream.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hangs_up_on_who_takes_nothing_of_an_answer() {
    let options = Options { idle_timeout: Duration::from_millis(50), streams_max: 1, ..options() };
    let served = with(usual(), options).await;
    let large = format!(r#"{{"payload":"{}"}}"#, "x".repeat(4 << 20));
    for _ in 0..16 {
        served.post("/v1/messaging/tasks/quiet", large.clone()).await;
    }
    let stalled = served.request("GET", "/v1/messaging/tail?queue=quiet").open().await;
    crate::support::eventually("the place of the stalled client is free", async || {
        let reply = served.get("/v1/messaging/tail?queue=quiet&limit=0").await;
        (reply.status == 200).then_some(())
    })
    .await;
    drop(stalled);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lets_others_wait_when_it_has_as_many_connections_as_it_may() {
    let served = with(usual(), Options { connections_max: 1, ..options() }).await;
    let first = served.request("GET", "/v1/messaging/tail?queue=quiet&follow=true").open().await;
    let waiting = served.bare("GET", "/health/live").send();
    let mut waiting = std::pin::pin!(waiting);
    let none = tokio::time::timeout(Duration::from_millis(50), waiting.as_mut()).await;
    assert!(none.is_err(), "it is not answered while the first is there");
    drop(first);
    assert_eq!(waiting.await.status, 200);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_several_requests_on_one_connection() {
    let served = served().await;
    let mut stream = TcpStream::connect(served.at).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 12];
        soon("an answer", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 200");
        let mut rest = [0; 4096];
        let count = soon("the rest of the answer", stream.read(&mut rest)).await.unwrap();
        assert!(rest[..count].ends_with(br#"{"status":"ok"}"#));
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_with_a_request_under_way() {
    let served = served().await;
    let mut lines = served
        .request("POST", "/v1/messaging/tasks/quiet")
        .header("Content-Type", "application/x-ndjson")
        .body("{\"id\":\"1\"}\n")
        .open()
        .await;
    assert_eq!(lines.line().await.unwrap()["id"], "1");
    served.stop.cancel();
    assert_eq!(lines.line().await.unwrap()["error"]["code"], "OPERATION_CANCELED");
    assert_eq!(lines.line().await, None);
    served.end().await;
}
