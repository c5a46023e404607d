//! What is asked for against what is there, setting by setting.

use std::time::Duration;

use crate::{
    broker::{BrokerError, Overflow, QueueSettings, Storage, TopicSettings},
    message::PRIORITY_MAX,
};

/// Settings of a queue or topic.
pub(in crate::broker) trait Settings {
    /// Each setting in which `self`, which is there, differs from what is wanted.
    fn differences(&self, wanted: &Self) -> Vec<String>;

    /// Refuses what cannot work.
    fn check(&self) -> Result<(), BrokerError>;
}

impl Settings for QueueSettings {
    fn differences(&self, wanted: &Self) -> Vec<String> {
        // Taken apart, so that a new setting cannot be forgotten.
        // Nobody else uses an exclusive one, so it is not a setting that could differ.
        let Self { storage, priority_max, ttl, length_max, bytes_max, overflow, lease, exclusive: _ } = self;
        let mut found = Vec::new();
        compare(&mut found, "storage", storage, &wanted.storage);
        compare(&mut found, "priority_max", priority_max, &wanted.priority_max);
        compare(&mut found, "ttl", ttl, &wanted.ttl);
        compare(&mut found, "length_max", length_max, &wanted.length_max);
        compare(&mut found, "bytes_max", bytes_max, &wanted.bytes_max);
        compare(&mut found, "overflow", overflow, &wanted.overflow);
        compare(&mut found, "lease", lease, &wanted.lease);
        found
    }

    fn check(&self) -> Result<(), BrokerError> {
        let wrong = if self.priority_max > PRIORITY_MAX {
            format!("priority_max is {}, at most {PRIORITY_MAX} is possible", self.priority_max)
        } else if self.lease.is_zero() {
            "lease is zero: every delivery would come back at once".to_owned()
        } else {
            return Ok(());
        };
        Err(BrokerError::Invalid(wrong))
    }
}

impl Settings for TopicSettings {
    fn differences(&self, wanted: &Self) -> Vec<String> {
        let Self { storage, partitions, retention, retention_bytes, lease } = self;
        let mut found = Vec::new();
        compare(&mut found, "storage", storage, &wanted.storage);
        compare(&mut found, "partitions", partitions, &wanted.partitions);
        compare(&mut found, "retention", retention, &wanted.retention);
        compare(&mut found, "retention_bytes", retention_bytes, &wanted.retention_bytes);
        compare(&mut found, "lease", lease, &wanted.lease);
        found
    }

    fn check(&self) -> Result<(), BrokerError> {
        let wrong = if self.partitions == 0 || self.partitions > PARTITIONS_MAX {
            format!("partitions is {}, possible is 1 to {PARTITIONS_MAX}", self.partitions)
        } else if self.lease.is_zero() {
            "lease is zero: every delivery would come back at once".to_owned()
        } else {
            return Ok(());
        };
        Err(BrokerError::Invalid(wrong))
    }
}

/// Most partitions of a topic: each batch looks at all of them.
const PARTITIONS_MAX: u32 = 1024;

fn compare<T: PartialEq + Shown>(found: &mut Vec<String>, name: &str, is: &T, wanted: &T) {
    if is != wanted {
        found.push(format!("{name} is {}, wanted is {}", is.shown(), wanted.shown()));
    }
}

/// A value as people know it from the configuration.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for u8 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for u64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for Duration {
    /// In the largest unit that leaves nothing over.
    fn shown(&self) -> String {
        let millis = self.as_millis();
        let units = [("h", 3_600_000), ("min", 60_000), ("s", 1000)];
        let unit = units.into_iter().find(|(_, factor)| millis > 0 && millis.is_multiple_of(*factor));
        unit.map_or_else(|| format!("{millis} ms"), |(unit, factor)| format!("{} {unit}", millis / factor))
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), Shown::shown)
    }
}

impl Shown for Storage {
    fn shown(&self) -> String {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
        .to_owned()
    }
}

impl Shown for Overflow {
    fn shown(&self) -> String {
        match self {
            Self::RejectPublish => "reject-publish",
            Self::DropOldest => "drop-oldest",
            Self::DeadLetterOldest => "dead-letter-oldest",
        }
        .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_as_the_configuration_writes_them() {
        let is = QueueSettings { length_max: Some(10), lease: Duration::from_millis(1500), ..QueueSettings::default() };
        let wanted = QueueSettings {
            storage: Storage::Disk,
            ttl: Some(Duration::from_secs(86_400)),
            length_max: Some(20),
            overflow: Overflow::DropOldest,
            lease: Duration::from_secs(30),
            ..QueueSettings::default()
        };
        assert_eq!(
            is.differences(&wanted),
            [
                "storage is memory, wanted is disk",
                "ttl is none, wanted is 24 h",
                "length_max is 10, wanted is 20",
                "overflow is reject-publish, wanted is drop-oldest",
                "lease is 1500 ms, wanted is 30 s",
            ]
        );
    }
}
