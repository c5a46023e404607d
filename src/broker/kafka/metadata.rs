//! Which topics there are, and into how many partitions they are divided. What is there is remembered; what is not is asked
//! for again, so that a topic that appears later is found. Nothing here makes one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
    time::Duration,
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use tokio::{
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{
    client::{Query, Watched},
    condition::Condition,
};
use crate::{broker::BrokerError, message::ReasonCode};

/// For so long nobody asks again for a topic that is not there.
const MISSING_FOR: Duration = Duration::from_millis(200);
/// How many may look at topics at once: each has a thread and a connection.
const TURNS: usize = 4;
/// Most topics that are remembered as missing.
const MISSING_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Topics {
    query: Query,
    condition: Arc<Condition>,
    timeout: Duration,
    known: SyncMutex<Known>,
    /// One asks, the others wait for what it learns.
    asking: Mutex<()>,
    /// For those who look at a topic.
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct Known {
    partitions: HashMap<Arc<str>, u32>,
    missing: HashMap<Arc<str>, Instant>,
}

impl Topics {
    /// `timeout` is how long servers have to answer.
    pub(super) fn new(query: Query, condition: Arc<Condition>, timeout: Duration) -> Self {
        Self {
            query,
            condition,
            timeout,
            known: SyncMutex::default(),
            asking: Mutex::default(),
            turns: Semaphore::new(TURNS),
        }
    }

    /// The client that asks.
    pub(super) fn query(&self) -> &Query {
        &self.query
    }

    /// How servers are doing.
    pub(super) fn condition(&self) -> &Arc<Condition> {
        &self.condition
    }

    /// Waits until it is one's turn to look at a topic.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.turns.acquire().await.ok()
    }

    /// How long servers have to answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The number of a topic's partitions as far as it is remembered; it may have grown. `None`: there is no such topic.
    pub(super) async fn partitions(&self, topic: &str) -> Result<Option<u32>, BrokerError> {
        if let Some(known) = self.remembered(topic) {
            return Ok(known);
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = self.remembered(topic) {
            return Ok(known);
        }
        self.ask(topic).await
    }

    /// The number of a topic's partitions as the server says now.
    pub(super) async fn ask(&self, topic: &str) -> Result<Option<u32>, BrokerError> {
        let (name, timeout): (Arc<str>, _) = (topic.into(), self.timeout);
        let asked = Arc::clone(&name);
        let answer = self.query.ask(move |client| ask(client, &asked, timeout)).await?;
        let partitions = match answer {
            Ok(partitions) => partitions,
            Err(code) => return Err(self.failed(topic, code)),
        };
        self.condition.is_up();
        let mut known = self.lock();
        match partitions {
            Some(partitions) => {
                known.missing.remove(&name);
                known.partitions.insert(name, partitions);
            }
            None => {
                known.partitions.remove(&name);
                if known.missing.len() >= MISSING_MAX {
                    known.missing.clear();
                }
                known.missing.insert(name, Instant::now());
            }
        }
        Ok(partitions)
    }

    /// All topics but the servers' own, as the server says now.
    pub(super) async fn all(&self) -> Result<HashMap<Arc<str>, u32>, BrokerError> {
        let timeout = self.timeout;
        let answer = self.query.ask(move |client| {
            let metadata = client.fetch_metadata(None, timeout).map_err(|error| code(&error))?;
            let topics = metadata.topics().iter().filter(|topic| topic.error().is_none());
            Ok(topics
                .filter(|topic| !topic.name().starts_with("__"))
                .map(|topic| (Arc::from(topic.name()), count(topic)))
                .collect::<HashMap<Arc<str>, u32>>())
        });
        let topics = answer.await?.map_err(|code| self.failed("", code))?;
        self.condition.is_up();
        let mut known = self.lock();
        known.partitions.clone_from(&topics);
        known.missing.clear();
        Ok(topics)
    }

    /// The server says that it is not there any more, or has changed.
    pub(super) fn forget(&self, topic: &str) {
        let mut known = self.lock();
        known.partitions.remove(topic);
        known.missing.remove(topic);
    }

    fn remembered(&self, topic: &str) -> Option<Option<u32>> {
        let known = self.lock();
        match (known.partitions.get(topic), known.missing.get(topic)) {
            (Some(partitions), _) => Some(Some(*partitions)),
            (None, Some(at)) if at.elapsed() < MISSING_FOR => Some(None),
            _ => None,
        }
    }

    /// What a question that failed means.
    pub(super) fn failed(&self, topic: &str, code: RDKafkaErrorCode) -> BrokerError {
        match (code, self.condition.why_refused()) {
            (_, Some(refusal)) => BrokerError::Refused { reason: refusal.reason, code: refusal.code },
            (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed, None) => {
                let reason = format!("Kafka's user may not see topic {topic:?}: give it the right to describe it");
                BrokerError::Refused { reason, code: ReasonCode::AuthenticationFailed }
            }
            (RDKafkaErrorCode::InvalidTopic, None) => {
                BrokerError::Invalid(format!("{topic:?} is not a name for a topic of Kafka"))
            }
            (code, None) => BrokerError::Unreachable {
                endpoint: self.condition.endpoint().to_owned(),
                timeout: self.timeout,
                cause: match self.condition.why_away() {
                    Some(away) => away.into(),
                    None => Box::new(code),
                },
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(client: &BaseConsumer<Watched>, topic: &str, timeout: Duration) -> Result<Option<u32>, RDKafkaErrorCode> {
    let metadata = client.fetch_metadata(Some(topic), timeout).map_err(|error| code(&error))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        // It has just been made.
        None | Some(RDKafkaErrorCode::LeaderNotAvailable) => Ok(Some(count(found))),
        Some(other) => Err(other),
    }
}

fn count(topic: &rdkafka::metadata::MetadataTopic) -> u32 {
    u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX)
}

/// The code that says what went wrong.
pub(super) fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}
