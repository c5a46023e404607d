//! Copies an event to the destination `enriched` with what is known about it added.
//!
//! The payload stays as it is, members in their order, with one more: `enrichment`. [`enrich`] does the work and knows
//! nothing of components.
#![deny(unsafe_code)]

use serde_json::{Map, Value, json};

/// Where an event came from and which attempt this is: what [`enrich`] adds.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The event's id.
    pub id: &'a str,
    /// The event's type.
    pub kind: &'a str,
    /// The topic it was read from.
    pub topic: &'a str,
    /// Its partition in the topic.
    pub partition: u32,
    /// Its place in the partition.
    pub offset: u64,
    /// Who says that it happened.
    pub origin: &'a str,
    /// Which attempt this is, counted from 1.
    pub attempt: u32,
    /// When it was published, in milliseconds since 1970-01-01T00:00:00Z.
    pub timestamp_ms: u64,
}

/// Adds `enrichment` to a JSON object; one that is there already is replaced. Returns the severity beside the payload.
///
/// # Errors
/// The payload is not a JSON object; the text says what it is.
pub fn enrich(payload: &[u8], facts: Facts<'_>) -> Result<(Vec<u8>, &'static str), String> {
    let mut object = match serde_json::from_slice(payload) {
        Ok(Value::Object(object)) => object,
        Ok(other) => return Err(format!("the payload is {}, not an object", name_of(&other))),
        Err(error) => return Err(format!("the payload is not JSON: {error}")),
    };
    let severity = severity(&object, facts.kind);
    object.insert(
        "enrichment".to_owned(),
        json!({
            "event_id": facts.id,
            "event_type": facts.kind,
            "source": { "topic": facts.topic, "partition": facts.partition, "offset": facts.offset },
            "origin": facts.origin,
            "attempt": facts.attempt,
            "published_at_ms": facts.timestamp_ms,
            "severity": severity,
        }),
    );
    let enriched = serde_json::to_vec(&object).map_err(|error| format!("the result cannot be written: {error}"))?;
    Ok((enriched, severity))
}

/// How serious an event is: `critical`, `error`, `warning` or `info`. What its payload says in `severity`, `level` or
/// `status` comes first, then the last word of its type.
#[must_use]
fn severity(object: &Map<String, Value>, kind: &str) -> &'static str {
    ["severity", "level", "status"]
        .iter()
        .filter_map(|name| object.get(*name)?.as_str())
        .chain(kind.rsplit('.').next())
        .find_map(rank)
        .unwrap_or("info")
}

/// What a word says about severity, if anything.
fn rank(word: &str) -> Option<&'static str> {
    match word.to_ascii_lowercase().as_str() {
        "critical" | "fatal" | "emergency" | "alert" => Some("critical"),
        "error" | "failed" | "failure" | "unhealthy" | "dead_lettered" => Some("error"),
        "warning" | "warn" | "degraded" | "timeout" | "cancelled" | "retrying" => Some("warning"),
        "info" | "notice" | "debug" | "healthy" | "completed" | "started" => Some("info"),
        _ => None,
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(target_family = "wasm")]
mod component {
    #![allow(
        missing_docs,
        unsafe_code,
        reason = "the bindings are generated; wit/ documents them"
    )]

    wit_bindgen::generate!({ path: "../../wit", world: "event", generate_all });

    use exports::helix::messaging::event_handler::{Event, Failure, Guest, OutboundMessage};
    use helix::messaging::types::{Attribute, Header, Rejection};

    struct Enricher;

    impl Guest for Enricher {
        fn handle(event: Event) -> Result<Vec<OutboundMessage>, Failure> {
            let message = event.message;
            let facts = crate::Facts {
                id: &message.id,
                kind: &message.type_,
                topic: &message.source,
                partition: event.partition,
                offset: event.offset,
                origin: &event.origin,
                attempt: message.attempt,
                timestamp_ms: message.timestamp_ms,
            };
            let (payload, severity) = crate::enrich(&message.payload, facts).map_err(|reason| {
                Failure::Reject(Rejection {
                    reason,
                    code: Some("NOT_A_JSON_OBJECT".to_owned()),
                })
            })?;
            // The engine's own headers are for the engine to write.
            let mut headers = message.headers;
            headers.retain(|header| !header.name.starts_with("x-helix-") && !header.name.starts_with("x-death"));
            headers.push(Header {
                name: "severity".to_owned(),
                value: severity.to_owned(),
            });
            let mut attributes = Vec::new();
            for (name, value) in [
                ("origin", Some(event.origin)),
                ("subject", event.subject),
                ("data-schema", event.data_schema),
            ] {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    attributes.push(Attribute {
                        name: name.to_owned(),
                        value,
                    });
                }
            }
            Ok(vec![OutboundMessage {
                destination: "enriched".to_owned(),
                type_: message.type_,
                payload,
                content_type: Some("application/json".to_owned()),
                key: message.key,
                headers,
                attributes,
                correlation_id: Some(message.id),
                reply_to: None,
            }])
        }
    }

    export!(Enricher);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'_> = Facts {
        id: "event-456",
        kind: "debate.round.completed",
        topic: "helixagent.events.debate.rounds",
        partition: 3,
        offset: 42,
        origin: "debate-service",
        attempt: 2,
        timestamp_ms: 1_768_557_900_000,
    };

    #[test]
    fn keeps_the_payload_and_adds_what_is_known() {
        let (enriched, severity) = enrich(br#"{"round":2,"debate_id":"debate-789"}"#, FACTS).unwrap();
        assert_eq!(severity, "info");
        assert_eq!(
            String::from_utf8(enriched).unwrap(),
            concat!(
                r#"{"round":2,"debate_id":"debate-789","enrichment":{"event_id":"event-456","#,
                r#""event_type":"debate.round.completed","source":{"topic":"helixagent.events.debate.rounds","#,
                r#""partition":3,"offset":42},"origin":"debate-service","attempt":2,"#,
                r#""published_at_ms":1768557900000,"severity":"info"}}"#
            )
        );
    }

    #[test]
    fn derives_the_severity() {
        for (payload, kind, expected) in [
            ("{}", "order.created", "info"),
            ("{}", "verification.failed", "error"),
            (r#"{"status":"DEGRADED"}"#, "provider.health", "warning"),
            (r#"{"severity":"critical","status":"healthy"}"#, "a.failed", "critical"),
            (r#"{"level":7,"status":"unhealthy"}"#, "", "error"),
        ] {
            let (_, severity) = enrich(payload.as_bytes(), Facts { kind, ..FACTS }).unwrap();
            assert_eq!(severity, expected, "{payload} {kind}");
        }
    }

    #[test]
    fn says_what_is_not_an_object() {
        assert_eq!(
            enrich(b"[1]", FACTS).unwrap_err(),
            "the payload is an array, not an object"
        );
        assert!(
            enrich(b"{", FACTS)
                .unwrap_err()
                .starts_with("the payload is not JSON: ")
        );
    }
}
