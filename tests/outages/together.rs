//! Two systems are away at once.

use std::sync::Arc;

use crate::{
    singly::LASTING,
    site::{Options, Site},
    yard::{Fault, System, Yard},
};

const BOTH: [System; 2] = [System::RabbitMq, System::Kafka];

pub(crate) async fn rabbitmq_and_kafka_are_cut_off(yard: Arc<Yard>) {
    let servers = vec![yard.proxied(System::RabbitMq).await, yard.proxied(System::Kafka).await];
    let mut site = Site::start(servers, Options::default()).await;
    for seconds in LASTING {
        site.suffers(Fault::Cut, &BOTH, seconds).await;
    }
    site.ends().await;
}

pub(crate) async fn rabbitmq_and_kafka_are_killed_and_frozen(yard: Arc<Yard>) {
    let servers = vec![yard.own(System::RabbitMq).await, yard.own(System::Kafka).await];
    let mut site = Site::start(servers, Options::default()).await;
    for (fault, seconds) in [(Fault::Killed, 1), (Fault::Frozen, 10), (Fault::Killed, 10)] {
        site.suffers(fault, &BOTH, seconds).await;
    }
    site.ends().await;
}
