//! Where messages are read from and published to: a queue or a topic, by name.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Serialize, Serializer};

/// Longest name of a queue or topic, in bytes. Source: Kafka's limit of 249 for topics, the lower of the systems'.
pub const NAME_BYTES_MAX: usize = 249;

/// What kind of thing a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Each message is handled by one consumer, then gone.
    Queue,
    /// Messages stay for their retention; each group reads all of them.
    Topic,
}

/// A queue or a topic. Cheap to clone. Written `queue:NAME` or `topic:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Queue or topic.
    pub kind: Kind,
    /// Its name, as the operator writes it.
    pub name: Arc<str>,
}

/// Where in a topic a message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Part of the topic.
    pub partition: u32,
    /// Place in the partition, counted from 0.
    pub offset: u64,
}

/// Why text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Say which kind it is.
    #[error("{0:?} does not say what it is; write queue:{0} or topic:{0}")]
    NoKind(String),
    /// Choose another name.
    #[error("{0:?} is not a name for a queue or topic: 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-'")]
    BadName(String),
}

impl Address {
    /// A queue of that name. The name is not checked here; configuration and HTTP use [`Address::checked`].
    #[must_use]
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self { kind: Kind::Queue, name: name.into() }
    }

    /// A topic of that name. The name is not checked here.
    #[must_use]
    pub fn topic(name: impl Into<Arc<str>>) -> Self {
        Self { kind: Kind::Topic, name: name.into() }
    }

    /// An address whose name every system of ours accepts.
    ///
    /// # Errors
    /// [`AddressError::BadName`]: another name is needed.
    pub fn checked(kind: Kind, name: &str) -> Result<Self, AddressError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) || name == "." || name == ".." {
            return Err(AddressError::BadName(name.chars().take(64).collect()));
        }
        Ok(Self { kind, name: name.into() })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("queue", name)) => Self::checked(Kind::Queue, name),
            Some(("topic", name)) => Self::checked(Kind::Topic, name),
            _ => Err(AddressError::NoKind(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Topic => "topic",
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.name)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
