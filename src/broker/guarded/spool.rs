//! Into the spool: a queue of the embedded broker for each queue and topic that has a backlog. It keeps messages exactly as
//! they are, in the order of arrival, whatever their priority, their time and their size.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Guarded,
    backlog::Load,
    settings::Fallback,
    shared::{Room, Shared},
};
use crate::{
    broker::{
        Broker, PublishError, QueueSettings, Storage,
        embedded::{Embedded, Held},
    },
    message::{Address, Kind, Message, UnixMs, now_ms},
    telemetry::metrics,
};

/// What the names of all queues begin with that are a spool. They are no place for anybody else.
pub const SPOOL_PREFIX: &str = "helixmq.spool.";
/// Says of the first message of a batch when it came, so that a later process knows. Only within the spool.
const SPOOLED_AT: &str = "x-helix-spooled-at";

/// What is in the spool belongs to its drain alone, however long that takes.
const LEASE: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Whether a queue is a spool.
#[must_use]
pub fn is_spool(address: &Address) -> bool {
    address.kind == Kind::Queue && address.name.starts_with(SPOOL_PREFIX)
}

/// Where what waits for one address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where more of it goes.
    pub(super) intake: Address,
    /// Where that is kept.
    pub(super) storage: Storage,
    /// In memory, and older than all that is in `intake`: from before the fallback was changed.
    pub(super) older: Option<Address>,
}

impl Place {
    pub(super) fn new(system: &str, to: &Address, fallback: Fallback) -> Self {
        let storage = if fallback == Fallback::Memory { Storage::Memory } else { Storage::Disk };
        Self { intake: queue_of(system, to, storage), storage, older: None }
    }

    /// With what was found of an earlier guard. What is in memory is always older than what is on disk: where anything is
    /// on disk, more goes there.
    fn found(system: &str, to: &Address, fallback: Fallback, memory: Option<Address>, disk: Option<Address>) -> Self {
        let on_disk = |intake| Self { intake, storage: Storage::Disk, older: memory.clone() };
        match (disk, &memory) {
            (Some(disk), _) => on_disk(disk),
            (None, Some(_)) if fallback == Fallback::Spool => on_disk(queue_of(system, to, Storage::Disk)),
            (None, Some(memory)) => Self { intake: memory.clone(), storage: Storage::Memory, older: None },
            (None, None) => Self::new(system, to, fallback),
        }
    }

    /// What is in both of them.
    pub(super) fn held(&self, embedded: &Embedded) -> Held {
        let [newer, older] = [Some(&self.intake), self.older.as_ref()]
            .map(|queue| queue.map(|queue| embedded.held(queue)).unwrap_or_default());
        Held {
            messages: newer.messages + older.messages,
            bytes: newer.bytes + older.bytes,
            arriving: newer.arriving + older.arriving,
        }
    }

    /// How many messages are gone when the engine ends.
    pub(super) fn in_memory(&self, embedded: &Embedded) -> u64 {
        let intake = (self.storage == Storage::Memory).then_some(&self.intake);
        intake.into_iter().chain(&self.older).map(|queue| embedded.held(queue).messages).sum()
    }
}

/// The queue where what is meant for an address of a system waits. One in memory has another name than one on disk: what
/// was kept under another configuration may be beside it.
fn queue_of(system: &str, to: &Address, storage: Storage) -> Address {
    // No name of a queue or topic has that sign, so that names cannot be taken for others.
    let mark = if storage == Storage::Memory { "~" } else { "" };
    Address::queue(format!("{}.{}{mark}.{}", prefix_of(system), to.kind, to.name))
}

fn prefix_of(system: &str) -> String {
    format!("{SPOOL_PREFIX}{}", system.replace('.', "~"))
}

