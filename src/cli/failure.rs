//! Why a verb did not do what was asked, and the exit code that says so.

use std::{fmt, io};

use serde::Serialize;
use serde_json::{Value, json};

/// How the process ends. Source: SPEC §12, "Exit codes".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed while doing it.
    Failed,
    /// Called wrongly.
    Usage,
    /// Configuration or plugin refused.
    Refused,
    /// Engine or broker not reachable.
    Unreachable,
    /// Not found.
    NotFound,
    /// Not allowed.
    NotAllowed,
    /// Interrupted, after a clean drain.
    Interrupted,
}

impl Exit {
    /// The number that the shell sees.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
            Self::NotFound => 5,
            Self::NotAllowed => 6,
            Self::Interrupted => 130,
        }
    }
}

/// What is told to whoever called: one sentence that says what happened and what to do.
#[derive(Clone, Debug)]
pub struct Failure {
    exit: Exit,
    code: String,
    message: String,
    hint: String,
    details: Option<Box<Details>>,
    silent: bool,
}

/// More than fits into a sentence: lines for people, a value for programs.
#[derive(Clone, Debug)]
struct Details {
    text: String,
    name: &'static str,
    value: Value,
}

impl Failure {
    /// `code` is for programs; `message` says what happened, `hint` what to do, each without a full stop.
    #[must_use]
    pub fn new(exit: Exit, code: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let (code, message, hint) = (code.into(), message.into(), hint.into());
        Self { exit, code, message, hint, details: None, silent: false }
    }

    /// With more than fits into a sentence; `name` is its key in the JSON form.
    #[must_use]
    pub fn with_details(mut self, text: impl Into<String>, name: &'static str, value: &impl Serialize) -> Self {
        let value = serde_json::to_value(value).unwrap_or_default();
        self.details = Some(Box::new(Details { text: text.into(), name, value }));
        self
    }

    /// Ends the process with that code and without a word: what there is to say has been said.
    #[must_use]
    pub fn silent(exit: Exit) -> Self {
        Self { silent: true, ..Self::new(exit, "", "", "") }
    }

    /// Standard output cannot be written. Whoever closed it has read enough, and hears nothing more.
    #[must_use]
    pub fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::Done);
        }
        Self::new(
            Exit::Failed,
            "OUTPUT_FAILED",
            format!("standard output cannot be written: {error}"),
            "send it somewhere with room",
        )
    }

    /// How the process ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// For programs, what happened.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What happened, without what to do.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// The same, with something else to do.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// The same, with what it is about in front.
    #[must_use]
    pub fn about(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// Whether nothing is to be said.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message, "hint": self.hint });
        if let (Some(details), Some(error)) = (&self.details, error.as_object_mut()) {
            error.insert(details.name.to_owned(), details.value.clone());
        }
        json!({ "error": error })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        match &self.details {
            Some(details) => write!(f, "\n{}", details.text),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
