//! Chance that can be repeated: everything random in these tests comes from one number.

use std::io::Write;

/// Names the number to begin with; one is made where it is not set.
const SEED: &str = "HELIXMQ_CRASH_SEED";

/// A row of numbers that follows from its first. Source: SplitMix64, Vigna 2015.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

/// The number that everything in a test follows from, printed past the capture of test output, so that it is in the log
/// of every run.
pub(crate) fn seed(test: &str) -> u64 {
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{SEED} is {text:?}, which is no number")),
        Err(_) => helixmq::message::random64() >> 32,
    };
    say(&format!("{test}: {SEED}={seed}"));
    seed
}

/// Prints a line past the capture of test output.
pub(crate) fn say(line: &str) {
    // Nobody listens: nothing to be done about it.
    writeln!(std::io::stderr(), "{line}").ok();
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another row, that follows from this one.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From `from` up to and without `to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from).max(1)
    }

    /// Yes, once in so many times.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.between(0, times) == 0
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

#[test]
fn the_same_seed_gives_the_same_row() {
    let row = |seed| {
        let mut random = Random::new(seed);
        (random.next(), random.between(5, 9), random.bytes(11), random.fork().next())
    };
    assert_eq!(row(7), row(7));
    assert_ne!(row(7), row(8));
    assert!((5..9).contains(&row(7).1) && row(7).2.len() == 11);
}
