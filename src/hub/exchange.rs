//! Systems that are exchanged while the engine runs, because their settings have changed: what reads from them has ended by
//! then, and begins again behind. The others go on.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::broker::{Broker, BrokerError, Joined};

/// Connects a system.
pub type Opening = Pin<Box<dyn Future<Output = Result<Arc<dyn Broker>, BrokerError>> + Send>>;

/// Systems to exchange.
pub struct Exchange {
    /// Where they are.
    pub joined: Arc<Joined>,
    /// Which.
    pub systems: Vec<ExchangedSystem>,
}

/// One of them.
pub struct ExchangedSystem {
    /// As addresses name it.
    pub name: Arc<str>,
    /// What comes; `None`: it goes.
    pub after: Option<Opening>,
    /// What was there, for the case that the other cannot be had; `None`: it is new.
    pub before: Option<Opening>,
    is_done: bool,
}

impl ExchangedSystem {
    /// One of that name.
    #[must_use]
    pub fn new(name: Arc<str>, after: Option<Opening>, before: Option<Opening>) -> Self {
        Self { name, after, before, is_done: false }
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.systems).finish()
    }
}

impl std::fmt::Debug for ExchangedSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Exchange {
    /// Whether this system is one of them.
    pub(super) fn concerns(&self, system: &str) -> bool {
        self.systems.iter().any(|exchanged| *exchanged.name == *system)
    }

    /// Exchanges them. Nothing reads from them, and what is published there meanwhile is told to come again.
    ///
    /// # Errors
    /// The first that could not be had: [`Self::back`] brings those before.
    pub(super) async fn forth(&mut self) -> Result<(), (Arc<str>, BrokerError)> {
        for system in &mut self.systems {
            // Two of one name would have the same spool, and the same attempts.
            self.joined.close_one(&system.name).await;
            let opened = match system.after.take() {
                Some(after) => Some(after.await.map_err(|error| (Arc::clone(&system.name), error))?),
                None => None,
            };
            self.joined.exchange(&system.name, opened);
            system.is_done = true;
        }
        Ok(())
    }

    /// Brings back those before, after one could not be had.
    pub(super) async fn back(self) {
        for system in self.systems.into_iter().filter(|system| system.is_done || system.after.is_none()) {
            let name = &system.name;
            self.joined.close_one(name).await;
            let opened = match system.before {
                Some(before) => before.await.map(Some),
                None => Ok(None),
            };
            match opened {
                Ok(opened) => self.joined.exchange(name, opened),
                Err(error) => {
                    tracing::error!(broker = %name, "cannot be had as it was before, either; it is tried again with the next reload (SIGHUP): {error}");
                }
            }
        }
    }
}
