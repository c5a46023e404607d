//! What survives the system's end: in good order, and killed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use helixmq::{
    broker::{Broker, Deliveries, QueueSettings, TopicSettings},
    message::{Address, Message, Settlement, now_ms},
};

use crate::system::*;

const LEASE: Duration = Duration::from_secs(600);

/// As configured again after a restart.
async fn declare(broker: &Arc<dyn Broker>, at: &At, place: &Address) {
    use helixmq::{broker::Declaration, message::Kind};
    let name = Arc::clone(&place.name);
    let declaration = match place.kind {
        Kind::Queue => {
            Declaration::Queue(name, QueueSettings { storage: at.storage, lease: LEASE, ..QueueSettings::default() })
        }
        Kind::Topic => {
            let settings =
                TopicSettings { storage: at.storage, partitions: 1, lease: LEASE, ..TopicSettings::default() };
            Declaration::Topic(name, settings)
        }
    };
    broker.declare(&[declaration]).await.unwrap();
}

/// By name, with the attempt.
fn tried(deliveries: &Deliveries) -> BTreeMap<String, u32> {
    names(deliveries).into_iter().zip(attempts(deliveries)).collect()
}

pub(crate) async fn keeps_everything_over_a_restart(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("durable", |can| can.durable) {
        return;
    }
    let places = at.one_of_each(LEASE).await;
    let mut whole = message("7");
    whole.headers.append("tenant", "acme");
    whole.key = Some("key".into());
    whole.content_type = Some("text/plain".into());
    whole.correlation_id = Some("correlation".into());
    whole.reply_to = Some("answers".into());
    whole.expires_at = Some(now_ms() + 1_000_000);
    whole.retries_max = Some(2);
    whole.extra_mut().subject = Some("subject".into());
    let later = Message { not_before: Some(now_ms() + 3_600_000), ..message("later") };
    for place in &places {
        at.publish(place, numbered(0..7)).await;
        at.publish(place, [whole.clone(), later.clone()]).await;
        let mut reader = at.read(place).await;
        let mut taken = reader.take(5).await;
        accept(taken.take_front(1)).await;
        settle(taken.take_front(1), Settlement::DeadLetter { code: helixmq::message::ReasonCode::HandlerRejected })
            .await;
        settle(taken.take_front(1), redeliver(Duration::ZERO, 1)).await;
        // Out when it closes: goes back as the same attempt.
        std::mem::forget(taken);
    }
    let Some(broker) = system.restart(Arc::clone(&at.broker)).await else { panic!("durable, and cannot be restarted") };
    let at = At::on(system, broker);
    for place in &places {
        declare(&at.broker, &at, place).await;
        let mut reader = at.read(place).await;
        if !at.does("hand out suspects side by side") {
            let mut seen = BTreeMap::new();
            for _ in 0..6 {
                let one = reader.take(1).await;
                seen.insert(name(&one.as_slice()[0].message), attempts(&one)[0]);
                if one.as_slice()[0].message.id == whole.id {
                    assert_eq!(*one.as_slice()[0].message, whole, "{place}");
                }
                accept(one).await;
            }
            assert_eq!((seen.len(), seen["2"]), (6, 2), "{place}: {seen:?}");
            assert!(seen.values().all(|attempt| (1..=2).contains(attempt)), "{place}: {seen:?}");
            reader.expect_nothing().await;
            continue;
        }
        let taken = reader.take(6).await;
        let mut tried = tried(&taken);
        assert_eq!(tried.remove("2"), Some(2), "{place}");
        // What had been sent to the reader may count, where that alone does: RabbitMQ 4.3 knows what was given back untried.
        let most = if at.does("count only what was handed over") { 1 } else { 2 };
        assert!(tried.keys().eq(["3", "4", "5", "6", "7"]), "{place}: {tried:?}");
        assert!(tried.values().all(|attempt| (1..=most).contains(attempt)), "{place}: {tried:?}");
        let again = taken.as_slice().iter().find(|delivery| name(&delivery.message) == "2").unwrap();
        let first = again.failures[0].clone();
        assert_eq!(first, helixmq::message::FailedAttempt { at: first.at, ..failure(1) }, "{place}");
        let same = taken.as_slice().iter().find(|delivery| delivery.message.id == whole.id).unwrap();
        assert_eq!(*same.message, whole, "{place}");
        accept(taken).await;
        reader.expect_nothing().await;
        if at.does("bound what waits elsewhere") {
            assert_eq!(at.stats(place).delayed, 1, "{place}");
        }
    }
}

