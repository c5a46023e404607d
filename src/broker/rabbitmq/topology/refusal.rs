//! What servers say about a declaration that they refuse. They say it as text only: which field differs, and both
//! values. Source: `rabbit_misc:assert_args_equivalence` and `rabbit_amqqueue` of 3.10 to 4.3.

use std::time::Duration;

use super::{Argument, queues::age};

/// A field that is not as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inequivalent {
    /// `x-message-ttl`, `durable`, `type`.
    pub(super) field: String,
    pub(super) current: Current,
}

/// What a server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Current {
    /// Nothing.
    None,
    /// A value, of the same type as the one that was declared where it does not name one.
    Value { text: String, kind: Option<String> },
    /// Not told: a server cuts what is longer than 255 bytes with all around it.
    Cut,
}

/// Reads `inequivalent arg 'x' for queue 'q' in vhost '/': received 'a' but current is 'b'`.
pub(super) fn inequivalent(text: &str) -> Option<Inequivalent> {
    let (_, rest) = text.split_once("inequivalent arg '")?;
    let (field, rest) = rest.split_once("' for ")?;
    let current = match rest.rsplit_once(" but current is ") {
        None => Current::Cut,
        Some((_, "none" | "undefined")) => Current::None,
        Some((_, value)) => current(value),
    };
    let current = match current {
        // Servers from 4.3 say an age in milliseconds, and still take it with a unit only.
        Current::Value { text, kind } if field == "x-max-age" => {
            let milliseconds = text.parse().map(Duration::from_millis);
            Current::Value { text: milliseconds.map_or(text, age), kind }
        }
        current => current,
    };
    Some(Inequivalent { field: field.to_owned(), current })
}

/// `'10'`, or `the value '10' of type 'long'`.
fn current(text: &str) -> Current {
    let (text, typed) = match text.strip_prefix("the value ") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let quoted = |text: &str| text.strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
    if !typed {
        return quoted(text).map_or(Current::Cut, |text| Current::Value { text, kind: None });
    }
    let parts = text.rsplit_once(" of type ").and_then(|(value, kind)| Some((quoted(value)?, quoted(kind)?)));
    parts.map_or(Current::Cut, |(text, kind)| Current::Value { text, kind: Some(kind) })
}

/// Reads `invalid arg 'x' for queue 'q' in vhost '/': why`: which field.
pub(super) fn invalid(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("invalid arg '")?;
    rest.split_once("' for ").map(|(field, _)| field)
}

/// The value as an argument, to ask with it. `declared` is what was asked with before. `None`: of a type that cannot be
/// asked with.
pub(super) fn as_argument(text: &str, kind: Option<&str>, declared: Option<&Argument>) -> Option<Argument> {
    let flag = || text.parse().ok().map(Argument::Flag);
    let integer = || text.parse().ok().map(Argument::Integer);
    match (kind, declared) {
        (Some("longstr"), _) | (None, Some(Argument::Text(_))) => Some(Argument::Text(text.to_owned())),
        (Some("bool"), _) | (None, Some(Argument::Flag(_))) => flag(),
        // Servers compare numbers, not how many bytes they came in.
        (
            Some(
                "byte" | "unsignedbyte" | "short" | "unsignedshort" | "signedint" | "unsignedint" | "long"
                | "timestamp",
            ),
            _,
        )
        | (None, Some(Argument::Integer(_))) => integer(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, kind: Option<&str>) -> Current {
        Current::Value { text: text.to_owned(), kind: kind.map(str::to_owned) }
    }

    /// As servers said them, those with `AMQP` in front included.
    #[test]
    fn texts_of_servers_are_read() {
        for (text, field, wanted) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'p1' in vhost '/': received '5' but current is '10'",
                "x-max-priority",
                value("10", None),
            ),
            (
                "inequivalent arg 'x-max-priority' for queue 'p1' in vhost '/': received none but current is the value '10' of type 'long'",
                "x-max-priority",
                value("10", Some("long")),
            ),
            (
                "inequivalent arg 'x-queue-type' for queue 'p1' in vhost '/': received the value 'quorum' of type 'longstr' but current is none",
                "x-queue-type",
                Current::None,
            ),
            (
                "inequivalent arg 'durable' for queue 'c1' in vhost '/': received 'false' but current is 'true'",
                "durable",
                value("true", None),
            ),
            (
                "inequivalent arg 'type' for exchange 'e1' in vhost 'a b': received 'direct' but current is 'topic'",
                "type",
                value("topic", None),
            ),
            (
                "inequivalent arg 'x-max-age' for queue 's' in vhost '/': received '86400000' but current is '604800000'",
                "x-max-age",
                value("7D", None),
            ),
            (
                "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received 'a' but current is ''",
                "x-dead-letter-exchange",
                value("", None),
            ),
            (
                "inequivalent arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/': received none but current is the value 'it's' of type 'longstr'",
                "x-dead-letter-routing-key",
                value("it's", Some("longstr")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'long' in vhost '/': received 'lon...",
                "x-dead-letter-exchange",
                Current::Cut,
            ),
            (
                "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received 'a' but current is 'abc...",
                "x-dead-letter-exchange",
                Current::Cut,
            ),
        ] {
            let got = inequivalent(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((got.field.as_str(), got.current), (field, wanted), "{text}");
        }
        assert_eq!(inequivalent("NOT_FOUND - no queue 'q' in vhost '/'"), None);
        let invalid_text = "invalid arg 'x-max-priority' for queue 'q2' in vhost '/' of queue type rabbit_quorum_queue";
        assert_eq!(invalid(invalid_text), Some("x-max-priority"));
    }

    #[test]
    fn values_become_arguments_of_their_type() {
        let asked = |text, kind, declared: Option<Argument>| as_argument(text, kind, declared.as_ref());
        assert_eq!(asked("10", Some("long"), None), Some(10.into()));
        assert_eq!(asked("10", None, Some(5.into())), Some(10.into()));
        assert_eq!(asked("10", None, Some("5".into())), Some("10".into()));
        assert_eq!(asked("true", Some("bool"), None), Some(Argument::Flag(true)));
        assert_eq!(asked("ten", Some("long"), None), None);
        assert_eq!(asked("[]", Some("array"), None), None);
        assert_eq!(asked("10", None, None), None);
    }
}
