//! What becomes of a delivery, on queues and topics alike.

use std::time::Duration;

use helixmq::{
    broker::QueueSettings,
    message::{ReasonCode, Settlement},
};
use tokio::time::Instant;

use crate::system::*;

const LEASE: Duration = Duration::from_secs(600);

pub(crate) async fn accepts_many_and_forgets_them(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..1000)).await;
        let mut reader = at.read(&place).await;
        let taken = reader.take(1000).await;
        assert_eq!(names(&taken), number_names(0..1000), "{place}");
        assert!(attempts(&taken).iter().all(|attempt| *attempt == 1), "{place}");
        accept(taken).await;
        drop(reader);
        at.read(&place).await.expect_nothing().await;
    }
}

pub(crate) async fn redelivers_what_was_dropped_unsettled_as_the_same_attempt(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..6)).await;
        let mut reader = at.read(&place).await;
        let first = reader.take(2).await;
        let second = reader.take(2).await;
        drop(first);
        drop(second);
        let again = reader.take(6).await;
        assert_eq!(names(&again), number_names(0..6), "{place}");
        assert_eq!(attempts(&again), [1; 6], "{place}");
        assert!(again.as_slice().iter().all(|delivery| delivery.failures.is_empty()), "{place}");
    }
}

pub(crate) async fn gives_back_what_a_settlement_leaves_out(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..5)).await;
        let mut reader = at.read(&place).await;
        let mut taken = reader.take(5).await;
        let front = taken.take_front(2);
        accept(front).await;
        let mut parts = taken.split(2, |delivery| usize::from(name(&delivery.message) == "3"));
        accept(parts.pop().unwrap()).await;
        drop(parts);
        assert_eq!(names(&reader.take(2).await), ["2", "4"], "{place}");
    }
}

pub(crate) async fn redelivers_what_was_released_after_its_time_as_the_same_attempt(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..3)).await;
        let mut reader = at.read(&place).await;
        let mut taken = reader.take(3).await;
        let begin = Instant::now();
        let later = taken.take_front(1);
        settle(later, Settlement::Release { after: Duration::from_secs(2) }).await;
        settle(taken, Settlement::Release { after: Duration::ZERO }).await;
        let again = reader.take(2).await;
        assert_eq!((names(&again), attempts(&again)), (number_names(1..3), vec![1, 1]), "{place}");
        let last = reader.take(1).await;
        assert_eq!((names(&last), attempts(&last)), (number_names(0..1), vec![1]), "{place}");
        assert!(begin.elapsed() >= Duration::from_secs(2), "{place}: came after {:?}", begin.elapsed());
    }
}

pub(crate) async fn redelivers_after_the_delay_with_what_went_wrong(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..2)).await;
        let mut reader = at.read(&place).await;
        let mut taken = reader.take(2).await;
        let (begin, why) = (Instant::now(), failure(1));
        let how = Settlement::Redeliver { after: Duration::from_secs(3), failure: Box::new(why.clone()) };
        settle(taken.take_front(1), how).await;
        accept(taken).await;
        // It does not hold up what comes after it.
        at.publish(&place, numbered(2..4)).await;
        assert_eq!(reader.consume(2).await, number_names(2..4), "{place}");
        let again = reader.take(1).await;
        assert!(begin.elapsed() >= Duration::from_secs(3), "{place}: came after {:?}", begin.elapsed());
        assert_eq!((names(&again), attempts(&again)), (number_names(0..1), vec![2]), "{place}");
        assert_eq!(again.as_slice()[0].failures, [why], "{place}");
        accept(again).await;
        reader.expect_nothing().await;
    }
}

pub(crate) async fn delivers_what_came_back_ahead_of_what_is_new(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..3)).await;
        let mut reader = at.read(&place).await;
        settle(reader.take(2).await, redeliver(Duration::ZERO, 1)).await;
        let again = reader.take(3).await;
        assert_eq!((names(&again), attempts(&again)), (number_names(0..3), vec![2, 2, 1]), "{place}");
    }
}

