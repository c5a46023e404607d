//! What is told of the configuration: each value with where it came from, and each key with what it takes.

use serde::Serialize;

use super::finding::Origin;

/// A value that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Where it lies in the configuration; with the file's name in front where that is a plugin's own.
    pub path: String,
    /// As it would be written; secrets as `***`.
    pub value: String,
    /// Who named it.
    pub origin: Origin,
}

/// A key that the configuration knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// As `routes[].retry.delay_ms`; `<name>` stands for a name of the operator's.
    pub path: String,
    /// What it may hold.
    pub takes: String,
    /// What holds where nobody names it; `-`: nothing does, or it must be named.
    pub default: String,
}
