//! Message ids: UUID version 7 where we make them, any text where a publisher did.

use std::{cell::Cell, fmt};

use uuid::{Uuid, fmt::Hyphenated};
use xxhash_rust::xxh3::Xxh3;

use super::{UnixMs, random64};

/// Longest id that is accepted, in bytes. Source: AMQP 0-9-1 short strings (`message-id`) hold 255.
pub const ID_BYTES_MAX: usize = 255;

/// 73 random bits, so that counting up from them cannot run over the 74 that a version 7 UUID has for them.
fn fresh() -> u128 {
    ((u128::from(random64()) << 64) | u128::from(random64())) >> 55
}

/// The 48 bits of a version 7 UUID that hold its time.
const TIME_MASK: u128 = 0xffff_ffff_ffff << 80;

/// What makes duplicates visible. Sixteen bytes for a UUID, text otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MessageId {
    /// A UUID, kept as bytes and written in lower case with hyphens.
    Uuid(Uuid),
    /// Anything else a publisher chose, kept as it was written.
    Text(Box<str>),
}

impl MessageId {
    /// A new UUID version 7 for `now`, the caller's clock reading: sorts by time, and within one thread by the order of
    /// making. No system call and no lock: each thread counts up from a random place, and begins anew every millisecond.
    /// Source: RFC 9562, section 6.2, method 2 (monotonic random).
    #[must_use]
    pub fn generate(now: UnixMs) -> Self {
        thread_local! {
            static GENERATOR: Cell<(UnixMs, u128)> = const { Cell::new((0, 0)) };
        }
        let (time, counter) = GENERATOR.with(|generator| {
            let (last, counter) = generator.get();
            let next = if now > last { (now, fresh()) } else { (last, counter + 1 + (fresh() >> 50)) };
            generator.set(next);
            next
        });
        // 48 bits of time, the version, 12 bits of the counter, the variant, the other 62.
        let (high, low) = ((counter >> 62) & 0xfff, counter & ((1 << 62) - 1));
        let time = u128::from(time) & 0xffff_ffff_ffff;
        Self::Uuid(Uuid::from_u128((time << 80) | (7 << 76) | (high << 64) | (0b10 << 62) | low))
    }

    /// Keeps what a publisher wrote. Text that is not exactly what we would write for a UUID stays text, so that it
    /// reads back unchanged.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH]) == text => Self::Uuid(uuid),
            _ => Self::Text(text.into()),
        }
    }

    /// The id of result number `place` of handling the message with this id on `route`: the same on every attempt, so
    /// that a repeated attempt repeats its ids. A UUID version 8 that sorts by the time of the message it came from.
    #[must_use]
    pub fn derive(&self, route: &str, place: usize) -> Self {
        let mut hasher = Xxh3::with_seed(place as u64);
        let time = match self {
            Self::Uuid(uuid) => {
                hasher.update(uuid.as_bytes());
                uuid.as_u128() & TIME_MASK
            }
            Self::Text(text) => {
                hasher.update(text.as_bytes());
                0
            }
        };
        hasher.update(route.as_bytes());
        let hash = hasher.digest128() & !TIME_MASK;
        let bytes = (hash | time).to_be_bytes();
        Self::Uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The id as text, written into `buffer` where it is a UUID.
    pub fn as_str<'a>(&'a self, buffer: &'a mut [u8; Hyphenated::LENGTH]) -> &'a str {
        match self {
            Self::Uuid(uuid) => uuid.hyphenated().encode_lower(buffer),
            Self::Text(text) => text,
        }
    }
}

impl Default for MessageId {
    fn default() -> Self {
        Self::Uuid(Uuid::nil())
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.hyphenated().fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_they_were_written() {
        for text in ["task-123", "", "0190163D-8694-739B-AEA5-966C26F8AD91", "0190163d-8694-739b-aea5-966c26f8ad91"] {
            assert_eq!(MessageId::parse(text).to_string(), text);
        }
    }

    #[test]
    fn derived_ids_repeat_and_differ() {
        let id = MessageId::generate(1);
        assert_eq!(id.derive("route", 0), id.derive("route", 0));
        assert_ne!(id.derive("route", 0), id.derive("route", 1));
        assert_ne!(id.derive("route", 0), id.derive("other", 0));
        assert_ne!(id.derive("route", 0), MessageId::generate(2).derive("route", 0));
    }

    #[test]
    fn generated_ids_sort_by_time() {
        let ids: Vec<_> = (0..10_000_u64).map(|n| MessageId::generate(1_767_225_600_000 + n / 100)).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| matches!(id, MessageId::Uuid(uuid) if uuid.get_version_num() == 7)));
    }
}
