//! A broker that is as well as the test says, and whose subscriptions stall when it says so.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Declaration, Deliveries,
        KeepAlive, Page, PublishError, PublishFailures, Subscribe, Subscription, System,
        embedded::{Embedded, Settings},
    },
    message::{Address, Message},
};

#[derive(Debug)]
pub(crate) struct Moody {
    inner: Embedded,
    status: Mutex<BrokerStatus>,
    system: Mutex<Option<System>>,
    /// Subscriptions yet to begin that bring nothing.
    stalls: AtomicU32,
    /// How often somebody looked at what is there.
    looks: AtomicU32,
    /// Nothing can be shown.
    hides: AtomicBool,
}

impl Moody {
    pub(crate) fn new() -> Arc<Self> {
        let inner = Embedded::new("moody", Settings::default()).expect("a broker");
        Arc::new(Self {
            inner,
            status: Mutex::default(),
            system: Mutex::default(),
            stalls: AtomicU32::new(0),
            looks: AtomicU32::new(0),
            hides: AtomicBool::new(false),
        })
    }

    /// The next so many subscriptions bring nothing, and say nothing.
    pub(crate) fn stalls(&self, times: u32) {
        self.stalls.store(times, Ordering::SeqCst);
    }

    /// Whether what is there cannot be shown, from now on.
    pub(crate) fn hides(&self, hides: bool) {
        self.hides.store(hides, Ordering::SeqCst);
    }

    /// How often somebody has looked at what is there: the engine does once a second.
    pub(crate) fn looks(&self) -> u32 {
        self.looks.load(Ordering::SeqCst)
    }

    /// From now on. While it is not ready, nothing is published for want of room.
    pub(crate) fn is(&self, status: BrokerStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// What it says of itself, from now on.
    pub(crate) fn shows(&self, system: System) {
        *self.system.lock().unwrap_or_else(PoisonError::into_inner) = Some(system);
    }
}

#[async_trait]
impl Broker for Moody {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        if self.status() == BrokerStatus::Ready {
            return self.inner.publish(to, messages).await;
        }
        let (address, reason) = (to.clone(), "it is full; make room on it".to_owned());
        let error = PublishError::NoSpace { address, reason };
        Err(PublishFailures((0..messages.len()).map(|place| (place, error.clone())).collect()))
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let inner = self.inner.subscribe(request).await?;
        let stalls = self.stalls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        Ok(if stalls.is_ok() { Box::new(Stalled(inner)) } else { inner })
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        if self.hides.load(Ordering::SeqCst) {
            return Err(BrokerError::Lost("the server went away".to_owned()));
        }
        self.inner.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.inner.stats()
    }

    fn status(&self) -> BrokerStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn systems(&self) -> Vec<System> {
        let shown = self.system.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match shown {
            Some(shown) => vec![shown],
            None => {
                let status = self.status();
                self.inner.systems().into_iter().map(|system| System { status: status.clone(), ..system }).collect()
            }
        }
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// A subscription that brings nothing.
#[derive(Debug)]
struct Stalled(Box<dyn Subscription>);

#[async_trait]
impl Subscription for Stalled {
    async fn next(&mut self, _: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        std::future::pending().await
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.0.keep_alive()
    }
}
