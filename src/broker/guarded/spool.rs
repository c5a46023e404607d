//! Into the spool: a queue of the embedded broker for each queue and topic that has a backlog. It keeps messages exactly as
//! they are, in the order of arrival, whatever their priority, their time and their size.

use std::sync::Arc;

use super::{
    Guarded,
    backlog::Load,
    settings::Fallback,
    shared::{Room, Shared},
};
use crate::{
    broker::{Broker, PublishError, QueueSettings, Storage, embedded::Embedded},
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

/// Whether a queue is one of the spool of a system that is none of these.
#[must_use]
pub fn is_orphan(address: &Address, systems: &[&str]) -> bool {
    is_spool(address) && !systems.iter().any(|system| address_of(&prefix_of(system), address).is_some())
}

/// The queue where what is meant for an address of a system waits.
fn queue_of(system: &str, to: &Address) -> Address {
    // No name of a queue or topic has that sign, so that names cannot be taken for others.
    Address::queue(format!("{}.{}.{}", prefix_of(system), to.kind, to.name))
}

fn prefix_of(system: &str) -> String {
    format!("{SPOOL_PREFIX}{}", system.replace('.', "~"))
}

/// For which address a queue of a system's spool is.
fn address_of(prefix: &str, queue: &Address) -> Option<Address> {
    let rest = queue.name.strip_prefix(prefix)?.strip_prefix('.')?;
    let (kind, name) = rest.split_once('.')?;
    match kind {
        "queue" => Some(Address::queue(name)),
        "topic" => Some(Address::topic(name)),
        _ => None,
    }
}

/// What an earlier run left for a system: for which address, and where.
pub(super) fn left_over(embedded: &Embedded, system: &str) -> Vec<(Address, Address)> {
    let prefix = prefix_of(system);
    let queues = embedded.stats().into_iter().filter(|stats| stats.ready + stats.delayed + stats.unsettled > 0);
    queues.filter_map(|stats| Some((address_of(&prefix, &stats.address)?, stats.address))).collect()
}

/// How the queue of a spool is made. It must lose, delay and reorder nothing: what it may hold is counted elsewhere.
pub(super) fn settings(fallback: Fallback) -> QueueSettings {
    QueueSettings {
        storage: if fallback == Fallback::Memory { Storage::Memory } else { Storage::Disk },
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
        let queue = match self.queue(to).await {
            Ok(queue) => queue,
            Err(error) => return (0..messages.len()).map(|place| (place, error.clone())).collect(),
        };
        let (mut messages, mut places, mut failures) = self.of_size(to, messages);
        if shared.settings.fallback != Fallback::Memory
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
                self.drain(to.clone(), queue.clone());
            }
            let sizes: Vec<usize> = messages.iter().map(|message| message.size()).collect();
            let refused = shared.embedded.keep(&queue, messages).await;
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

    /// The queue where messages for an address wait, made if there was none.
    async fn queue(&self, to: &Address) -> Result<Address, PublishError> {
        if let Some(queue) = self.shared.queue(to) {
            return Ok(queue);
        }
        self.shared.has_room_for(to)?;
        let queue = queue_of(&self.shared.name, to);
        let settings = settings(self.shared.settings.fallback);
        match self.shared.embedded.keep_queue(Arc::clone(&queue.name), settings).await {
            Ok(()) => {
                self.shared.made(to, &queue);
                Ok(queue)
            }
            Err(error) => Err(PublishError::Unavailable(format!(
                "{} is away, and nothing is kept for it: {error}",
                self.shared.name
            ))),
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
            let queue = queue_of(system, &to);
            assert!(is_spool(&queue) && !is_spool(&to), "{queue}");
            assert_eq!(address_of(&prefix_of(system), &queue), Some(to));
            for other in ["rabbit", "billing", "kafka.topic", "billing.eu.queue"] {
                assert_eq!(address_of(&prefix_of(other), &queue), None, "{queue} is not of {other}");
            }
        }
    }
}
