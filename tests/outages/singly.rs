//! One system is away: for a moment, for longer than connections take to notice, for longer than anybody waits.

use std::sync::Arc;

use crate::{
    runner,
    site::{Options, Site},
    yard::{Fault, Server, System, Yard},
};

/// How long outages last, in seconds.
pub(crate) fn lasting() -> &'static [u64] {
    if runner::is_long() { &[1, 10, 60] } else { &[1, 10] }
}

/// The others are well.
fn beside(system: System) -> Vec<Server> {
    System::ALL.into_iter().filter(|other| *other != system).map(Yard::shared).collect()
}

async fn survives(yard: Arc<Yard>, fault: Fault, system: System) {
    let mut servers = beside(system);
    servers.push(match fault {
        Fault::Killed | Fault::Frozen => yard.own(system).await,
        Fault::Cut => yard.proxied(system).await,
    });
    let mut site = Site::start(servers, Options::spool()).await;
    for seconds in lasting() {
        site.suffers(fault, &[system], *seconds).await;
    }
    site.ends_unnoticed().await;
}

pub(crate) async fn rabbitmq_is_killed(yard: Arc<Yard>) {
    survives(yard, Fault::Killed, System::RabbitMq).await;
}

pub(crate) async fn rabbitmq_is_frozen(yard: Arc<Yard>) {
    survives(yard, Fault::Frozen, System::RabbitMq).await;
}

pub(crate) async fn rabbitmq_is_cut_off(yard: Arc<Yard>) {
    survives(yard, Fault::Cut, System::RabbitMq).await;
}

pub(crate) async fn kafka_is_killed(yard: Arc<Yard>) {
    survives(yard, Fault::Killed, System::Kafka).await;
}

pub(crate) async fn kafka_is_frozen(yard: Arc<Yard>) {
    survives(yard, Fault::Frozen, System::Kafka).await;
}

pub(crate) async fn kafka_is_cut_off(yard: Arc<Yard>) {
    survives(yard, Fault::Cut, System::Kafka).await;
}

pub(crate) async fn redis_is_killed(yard: Arc<Yard>) {
    survives(yard, Fault::Killed, System::Redis).await;
}

pub(crate) async fn redis_is_frozen(yard: Arc<Yard>) {
    survives(yard, Fault::Frozen, System::Redis).await;
}

pub(crate) async fn redis_is_cut_off(yard: Arc<Yard>) {
    survives(yard, Fault::Cut, System::Redis).await;
}
