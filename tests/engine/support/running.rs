//! An engine that runs, and what tests ask of it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use helixmq::{
    broker::{AddressStats, Broker},
    handler::{Receipt, ReloadResult},
    hub::{BrakeState, Hub, RouteStatus},
    message::{Address, Message, ReasonCode},
    settle::DeadLetter,
};

use super::{DEAD, PATIENCE, Tap, eventually, text};

/// An engine that runs.
pub(crate) struct Engine {
    pub(crate) hub: Hub,
    pub(crate) broker: Arc<Tap>,
    pub(super) directory: tempfile::TempDir,
}

impl Engine {
    /// The plugins directory.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.directory.path().join("plugins")
    }

    /// A place beside it, on the same file system.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file where the engine looks for a plugin, as a careful deployment does: whole, or not at all.
    pub(crate) fn install(&self, file: &Path, name: &str) {
        let whole = self.beside(&format!("{name}.new"));
        fs::copy(file, &whole).expect("copied");
        fs::rename(whole, self.plugins().join(format!("{name}.wasm"))).expect("renamed");
    }

    pub(crate) async fn send(&self, to: &Address, messages: impl IntoIterator<Item = Message>) -> Vec<Arc<Message>> {
        let messages: Vec<_> = messages.into_iter().map(Arc::new).collect();
        self.broker.inner.publish(to, messages.clone()).await.expect("confirmed");
        messages
    }

    pub(crate) async fn send_to_queue(
        &self,
        queue: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<Arc<Message>> {
        self.send(&Address::queue(queue), messages).await
    }

    pub(crate) async fn send_to_topic(
        &self,
        topic: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<Arc<Message>> {
        self.send(&Address::topic(topic), messages).await
    }

    /// What the engine published to a queue, in that order.
    pub(crate) fn published(&self, queue: &str) -> Vec<Arc<Message>> {
        self.broker.published(&Address::queue(queue))
    }

    /// The payloads of what it published to `out`.
    pub(crate) fn out(&self) -> Vec<String> {
        self.published("out").iter().map(|message| text(message)).collect()
    }

    /// The dead letters, with what is known of each.
    pub(crate) fn dead(&self) -> Vec<Dead> {
        let read = |message: &Arc<Message>| Dead {
            letter: DeadLetter::read(message).expect("a dead letter"),
            message: Arc::clone(message),
        };
        self.published(DEAD).iter().map(read).collect()
    }

    /// The only dead letter, when there is one.
    pub(crate) async fn one_dead(&self) -> Dead {
        self.some_dead(1).await.remove(0)
    }

    /// So many dead letters, when they are there.
    pub(crate) async fn some_dead(&self, count: usize) -> Vec<Dead> {
        eventually(&format!("there are {count} dead letters"), || self.dead().len() >= count).await;
        let dead = self.dead();
        assert_eq!(dead.len(), count, "{dead:?}");
        dead
    }

    pub(crate) fn stats(&self, of: &Address) -> AddressStats {
        self.broker.stats().into_iter().find(|stats| stats.address == *of).expect("a queue or topic of that name")
    }

    /// Messages of a source that are not settled for good.
    pub(crate) fn left(&self, source: &Address) -> u64 {
        let stats = self.stats(source);
        match stats.lag.iter().find(|(group, _)| &**group == "engine") {
            Some((_, lag)) => *lag,
            None => stats.ready + stats.delayed + stats.unsettled,
        }
    }

    /// Waits until everything of that queue is settled.
    pub(crate) async fn queue_done(&self, queue: &str) {
        self.done(&Address::queue(queue)).await;
    }

    /// Waits until everything of that topic is settled.
    pub(crate) async fn topic_done(&self, topic: &str) {
        self.done(&Address::topic(topic)).await;
    }

    async fn done(&self, source: &Address) {
        let begin = Instant::now();
        while self.left(source) > 0 {
            assert!(
                begin.elapsed() < PATIENCE,
                "{source} is not done: {:?}, routes {:?}, dead {:?}",
                self.stats(source),
                self.hub.routes(),
                self.dead().last()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn receipts(&self, plugin: &str) -> Vec<Receipt> {
        self.hub.registry().slot(plugin).receipts()
    }

    /// The last refusal of a plugin, in words.
    pub(crate) fn refusal(&self, plugin: &str) -> Option<String> {
        match self.receipts(plugin).pop()?.result {
            ReloadResult::Refused(reason) => Some(reason),
            _ => None,
        }
    }

    /// The digest that serves.
    pub(crate) fn digest(&self, plugin: &str) -> Option<String> {
        self.hub.registry().slot(plugin).identity().map(|identity| identity.digest)
    }

    pub(crate) fn status(&self, route: &str) -> RouteStatus {
        self.hub.routes().into_iter().find(|status| &*status.route == route).expect("a route of that name")
    }

    pub(crate) async fn brake(&self, route: &str, state: BrakeState) {
        eventually(&format!("route {route} is {state:?}"), || {
            self.hub.routes().iter().any(|status| &*status.route == route && status.brake == state)
        })
        .await;
    }

    /// Stops the engine, and leaves its broker as it is. Bounded, so that a drain that hangs fails its test.
    pub(crate) async fn stop(self) -> Arc<Tap> {
        tokio::time::timeout(PATIENCE, self.hub.stop()).await.expect("an end");
        self.broker
    }
}

/// A dead letter.
#[derive(Debug, Clone)]
pub(crate) struct Dead {
    pub(crate) letter: DeadLetter,
    pub(crate) message: Arc<Message>,
}

impl Dead {
    pub(crate) fn code(&self) -> ReasonCode {
        self.letter.code
    }

    /// Numbers and codes of its failed attempts.
    pub(crate) fn history(&self) -> Vec<(u32, ReasonCode)> {
        self.letter.attempts.iter().map(|attempt| (attempt.attempt, attempt.code)).collect()
    }
}
