//! What the lanes of a route are doing, for whoever waits for their end and has to say what for.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many lanes are at each step of a batch.
#[derive(Debug, Default)]
pub(super) struct Doing {
    handling: AtomicUsize,
    publishing: AtomicUsize,
    settling: AtomicUsize,
}

/// A step of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Handling,
    /// Results, or dead letters.
    Publishing,
    Settling,
}

/// A lane is at a step until this is dropped.
#[derive(Debug)]
pub(super) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Doing {
    /// A lane begins one.
    pub(super) fn begin(&self, step: Step) -> Busy<'_> {
        let count = self.of(step);
        count.fetch_add(1, Relaxed);
        Busy(count)
    }

    fn of(&self, step: Step) -> &AtomicUsize {
        match step {
            Step::Handling => &self.handling,
            Step::Publishing => &self.publishing,
            Step::Settling => &self.settling,
        }
    }

    /// How many lanes wait for their handler.
    pub(super) fn handling(&self) -> usize {
        self.handling.load(Relaxed)
    }

    /// In words; `None`: nothing is in the middle of anything.
    pub(super) fn text(&self) -> Option<String> {
        let steps = [
            (Step::Handling, "in its handler"),
            (Step::Publishing, "publishing what came of a batch"),
            (Step::Settling, "settling a batch"),
        ];
        let busy: Vec<String> = steps
            .into_iter()
            .map(|(step, text)| (self.of(step).load(Relaxed), text))
            .filter(|(count, _)| *count > 0)
            .map(|(count, text)| format!("{count} {text}"))
            .collect();
        (!busy.is_empty()).then(|| busy.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_lanes_are_at() {
        let doing = Doing::default();
        assert_eq!(doing.text(), None);
        let (one, other) = (doing.begin(Step::Handling), doing.begin(Step::Settling));
        let third = doing.begin(Step::Handling);
        assert_eq!(doing.text().as_deref(), Some("2 in its handler, 1 settling a batch"));
        drop((one, third));
        assert_eq!((doing.text().as_deref(), doing.handling()), (Some("1 settling a batch"), 0));
        drop(other);
        assert_eq!(doing.text(), None);
    }
}
