//! How a messaging system is doing, for health, for the lanes that wait for it, and for people.

/// How a system is doing. A reason says what is wrong and what to do, in one sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BrokerStatus {
    /// It does what it claims.
    #[default]
    Ready,
    /// It does part of it, and recovers by itself once the cause is gone.
    Degraded {
        /// Why, and which part.
        reason: String,
    },
    /// It confirms nothing any more, and does not recover: it must be opened anew.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One system, as people are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Its name.
    pub name: String,
    /// How it is doing.
    pub status: BrokerStatus,
    /// Where its connections are.
    pub state: ConnectionState,
    /// Whether it is published to.
    pub circuit: Circuit,
    /// What waits here until it is back; `None`: nothing ever does.
    pub spool: Option<SpoolStats>,
    /// Whether what it confirms survives a crash.
    pub is_durable: bool,
}

/// Where the connections of a system are. Those of one system that are in different places count as the worst of them.
///
/// `connecting` → `ready` ⇄ `blocked`; from any of these to `away` or `refused` and, by itself, back to `ready`, since
/// whatever is wrong may be mended at the other end; `closed` is final. docs/operations.md has each change with its cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// For the first time, and not there yet.
    Connecting,
    /// In use.
    #[default]
    Ready,
    /// There, and takes no messages for now.
    Blocked,
    /// Lost, or never there: tried again by itself.
    Away,
    /// It will not have us until somebody changes something, there or here. It is asked again from time to time.
    Refused,
    /// The engine is stopping.
    Closed,
}

impl ConnectionState {
    /// All of them, for metrics.
    pub const ALL: [Self; 6] = [Self::Connecting, Self::Ready, Self::Blocked, Self::Away, Self::Refused, Self::Closed];

    /// As health and metrics name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Blocked => "blocked",
            Self::Away => "away",
            Self::Refused => "refused",
            Self::Closed => "closed",
        }
    }

    /// Where a system is that has one connection here and another one there: what keeps more of its work from being done.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        let hinders = |state| match state {
            Self::Ready => 0,
            Self::Closed => 1,
            Self::Blocked => 2,
            Self::Connecting => 3,
            Self::Away => 4,
            Self::Refused => 5,
        };
        if hinders(other) > hinders(self) { other } else { self }
    }
}

/// Whether a system is published to. Source of the words: Nygard, "Release It!", circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// Yes.
    #[default]
    Closed,
    /// One publish at a time, to see whether it is well again.
    HalfOpen,
    /// No: what is published fails at once.
    Open,
}

impl Circuit {
    /// As health and metrics name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What waits here for a system that is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SpoolStats {
    /// Whether it survives the end of the engine.
    pub is_durable: bool,
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest has waited, in milliseconds.
    pub oldest_ms: u64,
    /// Why the system does not take what is in front, where it is there and refuses it.
    pub refused: Option<String>,
}
