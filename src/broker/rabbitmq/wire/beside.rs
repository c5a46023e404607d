//! What a message from elsewhere says that a [`Message`](crate::message::Message) has no place for, as one header of it:
//! letters for what it left out that we always write, then, behind a dot, a table in base64url.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::value;
use crate::codec::bytes::{from_base64url, to_base64url};

/// Properties, in the table, by AMQP's names for them.
pub(super) const APP_ID: &str = "app-id";
pub(super) const CLUSTER_ID: &str = "cluster-id";
pub(super) const CONTENT_ENCODING: &str = "content-encoding";
/// Where it had died before it was copied. Servers from 4.0 on forget what a client sends as `x-death` when it dies again.
pub(super) const DEATHS: &str = "deaths";
pub(super) const DELIVERY_MODE: &str = "delivery-mode";
pub(super) const KIND: &str = "type";
pub(super) const PRIORITY: &str = "priority";
pub(super) const TIMESTAMP: &str = "timestamp";
pub(super) const USER_ID: &str = "user-id";
/// In the table: headers that are not text, as they came.
const HEADERS: &str = "headers";

const NO_PRIORITY: char = 'p';
const NO_DELIVERY_MODE: char = 'd';

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Beside {
    /// It named no priority.
    pub(super) no_priority: bool,
    /// It did not say whether it has to be kept.
    pub(super) no_delivery_mode: bool,
    /// Properties, by name.
    pub(super) properties: BTreeMap<ShortString, AMQPValue>,
    /// Headers that are not text, by name.
    pub(super) headers: BTreeMap<ShortString, AMQPValue>,
}

impl Beside {
    /// Reads what [`Self::write`] wrote; what it did not write says nothing.
    pub(super) fn read(text: &str) -> Self {
        let (letters, table) = text.split_once('.').unwrap_or((text, ""));
        let mut beside = Self {
            no_priority: letters.contains(NO_PRIORITY),
            no_delivery_mode: letters.contains(NO_DELIVERY_MODE),
            ..Self::default()
        };
        if !table.is_empty()
            && let Some(table) = from_base64url(table).and_then(|bytes| value::table(&bytes))
        {
            for (name, value) in table.inner() {
                match value {
                    AMQPValue::FieldTable(headers) if name.as_str() == HEADERS => {
                        headers.inner().clone_into(&mut beside.headers)
                    }
                    value => drop(beside.properties.insert(name.clone(), value.clone())),
                }
            }
        }
        beside
    }

    /// The header's text; `None` where there is nothing to say.
    pub(super) fn write(mut self) -> Option<String> {
        let mut text = String::new();
        if self.no_priority {
            text.push(NO_PRIORITY);
        }
        if self.no_delivery_mode {
            text.push(NO_DELIVERY_MODE);
        }
        if !self.headers.is_empty() {
            self.properties.insert(short(HEADERS)?, AMQPValue::FieldTable(self.headers.into()));
        }
        if !self.properties.is_empty() {
            text.push('.');
            text.push_str(&to_base64url(&value::table_bytes(&FieldTable::from(self.properties))?));
        }
        Some(text).filter(|text| !text.is_empty())
    }

    /// Keeps a property that is a short string.
    pub(super) fn keep(&mut self, name: &str, property: Option<&ShortString>) {
        if let Some(property) = property {
            self.keep_value(name, value::from_text(property.as_str()));
        }
    }

    /// Keeps a property.
    pub(super) fn keep_value(&mut self, name: &str, value: AMQPValue) {
        if let Some(name) = short(name) {
            self.properties.insert(name, value);
        }
    }

    /// Takes a property out that is a short string.
    pub(super) fn take(&mut self, name: &str) -> Option<ShortString> {
        short(value::plain(&self.properties.remove(name)?)?)
    }

    /// Takes a property out as it is.
    pub(super) fn take_value(&mut self, name: &str) -> Option<AMQPValue> {
        self.properties.remove(name)
    }

    /// Takes a property out that is a number.
    pub(super) fn take_number(&mut self, name: &str) -> Option<u64> {
        value::number(&self.properties.remove(name)?)
    }
}

/// A short string, where the text is one.
pub(super) fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}
