//! The embedded broker with a guard in front of it, which must break no guarantee, and a spool beside it.

use std::sync::Arc;

use async_trait::async_trait;
use helixmq::broker::{
    Broker, GuardSettings, Guarded,
    embedded::{Embedded, Settings},
    guarded::Fallback,
};

use crate::system::System;

pub(crate) struct Memory;

impl Memory {
    fn open(auto_create: bool) -> Arc<dyn Broker> {
        let [inner, spool] = ["inner", "spool"]
            .map(|name| Arc::new(Embedded::new(name, Settings { auto_create, ..Settings::default() }).unwrap()));
        let settings = GuardSettings { fallback: Fallback::Memory, ..GuardSettings::default() };
        Arc::new(Guarded::new(inner, spool, settings))
    }
}

#[async_trait]
impl System for Memory {
    async fn connect(&self) -> Arc<dyn Broker> {
        Self::open(false)
    }

    async fn connect_creating(&self) -> Option<Arc<dyn Broker>> {
        Some(Self::open(true))
    }

    fn unclaimed(&self) -> &'static [&'static str] {
        &["durable"]
    }
}
