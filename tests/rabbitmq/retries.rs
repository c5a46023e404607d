//! Attempts: exactly as many as allowed, however a message comes back, on queues that count and on those that do not.

use std::time::Duration;

use helixmq::{
    broker::rabbitmq::topology::QueueKind::{self, Classic, Quorum},
    handler::Call,
    message::{Address, Outcome, ReasonCode, Settlement},
};

use crate::{
    reader,
    server::Server,
    site::{Site, WORK, ids, letters},
    support::{
        eventually,
        ledger::send,
        proxy::{Cut, Proxy},
    },
};

/// Tries everything as often as it may, with these delays before the next attempt.
async fn tries_exactly_as_often_as_allowed(kind: QueueKind, delay_ms: u64) {
    let site = Site::new(&Server::shared(), kind).await;
    let delay = Some(Duration::from_millis(delay_ms));
    let retry = move |_: &Call<'_>| Outcome::Retry { reason: "not yet".into(), delay };
    let engine = site.engine(4, retry).await;
    let sent = send(&engine.broker, &Address::queue(WORK), 50).await;
    let last = async || {
        let calls = site.ledger.calls();
        (calls.len() == 50 && calls.values().all(|attempts| attempts.contains(&4))).then_some(())
    };
    eventually("all were tried as often as allowed", last).await;
    engine.stop().await;
    for (id, attempts) in site.ledger.calls() {
        assert_eq!(attempts, [1, 2, 3, 4], "{id} on {kind:?} after {delay_ms} ms");
    }
    let letters = letters(&site, 50).await;
    for (letter, message) in &letters {
        assert!(sent.contains(&message.id.to_string()));
        assert_eq!(letter.code, ReasonCode::HandlerRetryExhausted, "{letter:?}");
        let numbers: Vec<_> = letter.attempts.iter().map(|attempt| attempt.attempt).collect();
        assert_eq!(numbers, [1, 2, 3, 4], "{letter:?}");
    }
    assert!(site.accounts(&Default::default(), 4).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_exactly_as_often_as_allowed_over_retry_queues() {
    for kind in [Classic, Quorum] {
        tries_exactly_as_often_as_allowed(kind, 100).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_exactly_as_often_as_allowed_at_once() {
    for kind in [Classic, Quorum] {
        tries_exactly_as_often_as_allowed(kind, 0).await;
    }
}

/// What is out when a connection ends comes again: those that were being tried as their next attempt, the others as the
/// same.
async fn counts_only_what_was_being_tried(kind: QueueKind) {
    let server = Server::shared();
    let proxy = Proxy::start(server.amqp()).await;
    let site = Site::new(&server, kind).await.through(&proxy);
    let broker = site.broker_with_queues().await;
    let sent = send(&broker, &Address::queue(WORK), 20).await;
    let mut subscription = reader::subscribe(&broker, WORK).await;
    let mut out = Vec::new();
    while out.is_empty() {
        let max = helixmq::broker::BatchMax { count: 2, bytes: usize::MAX };
        let next = crate::support::soon("a delivery", subscription.next(max)).await.expect("works").expect("goes on");
        out.push(next);
    }
    let tried: Vec<_> = out[0].as_slice().iter().map(|delivery| delivery.message.id.clone()).collect();
    proxy.cut(Cut::Reset);
    let mut attempts = std::collections::BTreeMap::new();
    while attempts.len() < sent.len() {
        let next = reader::next(&mut subscription).await;
        attempts.extend(next.as_slice().iter().map(|one| (one.message.id.to_string(), one.attempt)));
        let how = vec![Settlement::Accept; next.len()];
        next.settle(how).await.expect("settled");
    }
    for (id, attempt) in &attempts {
        let was_tried = tried.iter().any(|one| one.to_string() == *id);
        assert_eq!(*attempt, if was_tried { 2 } else { 1 }, "{kind:?}: {id}, tried before: {was_tried}");
    }
    drop((out, subscription));
    crate::support::soon("the broker closes", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_only_what_was_being_tried_when_the_connection_ended_on_classic_queues() {
    counts_only_what_was_being_tried(Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_only_what_was_being_tried_when_the_connection_ended_on_quorum_queues() {
    counts_only_what_was_being_tried(Quorum).await;
}

/// Times that an engine stops.
const STOPS: u32 = 3;

/// What the server had sent ahead when the engine stopped in good order goes back to it. Servers count that, or flag it; the
/// attempt goes up by one for each stop then, at most, and only of what was sent ahead. Quorum queues know better from 4.3
/// on, where what is given back untried does not count.
async fn pays_at_most_one_attempt_for_a_stop(kind: QueueKind) {
    let server = Server::shared();
    let is_exact = kind == Quorum && server.management().version() >= (4, 3);
    let site = Site::new(&server, kind).await;
    let broker = site.broker_with_queues().await;
    let sent = send(&broker, &Address::queue(WORK), 200).await;
    drop(broker);
    for _ in 0..STOPS {
        let before = site.ledger.handled().len();
        let slowly = |_: &Call<'_>| {
            std::thread::sleep(Duration::from_millis(1));
            Outcome::Done(Vec::new())
        };
        let engine = site.engine(STOPS + 1, slowly).await;
        let some = async || (site.ledger.handled().len() > before || before == sent.len()).then_some(());
        eventually("something was handled", some).await;
        engine.stop().await;
    }
    let engine = site.handling().await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    engine.stop().await;
    let calls = site.ledger.calls();
    let most = if is_exact { 1 } else { STOPS + 1 };
    for (id, attempts) in &calls {
        assert!(matches!(attempts[..], [one] if one <= most), "{kind:?}: {id} was tried as {attempts:?}");
    }
    // As many as two lanes have sent ahead.
    let ahead = 2 * usize::from(site.settings.prefetch_count) * STOPS as usize;
    let paid = calls.values().filter(|attempts| **attempts != [1]).count();
    assert!(paid <= ahead, "{kind:?}: {paid} have paid, of at most {ahead} that were sent ahead");
    assert!(ids(&site.accounts(&sent, most).await).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pays_at_most_one_attempt_for_each_stop_in_good_order_on_classic_queues() {
    pays_at_most_one_attempt_for_a_stop(Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pays_at_most_one_attempt_for_each_stop_in_good_order_on_quorum_queues() {
    pays_at_most_one_attempt_for_a_stop(Quorum).await;
}
