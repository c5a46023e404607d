//! What YAML and TOML have in common once they are read: a tree of texts whose every node knows its place.

/// A place in a text, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    /// For what is about the whole file.
    pub(super) const NONE: Self = Self { line: 0, column: 0 };
}

/// Something with a place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A text. Not yet a number or a flag: what it must be is known to whoever asks for it.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written so that it can only be text.
    pub(super) quoted: bool,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.is_null())
    }

    /// For people: what it is, where something else was wanted.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(scalar) if scalar.is_null() => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a section with keys of its own",
        }
    }
}

impl Scalar {
    /// Source: YAML 1.2.2, section 10.3.2 (core schema).
    pub(super) fn is_null(&self) -> bool {
        !self.quoted && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

/// A text that cannot be read as a tree at all.
#[derive(Clone, Debug)]
pub(super) struct SyntaxError {
    pub(super) place: Place,
    pub(super) problem: String,
    pub(super) fix: String,
}
