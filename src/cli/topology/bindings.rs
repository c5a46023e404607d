//! The bindings that a server has, from its management API.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use ureq::Agent;

use crate::{
    broker::rabbitmq::{Credentials, Settings, topology::Binding},
    codec::bytes::{percent_encoded, to_base64},
};

/// How long the whole answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest answer, in bytes: servers may have many.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Those of the configuration that are there, by their names; or why nothing is known of them.
pub(super) fn of(settings: &Settings) -> Result<BTreeSet<String>, String> {
    let base = settings.management_url.as_deref().unwrap_or_default();
    let Credentials::Plain { user, password } = &settings.credentials else {
        return Err("the management API takes a user and a password, and rabbitmq.auth is external".to_owned());
    };
    let url = format!("{base}/api/bindings/{}", percent_encoded(&settings.vhost));
    let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(ANSWER));
    let authorization = format!("Basic {}", to_base64(format!("{user}:{}", password.reveal()).as_bytes()));
    let mut response = config
        .build()
        .new_agent()
        .get(&url)
        .header("authorization", authorization)
        .call()
        .map_err(|error| format!("{base} does not answer: {error}; correct rabbitmq.management_url"))?;
    match response.status().as_u16() {
        200 => {}
        401 | 403 => {
            return Err(format!(
                "{base} does not let {user} in; give the user the tag `management` and the permission to read"
            ));
        }
        status => return Err(format!("{base} answers {status}; correct rabbitmq.management_url")),
    }
    let there: Vec<Value> = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_json()
        .map_err(|error| format!("{base} answers something else: {error}"))?;
    Ok(settings
        .topology
        .bindings
        .iter()
        .filter(|one| there.iter().any(|other| is(one, other)))
        .map(Binding::name)
        .collect())
}

fn is(binding: &Binding, there: &Value) -> bool {
    let arguments = serde_json::to_value(&binding.arguments).unwrap_or_default();
    there["destination_type"] == "queue"
        && there["source"] == *binding.exchange
        && there["destination"] == *binding.queue
        && there["routing_key"] == *binding.routing_key
        && there["arguments"] == arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bindings_are_the_same_by_all_that_makes_them() {
        let arguments = [("x-match".to_owned(), "any".into())].into();
        let binding = Binding { exchange: "e".into(), queue: "q".into(), routing_key: "k".to_owned(), arguments };
        let there = |change: &str, value: Value| {
            let mut there = json!({
                "source": "e", "vhost": "/", "destination": "q", "destination_type": "queue", "routing_key": "k",
                "arguments": { "x-match": "any" }, "properties_key": "k",
            });
            there[change] = value;
            is(&binding, &there)
        };
        assert!(there("vhost", json!("v")));
        for key in ["source", "destination", "destination_type", "routing_key", "arguments"] {
            assert!(!there(key, json!("other")), "{key}");
        }
        assert_eq!(percent_encoded("/a b"), "%2Fa%20b");
    }
}
