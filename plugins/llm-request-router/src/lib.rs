//! Sends language model requests to the queue that fits their model and priority.
//!
//! A payload is a request, `{"model": …, "messages": […]}`, or a whole task with such a request in its `payload`. The
//! request is passed on as it was written. [`route`] decides and knows nothing of components.
#![deny(unsafe_code)]

use serde::Deserialize;
use serde_json::value::RawValue;

/// Where requests go that somebody waits for.
pub const LLM: &str = "helixagent.tasks.llm";
/// Where requests go that can wait.
pub const BACKGROUND: &str = "helixagent.tasks.background";

/// By what requests are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Tasks of this priority and below can wait.
    pub background_priority_max: u8,
    /// Requests for these models can wait whatever their priority. One `*` stands for any part of a name.
    pub background_models: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            background_priority_max: 2,
            background_models: vec!["*-batch".to_owned()],
        }
    }
}

impl Rules {
    /// Reads the settings `background_priority_max` (0 to 10) and `background_models` (separated by commas).
    ///
    /// # Errors
    /// The priority is not a number from 0 to 10.
    pub fn from_settings(priority_max: Option<&str>, models: Option<&str>) -> Result<Self, String> {
        let mut rules = Self::default();
        if let Some(text) = priority_max {
            rules.background_priority_max =
                text.trim()
                    .parse()
                    .ok()
                    .filter(|priority| *priority <= 10)
                    .ok_or_else(|| {
                        format!("the setting background_priority_max is {text:?}, which is not a number from 0 to 10")
                    })?;
        }
        if let Some(text) = models {
            rules.background_models = text
                .split(',')
                .map(str::trim)
                .filter(|model| !model.is_empty())
                .map(str::to_owned)
                .collect();
        }
        Ok(rules)
    }

    fn can_wait(&self, model: &str, priority: u8) -> bool {
        priority <= self.background_priority_max || self.background_models.iter().any(|pattern| matches(pattern, model))
    }
}

/// Whether `model` is what `pattern` names: the same text, or one `*` in the pattern stands for any part of it.
fn matches(pattern: &str, model: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == model,
        Some((start, end)) => {
            model.len() >= start.len() + end.len() && model.starts_with(start) && model.ends_with(end)
        }
    }
}

/// What becomes of one request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Publish this request there.
    Send {
        /// [`LLM`] or [`BACKGROUND`].
        destination: &'static str,
        /// The request, as it was written.
        request: Vec<u8>,
        /// The model it names.
        model: String,
    },
    /// Not before so many milliseconds from now.
    NotYet(u64),
    /// It is no request: why, and a code to group by.
    Malformed(String, &'static str),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Request<'a> {
    model: Option<String>,
    #[serde(borrow)]
    messages: Option<Vec<ChatMessage<'a>>>,
    not_before_ms: Option<u64>,
}

#[derive(Deserialize)]
struct ChatMessage<'a> {
    role: String,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Decides where the request in `payload` goes. `priority` is its task's, `now_ms` the time since 1970.
#[must_use]
pub fn route(payload: &[u8], priority: u8, now_ms: u64, rules: &Rules) -> Verdict {
    let Ok(text) = std::str::from_utf8(payload) else {
        return Verdict::Malformed("the payload is not UTF-8".to_owned(), "BAD_JSON");
    };
    let request_text = match serde_json::from_str::<Envelope<'_>>(text) {
        Ok(envelope) => envelope.payload.get(),
        Err(_) => text.trim(),
    };
    let request: Request<'_> = match serde_json::from_str(request_text) {
        Ok(request) => request,
        Err(error) if error.is_data() => {
            return Verdict::Malformed(format!("the request is not as it should be: {error}"), "BAD_REQUEST");
        }
        Err(error) => {
            return Verdict::Malformed(format!("the payload is not JSON: {error}"), "BAD_JSON");
        }
    };
    let Some(model) = request.model.filter(|model| !model.trim().is_empty()) else {
        return Verdict::Malformed("the request names no model".to_owned(), "NO_MODEL");
    };
    let messages = request.messages.unwrap_or_default();
    if messages.is_empty() {
        return Verdict::Malformed("the request has no messages".to_owned(), "NO_MESSAGES");
    }
    for (place, message) in messages.iter().enumerate() {
        if !ROLES.contains(&message.role.as_str()) {
            let reason = format!(
                "messages[{place}] has the role {:?}, not one of {}",
                message.role,
                ROLES.join(", ")
            );
            return Verdict::Malformed(reason, "BAD_MESSAGE");
        }
        // An assistant's message may hold tool calls alone.
        if message.content.is_none() && message.role != "assistant" {
            return Verdict::Malformed(format!("messages[{place}] has no content"), "BAD_MESSAGE");
        }
    }
    if let Some(wait_ms) = request
        .not_before_ms
        .and_then(|at| at.checked_sub(now_ms))
        .filter(|wait| *wait > 0)
    {
        return Verdict::NotYet(wait_ms);
    }
    Verdict::Send {
        destination: if rules.can_wait(&model, priority) {
            BACKGROUND
        } else {
            LLM
        },
        request: request_text.as_bytes().to_vec(),
        model,
    }
}

