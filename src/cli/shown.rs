//! Values of the engine's answers as people read them.

use serde_json::{Value, value::RawValue};

use super::output::safe;

/// The text at the first of these places that has any; `-` where none has.
pub(super) fn text(value: &Value, places: &[&str]) -> String {
    let found = places.iter().filter_map(|place| value.pointer(place)).find_map(scalar);
    found.unwrap_or_else(|| "-".to_owned())
}

/// The payload of a message, as the engine wrote it.
pub(super) fn payload(message: &str) -> String {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Payload<'m> {
        #[serde(borrow, alias = "data")]
        payload: Option<&'m RawValue>,
        #[serde(alias = "data_text")]
        payload_text: Option<String>,
        #[serde(alias = "data_base64")]
        payload_base64: Option<String>,
    }
    let payload: Payload<'_> = serde_json::from_str(message).unwrap_or_default();
    let as_it_is = payload.payload.map(|payload| payload.get().to_owned());
    as_it_is.or(payload.payload_text).or(payload.payload_base64).unwrap_or_default()
}

/// The items of a list that the engine answered.
pub(super) fn items(value: &Value) -> &[Value] {
    value.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Every value in it with its path, in order.
pub(super) fn flat(value: &Value) -> Vec<[String; 2]> {
    fn walk(path: &str, value: &Value, rows: &mut Vec<[String; 2]>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(&path, value, rows);
                }
            }
            Value::Array(items) => {
                for (place, value) in items.iter().enumerate() {
                    walk(&format!("{path}[{place}]"), value, rows);
                }
            }
            value => rows.extend(scalar(value).map(|text| [path.to_owned(), text])),
        }
    }
    let mut rows = Vec::new();
    walk("", value, &mut rows);
    rows
}

/// The beginning of a long text, on one line.
pub(super) fn beginning(text: &str, characters_max: usize) -> String {
    let text = safe(text);
    match text.char_indices().nth(characters_max) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_what_is_there_and_flattens_it() {
        let value = json!({"a": {"b": [1, {"c": "x"}]}, "n": null});
        assert_eq!(text(&value, &["/missing", "/a/b/0"]), "1");
        assert_eq!(text(&value, &["/n"]), "-");
        assert_eq!(items(&json!({"items": [1]})).len(), 1);
        let rows = flat(&value);
        assert_eq!(rows[1], ["a.b[1].c".to_owned(), "x".to_owned()]);
        assert_eq!(beginning("äöü", 2), "äö…");
        assert_eq!(payload(r#"{"data":{"n": 1e400}}"#), r#"{"n": 1e400}"#);
        assert_eq!(payload(r#"{"payload_text":"a\nb"}"#), "a\nb");
    }
}
