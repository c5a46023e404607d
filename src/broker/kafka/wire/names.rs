//! Headers that are not the publisher's.

/// Properties of a message.
pub(super) const ID: &str = "x-helix-id";
pub(super) const KIND: &str = "x-helix-type";
pub(super) const PRIORITY: &str = "x-helix-priority";
pub(super) const CONTENT_TYPE: &str = "x-helix-content-type";
pub(super) const CORRELATION_ID: &str = "x-helix-correlation-id";
pub(super) const REPLY_TO: &str = "x-helix-reply-to";
/// In milliseconds, where the record's own time does not say it.
pub(super) const TIMESTAMP: &str = "x-helix-timestamp";
/// In milliseconds since 1970.
pub(super) const NOT_BEFORE: &str = "x-helix-not-before";
/// In milliseconds since 1970.
pub(super) const EXPIRES_AT: &str = "x-helix-expires-at";
/// Retries that the publisher asks for.
pub(super) const RETRIES_MAX: &str = "x-helix-retries-max";
/// `transient`, where it need not be kept.
pub(super) const DELIVERY_MODE: &str = "x-helix-delivery-mode";
/// The rarer properties, as JSON.
pub(super) const EXTRA: &str = "x-helix-extra";
/// Headers whose names the client library cannot read, as a JSON list of names and values.
pub(super) const MORE: &str = "x-helix-more";

/// What a copy in the retry topic says.
pub(super) const RETRY_TOPIC: &str = "x-helix-retry-topic";
pub(super) const RETRY_PARTITION: &str = "x-helix-retry-partition";
pub(super) const RETRY_OFFSET: &str = "x-helix-retry-offset";
pub(super) const RETRY_GROUP: &str = "x-helix-retry-group";
/// Which attempt a copy is for, from 1.
pub(super) const ATTEMPT: &str = "x-helix-attempt";
/// In milliseconds since 1970.
pub(super) const DUE: &str = "x-helix-due";
/// Why the earlier attempts failed, as JSON.
pub(super) const FAILURES: &str = "x-helix-failures";

/// `true`: the record has no value. A header of the message, and not sent.
pub(super) const TOMBSTONE: &str = "x-helix-tombstone";
/// Which headers are not what they look like. A header of the message, and not sent.
pub(super) const BESIDE: &str = "x-helix-kafka";
/// The partition where to publish, as a number. A header of the message, and not sent.
pub(super) const PARTITION: &str = "x-partition";
/// What the value is, in CloudEvents and with many other programs.
pub(super) const FOREIGN_CONTENT_TYPE: &str = "content-type";

/// Whether it is none of a message's headers: it is read into something else.
pub(super) fn is_apart(name: &str) -> bool {
    let Some(ours) = name.strip_prefix("x-helix-") else { return false };
    matches!(
        ours,
        "id" | "type"
            | "priority"
            | "content-type"
            | "correlation-id"
            | "reply-to"
            | "timestamp"
            | "not-before"
            | "expires-at"
            | "retries-max"
            | "delivery-mode"
            | "extra"
            | "more"
            | "retry-topic"
            | "retry-partition"
            | "retry-offset"
            | "retry-group"
            | "attempt"
            | "due"
            | "failures"
    )
}

/// Whether it is a header of the message that says something to us, and is not sent.
pub(super) fn is_unsent(name: &str) -> bool {
    matches!(name, TOMBSTONE | BESIDE)
}