#[cfg(target_family = "wasm")]
mod component {
    #![allow(
        missing_docs,
        unsafe_code,
        reason = "the bindings are generated; wit/ documents them"
    )]

    wit_bindgen::generate!({ path: "../../wit", world: "task", generate_all });

    use std::sync::OnceLock;
    use std::time::{SystemTime, UNIX_EPOCH};

    use exports::helix::messaging::task_handler::{Failure, Guest, OutboundMessage, Task};
    use helix::messaging::types::{Attribute, Header, Rejection, RetryHint};
    use wasi::config::store;

    use crate::{Rules, Verdict};

    struct Router;

    impl Guest for Router {
        fn handle(task: Task) -> Result<Vec<OutboundMessage>, Failure> {
            let now_ms = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64);
            let message = task.message;
            match crate::route(&message.payload, task.priority, now_ms, rules()?) {
                Verdict::Send {
                    destination,
                    request,
                    model,
                } => {
                    let mut attributes = vec![
                        attribute("priority", task.priority.to_string()),
                        attribute("parent-task-id", message.id),
                    ];
                    if let Some(deadline_ms) = task.deadline_ms {
                        attributes.push(attribute(
                            "ttl-ms",
                            deadline_ms.saturating_sub(now_ms).max(1).to_string(),
                        ));
                    }
                    Ok(vec![OutboundMessage {
                        destination: destination.to_owned(),
                        type_: if message.type_.is_empty() {
                            "completion".to_owned()
                        } else {
                            message.type_
                        },
                        payload: request,
                        content_type: Some("application/json".to_owned()),
                        key: message.key,
                        headers: vec![Header {
                            name: "model".to_owned(),
                            value: model,
                        }],
                        attributes,
                        correlation_id: message.correlation_id,
                        reply_to: message.reply_to,
                    }])
                }
                Verdict::NotYet(wait_ms) => Err(Failure::Retry(RetryHint {
                    reason: format!("not_before_ms is {wait_ms} ms away"),
                    delay_ms: Some(u32::try_from(wait_ms).unwrap_or(u32::MAX)),
                })),
                Verdict::Malformed(reason, code) => Err(Failure::Reject(Rejection {
                    reason,
                    code: Some(code.to_owned()),
                })),
            }
        }
    }

    /// The rules, read once in the life of an instance.
    fn rules() -> Result<&'static Rules, Failure> {
        static RULES: OnceLock<Rules> = OnceLock::new();
        if let Some(rules) = RULES.get() {
            return Ok(rules);
        }
        let setting = |name: &str| {
            store::get(name).map_err(|error| retry(format!("the setting {name} cannot be read: {error:?}")))
        };
        // A wrong setting is not the message's fault: it is tried again, for the operator to mend meanwhile.
        let rules = Rules::from_settings(
            setting("background_priority_max")?.as_deref(),
            setting("background_models")?.as_deref(),
        )
        .map_err(retry)?;
        Ok(RULES.get_or_init(|| rules))
    }

    fn retry(reason: String) -> Failure {
        Failure::Retry(RetryHint { reason, delay_ms: None })
    }

    fn attribute(name: &str, value: String) -> Attribute {
        Attribute {
            name: name.to_owned(),
            value,
        }
    }

    export!(Router);
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = r#"{"model":"helix-ensemble","messages":[{"role":"user","content":"Hello"}],"top_p":0.5}"#;

    fn code(payload: &str) -> &'static str {
        match route(payload.as_bytes(), 5, 0, &Rules::default()) {
            Verdict::Malformed(_, code) => code,
            other => panic!("{payload}: {other:?}"),
        }
    }

    #[test]
    fn passes_the_request_on_as_it_was_written() {
        let task = format!(r#"{{"id":"task-123","type":"completion","priority":1,"payload":{REQUEST},"x":1}}"#);
        for payload in [REQUEST, &task] {
            let Verdict::Send {
                destination,
                request,
                model,
            } = route(payload.as_bytes(), 5, 0, &Rules::default())
            else {
                panic!("{payload}")
            };
            assert_eq!((destination, model.as_str()), (LLM, "helix-ensemble"));
            assert_eq!(request, REQUEST.as_bytes());
        }
    }

    #[test]
    fn what_can_wait_goes_to_the_background() {
        let batch = REQUEST.replace("helix-ensemble", "helix-batch");
        for (payload, priority, expected) in [
            (REQUEST, 2, BACKGROUND),
            (REQUEST, 3, LLM),
            (REQUEST, 10, LLM),
            (batch.as_str(), 10, BACKGROUND),
        ] {
            let Verdict::Send { destination, .. } = route(payload.as_bytes(), priority, 0, &Rules::default()) else {
                panic!("{payload}")
            };
            assert_eq!(destination, expected, "{payload} at {priority}");
        }
    }

    #[test]
    fn waits_for_not_before() {
        let payload = REQUEST.replace("\"top_p\"", "\"not_before_ms\":5000,\"top_p\"");
        assert_eq!(
            route(payload.as_bytes(), 5, 4_000, &Rules::default()),
            Verdict::NotYet(1_000)
        );
        assert!(matches!(
            route(payload.as_bytes(), 5, 5_000, &Rules::default()),
            Verdict::Send { .. }
        ));
    }

    #[test]
    fn names_what_is_wrong() {
        for (payload, expected) in [
            ("", "BAD_JSON"),
            ("{", "BAD_JSON"),
            ("[]", "BAD_REQUEST"),
            (r#"{"messages":[]}"#, "NO_MODEL"),
            (r#"{"model":" ","messages":[]}"#, "NO_MODEL"),
            (r#"{"model":"m"}"#, "NO_MESSAGES"),
            (r#"{"model":"m","messages":[]}"#, "NO_MESSAGES"),
            (r#"{"model":7,"messages":[]}"#, "BAD_REQUEST"),
            (
                r#"{"model":"m","messages":[{"role":"boss","content":"x"}]}"#,
                "BAD_MESSAGE",
            ),
            (r#"{"model":"m","messages":[{"role":"user"}]}"#, "BAD_MESSAGE"),
            (r#"{"payload":{"model":"m"}}"#, "NO_MESSAGES"),
        ] {
            assert_eq!(code(payload), expected, "{payload}");
        }
    }

    #[test]
    fn reads_its_settings() {
        assert_eq!(Rules::from_settings(None, None), Ok(Rules::default()));
        let rules = Rules::from_settings(Some("4"), Some("small, nightly-*,")).unwrap();
        assert_eq!(rules.background_priority_max, 4);
        assert!(rules.can_wait("nightly-7b", 9) && rules.can_wait("small", 9) && !rules.can_wait("smaller", 9));
        assert!(Rules::from_settings(Some("11"), None).is_err());
        assert!(Rules::from_settings(Some("low"), None).is_err());
    }
}
