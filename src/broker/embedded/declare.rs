//! What is asked for against what is there, setting by setting.

use std::fmt::Debug;

use crate::{
    broker::{BrokerError, QueueSettings, TopicSettings},
    message::PRIORITY_MAX,
};

/// Settings of a queue or topic.
pub(super) trait Settings {
    /// Each setting in which `self`, which is there, differs from what is wanted.
    fn differences(&self, wanted: &Self) -> Vec<String>;

    /// Refuses what cannot work.
    fn check(&self) -> Result<(), BrokerError>;
}

impl Settings for QueueSettings {
    fn differences(&self, wanted: &Self) -> Vec<String> {
        // Taken apart, so that a new setting cannot be forgotten.
        let Self { storage, priority_max, ttl, length_max, bytes_max, overflow, lease } = self;
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

fn compare<T: PartialEq + Debug>(found: &mut Vec<String>, name: &str, is: &T, wanted: &T) {
    if is != wanted {
        found.push(format!("{name} is {is:?}, wanted is {wanted:?}"));
    }
}
