//! Which messages behind the place of a group are done already, as text that is committed with that place. A restart reads it
//! and does not repeat them.
//!
//! The text is `h1:` and, in base64, lengths of runs as variable-length numbers: so many not done, so many done, and so on,
//! from the committed offset. Other clients of the group ignore it, and lose it with their next commit: that repeats messages
//! and loses none.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};

/// What the text begins with.
const VERSION: &str = "h1:";
/// Longest text. Source: `offset.metadata.max.bytes` of Apache Kafka, 4096 by default, with some room. What does not fit is
/// repeated after a restart.
const TEXT_BYTES_MAX: usize = 3800;

/// Offsets from the first of a pair to in front of the second. In order, without touching each other.
pub(super) type Ranges = Vec<(u64, u64)>;

/// What is done behind `from`; empty where nothing is.
pub(super) fn encode(from: u64, done: impl IntoIterator<Item = (u64, u64)>) -> String {
    let bytes_max = (TEXT_BYTES_MAX - VERSION.len()) / 4 * 3;
    let mut bytes = Vec::new();
    let mut at = from;
    for (begin, end) in done {
        let before = bytes.len();
        number(&mut bytes, begin.saturating_sub(at));
        number(&mut bytes, end.saturating_sub(begin));
        if bytes.len() > bytes_max {
            bytes.truncate(before);
            break;
        }
        at = end;
    }
    if bytes.is_empty() {
        return String::new();
    }
    format!("{VERSION}{}", BASE64.encode(bytes))
}

/// What was done behind `from`. Text of others, or that cannot be read, says nothing.
pub(super) fn decode(from: u64, text: &str) -> Ranges {
    let bytes = text.strip_prefix(VERSION).and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
    let mut numbers = Numbers(&bytes);
    let mut ranges = Ranges::new();
    let mut at = from;
    while let (Some(open), Some(done)) = (numbers.next(), numbers.next()) {
        let (Some(begin), true) = (at.checked_add(open), done > 0) else { break };
        let Some(end) = begin.checked_add(done) else { break };
        ranges.push((begin, end));
        at = end;
    }
    ranges
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

struct Numbers<'a>(&'a [u8]);

impl Iterator for Numbers<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn says_what_it_was_told(from in 0..1_u64 << 60, runs in prop::collection::vec((1..1_u64 << 40, 1..1_u64 << 40), 0..100)) {
            let mut at = from;
            let ranges: Ranges = runs.iter().map(|(open, done)| {
                let range = (at + open, at + open + done);
                at = range.1;
                range
            }).collect();
            prop_assert_eq!(decode(from, &encode(from, ranges.clone())), ranges);
        }

        #[test]
        fn reads_any_text_of_others_without_harm(from in any::<u64>(), text in ".{0,80}", raw in prop::collection::vec(any::<u8>(), 0..60)) {
            decode(from, &text);
            let ranges = decode(from, &format!("{VERSION}{}", BASE64.encode(raw)));
            prop_assert!(ranges.iter().all(|(begin, end)| *begin >= from && end > begin));
        }
    }

    #[test]
    fn keeps_within_what_servers_take_and_keeps_the_first() {
        let many = (0..100_000_u64).map(|n| (n * 1000 + 500, n * 1000 + 501));
        let text = encode(0, many.clone());
        assert!(text.len() <= TEXT_BYTES_MAX, "{}", text.len());
        let read = decode(0, &text);
        assert!(read.len() > 600, "{}", read.len());
        assert!(read.into_iter().eq(many.take(decode(0, &text).len())));
    }

    #[test]
    fn nothing_done_is_no_text() {
        assert_eq!((encode(7, []).as_str(), decode(7, "")), ("", Ranges::new()));
    }
}
