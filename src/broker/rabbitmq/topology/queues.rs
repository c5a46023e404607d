//! Queues from the settings that all systems have in common.

use std::{sync::Arc, time::Duration};

use super::{Argument, Arguments, Queue, QueueKind};
use crate::broker::{Overflow, QueueSettings, TopicSettings};

/// The exchange that brings what a server removes to the dead letters, and the routing key that leads there.
const DEAD_LETTER_EXCHANGE: (&str, &str) = ("helixagent.dlx", "dlq");

/// Longest time limit that a server takes. Source: RabbitMQ, `rabbit_misc:check_expiry`, `MAX_EXPIRY_TIMER`.
pub const TTL_MAX: Duration = Duration::from_millis(u32::MAX as u64);

/// How often a server may deliver a message of a quorum queue again before it takes it away. The engine decides that
/// itself, so it is a number that nobody reaches. Not -1: servers from 4.0 take that for no limit, and would have one of
/// 20 without the argument; on 3.10 the first message that comes back is gone (measured).
pub const DELIVERIES_MAX: i64 = 1_000_000_000;

/// A queue that is made from settings.
#[derive(Clone, Debug, PartialEq)]
pub struct FromSettings {
    /// It.
    pub queue: Queue,
    /// What was asked for and is not part of it, as sentences.
    pub left_out: Vec<&'static str>,
}

/// The queue of that kind that does what the settings say.
///
/// What a server removes (by a time limit, of the queue or of the message, or by its length) goes to the dead letters,
/// unless the oldest are to be dropped: then everything that a server removes is dropped, since it makes no difference
/// between its reasons. The dead letter queue itself has no dead letters.
///
/// # Errors
/// What servers do not take, as a sentence that says what would be right.
pub fn queue_of(settings: &QueueSettings, kind: QueueKind, is_dead_letter: bool) -> Result<FromSettings, String> {
    if kind == QueueKind::Stream {
        return Err("a stream keeps what was read: it is a topic, not a queue; use quorum or classic".to_owned());
    }
    let mut arguments = Arguments::new();
    let mut left_out = Vec::new();
    if settings.priority_max > 0 {
        if kind == QueueKind::Classic {
            arguments.insert("x-max-priority".to_owned(), i64::from(settings.priority_max).into());
        } else {
            left_out.push("a quorum queue has no priorities of its own; make it classic to have them");
        }
    }
    if let Some(ttl) = settings.ttl {
        if ttl > TTL_MAX {
            let (given, max) = (ttl.as_millis(), TTL_MAX.as_millis());
            return Err(format!("RabbitMQ takes a time limit of at most {max} ms (49 days), not {given}"));
        }
        arguments.insert("x-message-ttl".to_owned(), millis(ttl).into());
    }
    for (name, limit) in [("x-max-length", settings.length_max), ("x-max-length-bytes", settings.bytes_max)] {
        let Some(limit) = limit else { continue };
        let limit = i64::try_from(limit).map_err(|_| format!("RabbitMQ takes no {name} of {limit}"))?;
        arguments.insert(name.to_owned(), limit.into());
    }
    let limited = settings.length_max.is_some() || settings.bytes_max.is_some();
    if settings.overflow == Overflow::RejectPublish && limited {
        arguments.insert("x-overflow".to_owned(), "reject-publish".into());
    } else if limited {
        arguments.insert("x-overflow".to_owned(), "drop-head".into());
    }
    let drops = limited && settings.overflow == Overflow::DropOldest;
    if is_dead_letter && limited && settings.overflow == Overflow::DeadLetterOldest {
        return Err(
            "the dead letter queue would send its dead letters to itself; use overflow: reject-publish".to_owned()
        );
    }
    if !is_dead_letter && !drops {
        dead_letter_to(&mut arguments, kind, settings.overflow == Overflow::RejectPublish || !limited);
    } else if kind == QueueKind::Quorum {
        unlimited_deliveries(&mut arguments);
    }
    Ok(FromSettings { queue: Queue::durable(kind, arguments), left_out })
}

/// Sends what the server removes to the dead letters. `refuses`: what is too much is refused, nothing is dropped for it.
pub(super) fn dead_letter_to(arguments: &mut Arguments, kind: QueueKind, refuses: bool) {
    let (exchange, routing_key) = DEAD_LETTER_EXCHANGE;
    arguments.insert("x-dead-letter-exchange".to_owned(), exchange.into());
    arguments.insert("x-dead-letter-routing-key".to_owned(), routing_key.into());
    if kind != QueueKind::Quorum {
        return;
    }
    unlimited_deliveries(arguments);
    if refuses {
        // The server confirms to itself that the dead letter has arrived, which it does only where nothing is dropped.
        arguments.insert("x-dead-letter-strategy".to_owned(), "at-least-once".into());
        arguments.insert("x-overflow".to_owned(), "reject-publish".into());
    }
}

pub(super) fn unlimited_deliveries(arguments: &mut Arguments) {
    arguments.insert("x-delivery-limit".to_owned(), DELIVERIES_MAX.into());
}

