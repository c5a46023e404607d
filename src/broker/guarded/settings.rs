//! How a system is guarded.

use std::time::Duration;

/// How publishing to a system is guarded while the system is away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardSettings {
    /// When it is no longer published to, and when again.
    pub circuit: CircuitSettings,
    /// What becomes of messages that it does not take.
    pub fallback: Fallback,
    /// How much of them is kept.
    pub spool: SpoolSettings,
}

/// When a system is no longer published to, and when again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitSettings {
    /// So many messages in a row that it did not confirm open the circuit; at least 1.
    pub failures_max: u32,
    /// How long it stays open where the system does not say by itself that it is back.
    pub open_for: Duration,
}

impl Default for CircuitSettings {
    fn default() -> Self {
        Self { failures_max: 5, open_for: Duration::from_secs(30) }
    }
}

/// What becomes of messages for a system that is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// The publisher gets the error.
    #[default]
    None,
    /// They wait in memory, and are gone with the engine.
    Memory,
    /// They wait on disk.
    Spool,
}

/// How much waits for a system that is away, and how fast it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// Most bytes, of all its queues and topics together.
    pub bytes_max: u64,
    /// Most messages, of all its queues and topics together.
    pub messages_max: u64,
    /// Nothing more is taken for a queue or topic whose oldest message has waited longer. `None`: however long.
    pub age_max: Option<Duration>,
    /// Most messages a second that leave it. `None`: as fast as the system takes them.
    pub drain_per_second: Option<u32>,
}

impl SpoolSettings {
    /// What is kept where nothing else is said.
    #[must_use]
    pub fn of(fallback: Fallback) -> Self {
        let bytes_max = match fallback {
            Fallback::Memory => 64 << 20,
            Fallback::None | Fallback::Spool => 1 << 30,
        };
        Self {
            bytes_max,
            messages_max: 10_000_000,
            age_max: Some(Duration::from_secs(7 * 24 * 3600)),
            drain_per_second: None,
        }
    }
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self::of(Fallback::Spool)
    }
}
