//! Two systems are away at once.

use std::sync::Arc;

use crate::{
    singly::lasting,
    site::{Options, Site},
    yard::{Fault, System, Yard},
};

/// What publishers are told while a system is away.
const OUTAGE: [&str; 2] = ["BROKER_UNAVAILABLE", "CONFIRM_TIMEOUT"];

pub(crate) async fn rabbitmq_and_redis_are_cut_off(yard: Arc<Yard>) {
    let both = [System::RabbitMq, System::Redis];
    let servers = vec![yard.proxied(both[0]).await, Yard::shared(System::Kafka), yard.proxied(both[1]).await];
    let mut site = Site::start(servers, Options::spool()).await;
    for seconds in lasting() {
        site.suffers(Fault::Cut, &both, *seconds).await;
    }
    site.ends_unnoticed().await;
}

pub(crate) async fn rabbitmq_and_kafka_are_killed_and_frozen(yard: Arc<Yard>) {
    let both = [System::RabbitMq, System::Kafka];
    let servers = vec![yard.own(both[0]).await, yard.own(both[1]).await, Yard::shared(System::Redis)];
    let mut site = Site::start(servers, Options::spool()).await;
    for (fault, seconds) in [(Fault::Killed, 1), (Fault::Frozen, 10), (Fault::Killed, 10)] {
        site.suffers(fault, &both, seconds).await;
    }
    site.ends_unnoticed().await;
}

/// Publishers get the error, and try again: what they were told is safe, is.
pub(crate) async fn rabbitmq_and_kafka_are_cut_off_and_nothing_stands_in_for_them(yard: Arc<Yard>) {
    let both = [System::RabbitMq, System::Kafka];
    let servers = vec![yard.proxied(both[0]).await, yard.proxied(both[1]).await, Yard::shared(System::Redis)];
    let mut site = Site::start(servers, Options::default()).await;
    for seconds in [1, 10] {
        site.suffers(Fault::Cut, &both, seconds).await;
    }
    let sent = site.ends().await;
    for flow in ["tasks", "events"] {
        let codes: Vec<_> = sent[flow].refused.keys().collect();
        assert!(!codes.is_empty() && codes.iter().all(|code| OUTAGE.contains(&code.as_str())), "{flow}: {codes:?}");
    }
}