pub(crate) async fn counts_every_attempt_exactly(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, [message("never works")]).await;
        let mut reader = at.read(&place).await;
        for attempt in 1..=20 {
            let taken = reader.take(1).await;
            let delivery = &taken.as_slice()[0];
            assert_eq!(delivery.attempt, attempt, "{place}");
            let failed: Vec<u32> = delivery.failures.iter().map(|failure| failure.attempt).collect();
            assert_eq!(failed, (1..attempt).collect::<Vec<_>>(), "{place}");
            settle(taken, redeliver(Duration::from_millis(u64::from(attempt % 3)), attempt)).await;
            // Being given back in between counts nothing.
            drop(reader.take(1).await);
        }
    }
}

pub(crate) async fn counts_an_attempt_made_without_giving_it_back(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..2)).await;
        let mut reader = at.read(&place).await;
        let mut taken = reader.take(2).await;
        taken.count_attempt(failure(1)).await.unwrap();
        assert_eq!(attempts(&taken), [2, 1], "{place}");
        drop(taken);
        let again = reader.take(2).await;
        assert_eq!((names(&again), attempts(&again)), (number_names(0..2), vec![2, 1]), "{place}");
        assert_eq!(again.as_slice()[0].failures.len(), 1, "{place}");
    }
}

pub(crate) async fn forgets_a_dead_letter_and_counts_it(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..2)).await;
        let mut reader = at.read(&place).await;
        settle(reader.take(2).await, Settlement::DeadLetter { code: ReasonCode::HandlerRejected }).await;
        assert_eq!(at.stats(&place).dead_lettered, 2, "{place}");
        reader.expect_nothing().await;
    }
}

pub(crate) async fn has_no_more_out_than_its_prefetch(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..10)).await;
        let mut reader = at.read_at_most(&place, 4).await;
        let mut taken = reader.take(4).await;
        reader.expect_nothing().await;
        // Each way of settling makes room for one.
        accept(taken.take_front(1)).await;
        assert_eq!(names(&reader.take(1).await), number_names(4..5), "{place}");
        // That one was dropped at once: it comes again.
        assert_eq!(reader.consume(1).await, number_names(4..5), "{place}");
        settle(taken.take_front(1), redeliver(Duration::from_secs(60), 1)).await;
        assert_eq!(reader.consume(1).await, number_names(5..6), "{place}");
        drop(taken);
        // Who waits for room is told when there is some.
        let mut full = reader.take(4).await;
        let settled = full.take_front(1);
        let (next, ()) = tokio::join!(reader.take(1), async {
            tokio::task::yield_now().await;
            accept(settled).await;
        });
        assert_eq!(names(&next), number_names(8..9), "{place}");
    }
}

pub(crate) async fn wakes_who_waits_when_a_redelivery_is_due_earlier(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..1)).await;
        let mut reader = at.read(&place).await;
        let taken = reader.take(1).await;
        let (again, ()) = tokio::join!(reader.take(1), async {
            tokio::task::yield_now().await;
            settle(taken, redeliver(Duration::from_secs(1), 1)).await;
        });
        assert_eq!(attempts(&again), [2], "{place}");
    }
}

pub(crate) async fn redelivers_as_the_next_attempt_when_a_lease_runs_out(system: &dyn System) {
    let at = At::new(system).await;
    let lease = Duration::from_secs(2);
    for place in at.one_of_each(lease).await {
        at.publish(&place, numbered(0..3)).await;
        let mut reader = at.read(&place).await;
        if reader.leased(&at).is_none() {
            return;
        }
        let begin = Instant::now();
        let stuck = reader.take(3).await;
        let again = reader.take(3).await;
        assert!(begin.elapsed() >= lease, "{place}: came after {:?}", begin.elapsed());
        assert_eq!((names(&again), attempts(&again)), (number_names(0..3), vec![2; 3]), "{place}");
        let failed: Vec<u32> = again.as_slice()[0].failures.iter().map(|failure| failure.attempt).collect();
        assert_eq!(failed, [1], "{place}");
        // What comes too late changes nothing.
        settle(stuck, redeliver(Duration::ZERO, 1)).await;
        assert_eq!(at.stats(&place).unsettled, 3, "{place}");
        accept(again).await;
        reader.expect_nothing().await;
    }
}