pub(crate) async fn uses_up_the_attempt_of_what_was_out_when_it_was_killed(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("durable", |can| can.durable) {
        return;
    }
    let places = at.one_of_each(LEASE).await;
    let mut out = Vec::new();
    for place in &places {
        at.publish(place, numbered(0..10)).await;
        let mut reader = at.read_at_most(place, 5).await;
        let mut taken = reader.take(5).await;
        taken.count_attempt(failure(1)).await.unwrap();
        let last = taken.take_front(4);
        // The last of them went back untried.
        drop(taken);
        out.push((reader, last));
    }
    // A release is not waited for: what is published after it is behind it.
    for place in &places {
        at.publish(place, numbered(10..11)).await;
    }
    let Some(broker) = system.after_a_kill(&at.broker).await else { panic!("durable, and cannot be killed") };
    drop(out);
    let at = At::on(system, broker);
    for place in &places {
        declare(&at.broker, &at, place).await;
        let mut reader = at.read(place).await;
        let taken = if at.does("hand out suspects side by side") {
            reader.take(11).await
        } else {
            // Each of the first is out alone.
            let mut tried = BTreeMap::new();
            for _ in 0..11 {
                let one = reader.take(1).await;
                tried.insert(name(&one.as_slice()[0].message), attempts(&one)[0]);
                accept(one).await;
            }
            let again = (0..11).map(|n| (n.to_string(), [3, 2, 2, 2, 2].get(n).copied().unwrap_or(1)));
            // The last of those that were out went back untried, and may count.
            assert!(
                again.clone().all(|(name, most)| (most.min(1)..=most).contains(&tried[&name])),
                "{place}: {tried:?}"
            );
            assert!(again.take(4).all(|(name, attempt)| tried[&name] == attempt), "{place}: {tried:?}");
            continue;
        };
        let expected = (0..11).map(|n| {
            (
                n.to_string(),
                match n {
                    0 => 3,
                    1..4 => 2,
                    4 if !at.does("count only what was handed over") => 2,
                    _ => 1,
                },
            )
        });
        assert_eq!(tried(&taken), expected.collect(), "{place}");
        for delivery in taken.as_slice() {
            assert_eq!(delivery.failures.len() as u32, delivery.attempt - 1, "{place}: each attempt has its end");
        }
        accept(taken).await;
    }
}

pub(crate) async fn tries_what_may_have_killed_it_apart(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("durable", |can| can.durable) || !at.does("try suspects apart") {
        return;
    }
    let places = at.one_of_each(LEASE).await;
    for place in &places {
        at.publish(place, numbered(0..20)).await;
    }
    let mut broker = Arc::clone(&at.broker);
    for kill in 0..3 {
        let now = At::on(system, Arc::clone(&broker));
        let mut out = Vec::new();
        for place in &places {
            declare(&broker, &at, place).await;
            let mut reader = now.read(place).await;
            // All that it would have out at a time.
            let mut taken = reader.batch(ALL).await;
            match kill {
                0 => assert_eq!(taken.len(), 20, "{place}"),
                // One by one, and any number of them side by side.
                1 => {
                    assert_eq!((taken.len(), names(&taken)), (1, number_names(0..1)), "{place}");
                    for _ in 0..4 {
                        let one = reader.batch(ALL).await;
                        assert_eq!((one.len(), attempts(&one)), (1, vec![2]), "{place}");
                        taken.append(one).unwrap();
                    }
                }
                // Of those that were out both times only one, and nothing that is behind the next of them.
                _ => {
                    for number in 0..4 {
                        assert_eq!((names(&taken), attempts(&taken)), (number_names(number..number + 1), vec![3]));
                        reader.expect_nothing().await;
                        accept(taken).await;
                        taken = reader.batch(ALL).await;
                    }
                    // The others as before: one by one, and side by side.
                    assert_eq!((names(&taken), attempts(&taken)), (number_names(4..5), vec![3]));
                    for number in 5..20 {
                        let one = reader.batch(ALL).await;
                        assert_eq!((names(&one), attempts(&one)), (number_names(number..number + 1), vec![2]));
                        taken.append(one).unwrap();
                    }
                }
            }
            out.push((reader, taken));
        }
        broker = system.after_a_kill(&broker).await.unwrap();
        drop(out);
    }
}

pub(crate) async fn reads_a_backlog_that_is_larger_than_its_memory(system: &dyn System) {
    const COUNT: usize = 30_000;
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        for chunk in (0..COUNT).collect::<Vec<_>>().chunks(1000) {
            at.publish(&place, numbered(chunk.iter().copied())).await;
        }
        let mut reader = at.read_at_most(&place, 4000).await;
        let mut seen = Vec::with_capacity(COUNT);
        while seen.len() < COUNT {
            let batch = reader.batch(helixmq::broker::BatchMax { count: 256, ..ALL }).await;
            seen.extend(names(&batch));
            accept(batch).await;
            // Something new while it is behind.
            if seen.len() % 1024 == 0 && seen.len() < COUNT {
                at.publish(&place, numbered(COUNT..COUNT + 1)).await;
            }
        }
        seen.truncate(COUNT);
        assert_eq!(seen, number_names(0..COUNT), "{place}");
    }
}
