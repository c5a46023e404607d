//! How the spool leaves: in what portions, and what goes on while one of them is on its way.

use std::time::Duration;

use super::{
    super::{Fallback, Guarded, is_spool},
    MAX,
    double::{Mood, System, eventually, guarded, message},
    numbered,
};
use crate::{
    broker::{Broker, embedded::Embedded},
    message::Address,
};

/// Keeps so many for a system that is away.
async fn kept(system: &System, guarded: &Guarded, queue: &Address, count: u32) {
    system.is(Mood::Away);
    for first in (0..count).step_by(1000) {
        let batch = (first..count.min(first + 1000)).map(|number| message(&number.to_string(), "key")).collect();
        guarded.publish(queue, batch).await.unwrap();
    }
}

fn waits(guarded: &Guarded) -> usize {
    guarded.systems()[0].spool.as_ref().unwrap().messages as usize
}

fn out(embedded: &Embedded) -> usize {
    let spools = embedded.stats().into_iter().filter(|stats| is_spool(&stats.address));
    spools.map(|stats| stats.unsettled as usize).sum()
}

#[tokio::test(start_paused = true)]
async fn a_system_is_given_what_it_takes_in_a_tenth_of_a_second() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, MAX, None);
    kept(&system, &guarded, &queue, 100_000).await;
    system.is(Mood::Slow { call: Duration::from_millis(5), each: Duration::from_micros(2) });
    eventually("all of it is there", || guarded.shared.is_calm()).await;
    assert_eq!(system.has(&queue), numbered(0..100_000));
    let portions = system.portions();
    assert!(portions.iter().any(|count| *count > 20_000), "a fast one is not given more: {portions:?}");

    // One that is slow would not confirm all of a large portion in time.
    kept(&system, &guarded, &queue, 5_000).await;
    let before = system.portions().len();
    system.is(Mood::Slow { call: Duration::ZERO, each: Duration::from_millis(1) });
    eventually("all of it is there", || guarded.shared.is_calm()).await;
    let portions = system.portions().split_off(before);
    assert!(portions.iter().rev().take(3).all(|count| *count <= 512), "a slow one is not given less: {portions:?}");
}

#[tokio::test(start_paused = true)]
async fn while_one_portion_is_on_its_way_the_next_is_read_and_the_one_before_is_settled() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, embedded) = guarded(&system, Fallback::Memory, MAX, None);
    kept(&system, &guarded, &queue, 10_000).await;
    system.is(Mood::Slow { call: Duration::from_secs(1), each: Duration::ZERO });
    for publish in 5..10 {
        eventually("another is on its way", || system.taken().len() > 1 && system.portions().len() > 10 + publish)
            .await;
        let under_way = *system.portions().last().unwrap();
        eventually("those before it are settled", || waits(&guarded) + system.taken().len() == 10_000).await;
        eventually("the next is read", || out(&embedded) > under_way).await;
        assert_eq!(*system.portions().last().unwrap(), under_way, "only one is on its way");
    }
    system.is(Mood::Well);
    eventually("all of it is there", || guarded.shared.is_calm()).await;
    assert_eq!(system.has(&queue), numbered(0..10_000));
}
