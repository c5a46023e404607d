//! Reading without consuming.

use std::time::Duration;

use helixmq::{
    broker::{BrokerError, BrowseAt, Page, Start},
    message::{Address, Message, now_ms},
};

use crate::system::*;

const EARLIEST: BrowseAt = BrowseAt::Start(Start::Earliest);

fn shown(page: &Page) -> Vec<String> {
    page.items.iter().map(|item| name(&item.message)).collect()
}

async fn places(at: &At) -> Vec<Address> {
    if !at.claims("browse", |can| can.browse) {
        for place in at.one_of_each(Duration::from_secs(30)).await {
            let refused = at.browse(&place, EARLIEST, 1).await;
            assert!(matches!(refused, Err(BrokerError::Unsupported { .. })), "{refused:?}");
        }
        return Vec::new();
    }
    at.one_of_each(Duration::from_secs(600)).await
}

pub(crate) async fn shows_all_pages_and_follows(system: &dyn System) {
    let at = At::new(system).await;
    for place in places(&at).await {
        at.publish(&place, numbered(0..25)).await;
        let (mut all, mut cursor) = (Vec::new(), EARLIEST);
        for expected in [10, 10, 5, 0] {
            let page = at.browse(&place, cursor, 10).await.unwrap();
            assert_eq!((page.items.len(), page.total), (expected, 25), "{place}");
            all.extend(shown(&page));
            cursor = BrowseAt::Cursor(page.next);
        }
        assert_eq!(all, number_names(0..25), "{place}");
        at.publish(&place, numbered(25..27)).await;
        let more = at.browse(&place, cursor, 10).await.unwrap();
        assert_eq!((shown(&more), more.total), (number_names(25..27), 27), "{place}");
        let newest = at.browse(&place, BrowseAt::Start(Start::Latest), 10).await.unwrap();
        assert!(newest.items.is_empty(), "{place}");
        // Nothing of this was consumed.
        assert_eq!(at.read(&place).await.consume(27).await, number_names(0..27), "{place}");
    }
}

pub(crate) async fn keeps_a_cursor_while_messages_are_consumed(system: &dyn System) {
    let at = At::new(system).await;
    for place in places(&at).await {
        at.publish(&place, numbered(0..20)).await;
        let page = at.browse(&place, EARLIEST, 5).await.unwrap();
        let mut reader = at.read(&place).await;
        accept(reader.take(12).await).await;
        let next = at.browse(&place, BrowseAt::Cursor(page.next), 100).await.unwrap();
        let from = if place.kind == helixmq::message::Kind::Queue { 12 } else { 5 };
        assert_eq!(shown(&next), number_names(from..20), "{place}");
    }
}

pub(crate) async fn shows_a_queue_in_the_order_of_arrival_wherever_messages_are(system: &dyn System) {
    let at = At::new(system).await;
    let Some(queue) = places(&at).await.into_iter().find(|place| place.kind == helixmq::message::Kind::Queue) else {
        return;
    };
    at.publish(&queue, numbered(0..2)).await;
    let mut reader = at.read(&queue).await;
    let mut out = reader.take(2).await;
    settle(out.take_front(1), redeliver(Duration::from_secs(60), 1)).await;
    let delayed = Message { not_before: Some(now_ms() + 60_000), ..message("2") };
    let urgent = Message { priority: 9, ..message("4") };
    at.publish(&queue, [delayed, message("3"), urgent, message("5")]).await;
    let page = at.browse(&queue, EARLIEST, 100).await.unwrap();
    assert_eq!((shown(&page), page.total), (number_names(0..6), 6));
    assert_eq!(at.depth(&queue), (3, 2, 1));
    drop(out);
    assert_eq!(shown(&at.browse(&queue, EARLIEST, 4).await.unwrap()), number_names(0..4));
}

pub(crate) async fn refuses_a_cursor_that_is_none(system: &dyn System) {
    let at = At::new(system).await;
    for place in places(&at).await {
        let refused = at.browse(&place, BrowseAt::Cursor("not a cursor".into()), 1).await;
        assert!(matches!(refused, Err(BrokerError::Invalid(_))), "{place}: {refused:?}");
    }
}
