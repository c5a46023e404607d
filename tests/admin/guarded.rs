//! Who may call, and from where.

use helixmq::admin::http::{NamedToken, Options, Role, Token};
use serde_json::Value;

use crate::{
    served::{TOKEN, options, problem, served, usual, with},
    support::http::Reply,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_call_but_those_for_monitoring_needs_the_token() {
    let served = served().await;
    let document = served.bare("GET", "/v1/messaging/openapi.json").send().await.json();
    let mut guarded = 0;
    for (path, calls) in document["paths"].as_object().unwrap() {
        for (method, call) in calls.as_object().unwrap() {
            let path = path.replace("{queue}", "quiet").replace("{topic}", "events").replace(['{', '}'], "");
            let reply = served.bare(&method.to_uppercase(), &path).body("{}").send().await;
            if call["security"] == Value::Array(Vec::new()) {
                assert!(matches!(reply.status, 200 | 503), "{path}: {}", reply.status);
            } else {
                guarded += 1;
                problem(&reply, 401, "AUTHENTICATION_FAILED");
                assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")), "{path}");
            }
        }
    }
    assert_eq!(guarded, 10);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_token_admits() {
    let served = served().await;
    let ask = async |value: &str| served.bare("GET", "/v1/messaging/stats").header("Authorization", value).send().await;
    for value in ["Bearer the-toke", "Bearer the-token2", "Bearer ", "Bearer", "Basic the-token", "the-token", "é"] {
        problem(&ask(value).await, 401, "AUTHENTICATION_FAILED");
    }
    for value in [format!("Bearer {TOKEN}"), format!("bearer {TOKEN}")] {
        assert_eq!(ask(&value).await.status, 200);
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_look_does_not_change_anything() {
    let token = NamedToken { name: "ann".into(), token: Token::new("token-of-ann"), role: Role::Read };
    let served = with(usual(), Options { tokens: vec![token], ..options() }).await;
    let ask = async |method: &str, path: &str| {
        served.bare(method, path).header("Authorization", "Bearer token-of-ann").body("{}").send().await
    };
    assert_eq!(ask("GET", "/v1/messaging/stats").await.status, 200);
    let reply = ask("POST", "/v1/messaging/routes/explain").await;
    assert!(!matches!(reply.status, 401 | 403), "a question is no change: {}", reply.status);
    let refused = problem(&ask("POST", "/v1/messaging/tasks/quiet").await, 403, "NOT_ALLOWED");
    assert!(refused.contains("\"ann\" may only look"), "{refused}");
    assert_eq!(served.post_lines("/v1/messaging/tasks/quiet", "{}\n").await.status, 202);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_a_token_admits_nobody_and_an_open_one_everybody() {
    let closed = with(usual(), Options { token: None, ..options() }).await;
    problem(&closed.get("/v1/messaging/stats").await, 401, "AUTHENTICATION_FAILED");
    closed.end().await;
    let open = with(usual(), Options { token: None, open: true, ..options() }).await;
    assert_eq!(open.bare("GET", "/v1/messaging/stats").send().await.status, 200);
    open.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_cannot_call_through_a_browser_on_this_machine() {
    let served = served().await;
    let ask = async |name: &str, value: &str| -> Reply {
        served.request("GET", "/health/live").header(name, value).send().await
    };
    for host in ["localhost", "localhost:7061", "127.0.0.1", "[::1]:7061", "api.localhost"] {
        assert_eq!(ask("Host", host).await.status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:7061", "localhost.evil.example", "10.0.0.1"] {
        assert!(problem(&ask("Host", host).await, 403, "HOST_REFUSED").contains(host), "{host}");
    }
    for origin in ["https://evil.example", "null"] {
        problem(&ask("Origin", origin).await, 403, "HOST_REFUSED");
    }
    assert_eq!(ask("Origin", "http://localhost:3000").await.status, 200);
    let reply = served.request("GET", "http://evil.example/health/live").header("Host", "localhost").send().await;
    problem(&reply, 403, "HOST_REFUSED");
    served.end().await;
}