/// The stream that keeps a topic.
///
/// A server forgets whole segments only, and only while something is published: it keeps at least what is asked for.
#[must_use]
pub fn stream(settings: &TopicSettings) -> Queue {
    let mut arguments = Arguments::new();
    if let Some(retention) = settings.retention {
        arguments.insert("x-max-age".to_owned(), Argument::Text(age(retention)));
    }
    if let Some(bytes) = settings.retention_bytes {
        arguments.insert("x-max-length-bytes".to_owned(), i64::try_from(bytes).unwrap_or(i64::MAX).into());
    }
    Queue::durable(QueueKind::Stream, arguments)
}

/// The queue of a group that reads a topic, and its name.
#[must_use]
pub fn group_queue(topic: &str, group: &str) -> (Arc<str>, Queue) {
    let mut arguments = Arguments::new();
    dead_letter_to(&mut arguments, QueueKind::Quorum, true);
    (format!("{topic}@{group}").into(), Queue::durable(QueueKind::Quorum, arguments))
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// As servers write ages, in the largest unit that leaves nothing over: they compare the text, not the time. Seconds
/// are the shortest they know, so it is rounded up.
pub(super) fn age(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let seconds = seconds.max(1);
    [("D", 86_400), ("h", 3600), ("m", 60)]
        .into_iter()
        .find(|(_, unit)| seconds.is_multiple_of(*unit))
        .map_or_else(|| format!("{seconds}s"), |(letter, unit)| format!("{}{letter}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> QueueSettings {
        QueueSettings { priority_max: 0, ..QueueSettings::default() }
    }

    /// Names and values, one after the other.
    fn shown(settings: &QueueSettings, kind: QueueKind) -> String {
        match queue_of(settings, kind, false) {
            Ok(made) => {
                let all: Vec<_> = made.queue.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
                all.join(" ").replace("x-dead-letter-exchange=helixagent.dlx x-dead-letter-routing-key=dlq", "DLX")
            }
            Err(error) => error,
        }
    }

    #[test]
    fn settings_become_arguments() {
        let limited = |overflow| QueueSettings { length_max: Some(5), overflow, ..settings() };
        let safe = "DLX x-dead-letter-strategy=at-least-once x-delivery-limit=1000000000";
        for (settings, kind, wanted) in [
            (settings(), QueueKind::Classic, "DLX".to_owned()),
            (settings(), QueueKind::Quorum, format!("{safe} x-overflow=reject-publish")),
            (QueueSettings { priority_max: 7, ..settings() }, QueueKind::Classic, "DLX x-max-priority=7".to_owned()),
            (
                QueueSettings { ttl: Some(Duration::from_secs(2)), bytes_max: Some(9), ..settings() },
                QueueKind::Classic,
                "DLX x-max-length-bytes=9 x-message-ttl=2000 x-overflow=reject-publish".to_owned(),
            ),
            (
                limited(Overflow::RejectPublish),
                QueueKind::Quorum,
                format!("{safe} x-max-length=5 x-overflow=reject-publish"),
            ),
            (limited(Overflow::DropOldest), QueueKind::Classic, "x-max-length=5 x-overflow=drop-head".to_owned()),
            (
                limited(Overflow::DropOldest),
                QueueKind::Quorum,
                "x-delivery-limit=1000000000 x-max-length=5 x-overflow=drop-head".to_owned(),
            ),
            (
                limited(Overflow::DeadLetterOldest),
                QueueKind::Quorum,
                "DLX x-delivery-limit=1000000000 x-max-length=5 x-overflow=drop-head".to_owned(),
            ),
        ] {
            assert_eq!(shown(&settings, kind), wanted, "{settings:?} {kind:?}");
        }
    }

    #[test]
    fn what_servers_cannot_do_is_said() {
        let long = QueueSettings { ttl: Some(Duration::from_secs(90 * 86_400)), ..settings() };
        assert!(shown(&long, QueueKind::Quorum).contains("49 days"));
        assert!(shown(&settings(), QueueKind::Stream).contains("is a topic"));
        let circle = QueueSettings { length_max: Some(1), overflow: Overflow::DeadLetterOldest, ..settings() };
        assert!(queue_of(&circle, QueueKind::Classic, true).unwrap_err().contains("to itself"));
        let left_out = queue_of(&QueueSettings::default(), QueueKind::Quorum, false).unwrap().left_out;
        assert!(matches!(left_out.as_slice(), [one] if one.contains("classic")), "{left_out:?}");
    }

    #[test]
    fn ages_are_in_the_largest_unit_that_leaves_nothing_over() {
        for (time, wanted) in [
            (Duration::from_secs(7 * 86_400), "7D"),
            (Duration::from_secs(3 * 3600), "3h"),
            (Duration::from_secs(90 * 60), "90m"),
            (Duration::from_secs(61), "61s"),
            (Duration::from_millis(1), "1s"),
            (Duration::from_millis(1001), "2s"),
        ] {
            assert_eq!(age(time), wanted);
        }
        let kept = stream(&TopicSettings { retention_bytes: Some(10), ..TopicSettings::default() });
        assert_eq!((kept.text("x-max-age"), kept.kind), (Some("7D"), QueueKind::Stream));
        assert_eq!(kept.arguments["x-max-length-bytes"], 10.into());
        assert_eq!(&*group_queue("t", "g").0, "t@g");
    }
}
