//! A Redis that runs: the one that was started for all tests, or one of a test's own, which may be killed and frozen. In:
//! nothing, or lines for its configuration. Out: where it is; beginnings of keys that no other test has.
//!
//! Start at [`Server::shared`] and [`Server::own`].

use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::support::server::Running;

/// A server. Cloned, it is the same; one of a test's own ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Server(Arc<Running>);

impl Server {
    /// The one for all tests. It must not be stopped, and what it holds in common with others not be changed.
    pub(crate) fn shared() -> Self {
        Self(Arc::new(Running::shared("redis")))
    }

    /// One of the test's own, which has on disk what it has acknowledged.
    pub(crate) async fn own() -> Self {
        Self::own_with("").await
    }

    /// The same with more lines in its redis.conf, where `{certs}` is the folder of its certificates.
    pub(crate) async fn own_with(lines: &str) -> Self {
        Self(Arc::new(Running::own("redis", &format!("appendfsync always\\n{lines}"), &[]).await))
    }

    /// Where everybody may connect.
    pub(crate) fn plain(&self) -> SocketAddr {
        self.address(0)
    }

    /// Where connections are encrypted.
    pub(crate) fn tls(&self) -> SocketAddr {
        self.address(1)
    }

    /// A beginning of keys of the test's own.
    pub(crate) fn prefix() -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("test-{}-{}:", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Deref for Server {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}
