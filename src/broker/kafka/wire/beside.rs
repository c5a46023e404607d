//! Which headers of a record were no text, as one header of its message. By name, and by the how-manieth of that name:
//! that stays true when headers are put behind them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    codec::bytes::{from_base64, to_base64},
    message::Headers,
};

/// A header: its name, and how many of the same name stand before it.
type Place = (String, usize);

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Beside {
    /// They have no value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    null: Vec<Place>,
    /// Their values are bytes, and stand in the message as base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    base64: Vec<Place>,
}

impl Beside {
    /// Reads what [`Self::write`] wrote; what it did not write says nothing.
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The header's text; `None` where there is nothing to say.
    pub(super) fn write(&self) -> Option<String> {
        (!self.null.is_empty() || !self.base64.is_empty()).then(|| serde_json::to_string(self).ok())?
    }

    /// Puts a header that is no text behind `headers`.
    pub(super) fn append(&mut self, headers: &mut Headers, name: &str, value: Option<&[u8]>) {
        let place = (name.to_owned(), headers.iter().filter(|(other, _)| *other == name).count());
        match value {
            None => {
                headers.append(name, "");
                self.null.push(place);
            }
            Some(bytes) => {
                headers.append(name, &to_base64(bytes));
                self.base64.push(place);
            }
        }
    }

    /// The value to send for a header, of which `before` of the same name stand before it. One that has been changed to
    /// something else is sent as that.
    pub(super) fn value<'a>(&self, name: &str, before: usize, text: &'a str) -> Option<Cow<'a, [u8]>> {
        let is_among = |places: &[Place]| places.iter().any(|(other, place)| other == name && *place == before);
        if text.is_empty() && is_among(&self.null) {
            return None;
        }
        match is_among(&self.base64).then(|| from_base64(text)).flatten() {
            Some(bytes) => Some(Cow::Owned(bytes)),
            None => Some(Cow::Borrowed(text.as_bytes())),
        }
    }
}
