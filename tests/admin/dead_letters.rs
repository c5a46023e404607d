//! Dead letters: found by what they have in common, page by page, and shown whole.

use helixmq::message::{Address, Outcome};
use serde_json::{Value, json};

use crate::{
    served::{Served, options, problem, served, usual, with},
    support::{
        engine::{queue, route},
        eventually,
    },
};

/// Two routes with dead letters of their own and of the default.
async fn with_letters() -> Served {
    let mut other = route("other", Address::queue("other"), "grump");
    other.dead_letter = Address::queue("other.dlq");
    let mut picky = route("picky", Address::queue("picky"), "worker");
    picky.matches.types.push("bad.#".parse().unwrap());
    let parts = usual()
        .declare(queue("other"))
        .declare(queue("other.dlq"))
        .declare(queue("picky"))
        .route(other)
        .route(picky)
        .native("grump", |_| Outcome::Retry { reason: "not now".into(), delay: None });
    let served = with(parts, options()).await;
    let lines: String = (0..5).map(|n| format!("{{\"id\":\"w{n}\",\"type\":\"bad.w\",\"payload\":{n}}}\n")).collect();
    served.post_lines("/v1/messaging/tasks/work", lines).await;
    served
        .post(
            "/v1/messaging/tasks/other",
            r#"{"id":"o","type":"other","priority":3,"metadata":{"a":"b"},"payload":{"n":  1}}"#,
        )
        .await;
    served.post("/v1/messaging/tasks/picky", r#"{"id":"p","type":"odd"}"#).await;
    eventually("seven dead letters", async || (list(&served, "").await["total"] == 7).then_some(())).await;
    served
}

async fn list(served: &Served, query: &str) -> Value {
    let reply = served.get(&format!("/v1/messaging/dlq?{query}")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

fn ids(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn are_found_by_what_they_have_in_common() {
    let served = with_letters().await;
    for (query, wanted) in [
        ("route=work", 5),
        ("route=none", 0),
        ("handler=worker", 5),
        ("handler=grump", 1),
        ("reason=HANDLER_REJECTED", 5),
        ("reason=HANDLER_RETRY_EXHAUSTED", 1),
        ("reason=NO_ROUTE", 1),
        ("type=bad.*", 5),
        ("type=%23", 7),
        ("type=other&reason=HANDLER_RETRY_EXHAUSTED", 1),
        ("type=other&reason=NO_ROUTE", 0),
        ("since=2026-01-01T00:00:00Z&until=2999-01-01T00:00:00Z", 7),
        ("since=2999-01-01T00:00:00Z", 0),
        ("until=2000-01-01T00:00:00Z", 0),
    ] {
        let page = list(&served, query).await;
        assert_eq!((&page["total"], &page["count"]), (&json!(wanted), &json!(wanted)), "{query}");
        assert_eq!(page["next_cursor"], Value::Null, "{query}");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn come_in_pages_without_gaps_or_repeats() {
    let served = with_letters().await;
    for (filter, total) in [("", 7), ("type=bad.w&", 5)] {
        for limit in 1..=8 {
            let mut seen: Vec<String> = Vec::new();
            let mut cursor = String::new();
            loop {
                let page = list(&served, &format!("{filter}limit={limit}{cursor}")).await;
                assert_eq!(page["total"], total);
                assert_eq!(page["count"], ids(&page).len());
                seen.extend(ids(&page).iter().map(ToString::to_string));
                match page["next_cursor"].as_str() {
                    Some(next) => {
                        assert_eq!(ids(&page).len(), limit);
                        cursor = format!("&cursor={next}");
                    }
                    None => break,
                }
            }
            assert_eq!(seen.len(), total, "{filter}limit={limit}");
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), total, "{filter}limit={limit}");
        }
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn say_in_a_list_where_they_came_from_and_why() {
    let served = with_letters().await;
    let page = list(&served, "reason=HANDLER_REJECTED&limit=1").await;
    let letter = &page["items"][0];
    for (name, wanted) in [
        ("id", json!("w0")),
        ("type", json!("bad.w")),
        ("kept_in", json!("queue:dlq")),
        ("reason", json!("HANDLER_REJECTED")),
        ("handler_code", json!("BAD")),
        ("route", json!("work")),
        ("handler", json!({"name": "worker", "version": null, "digest": null})),
        ("broker", json!("embedded")),
        ("source", json!("queue:work")),
        ("payload_bytes", json!(1)),
        ("attempts_count", json!(1)),
    ] {
        assert_eq!(letter[name], wanted, "{name}");
    }
    assert!(letter["text"].as_str().unwrap().contains("bad.w is bad"));
    assert!(letter["at"].is_string());
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn are_shown_whole() {
    let served = with_letters().await;
    let reply = served.get("/v1/messaging/dlq/o").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert!(reply.text().contains(r#""payload":{"n":  1}"#), "byte for byte: {}", reply.text());
    let letter = reply.json();
    assert_eq!(letter["kept_in"], "queue:other.dlq");
    assert_eq!(letter["reason"], "HANDLER_RETRY_EXHAUSTED");
    assert_eq!(letter["message"]["headers"], json!({"a": "b"}));
    assert_eq!(letter["message"]["priority"], 3);
    let [attempt] = &letter["attempts"].as_array().unwrap()[..] else { panic!("one attempt") };
    assert_eq!(attempt["attempt"], 1);
    assert!(attempt["text"].as_str().unwrap().contains("not now"));
    served.post("/v1/messaging/tasks/work?raw=true&type=bad.bytes", &b"\xff\x00"[..]).await;
    let id = eventually("the bytes died", async || {
        let page = list(&served, "type=bad.bytes").await;
        ids(&page).first().map(ToString::to_string)
    })
    .await;
    let letter = served.get(&format!("/v1/messaging/dlq/{id}")).await.json();
    assert_eq!(letter["message"]["payload_base64"], "/wA=");
    problem(&served.get("/v1/messaging/dlq/none").await, 404, "NOT_FOUND");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_somebody_else_put_there_is_listed_too() {
    let served = served().await;
    served.post("/v1/messaging/tasks/dlq", r#"{"id":"x","type":"foreign"}"#).await;
    let page = list(&served, "").await;
    assert_eq!((ids(&page), &page["items"][0]["reason"]), (vec!["x"], &Value::Null));
    assert_eq!(list(&served, "reason=NO_ROUTE").await["total"], 0);
    assert_eq!(served.get("/v1/messaging/dlq/x").await.json()["attempts"], json!([]));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_makes_no_sense_is_refused() {
    let served = served().await;
    for (query, wanted) in [
        ("limit=0", "from 1 to 1000"),
        ("limit=1001", "from 1 to 1000"),
        ("limit=ten", "from 1 to 1000"),
        ("cursor=here", "next_cursor"),
        ("cursor=queue:dlq~here", "cursor"),
        ("cursor=queue:none~1", "next_cursor"),
        ("reason=BAD_LUCK", "HANDLER_TRAPPED"),
        ("type=a*", "whole words"),
        ("since=yesterday", "RFC 3339"),
        ("page=1", "known are limit, cursor"),
    ] {
        let detail = problem(&served.get(&format!("/v1/messaging/dlq?{query}")).await, 400, "REQUEST_INVALID");
        assert!(detail.contains(wanted), "{query}: {detail}");
    }
    served.end().await;
}
