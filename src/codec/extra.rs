//! The rarer properties of a message as one header, in JSON, for systems that have no place for them.

use serde_json::{Map, Value};

use super::cloud_events::{Attributes, says};
use crate::message::{Extra, Text};

/// As JSON what a CloudEvent's attributes do not say already; `None` where that is nothing.
#[must_use]
pub fn write(extra: &Extra, event: &Attributes<'_>) -> Option<String> {
    let texts = [
        ("source", &extra.origin, event.source),
        ("subject", &extra.subject, event.subject),
        ("data_schema", &extra.data_schema, event.data_schema),
        ("parent_task_id", &extra.parent_task_id, None),
        ("trace_id", &extra.trace_id, None),
    ];
    let mut fields = Map::new();
    let mut said = false;
    for (name, text, attribute) in texts {
        let Some(text) = text else { continue };
        match says(attribute, Some(text)) {
            true => said = true,
            false => drop(fields.insert(name.to_owned(), Value::from(text.as_str()))),
        }
    }
    if !extra.unknown.is_empty() {
        fields.insert("unknown".to_owned(), Value::Object(extra.unknown.clone()));
    }
    (!(fields.is_empty() && said)).then(|| Value::Object(fields).to_string())
}

/// What [`write()`] wrote; `None` for other text.
#[must_use]
pub fn read(json: &str) -> Option<Box<Extra>> {
    let mut fields: Map<String, Value> = serde_json::from_str(json).ok()?;
    let mut text = |name: &str| fields.remove(name).and_then(|value| value.as_str().map(Text::from));
    let mut extra = Extra {
        origin: text("source"),
        subject: text("subject"),
        data_schema: text("data_schema"),
        parent_task_id: text("parent_task_id"),
        trace_id: text("trace_id"),
        unknown: Map::new(),
    };
    if let Some(Value::Object(unknown)) = fields.remove("unknown") {
        extra.unknown = unknown;
    }
    Some(Box::new(extra))
}
