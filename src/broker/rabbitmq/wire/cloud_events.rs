//! Attributes of a CloudEvent among the headers.
//! Source: CloudEvents 1.0, AMQP Protocol Binding, section 3.1 (binary mode): a prefix of `cloudEvents:` or `cloudEvents_`.

pub(super) use crate::codec::cloud_events::{Attributes, says};
use crate::{codec::cloud_events, message::Headers};

/// What the names of attributes begin with; a colon or an underscore follows.
const PREFIX: &str = "cloudEvents";

/// Whether a header is such an attribute.
pub(super) fn is_attribute(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Reads them; where a name is given twice the first holds.
pub(super) fn read(headers: &Headers) -> Attributes<'_> {
    cloud_events::read(headers, |name| name.strip_prefix(PREFIX)?.strip_prefix([':', '_']))
}
