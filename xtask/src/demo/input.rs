//! The demo's input: a week of earthquakes as they were published, made into events. What should come of them is counted
//! here as well, from the data alone, so that the engine's own count has something to be held against.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::Result;

/// Source and terms: `data/SOURCE.md`.
const FILE: &str = "data/usgs-quakes-2018-02.ndjson.gz";
/// From which magnitude on an alert is due: the default of the plugin's `magnitude_min`.
const MAGNITUDE_MIN: f64 = 4.5;

/// What is sent, and what is due for it.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Events.
    pub(super) events: u64,
    /// Of them, earthquakes.
    pub(super) earthquakes: u64,
    /// Of these, strong enough for an alert.
    pub(super) strong: u64,
    /// The others, by what they are.
    pub(super) others: BTreeMap<String, u64>,
}

/// Writes the events to `to`, one a line.
pub(super) fn write(to: &Path) -> Result<Input> {
    let unpacked = Command::new("gzip").args(["--decompress", "--stdout", FILE]).output()?;
    if !unpacked.status.success() {
        return Err(format!("{FILE} cannot be read: {}", String::from_utf8_lossy(&unpacked.stderr).trim()).into());
    }
    let mut input = Input::default();
    let mut lines = String::new();
    for feature in String::from_utf8(unpacked.stdout)?.lines() {
        lines.push_str(&event(feature, &mut input)?);
        lines.push('\n');
    }
    fs::write(to, lines).map_err(|error| format!("{} cannot be written: {error}", to.display()))?;
    Ok(input)
}

/// An event about one feature. Its key is the network that saw it. When it happened stays in its data: an event's own
/// time is when it is published, so that the engine's latency is one.
fn event(feature: &str, input: &mut Input) -> Result<String> {
    let parsed: Value = serde_json::from_str(feature)?;
    let property = |name: &str| parsed.pointer(&format!("/properties/{name}")).unwrap_or(&Value::Null);
    let kind = property("type").as_str().ok_or("a feature of the input has no type")?;
    input.events += 1;
    if kind == "earthquake" {
        input.earthquakes += 1;
        input.strong += u64::from(property("mag").as_f64().is_some_and(|magnitude| magnitude >= MAGNITUDE_MIN));
    } else {
        *input.others.entry(kind.to_owned()).or_default() += 1;
    }
    let [id, key, subject] =
        [parsed.get("id").unwrap_or(&Value::Null), property("net"), property("place")].map(Value::to_string);
    let source = json!("https://earthquake.usgs.gov/");
    // The feature goes in as the text it is.
    Ok(format!(
        r#"{{"id":{id},"type":"usgs.quake","source":{source},"subject":{subject},"key":{key},"data":{feature}}}"#
    ))
}
