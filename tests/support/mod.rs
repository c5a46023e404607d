//! What tests share: an engine on the embedded broker or as a program of its own, waiting without sleeping, a small HTTP
//! client, real servers and a network that fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod api;
pub(crate) mod engine;
pub(crate) mod host;
pub(crate) mod http;
pub(crate) mod ledger;
pub(crate) mod mnesia;
pub(crate) mod proxy;
pub(crate) mod server;

use std::{future::Future, sync::Arc, time::Duration};

use helixmq::broker::{Broker, BrokerStatus};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until there is an answer; fails when none comes in time.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Waits for what must come by itself.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Waits until the broker says what is wrong.
pub(crate) async fn degraded(broker: &Arc<dyn Broker>) -> String {
    let reason = async || match broker.status() {
        BrokerStatus::Degraded { reason } => Some(reason),
        _ => None,
    };
    eventually("the broker says that something is wrong", reason).await
}

/// Waits until nothing is wrong any more.
pub(crate) async fn ready(broker: &Arc<dyn Broker>) {
    eventually("the broker is ready", async || (broker.status() == BrokerStatus::Ready).then_some(())).await;
}
