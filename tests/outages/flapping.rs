//! A system that comes and goes.

use std::sync::Arc;

use crate::{
    site::{Options, Site},
    yard::{Fault, System, Yard, lasts},
};

/// Seconds that it is there, and that it is not.
const EACH: u64 = 2;
/// How often: for two minutes.
const TIMES: u64 = 120 / (2 * EACH);

pub(crate) async fn rabbitmq_comes_and_goes(yard: Arc<Yard>) {
    let servers = vec![yard.proxied(System::RabbitMq).await, Yard::shared(System::Kafka)];
    let mut site = Site::start(servers, Options::default()).await;
    for _ in 0..TIMES {
        site.begins(Fault::Cut, &[System::RabbitMq]).await;
        lasts(EACH).await;
        site.ends_fault(Fault::Cut, &[System::RabbitMq]).await;
        lasts(EACH).await;
    }
    site.recovers().await;
    site.ends().await;
}
