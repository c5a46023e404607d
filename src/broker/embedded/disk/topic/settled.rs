//! Which offsets of a partition a group has settled: all below the first gap, and runs above it. Takes as much memory,
//! and as many bytes on disk, as there are gaps, whatever has been settled since.

use std::{collections::BTreeMap, ops::Range};

/// A set of offsets that begins whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// The first offset that is not settled.
    gap: u64,
    /// Start and end of each run above the gap; runs do not touch.
    runs: BTreeMap<u64, u64>,
}

impl Settled {
    /// All below this, and nothing else.
    pub(super) fn below(gap: u64) -> Self {
        Self { gap, runs: BTreeMap::new() }
    }

    /// The first offset that is not settled.
    pub(super) fn gap(&self) -> u64 {
        self.gap
    }

    /// How many runs there are above the gap.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn insert(&mut self, offset: u64) {
        self.insert_all(offset..offset.saturating_add(1));
    }

    pub(super) fn insert_all(&mut self, offsets: Range<u64>) {
        let Range { mut start, mut end } = offsets;
        if start >= end || end <= self.gap {
            return;
        }
        if start > self.gap {
            if let Some((before, until)) = self.runs.range(..=start).next_back().filter(|(_, until)| **until >= start) {
                (start, end) = (*before, end.max(*until));
            }
        } else {
            start = self.gap;
        }
        while let Some((&next, &until)) = self.runs.range(start..=end).next() {
            self.runs.remove(&next);
            end = end.max(until);
        }
        if start == self.gap {
            self.gap = end;
        } else {
            self.runs.insert(start, end);
        }
    }

    /// Those within these bounds that are not settled, in order.
    pub(super) fn missing(&self, within: Range<u64>) -> impl Iterator<Item = u64> {
        let mut from = within.start.max(self.gap);
        if let Some((_, end)) = self.runs.range(..=from).next_back() {
            from = from.max(*end);
        }
        let ends = self.runs.range(from..).map(|(start, end)| (*start, *end)).chain([(u64::MAX, u64::MAX)]);
        ends.scan(from, move |from, (start, end)| {
            let gap = *from..start.min(within.end);
            *from = end;
            (gap.start < within.end).then_some(gap)
        })
        .flatten()
    }

    /// As the store keeps it: the gap, then for each run how far it begins behind what is before it, and how long it is.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(10 + 4 * self.runs.len());
        put(&mut bytes, self.gap);
        let mut last = self.gap;
        for (start, end) in &self.runs {
            put(&mut bytes, start - last);
            put(&mut bytes, end - start);
            last = *end;
        }
        bytes
    }

    /// `None`: these bytes were not made by [`Settled::encode`].
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut settled = Self::below(take(&mut bytes)?);
        let mut last = settled.gap;
        while !bytes.is_empty() {
            let start = last.checked_add(take(&mut bytes)?)?;
            let end = start.checked_add(take(&mut bytes)?)?;
            settled.insert_all(start..end);
            last = end;
        }
        Some(settled)
    }
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow. Source: Protocol Buffers, "Encoding".
fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_offsets(
            start in 0_u64..50, ranges in vec((0_u64..250, 0_u64..12), 0..60), within in (0_u64..300, 0_u64..300),
        ) {
            let (mut settled, mut set) = (Settled::below(start), (0..start).collect::<BTreeSet<u64>>());
            for (from, count) in ranges {
                settled.insert_all(from..from + count);
                set.extend(from..from + count);
                prop_assert_eq!(settled.gap(), (0..).find(|offset| !set.contains(offset)).unwrap());
            }
            prop_assert!(settled.missing(0..400).eq((0..400).filter(|offset| !set.contains(offset))));
            let missing: Vec<u64> = settled.missing(within.0..within.1).collect();
            prop_assert_eq!(missing, (within.0..within.1).filter(|offset| !set.contains(offset)).collect::<Vec<_>>());
            // Runs are as few as they can be, so that equal sets are equal.
            let runs = set.iter().filter(|offset| !set.contains(&(**offset + 1))).count();
            prop_assert!(settled.runs.len() <= runs);
            prop_assert_eq!(Settled::decode(&settled.encode()), Some(settled));
        }

        #[test]
        fn decodes_anything_without_a_panic(bytes in vec(any::<u8>(), 0..40)) {
            let _: Option<Settled> = Settled::decode(&bytes);
        }
    }

    #[test]
    fn a_few_old_gaps_cost_a_few_bytes() {
        let mut settled = Settled::below(1_000_000);
        settled.insert_all(1_000_001..1_500_000);
        settled.insert_all(1_500_001..9_000_000);
        assert!(settled.encode().len() <= 12, "{:?}", settled.encode());
    }
}
