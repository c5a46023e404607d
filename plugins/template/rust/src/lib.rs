//! A handler for tasks. `handle` is called once for each attempt; what it returns decides what becomes of the task:
//!
//! - `Ok(messages)`: done. The messages are published, then the task is acknowledged.
//! - `Err(Failure::Retry(…))`: something outside is not ready; the task comes back later, until its attempts are used up.
//! - `Err(Failure::Reject(…))`: the task itself is wrong; it becomes a dead letter at once, with the reason.
//!
//! A panic counts as a failed attempt. `wit/README.md` has the whole table, and every type's meaning is in `wit/*.wit`.

wit_bindgen::generate!({ path: "wit", world: "task", generate_all });

use exports::helix::messaging::task_handler::{Failure, Guest, OutboundMessage, Task};
use helix::messaging::types::Rejection;

struct Plugin;

impl Guest for Plugin {
    fn handle(task: Task) -> Result<Vec<OutboundMessage>, Failure> {
        let message = task.message;
        let body: serde_json::Value = serde_json::from_slice(&message.payload)
            .map_err(|error| reject(format!("the payload is not JSON: {error}"), "BAD_JSON"))?;

        let answer =
            serde_json::json!({ "handled": message.id, "attempt": message.attempt, "body": body });

        Ok(vec![OutboundMessage {
            // A name from the route's `destinations`; the operator decides which queue or topic it means.
            destination: "results".to_owned(),
            type_: "{{name}}.handled".to_owned(),
            payload: answer.to_string().into_bytes(),
            content_type: Some("application/json".to_owned()),
            key: message.key,
            headers: Vec::new(),
            attributes: Vec::new(),
            correlation_id: None, // takes over the task's own
            reply_to: None,
        }])
    }
}

fn reject(reason: String, code: &str) -> Failure {
    Failure::Reject(Rejection {
        reason,
        code: Some(code.to_owned()),
    })
}

// Only a component exports its handler; the tests call it.
#[cfg(target_family = "wasm")]
export!(Plugin);

#[cfg(test)]
mod tests {
    use super::*;
    use helix::messaging::types::Message;

    fn task(payload: &str) -> Task {
        Task {
            message: Message {
                id: "0198c7a2-0000-7000-8000-000000000001".to_owned(),
                type_: "example".to_owned(),
                source: "{{name}}".to_owned(),
                payload: payload.as_bytes().to_vec(),
                content_type: Some("application/json".to_owned()),
                key: None,
                headers: Vec::new(),
                attributes: Vec::new(),
                timestamp_ms: 1_767_225_600_000,
                attempt: 1,
                correlation_id: None,
                reply_to: None,
            },
            priority: 5,
            attempts_max: 4,
            deadline_ms: None,
            parent_task_id: None,
        }
    }

    #[test]
    fn answers_with_one_message() {
        let messages = Plugin::handle(task(r#"{"n":1}"#)).unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].destination, "results");
        let answer: serde_json::Value = serde_json::from_slice(&messages[0].payload).unwrap();
        assert_eq!(answer["body"]["n"], 1);
    }

    #[test]
    fn rejects_what_is_not_json() {
        let Err(Failure::Reject(rejection)) = Plugin::handle(task("{")) else {
            panic!("accepted")
        };
        assert_eq!(rejection.code.as_deref(), Some("BAD_JSON"));
    }
}
