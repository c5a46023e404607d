//! A consumer that nobody reads any more goes in good order: the server is told to send no more, and what it had sent until
//! it heard that goes back, untried. What goes back with its channel instead is counted by servers that would not count it.

use std::{
    fmt::{self, Debug, Formatter},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use lapin::{Consumer, options::BasicCancelOptions};
use tokio::time::timeout;

use super::{
    session::Session,
    subscription::{Open, Widening},
};

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A consumer on its way out.
pub(super) struct Leaving {
    session: Arc<Session>,
    consumer: Consumer,
    /// The server's answer, where it is still to come.
    cancelled: Option<BoxFuture<'static, Result<(), lapin::Error>>>,
    /// The consumer that was to come after it, where that was on its way.
    next: Option<Widening>,
}

impl Debug for Leaving {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaving").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Leaving {
    /// Says so to the server, and gives back what waits here. What is out follows as it is settled.
    pub(super) fn begin(open: Open, next: Option<Widening>) -> Self {
        let Open { session, consumer, unread, .. } = open;
        let (channel, tag) = (session.channel().clone(), consumer.tag());
        let mut cancelled = async move { channel.basic_cancel(tag, BasicCancelOptions::default()).await }.boxed();
        // First of all, else what goes back would come again over this channel: the frame is in line to be written as soon
        // as the library was asked once.
        let is_answered = (&mut cancelled).now_or_never().is_some();
        session.end(unread.into());
        Self { session, consumer, cancelled: (!is_answered).then_some(cancelled), next }
    }

    /// Gives back what was on its way.
    pub(super) async fn end(mut self) {
        if let Some(cancelled) = self.cancelled.take() {
            timeout(PATIENCE, cancelled).await.ok();
        }
        self.give_back();
        let Some(next) = self.next.take() else { return };
        if let Ok(Ok(next)) = timeout(PATIENCE, next).await {
            self.consumer = next;
            let cancelled = self.session.channel().basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
            timeout(PATIENCE, cancelled).await.ok();
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        while let Some(Some(Ok(raw))) = self.consumer.next().now_or_never() {
            self.session.arrived(raw.delivery_tag);
            self.session.give_back(raw.delivery_tag);
        }
    }
}
