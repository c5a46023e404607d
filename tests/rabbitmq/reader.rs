//! Reading through the seam, without an engine.

use std::sync::Arc;

use helixmq::{
    broker::{BatchMax, Broker, Deliveries, Start, Subscribe, Subscription},
    message::{Address, Message, Settlement},
};

use crate::support::soon;

const ALL: BatchMax = BatchMax { count: usize::MAX, bytes: usize::MAX };

pub(crate) async fn subscribe(broker: &Arc<dyn Broker>, queue: &str) -> Box<dyn Subscription> {
    let request = Subscribe {
        from: Address::queue(queue),
        group: "".into(),
        start: Start::Earliest,
        prefetch: 100,
        workers: 1,
        aside: Default::default(),
    };
    soon("a subscription", broker.subscribe(request)).await.expect("a subscription")
}

/// The next deliveries, as they come.
pub(crate) async fn next(subscription: &mut Box<dyn Subscription>) -> Deliveries {
    soon("a delivery", subscription.next(ALL)).await.expect("a subscription that works").expect("and goes on")
}

/// Takes and accepts so many.
pub(crate) async fn take(broker: &Arc<dyn Broker>, queue: &str, count: usize) -> Vec<Arc<Message>> {
    let mut subscription = subscribe(broker, queue).await;
    let mut taken = Vec::new();
    while taken.len() < count {
        let deliveries = next(&mut subscription).await;
        taken.extend(deliveries.as_slice().iter().map(|delivery| Arc::clone(&delivery.message)));
        let how = vec![Settlement::Accept; deliveries.len()];
        deliveries.settle(how).await.expect("settled");
    }
    taken
}