pub(crate) async fn hands_to_another_what_a_stuck_reader_holds(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(2)).await {
        at.publish(&place, numbered(0..3)).await;
        let mut stuck = at.read(&place).await;
        if stuck.leased(&at).is_none() {
            return;
        }
        let held = stuck.take(3).await;
        // Waits before anything is out of its own, and must still see the lease of another run out.
        let mut other = at.read(&place).await;
        drop(stuck);
        let again = other.take(3).await;
        assert_eq!((names(&again), attempts(&again)), (number_names(0..3), vec![2; 3]), "{place}");
        drop(held);
        accept(again).await;
        other.expect_nothing().await;
    }
}

pub(crate) async fn sees_a_lease_run_out_that_began_while_it_waited(system: &dyn System) {
    let at = At::new(system).await;
    let lease = Duration::from_secs(2);
    let Some(queue) = at.queue(QueueSettings { lease, ..QueueSettings::default() }).await else { return };
    let (mut stuck, mut waits) = (at.read_at_most(&queue, 1).await, at.read(&queue).await);
    if stuck.leased(&at).is_none() {
        return;
    }
    let (held, again, ()) = tokio::join!(stuck.take(1), waits.take(1), async {
        tokio::task::yield_now().await;
        // The one that waits longest gets it, and the other hears nothing of it.
        at.publish(&queue, numbered(0..1)).await;
    });
    let mut both = [attempts(&held), attempts(&again)].concat();
    both.sort_unstable();
    assert_eq!(both, [1, 2]);
}

pub(crate) async fn ends_each_lease_in_its_own_time(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(2)).await {
        at.publish(&place, numbered(0..1)).await;
        let mut reader = at.read(&place).await;
        if reader.leased(&at).is_none() {
            return;
        }
        let first = reader.take(1).await;
        for _ in 0..5 {
            reader.expect_nothing().await;
        }
        at.publish(&place, numbered(1..2)).await;
        let second = reader.take(1).await;
        let begin = Instant::now();
        assert_eq!(names(&reader.take(1).await), ["0"], "{place}");
        assert!(begin.elapsed() < Duration::from_millis(1500), "{place}: the first came after {:?}", begin.elapsed());
        // Dropped at once, it comes again until the other's lease ends.
        let next = reader.consume(1).await;
        assert_eq!((next, reader.consume(1).await), (number_names(0..1), number_names(1..2)), "{place}");
        let second_after = begin.elapsed().as_millis();
        // It began when the second was handed over, which is before that was written and the reader had it.
        assert!((1900..2500).contains(&second_after), "{place}: the second came after {second_after} ms");
        drop((first, second));
    }
}

pub(crate) async fn keeps_leases_while_there_are_signs_of_life(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(3)).await {
        at.publish(&place, numbered(0..2)).await;
        let mut reader = at.read(&place).await;
        let Some(keep_alive) = reader.leased(&at) else { return };
        let taken = reader.take(2).await;
        for _ in 0..100 {
            keep_alive.renew();
            // Less than the lease, each time; 20 s in all.
            reader.expect_nothing().await;
        }
        assert!(keep_alive.every().unwrap() <= Duration::from_secs(1), "{place}");
        accept(taken).await;
        reader.expect_nothing().await;
    }
}

pub(crate) async fn settles_what_outlives_its_subscription(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(LEASE).await {
        at.publish(&place, numbered(0..4)).await;
        let mut reader = at.read(&place).await;
        let mut taken = reader.take(4).await;
        drop(reader);
        accept(taken.take_front(3)).await;
        drop(taken);
        let mut next = at.read(&place).await;
        assert_eq!(next.consume(1).await, number_names(3..4), "{place}");
        next.expect_nothing().await;
    }
}
