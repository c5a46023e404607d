//! Reads a feed of earthquakes and raises an alert for the strong ones.
//!
//! One event is one GeoJSON feature, as the United States Geological Survey publishes them. From magnitude 4.5 on
//! (`magnitude_min` in the plugin's settings) it becomes a task for `helixagent.tasks.notifications`; below that it is
//! done. What is not an earthquake is rejected with its type as the reason, so that dead letters group by it.
//! [`triage`] decides and knows nothing of components.
#![deny(unsafe_code)]

use serde::{Deserialize, Serialize};

/// From which magnitude on an alert is raised, where the settings say nothing.
pub const MAGNITUDE_MIN: f64 = 4.5;

/// What becomes of one feature.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// An earthquake worth an alert.
    Alert(Alert),
    /// An earthquake below the threshold, or one whose magnitude is not known yet.
    Quiet,
    /// Not an earthquake: its type, as the feed calls it.
    NotAnEarthquake(String),
    /// Not a feature of the feed: what is wrong with it.
    Malformed(String),
}

/// The payload of an alert task.
#[derive(Debug, PartialEq, Serialize)]
pub struct Alert {
    /// The feed's id of the earthquake.
    pub id: String,
    /// Its magnitude.
    pub magnitude: f64,
    /// Where it was, in words; empty where the feed has none.
    pub place: String,
    /// When it was, in milliseconds since 1970-01-01T00:00:00Z.
    pub time: i64,
    /// The page about it.
    pub url: String,
    /// Whether the feed flags it for a possible tsunami.
    pub tsunami: bool,
    /// Degrees east; none where the feed has no point.
    pub longitude: Option<f64>,
    /// Degrees north.
    pub latitude: Option<f64>,
    /// Kilometres below the surface.
    pub depth_km: Option<f64>,
}

impl Alert {
    /// How urgent the alert is, as a task's priority: 5 is ordinary, 8 from magnitude 6, 10 from magnitude 7 or where a
    /// tsunami is possible.
    #[must_use]
    pub fn priority(&self) -> u8 {
        match self.magnitude {
            _ if self.tsunami => 10,
            magnitude if magnitude >= 7.0 => 10,
            magnitude if magnitude >= 6.0 => 8,
            _ => 5,
        }
    }
}

#[derive(Deserialize)]
struct Feature {
    id: String,
    properties: Properties,
    geometry: Option<Geometry>,
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "type")]
    kind: String,
    mag: Option<f64>,
    place: Option<String>,
    time: i64,
    url: Option<String>,
    tsunami: Option<u8>,
}

#[derive(Deserialize)]
struct Geometry {
    #[serde(default)]
    coordinates: Vec<f64>,
}

/// Decides what becomes of one feature; `magnitude_min` is the weakest earthquake that raises an alert.
#[must_use]
pub fn triage(payload: &[u8], magnitude_min: f64) -> Verdict {
    let feature: Feature = match serde_json::from_slice(payload) {
        Ok(feature) => feature,
        Err(error) => {
            return Verdict::Malformed(format!("not a GeoJSON feature of the feed: {error}"));
        }
    };
    let properties = feature.properties;
    if properties.kind != "earthquake" {
        return Verdict::NotAnEarthquake(properties.kind);
    }
    let Some(magnitude) = properties.mag.filter(|magnitude| *magnitude >= magnitude_min) else {
        return Verdict::Quiet;
    };
    let point = feature
        .geometry
        .map(|geometry| geometry.coordinates)
        .unwrap_or_default();
    Verdict::Alert(Alert {
        id: feature.id,
        magnitude,
        place: properties.place.unwrap_or_default(),
        time: properties.time,
        url: properties.url.unwrap_or_default(),
        tsunami: properties.tsunami == Some(1),
        longitude: point.first().copied(),
        latitude: point.get(1).copied(),
        depth_km: point.get(2).copied(),
    })
}

