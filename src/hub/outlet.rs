//! How guests publish in the middle of a call, and wait for an answer. Answers to all requests of this engine come to
//! one queue of its own, and are told apart by their correlation id.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{BatchMax, Broker, BrokerError, Declaration, PublishError, QueueSettings, Start, Subscribe},
    handler::{Outlet, OutletError},
    message::{Address, Message, MessageId, Settlement, Text},
};

/// Between two tries to read answers.
const AGAIN: Duration = Duration::from_secs(1);
/// Answers that are taken at a time.
const ANSWERS_MAX: usize = 64;

/// Publishes to the broker.
#[derive(Debug)]
pub(super) struct BrokerOutlet {
    broker: Arc<dyn Broker>,
    answers: Address,
    waiting: Mutex<HashMap<Text, oneshot::Sender<Arc<Message>>>>,
}

impl BrokerOutlet {
    pub(super) fn new(broker: Arc<dyn Broker>) -> Self {
        let answers = Address::queue(format!("helixmq.answers.{}", MessageId::generate(crate::message::now_ms())));
        Self { broker, answers, waiting: Mutex::default() }
    }

    /// Makes the queue answers come to.
    pub(super) async fn declare(&self) -> Result<(), BrokerError> {
        let queue = QueueSettings { exclusive: true, ..QueueSettings::default() };
        self.broker.declare(&[Declaration::Queue(Arc::clone(&self.answers.name), queue)]).await
    }

    /// Hands answers to those who wait for them, until `stop`, and begins again where the system that has their queue is
    /// exchanged or fails. An answer nobody waits for any more is dropped.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut said = None;
        while !stop.is_cancelled() {
            if let Err(error) = self.read(&stop).await {
                let error = error.to_string();
                if said.as_ref() != Some(&error) {
                    tracing::warn!("answers to requests of handlers cannot be read for now: {error}");
                    said = Some(error);
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    async fn read(&self, stop: &CancellationToken) -> Result<(), BrokerError> {
        self.declare().await?;
        let request = Subscribe {
            from: self.answers.clone(),
            group: "".into(),
            start: Start::Earliest,
            prefetch: ANSWERS_MAX,
            workers: ANSWERS_MAX,
            aside: Default::default(),
        };
        let mut subscription = self.broker.subscribe(request).await?;
        loop {
            let next = subscription.next(BatchMax { count: ANSWERS_MAX, bytes: usize::MAX });
            let Some(answers) = (tokio::select! {
                () = stop.cancelled() => return Ok(()),
                answers = next => answers?,
            }) else {
                return Ok(());
            };
            for answer in answers.as_slice() {
                let waiting = answer
                    .message
                    .correlation_id
                    .as_ref()
                    .and_then(|id| self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id));
                if let Some(waiting) = waiting {
                    // Whoever waited has given up: nobody is left to tell.
                    drop(waiting.send(Arc::clone(&answer.message)));
                }
            }
            let accepted = answers.as_slice().iter().map(|_| Settlement::Accept).collect();
            answers.settle(accepted).await?;
        }
    }
}

#[async_trait]
impl Outlet for BrokerOutlet {
    async fn publish(&self, to: &Address, message: Message) -> Result<(), OutletError> {
        match self.broker.publish(to, vec![Arc::new(message)]).await {
            Ok(()) => {
                crate::telemetry::metrics()
                    .published
                    .with_label_values(&[&*self.broker.name_of(to), &to.to_string()])
                    .inc();
                Ok(())
            }
            Err(failures) => Err(match failures.0.into_iter().next() {
                Some((_, PublishError::TooLarge { max, .. })) => OutletError::TooLarge { max },
                Some((_, error)) => OutletError::Unavailable(error.to_string()),
                None => OutletError::Timeout,
            }),
        }
    }

    async fn request(
        &self,
        to: &Address,
        mut message: Message,
        timeout: Duration,
    ) -> Result<Arc<Message>, OutletError> {
        let id = Text::from(MessageId::generate(crate::message::now_ms()).to_string());
        message.correlation_id = Some(id.clone());
        message.reply_to = Some(Text::from(self.answers.to_string()));
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), answer);
        let _forget = Forget { outlet: self, id };
        self.publish(to, message).await?;
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(OutletError::Unavailable("the engine is stopping".to_owned())),
            Err(_) => Err(OutletError::Timeout),
        }
    }
}

/// Takes a request that ended without its answer out of the list.
struct Forget<'a> {
    outlet: &'a BrokerOutlet,
    id: Text,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.outlet.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
