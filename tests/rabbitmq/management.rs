//! The server's own HTTP interface: what AMQP neither does nor tells.

use std::{net::SocketAddr, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use ureq::Agent;

/// The HTTP interface of one server, as its administrator. Calls block, and are short.
#[derive(Debug)]
pub(crate) struct Management {
    agent: Agent,
    base: String,
    authorization: String,
}

impl Management {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(20)))
            .build();
        let authorization = format!("Basic {}", BASE64_STANDARD.encode("guest:guest"));
        Self { agent: config.new_agent(), base: format!("http://{address}/api"), authorization }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// `None`: there is no such thing.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let mut reply = self.agent.get(self.url(path)).header("authorization", &self.authorization).call().expect(path);
        match reply.status().as_u16() {
            404 => None,
            200 => Some(reply.body_mut().read_json().expect(path)),
            status => panic!("GET {path}: {status} {:?}", reply.body_mut().read_to_string()),
        }
    }

    pub(crate) fn put(&self, path: &str, body: &Value) {
        let request = self.agent.put(self.url(path)).header("authorization", &self.authorization);
        let mut reply = request.send_json(body).expect(path);
        assert!(reply.status().is_success(), "PUT {path}: {} {:?}", reply.status(), reply.body_mut().read_to_string());
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        let request = self.agent.post(self.url(path)).header("authorization", &self.authorization);
        let mut reply = request.send_json(body).expect(path);
        let status = reply.status();
        let text = reply.body_mut().read_to_string().unwrap_or_default();
        assert!(status.is_success(), "POST {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// What is not there is deleted as well.
    pub(crate) fn delete(&self, path: &str) {
        self.agent.delete(self.url(path)).header("authorization", &self.authorization).call().ok();
    }

    /// Of the server: major and minor, as `(4, 3)`.
    pub(crate) fn version(&self) -> (u32, u32) {
        let overview = self.get("overview").expect("an overview");
        let version = overview["rabbitmq_version"].as_str().expect("a version");
        let mut numbers = version.split('.').map(|number| number.parse().expect("a number"));
        (numbers.next().expect("major"), numbers.next().expect("minor"))
    }

    /// Lets a user do everything in a virtual host.
    pub(crate) fn permit(&self, user: &str, vhost: &str) {
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.put(&format!("permissions/{vhost}/{user}"), &all);
    }

    /// Where consumers of a queue come from: the port on the other side, and the channel.
    pub(crate) fn consumers(&self, vhost: &str, queue: &str) -> Vec<(u16, u16)> {
        let all = self.get(&format!("consumers/{vhost}")).unwrap_or_default();
        let of_queue = all.as_array().into_iter().flatten().filter(|one| one["queue"]["name"] == queue);
        of_queue.filter_map(whence).collect()
    }

    /// The same with their tags, and how many deliveries each may have out.
    pub(crate) fn consumer_tags(&self, vhost: &str, queue: &str) -> Vec<((u16, u16), String, u64)> {
        let all = self.get(&format!("consumers/{vhost}")).unwrap_or_default();
        let of_queue = all.as_array().into_iter().flatten().filter(|one| one["queue"]["name"] == queue);
        of_queue
            .filter_map(|one| {
                Some((whence(one)?, one["consumer_tag"].as_str()?.to_owned(), one["prefetch_count"].as_u64()?))
            })
            .collect()
    }
}

/// Where a consumer comes from. It is listed before that is known.
fn whence(consumer: &Value) -> Option<(u16, u16)> {
    let channel = &consumer["channel_details"];
    let number = |name: &str| u16::try_from(channel[name].as_u64()?).ok();
    Some((number("peer_port")?, number("number")?))
}
