//! Where messages are read from and published to: a queue or a topic, by name.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Serialize, Serializer};

/// Longest name of a queue or topic, in bytes. Source: Kafka's limit of 249 for topics, the lower of the systems'.
pub const NAME_BYTES_MAX: usize = 249;
/// Longest name of a messaging system, in bytes: it stands in labels of metrics.
pub const SYSTEM_BYTES_MAX: usize = 64;

/// What kind of thing a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Each message is handled by one consumer, then gone.
    Queue,
    /// Messages stay for their retention; each group reads all of them.
    Topic,
}

/// A queue or a topic. Cheap to clone. Written `queue:NAME` or `topic:NAME`, or, where a system is named that has it,
/// `SYSTEM:queue:NAME`, `SYSTEM:topic:NAME`, or `SYSTEM:NAME`: a queue there, on `kafka` a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Queue or topic.
    pub kind: Kind,
    /// The messaging system that has it; `None`: the one that has all of its kind.
    pub system: Option<Arc<str>>,
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
    /// Name a system as the configuration does.
    #[error("{0:?} is not a name for a messaging system: write one as the configuration names it, as in rabbitmq:NAME")]
    BadSystem(String),
    /// Write what is wanted.
    #[error("{0} is wanted here, and {1:?} names the other kind")]
    OtherKind(Kind, String),
}

impl Address {
    /// A queue of that name. The name is not checked here; configuration and HTTP use [`Address::checked`].
    #[must_use]
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self { kind: Kind::Queue, system: None, name: name.into() }
    }

    /// A topic of that name. The name is not checked here.
    #[must_use]
    pub fn topic(name: impl Into<Arc<str>>) -> Self {
        Self { kind: Kind::Topic, system: None, name: name.into() }
    }

    /// The same on a system.
    #[must_use]
    pub fn on(self, system: impl Into<Arc<str>>) -> Self {
        Self { system: Some(system.into()), ..self }
    }

    /// The same as that system knows it.
    #[must_use]
    pub fn local(&self) -> Self {
        Self { system: None, ..self.clone() }
    }

    /// What [`Address::checked`] reads where the kind is known: `NAME`, or `SYSTEM:NAME`.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.system {
            Some(system) => format!("{system}:{}", self.name),
            None => self.name.to_string(),
        }
    }

    /// An address of that kind whose name every system of ours accepts; the name may say which system has it, as
    /// `SYSTEM:NAME`.
    ///
    /// # Errors
    /// [`AddressError`]: another name is needed, or another kind is named.
    pub fn checked(kind: Kind, name: &str) -> Result<Self, AddressError> {
        let (system, rest) = match name.split_once(':') {
            Some((system, rest)) if Kind::of(system).is_none() => (Some(self::system(system)?), rest),
            _ => (None, name),
        };
        let name = match rest.split_once(':') {
            Some((word, plain)) if Kind::of(word) == Some(kind) => plain,
            Some((word, _)) if Kind::of(word).is_some() => return Err(AddressError::OtherKind(kind, short(name))),
            _ => rest,
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) || name == "." || name == ".." {
            return Err(AddressError::BadName(short(name)));
        }
        Ok(Self { kind, system, name: name.into() })
    }
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The name of a messaging system.
fn system(text: &str) -> Result<Arc<str>, AddressError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > SYSTEM_BYTES_MAX || !text.chars().all(allowed) {
        return Err(AddressError::BadSystem(short(text)));
    }
    Ok(text.into())
}

impl Kind {
    /// The kind of that name.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "queue" => Some(Self::Queue),
            "topic" => Some(Self::Topic),
            _ => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no_kind = || AddressError::NoKind(short(text));
        let (first, rest) = text.split_once(':').ok_or_else(no_kind)?;
        let kind = match rest.split_once(':') {
            _ if Kind::of(first).is_some() => Kind::of(first),
            Some((word, _)) => Kind::of(word),
            // What nobody calls otherwise.
            None if first == "kafka" => Some(Kind::Topic),
            None => Some(Kind::Queue),
        };
        Self::checked(kind.ok_or_else(no_kind)?, text)
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
        match &self.system {
            Some(system) => write!(f, "{system}:{}:{}", self.kind, self.name),
            None => write!(f, "{}:{}", self.kind, self.name),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let orders = || Address::queue("orders");
        let cases = [
            ("queue:orders", orders()),
            ("topic:orders", Address::topic("orders")),
            ("rabbitmq:queue:orders", orders().on("rabbitmq")),
            ("billing:topic:orders", Address::topic("orders").on("billing")),
            ("redis:orders", orders().on("redis")),
            ("kafka:orders", Address::topic("orders").on("kafka")),
        ];
        for (text, address) in cases {
            assert_eq!(text.parse(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string().parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn a_name_may_say_which_system_has_it() {
        let of = |name| Address::checked(Kind::Topic, name);
        assert_eq!(of("kafka:orders"), Ok(Address::topic("orders").on("kafka")));
        assert_eq!(of("kafka:topic:orders"), Ok(Address::topic("orders").on("kafka")));
        assert!(matches!(of("kafka:queue:orders"), Err(AddressError::OtherKind(Kind::Topic, _))));
        assert!(matches!(of("ka fka:orders"), Err(AddressError::BadSystem(_))));
        assert!(matches!(of("kafka:"), Err(AddressError::BadName(_))));
        assert!(matches!(of("a:b:c"), Err(AddressError::BadName(_))));
    }

    #[test]
    fn what_says_no_kind_is_refused() {
        for text in ["orders", "rabbitmq:cache:orders", ""] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::NoKind(_))), "{text}");
        }
    }
}