/// For which address a queue of a system's spool is, and where that keeps it.
fn address_of(prefix: &str, queue: &Address) -> Option<(Address, Storage)> {
    let rest = queue.name.strip_prefix(prefix)?.strip_prefix('.')?;
    let (kind, name) = rest.split_once('.')?;
    let (kind, storage) = match kind.strip_suffix('~') {
        Some(kind) => (kind, Storage::Memory),
        None => (kind, Storage::Disk),
    };
    match kind {
        "queue" => Some((Address::queue(name), storage)),
        "topic" => Some((Address::topic(name), storage)),
        _ => None,
    }
}

/// For which system a queue of a spool is, and where that keeps it.
pub(super) fn system_of(queue: &Address) -> Option<(String, Storage)> {
    if !is_spool(queue) {
        return None;
    }
    let system = queue.name.strip_prefix(SPOOL_PREFIX)?.split('.').next()?.replace('~', ".");
    let (_, storage) = address_of(&prefix_of(&system), queue)?;
    Some((system, storage))
}

/// What an earlier guard left for a system, in this run or one before: for which address, and where.
pub(super) fn left_over(embedded: &Embedded, system: &str, fallback: Fallback) -> Vec<(Address, Place)> {
    let prefix = prefix_of(system);
    let mut queues: BTreeMap<Address, [Option<Address>; 2]> = BTreeMap::new();
    for stats in embedded.stats().into_iter().filter(|stats| stats.ready + stats.delayed + stats.unsettled > 0) {
        if let Some((to, storage)) = address_of(&prefix, &stats.address) {
            let [memory, disk] = queues.entry(to).or_default();
            *(if storage == Storage::Memory { memory } else { disk }) = Some(stats.address);
        }
    }
    let place = |(to, [memory, disk]): (Address, [Option<Address>; 2])| {
        let place = Place::found(system, &to, fallback, memory, disk);
        (to, place)
    };
    queues.into_iter().map(place).collect()
}

/// How the queue of a spool is made. It must lose, delay and reorder nothing: what it may hold is counted elsewhere.
pub(super) fn settings(storage: Storage) -> QueueSettings {
    QueueSettings {
        storage,
        priority_max: 0,
        ttl: None,
        length_max: None,
        bytes_max: None,
        lease: LEASE,
        ..QueueSettings::default()
    }
}

/// A message as it was before it came into the spool, and when it came, where that was noted.
pub(super) fn as_it_was(message: &Arc<Message>) -> (Arc<Message>, Option<UnixMs>) {
    let Some(at) = message.headers.get(SPOOLED_AT) else { return (Arc::clone(message), None) };
    let at = at.parse().ok();
    let mut original = Message::clone(message);
    original.headers.retain(|name, _| name != SPOOLED_AT);
    (Arc::new(original), at)
}

/// Bytes that messages take.
pub(super) fn load<'a>(messages: impl Iterator<Item = &'a Arc<Message>>) -> Load {
    messages.fold(Load::default(), |sum, message| Load {
        messages: sum.messages + 1,
        bytes: sum.bytes + message.size() as u64,
    })
}

/// A batch on its way in: should its publisher go away, nobody knows what became of it.
struct Entry<'a> {
    shared: &'a Shared,
    to: &'a Address,
    is_told: bool,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            self.shared.given_up(self.to);
        }
    }
}

