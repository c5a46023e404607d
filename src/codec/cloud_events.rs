//! Attributes of a CloudEvent among the headers of a message. What their names begin with is each system's own: see the
//! protocol bindings. Source: CloudEvents 1.0.

use super::time::from_rfc3339;
use crate::message::{Headers, Text, UnixMs};

/// Attributes that have a place in a message.
#[derive(Debug, Default, Clone, Copy)]
pub struct Attributes<'a> {
    /// `id`.
    pub id: Option<&'a str>,
    /// `type`.
    pub kind: Option<&'a str>,
    /// `source`.
    pub source: Option<&'a str>,
    /// `subject`.
    pub subject: Option<&'a str>,
    /// `dataschema`.
    pub data_schema: Option<&'a str>,
    /// `time`.
    pub time: Option<UnixMs>,
}

/// Reads them; where a name is given twice the first holds. `attribute` says which attribute a header is.
pub fn read(headers: &Headers, attribute: impl Fn(&str) -> Option<&str>) -> Attributes<'_> {
    let mut found = Attributes::default();
    for (name, value) in headers.iter() {
        let place = match attribute(name) {
            Some("id") => &mut found.id,
            Some("type") => &mut found.kind,
            Some("source") => &mut found.source,
            Some("subject") => &mut found.subject,
            Some("dataschema") => &mut found.data_schema,
            Some("time") => {
                found.time = found.time.or_else(|| time(value));
                continue;
            }
            _ => continue,
        };
        if place.is_none() && !value.is_empty() {
            *place = Some(value);
        }
    }
    found
}

/// RFC 3339, or seconds where a system's own type for times came as a number.
fn time(text: &str) -> Option<UnixMs> {
    from_rfc3339(text).or_else(|| text.parse::<u64>().ok()?.checked_mul(1000))
}

/// Whether an attribute says that already.
#[must_use]
pub fn says(attribute: Option<&str>, text: Option<&Text>) -> bool {
    attribute.is_some() && attribute == text.map(Text::as_str)
}
