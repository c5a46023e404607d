//! A system that comes and goes.

use std::sync::Arc;

use crate::{
    runner,
    site::{Options, Site},
    yard::{Fault, System, Yard, lasts},
};

/// Seconds that it is there, and that it is not.
const EACH: u64 = 2;

/// For how many seconds all in all.
fn lasting() -> u64 {
    if runner::is_long() { 120 } else { 24 }
}

async fn survives(yard: Arc<Yard>, system: System) {
    let mut servers: Vec<_> = System::ALL.into_iter().filter(|other| *other != system).map(Yard::shared).collect();
    servers.push(yard.proxied(system).await);
    let mut site = Site::start(servers, Options::spool()).await;
    for _ in 0..lasting() / (2 * EACH) {
        site.begins(Fault::Cut, &[system]).await;
        lasts(EACH).await;
        site.ends_fault(Fault::Cut, &[system]).await;
        lasts(EACH).await;
    }
    site.recovers().await;
    site.ends_unnoticed().await;
}

pub(crate) async fn rabbitmq_comes_and_goes(yard: Arc<Yard>) {
    survives(yard, System::RabbitMq).await;
}

pub(crate) async fn kafka_comes_and_goes(yard: Arc<Yard>) {
    survives(yard, System::Kafka).await;
}

pub(crate) async fn redis_comes_and_goes(yard: Arc<Yard>) {
    survives(yard, System::Redis).await;
}