/// Reads the setting `magnitude_min`.
///
/// # Errors
/// It is not a number; the text says so and what it was.
pub fn magnitude_min(setting: Option<&str>) -> Result<f64, String> {
    let Some(setting) = setting else {
        return Ok(MAGNITUDE_MIN);
    };
    match setting.trim().parse::<f64>() {
        Ok(magnitude) if magnitude.is_finite() => Ok(magnitude),
        _ => Err(format!(
            "the setting magnitude_min is {setting:?}, which is not a number"
        )),
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

    use std::sync::OnceLock;

    use exports::helix::messaging::event_handler::{Event, Failure, Guest, OutboundMessage};
    use helix::messaging::types::{Attribute, Rejection, RetryHint};

    use crate::Verdict;

    const DESTINATION: &str = "helixagent.tasks.notifications";

    struct QuakeTriage;

    impl Guest for QuakeTriage {
        fn handle(event: Event) -> Result<Vec<OutboundMessage>, Failure> {
            let magnitude_min = magnitude_min()?;
            match crate::triage(&event.message.payload, magnitude_min) {
                Verdict::Alert(alert) => {
                    let priority = alert.priority();
                    let payload = serde_json::to_vec(&alert)
                        .map_err(|error| reject(format!("the alert cannot be written: {error}"), "BAD_NUMBER"))?;
                    Ok(vec![OutboundMessage {
                        destination: DESTINATION.to_owned(),
                        type_: "alert.earthquake".to_owned(),
                        payload,
                        content_type: Some("application/json".to_owned()),
                        key: Some(alert.id.into_bytes()),
                        headers: Vec::new(),
                        attributes: vec![Attribute {
                            name: "priority".to_owned(),
                            value: priority.to_string(),
                        }],
                        correlation_id: None,
                        reply_to: None,
                    }])
                }
                Verdict::Quiet => Ok(Vec::new()),
                Verdict::NotAnEarthquake(kind) => Err(reject(kind, "NOT_AN_EARTHQUAKE")),
                Verdict::Malformed(what) => Err(reject(what, "BAD_FEATURE")),
            }
        }
    }

    /// The threshold, read once in the life of an instance.
    fn magnitude_min() -> Result<f64, Failure> {
        static MAGNITUDE_MIN: OnceLock<f64> = OnceLock::new();
        if let Some(magnitude) = MAGNITUDE_MIN.get() {
            return Ok(*magnitude);
        }
        let setting = wasi::config::store::get("magnitude_min")
            .map_err(|error| retry(format!("the setting magnitude_min cannot be read: {error:?}")))?;
        // A wrong setting is not the message's fault: it is tried again, for the operator to mend meanwhile.
        let magnitude = crate::magnitude_min(setting.as_deref()).map_err(retry)?;
        Ok(*MAGNITUDE_MIN.get_or_init(|| magnitude))
    }

    fn retry(reason: String) -> Failure {
        Failure::Retry(RetryHint { reason, delay_ms: None })
    }

    fn reject(reason: String, code: &str) -> Failure {
        Failure::Reject(Rejection {
            reason,
            code: Some(code.to_owned()),
        })
    }

    export!(QuakeTriage);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(kind: &str, magnitude: &str) -> Vec<u8> {
        format!(
            r#"{{"type":"Feature","properties":{{"mag":{magnitude},"place":"50km NNW of Sangiang, Indonesia",
            "time":1517364031800,"url":"https://earthquake.usgs.gov/earthquakes/eventpage/us2000crkq","tsunami":0,
            "type":"{kind}","title":"M 5.3"}},"geometry":{{"type":"Point","coordinates":[118.7906,-7.8628,15.18]}},
            "id":"us2000crkq"}}"#
        )
        .into_bytes()
    }

    #[test]
    fn raises_an_alert_from_the_threshold_on() {
        let Verdict::Alert(alert) = triage(&feature("earthquake", "4.5"), MAGNITUDE_MIN) else {
            panic!("no alert")
        };
        assert_eq!(alert.id, "us2000crkq");
        assert_eq!(alert.time, 1_517_364_031_800);
        assert_eq!(alert.depth_km, Some(15.18));
        assert_eq!(alert.priority(), 5);
        assert_eq!(triage(&feature("earthquake", "4.49"), MAGNITUDE_MIN), Verdict::Quiet);
        assert_eq!(triage(&feature("earthquake", "null"), MAGNITUDE_MIN), Verdict::Quiet);
        assert!(matches!(triage(&feature("earthquake", "2.0"), 2.0), Verdict::Alert(_)));
    }

    #[test]
    fn rejects_with_the_type_as_the_reason() {
        for kind in ["quarry blast", "explosion"] {
            assert_eq!(
                triage(&feature(kind, "6.0"), MAGNITUDE_MIN),
                Verdict::NotAnEarthquake(kind.to_owned())
            );
        }
    }

    #[test]
    fn says_what_is_wrong_with_a_malformed_payload() {
        for payload in [
            "",
            "{",
            "[]",
            r#"{"id":"a"}"#,
            r#"{"id":"a","properties":{"type":"earthquake"}}"#,
        ] {
            let Verdict::Malformed(what) = triage(payload.as_bytes(), MAGNITUDE_MIN) else {
                panic!("{payload}")
            };
            assert!(what.starts_with("not a GeoJSON feature of the feed: "), "{what}");
        }
    }

    #[test]
    fn stronger_is_more_urgent() {
        for (magnitude, priority) in [("5.9", 5), ("6.0", 8), ("7.1", 10)] {
            let Verdict::Alert(alert) = triage(&feature("earthquake", magnitude), MAGNITUDE_MIN) else {
                panic!("no alert for {magnitude}")
            };
            assert_eq!(alert.priority(), priority);
        }
    }

    #[test]
    fn reads_the_threshold_from_its_setting() {
        assert_eq!(magnitude_min(None), Ok(4.5));
        assert_eq!(magnitude_min(Some(" 6 ")), Ok(6.0));
        assert!(magnitude_min(Some("strong")).is_err());
        assert!(magnitude_min(Some("nan")).is_err());
    }
}
