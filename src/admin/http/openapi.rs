//! The description of all calls.

use axum::{Json, extract::State};
use serde_json::Value;

use super::{Context, problem::Problem};

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /v1/messaging/openapi.json`
pub(super) async fn document(State(context): State<Context>) -> Result<Json<Value>, Problem> {
    let mut document: Value = serde_json::from_str(DOCUMENT).map_err(|error| Problem::internal(error.to_string()))?;
    if let Some(version) = document.pointer_mut("/info/version") {
        *version = Value::from(&*context.api.options.version);
    }
    Ok(Json(document))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::http::router::endpoints;

    fn parsed() -> Value {
        serde_json::from_str(DOCUMENT).expect("the document is JSON")
    }

    #[test]
    fn describes_exactly_what_is_mounted() {
        let document = parsed();
        let described: BTreeSet<(String, String, bool)> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, calls)| {
                let calls = calls.as_object().expect("calls by method").iter();
                calls.map(move |(method, call)| {
                    (method.to_uppercase(), path.clone(), call["security"] == Value::Array(Vec::new()))
                })
            })
            .collect();
        let mounted = endpoints()
            .into_iter()
            .map(|endpoint| (endpoint.method.to_string(), endpoint.path.to_owned(), endpoint.role.is_none()))
            .collect();
        assert_eq!(described, mounted);
    }

    #[test]
    fn every_call_says_what_it_takes_and_answers() {
        let document = parsed();
        let mut ids = BTreeSet::new();
        for (path, calls) in document["paths"].as_object().expect("paths") {
            for (method, call) in calls.as_object().expect("calls") {
                let place = format!("{method} {path}");
                assert!(ids.insert(call["operationId"].as_str().expect(&place)), "{place}: the id is another's too");
                assert!(call["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{place}");
                let answers = call["responses"].as_object().expect(&place);
                assert!(answers.keys().any(|status| status.starts_with('2')), "{place}");
                if call["security"].is_null() {
                    assert!(answers.contains_key("401"), "{place}");
                }
                let named: BTreeSet<&str> = path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
                let parameters = call["parameters"].as_array().cloned().unwrap_or_default();
                let described: BTreeSet<&str> = parameters
                    .iter()
                    .filter(|parameter| parameter["in"] == "path")
                    .filter_map(|parameter| parameter["name"].as_str())
                    .collect();
                assert_eq!(named, described, "{place}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, all: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    all.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, all));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, all)),
                _ => {}
            }
        }
        let document = parsed();
        let mut all = Vec::new();
        references(&document, &mut all);
        for reference in all {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
