//! Attributes of a CloudEvent among the headers.
//! Source: CloudEvents 1.0, AMQP Protocol Binding, section 3.1 (binary mode): a prefix of `cloudEvents:` or `cloudEvents_`.

use crate::{
    codec::time::from_rfc3339,
    message::{Headers, Text, UnixMs},
};

/// What the names of attributes begin with; a colon or an underscore follows.
const PREFIX: &str = "cloudEvents";

/// Attributes that have a place in a message.
#[derive(Debug, Default)]
pub(super) struct Attributes<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    pub(super) source: Option<&'a str>,
    pub(super) subject: Option<&'a str>,
    pub(super) data_schema: Option<&'a str>,
    pub(super) time: Option<UnixMs>,
}

/// Whether a header is such an attribute.
pub(super) fn is_attribute(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Reads them; where a name is given twice the first holds.
pub(super) fn read(headers: &Headers) -> Attributes<'_> {
    let mut found = Attributes::default();
    for (name, value) in headers.iter() {
        let Some(name) = name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix([':', '_'])) else { continue };
        let place = match name {
            "id" => &mut found.id,
            "type" => &mut found.kind,
            "source" => &mut found.source,
            "subject" => &mut found.subject,
            "dataschema" => &mut found.data_schema,
            "time" => {
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

/// RFC 3339, or seconds where AMQP's own type for times came as a number.
fn time(text: &str) -> Option<UnixMs> {
    from_rfc3339(text).or_else(|| text.parse::<u64>().ok()?.checked_mul(1000))
}

/// Whether an attribute says that already.
pub(super) fn says(attribute: Option<&str>, text: Option<&Text>) -> bool {
    attribute.is_some() && attribute == text.map(Text::as_str)
}
