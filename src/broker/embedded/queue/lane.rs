//! The messages of one priority, in the order of arrival.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{broker::embedded::tries::Tries, message::Message};

/// Messages a chunk. Growing or shrinking a long lane moves one chunk, never the lane.
const CHUNK: usize = 512;

/// One message in a queue, wherever in it.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) message: Arc<Message>,
    /// Counted up from 1; a message keeps it until it is gone.
    pub(super) arrival: u64,
    pub(super) tries: Tries,
    pub(super) bytes: u32,
}

/// A first-in, first-out list that takes messages back at their old place.
#[derive(Debug, Default)]
pub(super) struct Lane {
    chunks: VecDeque<VecDeque<Item>>,
    /// Given back, or due after a delay: few, and mostly older than everything in `chunks`.
    returned: BTreeMap<u64, Item>,
}

impl Lane {
    pub(super) fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.chunks.front().is_none_or(VecDeque::is_empty)
    }

    /// Adds the newest.
    pub(super) fn push(&mut self, item: Item) {
        match self.chunks.back_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => chunk.push_back(item),
            None => self.chunks.push_back(VecDeque::from([item])),
        }
    }

    /// Puts one back where its arrival says.
    pub(super) fn give_back(&mut self, item: Item) {
        self.returned.insert(item.arrival, item);
    }

    /// The oldest.
    pub(super) fn front(&self) -> Option<&Item> {
        if self.returned_is_older() {
            self.returned.first_key_value().map(|(_, item)| item)
        } else {
            self.chunks.front().and_then(VecDeque::front)
        }
    }

    /// Takes the oldest.
    pub(super) fn pop(&mut self) -> Option<Item> {
        if self.returned_is_older() {
            return self.returned.pop_first().map(|(_, item)| item);
        }
        let chunk = self.chunks.front_mut()?;
        let item = chunk.pop_front();
        // The last chunk stays for what comes next.
        if chunk.is_empty() && self.chunks.len() > 1 {
            self.chunks.pop_front();
            if self.chunks.len() == 1 {
                self.chunks.shrink_to(4);
            }
        }
        item
    }

    /// Those that arrived after `arrival`: first the given back, then the others, each in order.
    pub(super) fn beyond(&self, arrival: u64) -> (impl Iterator<Item = &Item>, impl Iterator<Item = &Item>) {
        let returned = self.returned.range(arrival.saturating_add(1)..).map(|(_, item)| item);
        let newer = |chunk: &VecDeque<Item>| chunk.back().is_none_or(|item| item.arrival <= arrival);
        let first = self.chunks.partition_point(newer);
        let fresh = self.chunks.range(first..).flat_map(move |chunk| {
            let from = chunk.partition_point(|item| item.arrival <= arrival);
            chunk.range(from..)
        });
        (returned, fresh)
    }

    fn returned_is_older(&self) -> bool {
        let Some((returned, _)) = self.returned.first_key_value() else { return false };
        self.chunks.front().and_then(VecDeque::front).is_none_or(|fresh| *returned < fresh.arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(arrival: u64) -> Item {
        Item { message: Arc::default(), arrival, tries: Tries::first(), bytes: 0 }
    }

    #[test]
    fn gives_the_order_of_arrival_whatever_came_back_in_between() {
        let mut lane = Lane::default();
        (1..=2000).for_each(|arrival| lane.push(item(arrival)));
        let out: Vec<Item> = std::iter::from_fn(|| lane.pop()).take(700).collect();
        // Given back out of order, and one that was delayed long ago.
        out.into_iter().rev().filter(|item| item.arrival % 3 == 0).for_each(|item| lane.give_back(item));
        let arrivals: Vec<u64> = std::iter::from_fn(|| lane.pop()).map(|item| item.arrival).collect();
        let expected: Vec<u64> = (1..=700).filter(|n| n % 3 == 0).chain(701..=2000).collect();
        assert_eq!(arrivals, expected);
        assert!(lane.is_empty() && lane.chunks.len() == 1);
    }

    #[test]
    fn looks_beyond_an_arrival_that_is_gone() {
        let mut lane = Lane::default();
        (1..=2000).for_each(|arrival| lane.push(item(arrival)));
        (0..1500).for_each(|_| drop(lane.pop()));
        let (_, fresh) = lane.beyond(10);
        assert_eq!(fresh.map(|item| item.arrival).next(), Some(1501));
        let (_, fresh) = lane.beyond(1700);
        assert_eq!(fresh.count(), 300);
    }
}
