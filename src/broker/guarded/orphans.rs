//! What waits for systems that the configuration does not use: nobody brings it there, and somebody should know.

use std::collections::BTreeMap;

use super::spool::system_of;
use crate::{
    broker::{AddressStats, BrokerStatus, Circuit, ConnectionState, SpoolStats, Storage, System},
    message::Address,
};

/// What waits for one system that is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Some of it is gone when the engine ends.
    is_in_memory: bool,
}

impl Orphan {
    /// By the name of the system. `queues`: messages and bytes of each; `systems`: those that are used.
    pub(crate) fn all(queues: impl Iterator<Item = (Address, u64, u64)>, systems: &[&str]) -> BTreeMap<String, Self> {
        let mut all: BTreeMap<String, Self> = BTreeMap::new();
        for (queue, messages, bytes) in queues.filter(|(_, messages, _)| *messages > 0) {
            let Some((system, storage)) = system_of(&queue) else { continue };
            if systems.contains(&&*system) {
                continue;
            }
            let orphan = all.entry(system).or_default();
            orphan.messages += messages;
            orphan.bytes += bytes;
            orphan.is_in_memory |= storage == Storage::Memory;
        }
        all
    }

    /// What there is, and what to do.
    pub(crate) fn says(&self) -> (String, &'static str) {
        let place = if self.is_in_memory { "in the memory of this engine" } else { "on disk" };
        let found = format!("{} messages wait {place} for it, and the configuration does not use it", self.messages);
        (found, "use it again under its name, and they follow")
    }
}

/// Shown beside the systems that are used: each as one that is closed.
pub(in crate::broker) fn orphans(stats: Vec<AddressStats>, systems: &[&str]) -> impl Iterator<Item = System> {
    let queues = stats.into_iter().map(|stats| {
        let messages = stats.ready + stats.delayed + stats.unsettled;
        (stats.address, messages, stats.bytes)
    });
    Orphan::all(queues, systems).into_iter().map(|(name, orphan)| {
        let (found, fix) = orphan.says();
        System {
            name,
            status: BrokerStatus::Degraded { reason: format!("{found}: {fix}") },
            state: ConnectionState::Closed,
            circuit: Circuit::Closed,
            spool: Some(SpoolStats {
                is_durable: !orphan.is_in_memory,
                messages: orphan.messages,
                bytes: orphan.bytes,
                ..SpoolStats::default()
            }),
            is_durable: false,
        }
    })
}
