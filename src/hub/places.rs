//! Which lane a key, or a partition, is on. It is chosen when nothing of that key is out, the lane with the least to do,
//! and kept while something is: so a hundred keys use a hundred lanes, and each is on one of them at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use rustc_hash::FxHashMap;

use super::held::{Sequence, sequence};
use crate::{
    broker::{BrokerError, Deliveries, Delivery, Settler, Tag, TransactionError},
    message::{Address, FailedAttempt, Message, Settlement},
    route::Order,
};

/// The lanes of one route that keeps order, and what is on them.
#[derive(Debug)]
pub(super) struct Places {
    order: Order,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    taken: FxHashMap<Name, Place>,
    /// For each lane, how much is out on it.
    lanes: Vec<usize>,
    /// Where to begin to look, so that lanes with equally little to do take turns.
    turn: usize,
    /// The one that was made last: deliveries that share one can be joined.
    settler: Weak<PlacedSettler>,
}

/// What stays on its lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Sequence(Sequence),
    /// It has no order.
    One(Tag),
}

#[derive(Debug)]
struct Place {
    lane: usize,
    out: usize,
}

impl Places {
    pub(super) fn new(order: Order, lanes: usize) -> Self {
        let inner =
            Inner { taken: FxHashMap::default(), lanes: vec![0; lanes.max(1)], turn: 0, settler: Weak::default() };
        Self { order, inner: Mutex::new(inner) }
    }

    /// The lane for a delivery, which is out on it from here on.
    pub(super) fn place(&self, delivery: &Delivery) -> usize {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let place = inner.taken.entry(self.name(delivery)).or_insert_with(|| {
            let lane = least(&inner.lanes, inner.turn);
            inner.turn = lane + 1;
            Place { lane, out: 0 }
        });
        place.out += 1;
        if let Some(out) = inner.lanes.get_mut(place.lane) {
            *out += 1;
        }
        place.lane
    }

    /// The same deliveries, of which this is told when they end.
    pub(super) fn settled(self: &Arc<Self>, deliveries: Deliveries) -> Deliveries {
        deliveries.settled_by(|_, inner| {
            let last = &mut self.lock().settler;
            if let Some(same) = last.upgrade().filter(|settler| Arc::ptr_eq(&settler.inner, &inner)) {
                return same;
            }
            let settler = Arc::new(PlacedSettler { inner, places: Arc::clone(self) });
            *last = Arc::downgrade(&settler);
            settler
        })
    }

    fn name(&self, delivery: &Delivery) -> Name {
        sequence(self.order, delivery).map_or(Name::One(delivery.tag), Name::Sequence)
    }

    fn ended(&self, names: impl IntoIterator<Item = Name>) {
        let mut inner = self.lock();
        for name in names {
            let Some(place) = inner.taken.get_mut(&name) else { continue };
            place.out -= 1;
            let (lane, is_free) = (place.lane, place.out == 0);
            if is_free {
                inner.taken.remove(&name);
            }
            if let Some(out) = inner.lanes.get_mut(lane) {
                *out = out.saturating_sub(1);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lane with the least to do; of several the first from `turn` on.
fn least(lanes: &[usize], turn: usize) -> usize {
    let mut best = (usize::MAX, 0);
    for step in 0..lanes.len() {
        let lane = (turn + step) % lanes.len();
        let out = lanes.get(lane).copied().unwrap_or(usize::MAX);
        if out == 0 {
            return lane;
        }
        if out < best.0 {
            best = (out, lane);
        }
    }
    best.1
}

/// Settles, and says that the place is free again.
#[derive(Debug)]
struct PlacedSettler {
    inner: Arc<dyn Settler>,
    places: Arc<Places>,
}

impl PlacedSettler {
    fn names<'a>(&self, deliveries: impl Iterator<Item = &'a Delivery>) -> Vec<Name> {
        deliveries.map(|delivery| self.places.name(delivery)).collect()
    }
}

#[async_trait]
impl Settler for PlacedSettler {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let names = self.names(settled.iter().map(|(delivery, _)| delivery));
        let result = self.inner.settle(settled).await;
        self.places.ended(names);
        result
    }

    async fn transact(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        self.inner.transact(published, settled).await?;
        self.places.ended(self.names(settled.iter().map(|(delivery, _)| *delivery)));
        Ok(())
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        self.inner.count_attempt(delivery, failure).await
    }

    fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        self.inner.lost(deliveries)
    }

    fn release(&self, released: Vec<Delivery>) {
        let names = self.names(released.iter());
        self.inner.release(released);
        self.places.ended(names);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Position;

    fn delivery(tag: Tag, key: Option<&str>) -> Delivery {
        let key = key.map(|key| key.to_owned().into());
        Delivery {
            message: Arc::new(Message { key, ..Message::new("test", "", 0) }),
            tag,
            attempt: 1,
            topic: Some(if tag.is_multiple_of(2) { "even" } else { "odd" }.into()),
            position: Some(Position { partition: 0, offset: tag }),
            count: Default::default(),
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_key_keeps_its_lane_while_something_of_it_is_out() {
        let places = Places::new(Order::Key, 3);
        let lane = |tag, key| places.place(&delivery(tag, Some(key)));
        assert_eq!([lane(0, "a"), lane(1, "b"), lane(2, "a"), lane(3, "c")], [0, 1, 0, 2]);
        // The one with the least to do.
        assert_eq!(lane(4, "d"), 1);
        let end = |key: &str| places.ended([Name::Sequence(Sequence::Key(key.to_owned().into()))]);
        end("a");
        assert_eq!(lane(5, "a"), 0, "one of them is still out");
        ["a", "a", "c"].into_iter().for_each(end);
        assert_eq!([lane(6, "x"), lane(7, "a"), lane(8, "b")], [2, 0, 1]);
    }

    #[test]
    fn what_has_no_key_goes_where_least_is_to_do() {
        let places = Places::new(Order::Key, 2);
        assert_eq!([0, 1, 2].map(|tag| places.place(&delivery(tag, Some("busy")))), [0; 3]);
        assert_eq!([3, 4, 5, 6].map(|tag| places.place(&delivery(tag, None))), [1, 1, 1, 0]);
        places.ended((3..6).map(Name::One));
        assert_eq!(places.place(&delivery(7, None)), 1);
        assert_eq!(places.lock().taken.len(), 3);
    }

    #[test]
    fn partitions_of_different_topics_are_different() {
        let places = Places::new(Order::Partition, 2);
        assert_eq!([0, 1, 2, 3].map(|tag| places.place(&delivery(tag, None))), [0, 1, 0, 1]);
    }
}
