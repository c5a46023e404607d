//! Headers that are not the publisher's: ours, and the server's.

/// `x-helix-attempt`: which attempt a copy is for, from 1.
pub(super) const ATTEMPT: &str = "x-helix-attempt";
/// `x-helix-failures`: why the earlier ones failed, as JSON.
pub(super) const FAILURES: &str = "x-helix-failures";
/// `x-helix-timestamp`: in milliseconds, where whole seconds do not say it.
pub(super) const TIMESTAMP: &str = "x-helix-timestamp";
/// `x-helix-key`: the bytes that order and partition.
pub(super) const KEY: &str = "x-helix-key";
/// `x-helix-not-before`: in milliseconds since 1970.
pub(super) const NOT_BEFORE: &str = "x-helix-not-before";
/// `x-helix-expires-at`: in milliseconds since 1970.
pub(super) const EXPIRES_AT: &str = "x-helix-expires-at";
/// `x-helix-retries-max`: retries that the publisher asks for.
pub(super) const RETRIES_MAX: &str = "x-helix-retries-max";
/// `x-helix-extra`: the rarer properties, as JSON.
pub(super) const EXTRA: &str = "x-helix-extra";
/// `x-helix-amqp`: what is kept beside a message. The only one of these that is also a header of the message.
pub(super) const AMQP: &str = "x-helix-amqp";
/// `x-helix-order`: in which order the headers were.
pub(super) const ORDER: &str = "x-helix-order";
/// `x-helix-more`: headers that cannot stand under their names, as a list of names and values.
pub(super) const MORE: &str = "x-helix-more";
/// Properties that are longer than a short string can be.
pub(super) const ID: &str = "x-helix-id";
pub(super) const KIND: &str = "x-helix-type";
pub(super) const CONTENT_TYPE: &str = "x-helix-content-type";
pub(super) const CORRELATION_ID: &str = "x-helix-correlation-id";
pub(super) const REPLY_TO: &str = "x-helix-reply-to";

/// Where a message was, and died: the server's, and passed on.
pub(super) const DEATH: &str = "x-death";

/// Facts about one delivery, as the server writes them.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";
pub(super) const ACQUIRED_COUNT: &str = "x-acquired-count";
pub(super) const STREAM_OFFSET: &str = "x-stream-offset";

/// Whether it is none of a message's headers: it is read into something else, or written by the server.
pub(super) fn is_apart(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("x-") else { return false };
    if let Some(ours) = rest.strip_prefix("helix-") {
        return matches!(
            ours,
            "attempt"
                | "failures"
                | "timestamp"
                | "key"
                | "not-before"
                | "expires-at"
                | "retries-max"
                | "extra"
                | "amqp"
                | "order"
                | "more"
                | "id"
                | "type"
                | "content-type"
                | "correlation-id"
                | "reply-to"
        );
    }
    matches!(rest, "delivery-count" | "acquired-count" | "stream-offset") || is_of_a_death(rest)
}

/// `x-first-death-queue` and the like, without their `x-`.
fn is_of_a_death(rest: &str) -> bool {
    let what = rest.strip_prefix("first-death-").or_else(|| rest.strip_prefix("last-death-"));
    matches!(what, Some("queue" | "exchange" | "reason"))
}

/// Whether a header must not be sent under its name: the server routes by it, and refuses it as text.
/// Source: RabbitMQ, "Sender-selected Distribution".
pub(super) fn routes_copies(name: &str) -> bool {
    matches!(name, "CC" | "BCC")
}
