//! The embedded broker, kept in memory.

use std::sync::Arc;

use async_trait::async_trait;
use helixmq::broker::{
    Broker,
    embedded::{Embedded, Settings},
};

use crate::system::System;

pub(crate) struct Memory;

#[async_trait]
impl System for Memory {
    async fn connect(&self) -> Arc<dyn Broker> {
        Arc::new(Embedded::new("embedded", Settings::default()).unwrap())
    }

    async fn connect_creating(&self) -> Option<Arc<dyn Broker>> {
        let settings = Settings { auto_create: true, ..Settings::default() };
        Some(Arc::new(Embedded::new("embedded", settings).unwrap()))
    }

    fn unclaimed(&self) -> &'static [&'static str] {
        &["durable"]
    }
}
