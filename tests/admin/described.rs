//! The description of the interface says what the interface does.

use serde_json::Value;

use crate::served::served;

#[tokio::test(flavor = "multi_thread")]
async fn every_described_call_is_served_and_answers_as_described() {
    let served = served().await;
    let document = served.bare("GET", "/v1/messaging/openapi.json").send().await.json();
    assert_eq!(document["info"]["version"], "9.9.9");
    for (path, calls) in document["paths"].as_object().unwrap() {
        for (method, call) in calls.as_object().unwrap() {
            let real = path
                .replace("{queue}", "quiet")
                .replace("{topic}", "events")
                .replace("{name}", "worker")
                .replace("{id}", "1");
            let real = if path.ends_with("/tail") { format!("{real}?queue=quiet") } else { real };
            let body = if path.ends_with("/explain") { r#"{"queue":"work"}"# } else { "{}" };
            let reply = served.request(&method.to_uppercase(), &real).body(body).send().await;
            let place = format!("{method} {path}");
            let described = &call["responses"][reply.status.to_string()];
            assert!(described.is_object(), "{place} answers {}", reply.status);
            let described = described["$ref"].as_str().map_or(described, |to| document.pointer(&to[1..]).unwrap());
            let media = reply.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
            let (_, content) = described["content"]
                .as_object()
                .unwrap()
                .iter()
                .find(|(described, _)| described.split(';').next() == Some(media))
                .unwrap_or_else(|| panic!("{place} answers {media}"));
            if media == "application/json" {
                fits(&reply.json(), &content["schema"], &document, &place);
            }
        }
    }
    served.end().await;
}

/// As much of JSON Schema as the document uses, and one thing more: in an answer of ours everything is described.
pub(crate) fn fits(value: &Value, schema: &Value, document: &Value, place: &str) {
    if let Some(to) = schema["$ref"].as_str() {
        return fits(value, document.pointer(&to[1..]).unwrap(), document, place);
    }
    if let Some(either) = schema["oneOf"].as_array() {
        if value.is_null() {
            assert!(either.iter().any(|schema| schema["type"] == "null"), "{place} is null");
        } else {
            fits(value, either.iter().find(|schema| schema["type"] != "null").unwrap(), document, place);
        }
        return;
    }
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let matches = types.iter().any(|kind| kind == actual || (kind == "number" && actual == "integer"));
    assert!(matches, "{place} is {actual}, described as {types:?}");
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{place} is {value}");
    }
    match value {
        Value::Array(items) => {
            items.iter().for_each(|item| fits(item, &schema["items"], document, &format!("{place}[]")))
        }
        Value::Object(fields) if schema["properties"].is_object() => {
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(fields.contains_key(name.as_str().unwrap()), "{place} has no {name}");
            }
            for (name, field) in fields {
                let described = &schema["properties"][name];
                assert!(!described.is_null(), "{place}.{name} is not described");
                fits(field, described, document, &format!("{place}.{name}"));
            }
        }
        _ => {}
    }
}
