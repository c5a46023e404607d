//! The engine's HTTP interface, for one who expects that it may be gone in the middle of a word.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use serde_json::Value;
use ureq::{Agent, Body, http::Response};

/// What callers of these engines bring.
pub(crate) const TOKEN: &str = "killed-again-and-again";

#[derive(Clone, Debug)]
pub(crate) struct Api {
    agent: Agent,
    base: String,
}

/// What came of lines that were sent.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Ids, in order: these are safe.
    pub(crate) confirmed: Vec<String>,
    /// Errors of those that were refused.
    pub(crate) refused: Vec<Value>,
    /// The answer came to its end. Otherwise what is neither confirmed nor refused may be there or not.
    pub(crate) whole: bool,
}

impl Api {
    pub(crate) fn new(base: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(Duration::from_secs(30)));
        Self { agent: config.build().new_agent(), base: base.to_owned() }
    }

    /// Sends tasks or events, each a line of JSON.
    pub(crate) fn publish(&self, path: &str, lines: String) -> Published {
        let request = self.agent.post(format!("{}{path}", self.base)).content_type("application/x-ndjson");
        let request = request.header("authorization", format!("Bearer {TOKEN}"));
        let mut published = Published::default();
        let Ok(response) = request.send(lines) else { return published };
        let accepted = response.status() == 202;
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let Some(mut answer) = line.ok().and_then(|line| serde_json::from_str::<Value>(&line).ok()) else {
                return published;
            };
            match answer["id"].take() {
                Value::String(id) if accepted => published.confirmed.push(id),
                _ => published.refused.push(answer),
            }
        }
        published.whole = true;
        published
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.call("/health/ready").is_some_and(|response| response.status() == 200)
    }

    /// A document; `None` where the engine is not there, or does not answer with one.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.text(path)?).ok()
    }

    /// The same as it is.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let mut response = self.call(path)?;
        if response.status() != 200 {
            return None;
        }
        response.body_mut().with_config().limit(256 << 20).read_to_string().ok()
    }

    /// Everything in a queue or topic (`queue=NAME`), one after the other.
    #[track_caller]
    pub(crate) fn tail(&self, what: &str, mut each: impl FnMut(Value)) {
        let response = self.call(&format!("/v1/messaging/tail?{what}")).expect("an answer");
        // Where nothing was published to what nothing declares, it is not there.
        if response.status() == 404 {
            return;
        }
        assert_eq!(response.status(), 200, "tail of {what}");
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        for line in BufReader::new(body).lines() {
            let line = line.expect("a whole answer");
            each(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
        }
    }

    /// All dead letters.
    #[track_caller]
    pub(crate) fn dead_letters(&self) -> Vec<Value> {
        let (mut letters, mut cursor) = (Vec::new(), String::new());
        loop {
            let mut page = self.get(&format!("/v1/messaging/dlq?limit=1000{cursor}")).expect("a page of dead letters");
            if let Value::Array(items) = page["items"].take() {
                letters.extend(items);
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return letters,
            }
        }
    }

    /// How many messages wait for handlers: in these queues, and for all groups of all topics. `None`: it is not there.
    pub(crate) fn waiting(&self, queues: &[&str]) -> Option<u64> {
        let stats = self.get("/v1/messaging/stats")?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let in_queues = stats["queues"]
            .as_array()?
            .iter()
            .filter(|queue| queue["name"].as_str().is_some_and(|name| queues.contains(&name)));
        let in_queues: u64 = in_queues
            .map(|queue| number(&queue["ready"]) + number(&queue["delayed"]) + number(&queue["unsettled"]))
            .sum();
        let lags = stats["topics"].as_array()?.iter().filter_map(|topic| topic["lag"].as_object());
        Some(in_queues + lags.flat_map(|lag| lag.values()).map(number).sum::<u64>())
    }

    fn call(&self, path: &str) -> Option<Response<Body>> {
        let request = self.agent.get(format!("{}{path}", self.base));
        request.header("authorization", format!("Bearer {TOKEN}")).call().ok()
    }
}
