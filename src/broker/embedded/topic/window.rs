//! Which offsets a group has settled: all below the first gap, and a bit each above it.

use std::{collections::VecDeque, ops::Range};

const BITS: u64 = u64::BITS as u64;

#[derive(Debug, Default)]
pub(super) struct Window {
    /// The first offset that is not settled: what a commit would say.
    gap: u64,
    /// Bits from `gap` rounded down to a word. Those below `gap` are set.
    words: VecDeque<u64>,
}

impl Window {
    pub(super) fn starting_at(gap: u64) -> Self {
        Self { gap, words: VecDeque::new() }
    }

    pub(super) fn is_settled(&self, offset: u64) -> bool {
        if offset < self.gap {
            return true;
        }
        let word = self.words.get(self.place(offset));
        word.is_some_and(|word| word >> (offset % BITS) & 1 == 1)
    }

    pub(super) fn settle(&mut self, offset: u64) {
        if offset < self.gap {
            return;
        }
        let place = self.place(offset);
        while self.words.len() <= place {
            // A first word begins with what was settled before the window reached here.
            let below = if self.words.is_empty() { (1 << (self.gap % BITS)) - 1 } else { 0 };
            self.words.push_back(below);
        }
        if let Some(word) = self.words.get_mut(place) {
            *word |= 1 << (offset % BITS);
        }
        if offset == self.gap {
            self.advance();
        }
    }

    pub(super) fn settle_all(&mut self, offsets: Range<u64>) {
        let above = self.words.front().is_some_and(|word| self.words.len() > 1 || word >> (self.gap % BITS) != 0);
        if offsets.start <= self.gap && !above {
            self.gap = self.gap.max(offsets.end);
            self.words.clear();
        } else {
            offsets.for_each(|offset| self.settle(offset));
        }
    }

    fn place(&self, offset: u64) -> usize {
        usize::try_from(offset / BITS - self.gap / BITS).unwrap_or(usize::MAX)
    }

    fn advance(&mut self) {
        while let Some(&word) = self.words.front() {
            let settled = u64::from(word.trailing_ones());
            self.gap = self.gap / BITS * BITS + settled;
            if settled < BITS {
                return;
            }
            self.words.pop_front();
        }
        // Nothing above the gap: whatever a long gap had cost goes back.
        if self.words.capacity() > 64 {
            self.words = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_settled_offsets(start in 0_u64..200, offsets in proptest::collection::vec(0_u64..200, 0..250)) {
            let mut window = Window::starting_at(start);
            let mut settled: BTreeSet<u64> = (0..start).collect();
            for offset in offsets {
                window.settle(start + offset);
                settled.insert(start + offset);
                let gap = (0..).find(|offset| !settled.contains(offset)).unwrap();
                prop_assert_eq!(window.gap, gap);
            }
            prop_assert!((0..600).all(|offset| window.is_settled(offset) == settled.contains(&offset)));
        }

        #[test]
        fn settling_a_range_is_settling_each(gap in 0_u64..200, single in 0_u64..400, from in 0_u64..300, count in 0_u64..200) {
            let (mut ranged, mut each) = (Window::starting_at(gap), Window::starting_at(gap));
            ranged.settle(single);
            each.settle(single);
            let from = from.max(gap);
            ranged.settle_all(from..from + count);
            (from..from + count).for_each(|offset| each.settle(offset));
            prop_assert!((0..600).all(|offset| ranged.is_settled(offset) == each.is_settled(offset)));
        }
    }
}
