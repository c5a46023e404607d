//! Values of the engine's answers as people read them.

use serde_json::{Value, value::RawValue};

use super::output::safe;
use crate::message::UnixMs;

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

/// A size as people write it, not larger than it is.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= 10 * unit) {
        Some((name, unit)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B"),
    }
}

/// How long ago something was, in the largest unit of which it is at least two; `-` where it was not.
pub(super) fn age(at: Option<UnixMs>, now: UnixMs) -> String {
    let Some(at) = at else { return "-".to_owned() };
    let seconds = now.saturating_sub(at) / 1000;
    let units = [("d", 24 * 3600), ("h", 3600), ("min", 60)];
    match units.into_iter().find(|(_, unit)| seconds >= 2 * unit) {
        Some((name, unit)) => format!("{} {name} ago", seconds / unit),
        None => format!("{seconds} s ago"),
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
    fn sizes_and_ages_are_short() {
        for (size, wanted) in [(0, "0 B"), (10_239, "10239 B"), (10_240, "10 KiB"), (3 << 30, "3072 MiB")] {
            assert_eq!(bytes(size), wanted);
        }
        for (at, wanted) in
            [(Some(0), "2 d ago"), (Some(172_799_000), "1 s ago"), (None, "-"), (Some(u64::MAX), "0 s ago")]
        {
            assert_eq!(age(at, 172_800_000), wanted);
        }
    }

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
