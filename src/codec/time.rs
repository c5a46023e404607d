//! Times as people and programs write them: RFC 3339, to the millisecond.

use jiff::Timestamp;

use crate::message::UnixMs;

/// The time as RFC 3339 in UTC: `2026-01-16T10:00:00Z`. `None` beyond the year 9999, which it cannot express.
#[must_use]
pub fn rfc3339(at: UnixMs) -> Option<String> {
    Timestamp::from_millisecond(i64::try_from(at).ok()?).ok().map(|time| time.to_string())
}

/// Reads RFC 3339; what is finer than a millisecond is cut off. `None` for other text and for times before 1970.
#[must_use]
pub fn from_rfc3339(text: &str) -> Option<UnixMs> {
    let time: Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for (text, at) in [
            ("2026-01-16T10:00:00Z", 1_768_557_600_000),
            ("2026-01-16T10:00:00.25Z", 1_768_557_600_250),
            ("1970-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(from_rfc3339(text), Some(at));
            assert_eq!(rfc3339(at).as_deref(), Some(text));
        }
        assert_eq!(from_rfc3339("2026-01-16T11:00:00.0009+01:00"), Some(1_768_557_600_000));
        assert_eq!(from_rfc3339("1969-12-31T23:59:59Z"), None);
        assert_eq!(from_rfc3339("yesterday"), None);
        assert_eq!(rfc3339(u64::MAX), None);
    }
}
