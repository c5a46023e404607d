//! What is wrong or odd in a configuration: where, what, and what would be right.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// Most mistakes that are kept of one load; more help nobody.
pub(super) const FINDINGS_MAX: usize = 100;

/// Where a value or a mistake comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody named it.
    Default,
    /// A place in a file: messaging.yaml, or a `<plugin>.toml`.
    File {
        /// As it was given.
        file: Arc<Path>,
        /// From 1; 0 where it is about the whole file.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// An environment variable.
    Environment(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: 0, .. } => write!(f, "{}", file.display()),
            Self::File { file, line, .. } => write!(f, "{}:{line}", file.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that is wrong, or odd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub origin: Origin,
    /// Which value, as `routes[2].retry.delay_ms`; empty where it is about the whole.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub fix: String,
}

/// Something that is accepted and should be looked at.
pub type Warning = Finding;

impl fmt::Display for Finding {
    /// Two lines: the place and what is wrong, then what would be right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { file, line, column } if *line > 0 => write!(f, "{}:{line}:{column}: ", file.display())?,
            origin => write!(f, "{origin}: ")?,
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}\n  hint: {}", self.problem, self.fix)
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (file, place, variable) = match &self.origin {
            Origin::Default => (None, None, None),
            Origin::File { file, line, column } => {
                (Some(file.display().to_string()), (*line > 0).then_some((*line, *column)), None)
            }
            Origin::Environment(variable) => (None, None, Some(*variable)),
        };
        let mut all = serializer.serialize_struct("Finding", 7)?;
        all.serialize_field("file", &file)?;
        all.serialize_field("line", &place.map(|(line, _)| line))?;
        all.serialize_field("column", &place.map(|(_, column)| column))?;
        all.serialize_field("variable", &variable)?;
        all.serialize_field("path", &self.path)?;
        all.serialize_field("problem", &self.problem)?;
        all.serialize_field("fix", &self.fix)?;
        all.end()
    }
}

/// Every mistake of a configuration, in the order of the files; at least one. Nothing of it is in force: whoever has
/// an older configuration keeps it.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigErrors {
    mistakes: Vec<Finding>,
    /// How many more there are than were kept.
    more: usize,
}

impl ConfigErrors {
    /// Sorts by file, in the order in which they were read, then by place; the environment comes last.
    pub(super) fn new(mut mistakes: Vec<Finding>, more: usize, files: &[PathBuf]) -> Self {
        mistakes.sort_by_key(|mistake| match &mistake.origin {
            Origin::File { file, line, column } => {
                (files.iter().position(|other| **other == **file).unwrap_or(files.len()), *line, *column)
            }
            Origin::Default | Origin::Environment(_) => (usize::MAX, 0, 0),
        });
        Self { mistakes, more }
    }

    /// All of them.
    #[must_use]
    pub fn mistakes(&self) -> &[Finding] {
        &self.mistakes
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, mistake) in self.mistakes.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
