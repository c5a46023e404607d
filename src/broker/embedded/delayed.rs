//! What waits for its time: found by when it is due, and by its number for people who look.

use std::collections::{BTreeMap, BTreeSet};

use super::clock::Tick;

/// Values with a number (arrival or offset) and a time before which they stay here.
#[derive(Debug)]
pub(super) struct Delayed<T> {
    due: BTreeSet<(Tick, u64)>,
    values: BTreeMap<u64, (Tick, T)>,
}

impl<T> Default for Delayed<T> {
    fn default() -> Self {
        Self { due: BTreeSet::new(), values: BTreeMap::new() }
    }
}

impl<T> Delayed<T> {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it is due before everything else here, so that whoever waits for that must wait less.
    pub(super) fn put(&mut self, number: u64, due: Tick, value: T) -> bool {
        let earliest = self.first_due().is_none_or(|first| due < first);
        self.due.insert((due, number));
        self.values.insert(number, (due, value));
        earliest
    }

    pub(super) fn first_due(&self) -> Option<Tick> {
        self.due.first().map(|&(due, _)| due)
    }

    /// Takes one whose time has come.
    pub(super) fn pop_due(&mut self, now: Tick) -> Option<(u64, T)> {
        let &(due, number) = self.due.first().filter(|(due, _)| *due <= now)?;
        self.due.remove(&(due, number));
        self.values.remove(&number).map(|(_, value)| (number, value))
    }

    /// Takes the one with the lowest number.
    pub(super) fn pop_oldest(&mut self) -> Option<T> {
        let (number, (due, value)) = self.values.pop_first()?;
        self.due.remove(&(due, number));
        Some(value)
    }

    /// Those with a higher number than `number`, in order.
    pub(super) fn beyond(&self, number: u64) -> impl Iterator<Item = &T> {
        self.values.range(number.saturating_add(1)..).map(|(_, (_, value))| value)
    }
}
