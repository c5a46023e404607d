//! The fields of one JSON object, each as the text that was given, taken one by one by whoever knows them.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{FIELDS_MAX, JsonError};

/// The fields that nobody has taken yet, in their order.
pub(super) struct Fields<'a> {
    left: Vec<Field<'a>>,
}

/// A name and its value's text.
pub(super) struct Field<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) value: &'a RawValue,
}

/// Text that borrows where it holds no escapes.
#[derive(Deserialize)]
pub(super) struct Str<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl<'a> Fields<'a> {
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(text).map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
        // A byte order mark may be ignored. Source: RFC 8259, section 8.1.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let raw: &RawValue = serde_json::from_str(text).map_err(|error| JsonError::Syntax(error.to_string()))?;
        if !raw.get().starts_with('{') {
            return Err(JsonError::NotAnObject(kind(raw)));
        }
        let Object(left) = serde_json::from_str(raw.get()).map_err(|error| JsonError::Syntax(error.to_string()))?;
        if left.len() > FIELDS_MAX {
            return Err(JsonError::TooManyFields);
        }
        for (place, field) in left.iter().enumerate() {
            if left.iter().take(place).any(|other| other.name == field.name) {
                return Err(JsonError::field(&*field.name, "is given twice", "keep one"));
            }
        }
        Ok(Self { left })
    }

    /// The field under any of these names; one that is `null` counts as left out.
    pub(super) fn take(&mut self, names: &[&str]) -> Result<Option<Field<'a>>, JsonError> {
        let mut found: Option<Field<'a>> = None;
        for name in names {
            let Some(field) = self.take_or_null(name).filter(|field| field.value.get() != "null") else { continue };
            match &found {
                Some(other) if other.value.get() != field.value.get() => {
                    let problem = format!("and {:?} say different things about the same", field.name);
                    return Err(JsonError::field(&*other.name, problem, "keep one"));
                }
                Some(_) => {}
                None => found = Some(field),
            }
        }
        Ok(found)
    }

    /// The field of that name, `null` included.
    pub(super) fn take_or_null(&mut self, name: &str) -> Option<Field<'a>> {
        let place = self.left.iter().position(|field| field.name == name)?;
        Some(self.left.remove(place))
    }

    /// Whether a field of that name is left, other than `null` and empty text.
    pub(super) fn has(&self, name: &str) -> bool {
        self.left.iter().any(|field| field.name == name && !matches!(field.value.get(), "null" | "\"\""))
    }

    /// Text under any of these names.
    pub(super) fn text(&mut self, names: &[&str], bytes_max: usize) -> Result<Option<Cow<'a, str>>, JsonError> {
        let Some(field) = self.take(names)? else { return Ok(None) };
        let text = field.text()?;
        if text.len() > bytes_max {
            let problem = format!("takes {} bytes", text.len());
            return Err(JsonError::field(field.name, problem, format!("at most {bytes_max} are allowed")));
        }
        Ok(Some(text))
    }

    /// Those that nobody took.
    pub(super) fn into_rest(self) -> Vec<Field<'a>> {
        self.left
    }
}

impl<'a> Field<'a> {
    /// The value, which must be text.
    pub(super) fn text(&self) -> Result<Cow<'a, str>, JsonError> {
        if !self.value.get().starts_with('"') {
            let fix = match kind(self.value) {
                "a number" => format!("write it as text: \"{}\"", self.value.get()),
                _ => "write text in quotes".to_owned(),
            };
            return Err(self.wrong(format!("is {}", kind(self.value)), fix));
        }
        match serde_json::from_str::<Str<'a>>(self.value.get()) {
            Ok(Str(text)) => Ok(text),
            Err(error) => Err(self.wrong(format!("is not text that can be read ({error})"), "write text in quotes")),
        }
    }

    pub(super) fn wrong(&self, problem: impl Into<String>, fix: impl Into<String>) -> JsonError {
        JsonError::field(&*self.name, problem, fix)
    }
}

/// What kind of JSON value it is, in words.
pub(super) fn kind(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "text",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

struct Object<'a>(Vec<Field<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(Str(name)) = map.next_key()? {
                    let value = map.next_value()?;
                    // One more than allowed is kept, so that there are too many.
                    if fields.len() <= FIELDS_MAX {
                        fields.push(Field { name, value });
                    }
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Header names and values: from an object, or from a list of pairs, which may repeat a name.
pub(super) struct Pairs<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

/// More than this many are not collected: they are too many anyway.
const PAIRS_MAX: usize = 2 * crate::message::HEADERS_MAX;

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object or a list of pairs")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(Str(name)) = map.next_key()? {
                    let value = map.next_value()?;
                    if pairs.len() < PAIRS_MAX {
                        pairs.push((name, value));
                    }
                }
                Ok(Pairs(pairs))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Str(name), value)) = list.next_element()? {
                    if pairs.len() < PAIRS_MAX {
                        pairs.push((name, value));
                    }
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_any(Collect)
    }
}
