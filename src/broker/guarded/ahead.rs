//! What a drain has read and is to publish next, and how much of it goes at a time.

use std::time::Duration;

use crate::broker::{BatchMax, Deliveries};

/// Most that is published together. A batch is read and another one settled meanwhile: so many times three are out.
pub(super) const COUNT_MAX: usize = 32 * 1024;
const BYTES_MAX: usize = 8 << 20;
/// Fewest that a system is measured by.
const COUNT_MIN: usize = 256;
const COUNT_FIRST: usize = 1024;
/// How long a system is to take for what is published together: long beside the way there and back, which nothing fills,
/// and short beside what a publish may take and what comes twice should the process end.
const AIM: Duration = Duration::from_millis(100);

/// Messages that were read, in order.
#[derive(Debug)]
pub(super) struct Ahead {
    deliveries: Deliveries,
    bytes: usize,
}

impl Ahead {
    pub(super) fn none() -> Self {
        Self { deliveries: Deliveries::none(), bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// What is still to be read, to have so many; `None`: nothing.
    pub(super) fn room(&self, count: usize) -> Option<BatchMax> {
        let room = BatchMax {
            count: count.saturating_sub(self.deliveries.len()),
            bytes: BYTES_MAX.saturating_sub(self.bytes),
        };
        (room.count > 0 && room.bytes > 0).then_some(room)
    }

    /// Puts more behind. What comes from another reader is given back: it has an order of its own.
    pub(super) fn add(&mut self, more: Deliveries) -> Result<(), Deliveries> {
        let bytes = size(&more);
        self.deliveries.append(more)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Takes the first away.
    pub(super) fn take(&mut self, count: usize) -> Deliveries {
        let taken = self.deliveries.take_front(count);
        self.bytes = if self.is_empty() { 0 } else { self.bytes.saturating_sub(size(&taken)) };
        taken
    }
}

fn size(of: &Deliveries) -> usize {
    of.as_slice().iter().map(|delivery| delivery.message.size()).sum()
}

/// How many messages are published together: what the system takes in [`AIM`].
#[derive(Debug)]
pub(super) struct Portion(usize);

impl Portion {
    pub(super) fn first() -> Self {
        Self(COUNT_FIRST)
    }

    pub(super) fn count(&self) -> usize {
        self.0
    }

    /// So many were taken in that time.
    pub(super) fn took(&mut self, count: usize, time: Duration) {
        let in_aim = count as f64 * AIM.as_secs_f64() / time.as_secs_f64().max(f64::EPSILON);
        // A float that is too large becomes the largest whole number.
        let wanted = (in_aim as usize).clamp(self.0 / 2, self.0 * 2).clamp(COUNT_MIN, COUNT_MAX);
        // A few that were there say nothing of how many could have been.
        if count >= self.0 || wanted < self.0 {
            self.0 = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Publishes again and again to a system that takes so many a second, and needs a moment for each call.
    fn settled(portion: &mut Portion, per_second: f64) -> usize {
        for _ in 0..20 {
            let time = Duration::from_millis(3) + Duration::from_secs_f64(portion.count() as f64 / per_second);
            portion.took(portion.count(), time);
        }
        portion.count()
    }

    #[test]
    fn a_portion_is_what_a_system_takes_in_a_tenth_of_a_second() {
        let mut portion = Portion::first();
        assert_eq!(settled(&mut portion, 1e9), COUNT_MAX);
        let some = settled(&mut portion, 20_000.0);
        assert!((1500..2000).contains(&some), "{some}");
        assert_eq!(settled(&mut portion, 10.0), COUNT_MIN);
        let many = settled(&mut portion, 200_000.0);
        assert!((15_000..20_000).contains(&many), "{many}");
    }

    #[test]
    fn few_that_were_there_make_no_portion_larger() {
        let mut portion = Portion::first();
        portion.took(10, Duration::ZERO);
        assert_eq!(portion.count(), COUNT_FIRST);
        portion.took(10, Duration::from_secs(1));
        assert_eq!(portion.count(), COUNT_FIRST / 2);
    }
}
