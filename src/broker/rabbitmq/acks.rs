//! Which deliveries of a channel were settled, and with how few acknowledgements the server can be told. Pure.
//!
//! One acknowledgement of many (`multiple`) covers everything up to a tag, so it can only be used up to the oldest delivery
//! that is still out. What was settled behind that one is told on its own, but not at once: most often the oldest follows
//! within the same moment, and one frame says it all.

use std::collections::VecDeque;

use crate::broker::Tag;

/// What to tell the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Everything up to this delivery.
    pub(super) up_to: Option<Tag>,
    /// These as well.
    pub(super) each: Vec<Tag>,
}

/// The deliveries of a channel, from the oldest that is out.
#[derive(Debug)]
pub(super) struct Acks {
    /// Tag of the first mark.
    first: Tag,
    marks: VecDeque<Mark>,
    /// How many are settled, and the server does not know.
    waiting: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Out,
    /// Settled, and not told.
    Waiting,
    Told,
}

impl Default for Acks {
    fn default() -> Self {
        Self { first: 1, marks: VecDeque::new(), waiting: 0 }
    }
}

impl Acks {
    /// Deliveries came, up to this one. Tags of a channel begin with 1, and have no gaps.
    pub(super) fn arrived(&mut self, tag: Tag) {
        let next = self.first + self.marks.len() as u64;
        for _ in next..=tag {
            self.marks.push_back(Mark::Out);
        }
    }

    /// It was settled: the server may forget it.
    pub(super) fn settled(&mut self, tag: Tag) {
        if let Some(mark) = self.mark(tag).filter(|mark| **mark == Mark::Out) {
            *mark = Mark::Waiting;
            self.waiting += 1;
        }
    }

    /// The server was told of it in another way.
    pub(super) fn told(&mut self, tag: Tag) {
        if let Some(mark) = self.mark(tag) {
            let was = std::mem::replace(mark, Mark::Told);
            self.waiting -= usize::from(was == Mark::Waiting);
        }
    }

    /// What can be told in one frame; and everything, once as many as `waiting_max` would wait.
    pub(super) fn tell(&mut self, waiting_max: usize) -> Told {
        let mut told = Told::default();
        while let Some(mark) = self.marks.front().filter(|mark| **mark != Mark::Out) {
            if *mark == Mark::Waiting {
                told.up_to = Some(self.first);
                self.waiting -= 1;
            }
            self.marks.pop_front();
            self.first += 1;
        }
        if self.waiting > 0 && self.waiting >= waiting_max {
            for (tag, mark) in (self.first..).zip(&mut self.marks) {
                if *mark == Mark::Waiting {
                    *mark = Mark::Told;
                    told.each.push(tag);
                }
            }
            self.waiting = 0;
        }
        told
    }

    fn mark(&mut self, tag: Tag) -> Option<&mut Mark> {
        let place = tag.checked_sub(self.first)?;
        self.marks.get_mut(usize::try_from(place).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all_out(count: u64) -> Acks {
        let mut acks = Acks::default();
        acks.arrived(count);
        acks
    }

    #[test]
    fn says_a_batch_in_one_frame() {
        let mut acks = all_out(100);
        (1..=64).for_each(|tag| acks.settled(tag));
        assert_eq!(acks.tell(16), Told { up_to: Some(64), each: vec![] });
    }

    #[test]
    fn waits_for_the_oldest_unless_too_many_wait() {
        let mut acks = all_out(10);
        [3, 4].into_iter().for_each(|tag| acks.settled(tag));
        assert_eq!(acks.tell(3), Told::default());
        acks.settled(6);
        assert_eq!(acks.tell(3), Told { up_to: None, each: vec![3, 4, 6] });
        [1, 2, 5].into_iter().for_each(|tag| acks.settled(tag));
        assert_eq!(acks.tell(3), Told { up_to: Some(5), each: vec![] });
    }

    #[test]
    fn never_names_what_was_told_already() {
        let mut acks = all_out(3);
        acks.settled(2);
        acks.told(3);
        assert_eq!(acks.tell(1), Told { up_to: None, each: vec![2] });
        acks.settled(1);
        assert_eq!(acks.tell(1), Told { up_to: Some(1), each: vec![] });
        assert_eq!(acks.tell(0), Told::default());
        acks.arrived(4);
        acks.settled(4);
        assert_eq!(acks.tell(1), Told { up_to: Some(4), each: vec![] });
    }

    proptest! {
        #[test]
        fn tells_each_once_and_only_what_was_settled(order in Just((1..=40_u64).collect::<Vec<_>>()).prop_shuffle(), waiting_max in 1..20_usize, count in 0..40_usize) {
            let mut acks = all_out(40);
            let (mut settled, mut server) = (BTreeSet::new(), (1..=40).collect::<BTreeSet<u64>>());
            for tag in order.into_iter().take(count) {
                acks.settled(tag);
                settled.insert(tag);
                let told = acks.tell(waiting_max);
                if let Some(up_to) = told.up_to {
                    prop_assert!(server.contains(&up_to));
                    server.retain(|tag| *tag > up_to);
                }
                for tag in told.each {
                    prop_assert!(server.remove(&tag));
                }
                let known: BTreeSet<u64> = (1..=40).filter(|tag| !server.contains(tag)).collect();
                prop_assert!(known.is_subset(&settled));
                prop_assert!(settled.len() - known.len() < waiting_max);
            }
            acks.tell(0);
            prop_assert_eq!(acks.waiting, 0);
        }
    }
}
