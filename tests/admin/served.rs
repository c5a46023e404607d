//! An engine with its interface, as the tests meet it.

use std::{net::SocketAddr, sync::Arc};

use helixmq::{
    admin::http::{Api, Options, Token, serve},
    hub::Hub,
    message::{Address, Outcome},
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    moody::Moody,
    support::{
        engine::{Parts, queue, queue_of, route, topic},
        http::{Reply, Request},
        soon,
    },
};

pub(crate) const TOKEN: &str = "the-token";

pub(crate) struct Served {
    pub(crate) hub: Arc<Hub>,
    pub(crate) at: SocketAddr,
    pub(crate) stop: CancellationToken,
    serving: JoinSet<std::io::Result<()>>,
    directory: tempfile::TempDir,
}

/// Queues and topics that nothing reads, and one route whose handler rejects what is called `bad.*`.
pub(crate) fn usual() -> Parts {
    Parts::default()
        .declare(queue("quiet"))
        .declare(queue_of("tiny", 2))
        .declare(queue("work"))
        .declare(topic("events", 2))
        .route(route("work", Address::queue("work"), "worker"))
        .native("worker", |call| {
            if call.message.kind.starts_with("bad.") {
                Outcome::Reject { reason: format!("{} is bad", call.message.kind), code: Some("BAD".into()) }
            } else {
                Outcome::Done(Vec::new())
            }
        })
}

pub(crate) async fn served() -> Served {
    with(usual(), options()).await
}

pub(crate) fn options() -> Options {
    Options { token: Some(Token::new(TOKEN)), version: "9.9.9".into(), ..Options::default() }
}

pub(crate) async fn with(parts: Parts, options: Options) -> Served {
    over(parts.start().await, options).await
}

/// On a broker of the test's own.
pub(crate) async fn on(broker: &Arc<Moody>, parts: Parts) -> Served {
    over(parts.start_on(Arc::<Moody>::clone(broker) as _).await, options()).await
}

async fn over((hub, directory): (Arc<Hub>, tempfile::TempDir), options: Options) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(serve(listener, Arc::new(Api::new(Arc::clone(&hub), options)), stop.clone()));
    Served { hub, at, stop, serving, directory }
}

impl Served {
    /// A request with the token.
    pub(crate) fn request(&self, method: &str, path: &str) -> Request {
        self.bare(method, path).header("Authorization", &format!("Bearer {TOKEN}"))
    }

    /// A request without it.
    pub(crate) fn bare(&self, method: &str, path: &str) -> Request {
        Request::new(self.at, method, path)
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request("GET", path).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Reply {
        self.request("POST", path).header("Content-Type", "application/json").body(body).send().await
    }

    pub(crate) async fn post_lines(&self, path: &str, body: impl Into<Vec<u8>>) -> Reply {
        self.request("POST", path).header("Content-Type", "application/x-ndjson").body(body).send().await
    }

    /// What lies in a queue or topic.
    pub(crate) async fn tail(&self, what: &str) -> Vec<Value> {
        let reply = self.get(&format!("/v1/messaging/tail?{what}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.lines()
    }

    pub(crate) fn plugins(&self) -> std::path::PathBuf {
        self.directory.path().join("plugins")
    }

    /// Stops the interface, and waits until it has.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = soon("the server's end", self.serving.join_next()).await {
            ended.expect("no panic").expect("no error");
        }
        soon("the engine's end", self.hub.stop()).await;
    }
}

/// The answer is a problem with this code, complete as RFC 9457 has it.
#[track_caller]
pub(crate) fn problem(reply: &Reply, status: u16, code: &str) -> String {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let body = reply.json();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["status"], status);
    assert_eq!(body["type"], format!("urn:helixmq:problem:{code}"));
    assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()));
    body["detail"].as_str().expect("a detail").to_owned()
}