impl Guarded {
    /// Keeps messages for later, behind what waits. Gives those that are not kept, by place.
    pub(super) async fn spool(&self, to: &Address, messages: Vec<Arc<Message>>) -> Vec<(usize, PublishError)> {
        let shared = &*self.shared;
        if self.stop.is_cancelled() {
            return (0..messages.len()).map(|place| (place, PublishError::Closed)).collect();
        }
        let place = match self.place(to).await {
            Ok(place) => place,
            Err(error) => return (0..messages.len()).map(|place| (place, error.clone())).collect(),
        };
        let (mut messages, mut places, mut failures) = self.of_size(to, messages);
        if place.storage == Storage::Disk
            && let Some(first) = messages.first_mut()
        {
            Arc::make_mut(first).headers.set(SPOOLED_AT, &now_ms().to_string());
        }
        let Room { count, load: entering, begins, full } =
            shared.enter(to, messages.iter().map(|message| message.size()));
        if let Some(full) = full {
            failures.extend(places.drain(count..).map(|place| (place, full.clone())));
            messages.truncate(count);
        }
        if !messages.is_empty() {
            let mut entry = Entry { shared, to, is_told: false };
            if begins {
                self.drain(to.clone(), place.clone());
            }
            let sizes: Vec<usize> = messages.iter().map(|message| message.size()).collect();
            let refused = shared.embedded.keep(&place.intake, messages).await;
            let size = |place: &usize| sizes.get(*place).map_or(0, |size| *size as u64);
            let refused_load =
                Load { messages: refused.len() as u64, bytes: refused.iter().map(|(place, _)| size(place)).sum() };
            shared.entered(to, entering, refused_load);
            entry.is_told = true;
            metrics()
                .spool_accepted
                .with_label_values(&[&*shared.name])
                .inc_by(entering.messages.saturating_sub(refused_load.messages));
            failures.extend(
                refused
                    .into_iter()
                    .filter_map(|(place, error)| Some((*places.get(place)?, about(error, to, &shared.name)))),
            );
        }
        failures.sort_unstable_by_key(|(place, _)| *place);
        failures
    }

    /// Where messages for an address wait, made if there was nothing.
    async fn place(&self, to: &Address) -> Result<Place, PublishError> {
        let shared = &*self.shared;
        let place = match shared.place(to) {
            Some((place, true)) => return Ok(place),
            Some((place, false)) => place,
            None => {
                shared.has_room_for(to)?;
                Place::new(&shared.name, to, shared.settings.fallback)
            }
        };
        match shared.embedded.keep_queue(Arc::clone(&place.intake.name), settings(place.storage)).await {
            Ok(()) => Ok(shared.made(to, place)),
            Err(error) => {
                Err(PublishError::Unavailable(format!("{} is away, and nothing is kept for it: {error}", shared.name)))
            }
        }
    }

    /// Without those that the system will never take: each message that stays has its place beside it.
    fn of_size(&self, to: &Address, messages: Vec<Arc<Message>>) -> OfSize {
        let max = self.shared.inner.capabilities().message_bytes_max;
        if messages.iter().all(|message| message.size() <= max) {
            let places = (0..messages.len()).collect();
            return (messages, places, Vec::new());
        }
        let (mut kept, mut places, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for (place, message) in messages.into_iter().enumerate() {
            let bytes = message.size();
            if bytes > max {
                failures.push((place, PublishError::TooLarge { address: to.clone(), bytes, max }));
            } else {
                kept.push(message);
                places.push(place);
            }
        }
        (kept, places, failures)
    }
}

/// Messages that fit, their places, and those that do not.
type OfSize = (Vec<Arc<Message>>, Vec<usize>, Vec<(usize, PublishError)>);

/// An error of the spool's queue, as one about what was published to.
fn about(error: PublishError, to: &Address, system: &str) -> PublishError {
    let address = to.clone();
    match error {
        PublishError::NoSpace { reason, .. } => PublishError::NoSpace { address, reason },
        PublishError::Full { limit, .. } => PublishError::Full { address, limit },
        PublishError::NotFound(_) => PublishError::Unavailable(format!("{system} is away, and its spool is gone")),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_queues_lead_back_to_what_they_are_for() {
        for (system, to) in [
            ("rabbitmq", Address::queue("helixagent.tasks.llm")),
            ("kafka", Address::topic("queue.events")),
            ("billing.eu", Address::queue("topic")),
        ] {
            for storage in [Storage::Memory, Storage::Disk] {
                let queue = queue_of(system, &to, storage);
                assert!(is_spool(&queue) && !is_spool(&to), "{queue}");
                assert_eq!(address_of(&prefix_of(system), &queue), Some((to.clone(), storage)));
                for other in ["rabbit", "billing", "kafka.topic", "billing.eu.queue"] {
                    assert_eq!(address_of(&prefix_of(other), &queue), None, "{queue} is not of {other}");
                }
            }
        }
    }
}
