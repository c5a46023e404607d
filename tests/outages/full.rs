//! What is kept for a system that is away has bounds. At them the publisher gets the error, and what was confirmed before is
//! safe.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    load::Sent,
    site::{Options, Site},
    yard::{Fault, System, Yard, lasts},
};

/// Seconds that it stays full.
const STAYS: u64 = 5;

/// RabbitMQ is away until publishers are refused, and for some time more.
async fn fills_up(yard: Arc<Yard>, options: Options) -> BTreeMap<String, Sent> {
    let servers = vec![yard.proxied(System::RabbitMq).await, Yard::shared(System::Kafka), Yard::shared(System::Redis)];
    let mut site = Site::start(servers, options).await;
    site.begins(Fault::Cut, &[System::RabbitMq]).await;
    site.refuses().await;
    lasts(STAYS).await;
    site.ends_fault(Fault::Cut, &[System::RabbitMq]).await;
    site.recovers().await;
    site.ends().await
}

/// Publishers of tasks were refused, with a code that says why; those of events had no reason to be.
fn assert_refused(sent: &BTreeMap<String, Sent>) {
    let codes: Vec<_> = sent["tasks"].refused.keys().map(String::as_str).collect();
    assert_eq!(codes, ["PUBLISH_REJECTED"], "{sent:?}");
    assert!(sent["events"].refused.is_empty(), "{sent:?}");
}

pub(crate) async fn the_spool_is_full(yard: Arc<Yard>) {
    let of_systems = "  spool: {messages_max: 500}\n".to_owned();
    assert_refused(&fills_up(yard, Options { of_systems, ..Options::spool() }).await);
}

pub(crate) async fn the_disk_of_the_spool_is_full(yard: Arc<Yard>) {
    let of_disk = ", bytes_max: 16 MiB".to_owned();
    assert_refused(&fills_up(yard, Options { of_disk, payload_bytes: 60_000, ..Options::spool() }).await);
}
