//! The engine itself ends while it brings what it kept to a system that is back.

use std::{sync::Arc, time::Duration};

use crate::{
    site::{Options, Site},
    yard::{Fault, System, Yard, lasts},
};

/// How long the system is away, in seconds.
const AWAY: u64 = 10;
/// How often the engine is killed in the middle of it, and how often that is tried: a slow machine may find it done.
const KILLS: usize = 3;
const TRIES_MAX: usize = 10;
/// With fewer messages it is over too soon.
const FEW: u64 = 150;

pub(crate) async fn the_engine_is_killed_while_the_spool_drains(yard: Arc<Yard>) {
    let servers = vec![yard.proxied(System::RabbitMq).await, Yard::shared(System::Kafka), Yard::shared(System::Redis)];
    // Faster than what comes on top meanwhile, and slow enough to be in the middle of it.
    let of_systems = "  spool: {drain_per_second: 300}\n".to_owned();
    // What was out at a kill is delivered one by one, and killed again meanwhile a quorum queue has the one behind the others:
    // a single consumer is given all of them at once. So a message may use up an attempt at the cut and at each kill.
    let (of_queues, of_retry) = (", single_active_consumer: true", ", attempts_max: 30");
    let mut site = Site::start(servers, Options { of_systems, of_queues, of_retry, ..Options::spool() }).await;
    site.begins(Fault::Cut, &[System::RabbitMq]).await;
    lasts(AWAY).await;
    site.ends_fault(Fault::Cut, &[System::RabbitMq]).await;
    let mut in_the_middle = 0;
    for _ in 0..TRIES_MAX {
        if site.spooled(System::RabbitMq).await < FEW {
            site.begins(Fault::Cut, &[System::RabbitMq]).await;
            let enough = async || (site.spooled(System::RabbitMq).await > 2 * FEW).then_some(());
            site.until("many wait", enough).await;
            site.ends_fault(Fault::Cut, &[System::RabbitMq]).await;
        }
        let before = site.spooled(System::RabbitMq).await;
        let fewer = async || Some(site.spooled(System::RabbitMq).await).filter(|now| *now < before || before == 0);
        let left = site.until("it drains", fewer).await;
        site.kill();
        in_the_middle += usize::from(left > 0);
        site.run().await;
        if in_the_middle == KILLS {
            break;
        }
    }
    assert_eq!(in_the_middle, KILLS, "it was too fast: there was nothing left to be in the middle of");
    site.recovers().await;
    let (_, mut verdict, log) = site.judged(Duration::from_secs(120)).await;
    // Known, and in docs/redis.md: seen in one of some ten runs, one message of 5 420. Said here whenever it is seen.
    let overtaken = verdict.take_overtaken("jobs");
    if !overtaken.is_empty() {
        println!(
            "KNOWN DEFECT: the engine was killed again and again, and on Redis these came too early: {overtaken:?}"
        );
    }
    assert!(verdict.is_right(), "{verdict}\n{log}");
}

/// So that it is known that a loss would be seen: what waits in memory is gone with the engine, as the documents say.
pub(crate) async fn what_waits_in_memory_is_lost_with_the_engine_and_that_is_noticed(yard: Arc<Yard>) {
    let servers = vec![yard.proxied(System::RabbitMq).await, Yard::shared(System::Kafka), Yard::shared(System::Redis)];
    let mut site = Site::start(servers, Options { fallback: "memory", ..Options::default() }).await;
    site.begins(Fault::Cut, &[System::RabbitMq]).await;
    let some = async || (site.spooled(System::RabbitMq).await > 100).then_some(());
    site.until("some wait", some).await;
    site.kill();
    site.run().await;
    site.ends_fault(Fault::Cut, &[System::RabbitMq]).await;
    site.recovers().await;
    let (_, verdict, _) = site.judged(Duration::from_secs(10)).await;
    assert!(verdict.missing() > 50, "{verdict}");
}
