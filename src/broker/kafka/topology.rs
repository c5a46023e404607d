//! Topics as they are wanted, beside those that are there: makes what is missing and names what differs, field by field. What
//! is there is never changed, but that [`How::Grow`] adds partitions. Settings of a topic are never written at all: the
//! client library's only way to do so resets all that it does not name.
//!
//! Start at [`compare`]; [`declare`] is for starting up, [`at_server`] for people.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::Consumer,
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode,
};
use tokio::{runtime::Handle, task::spawn_blocking, time::Instant};

use super::{
    Settings,
    client::{self, Query, Watched},
    condition::Condition,
    metadata::{Topics, code},
    settings::TopicPlan,
};
use crate::{
    broker::{BrokerError, TopicSettings},
    message::{Address, ReasonCode},
};

/// How long what was just made may take until every server knows it.
const SPREADS_WITHIN: Duration = Duration::from_secs(5);
const ASKED_EVERY: Duration = Duration::from_millis(50);

/// What to do about what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    Look,
    /// Make topics.
    Make,
    /// Make topics, and partitions of those that have too few.
    Grow,
}

/// One topic, beside what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Compared {
    /// Its name.
    pub name: Arc<str>,
    /// How it is.
    #[serde(flatten)]
    pub state: State,
}

/// How a topic is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "state", content = "differences", rename_all = "lowercase")]
pub enum State {
    /// As wanted.
    Same,
    /// It was made.
    Made,
    /// It was given more partitions, and nothing else differs.
    Grown,
    /// It is not there.
    Missing,
    /// It is there, and otherwise.
    Differs(Vec<Difference>),
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Which: `partitions`, `replication_factor`, or a setting as Kafka names it.
    pub field: String,
    /// What is wanted.
    pub configured: String,
    /// What is there.
    pub current: String,
}

/// A topic as the server has it.
struct There {
    partitions: u32,
    replicas: usize,
}

/// What a declaration means here: what the settings say of that topic by name, else what is declared.
pub(super) fn plan_of(name: &str, declared: &TopicSettings, settings: &Settings) -> TopicPlan {
    if let Some(plan) = settings.topics.get(name) {
        return plan.clone();
    }
    let mut plan = TopicPlan {
        partitions: declared.partitions,
        retention: declared.retention,
        retention_bytes: declared.retention_bytes,
        ..TopicPlan::default()
    };
    if declared.retention.is_none() {
        plan.config.insert("retention.ms".to_owned(), "-1".to_owned());
    }
    plan
}

/// Makes what is missing, and compares what is there.
///
/// # Errors
/// [`BrokerError::Mismatch`] names what differs in the first topic that does, unless differences are accepted; all of them
/// are logged.
pub(super) async fn declare(
    settings: &Settings,
    topics: &Topics,
    wanted: &[(Arc<str>, TopicPlan)],
    accept_differences: bool,
) -> Result<(), BrokerError> {
    let compared = compare(settings, topics, wanted, How::Make).await?;
    let mut refused = None;
    for Compared { name, state } in compared {
        let State::Differs(differences) = state else { continue };
        let differences: Vec<_> = differences.iter().map(Difference::to_string).collect();
        tracing::warn!(topic = &*name, "a topic of Kafka differs from what is configured: {}", differences.join(", "));
        refused.get_or_insert(BrokerError::Mismatch { address: Address::topic(name), differences });
    }
    match refused {
        Some(error) if !accept_differences => Err(error),
        _ => Ok(()),
    }
}

/// All topics of the settings, compared over a client of its own.
///
/// # Errors
/// The servers cannot be asked, or do not do what is asked.
pub async fn at_server(settings: &Settings, how: How) -> Result<Vec<Compared>, BrokerError> {
    let condition = Arc::new(Condition::new(&settings.brokers));
    let query = Query::new(settings, Arc::clone(&condition))?;
    let topics = Topics::new(query, condition, settings.connect_timeout);
    let wanted: Vec<_> = settings.topics.iter().map(|(name, plan)| (Arc::clone(name), plan.clone())).collect();
    compare(settings, &topics, &wanted, how).await
}

/// Compares, and does what `how` says. Answers in the order of `wanted`.
pub(super) async fn compare(
    settings: &Settings,
    topics: &Topics,
    wanted: &[(Arc<str>, TopicPlan)],
    how: How,
) -> Result<Vec<Compared>, BrokerError> {
    if let Some((name, _)) = wanted.iter().find(|(_, plan)| plan.partitions == 0) {
        return Err(BrokerError::Invalid(format!("topic {name:?} has no partitions; it needs at least 1")));
    }
    let there = there(topics).await?;
    let plans: HashMap<Arc<str>, TopicPlan> = wanted.iter().cloned().collect();
    let (missing, found): (Vec<_>, Vec<_>) = plans.keys().cloned().partition(|name| !there.contains_key(name));
    let mut states: HashMap<Arc<str>, State> = HashMap::new();
    let asked: Vec<_> = found.iter().filter(|name| plans.get(*name).is_some_and(names_settings)).cloned().collect();
    let mut grow = Vec::new();
    let mut entries = if asked.is_empty() { HashMap::new() } else { described(settings, topics, asked).await? };
    for name in found {
        let (Some(plan), Some(there)) = (plans.get(&name), there.get(&name)) else { continue };
        let mut differences = differences(settings, plan, there, entries.remove(&*name));
        let mut state = State::Same;
        if how == How::Grow && plan.partitions > there.partitions {
            differences.retain(|one| one.field != PARTITIONS);
            grow.push((Arc::clone(&name), plan.partitions));
            state = State::Grown;
        }
        states.insert(name, if differences.is_empty() { state } else { State::Differs(differences) });
    }
    if how != How::Look && (!missing.is_empty() || !grow.is_empty()) {
        let make = missing.iter().filter_map(|name| Some((Arc::clone(name), plans.get(name)?.clone()))).collect();
        change(settings, topics, make, grow.clone()).await?;
        spread(topics, &missing, &grow).await?;
    }
    for name in missing {
        states.insert(name, if how == How::Look { State::Missing } else { State::Made });
    }
    Ok(wanted
        .iter()
        .filter_map(|(name, _)| Some(Compared { name: Arc::clone(name), state: states.get(name)?.clone() }))
        .collect())
}

const PARTITIONS: &str = "partitions";

/// What is there, by name.
async fn there(topics: &Topics) -> Result<HashMap<Arc<str>, There>, BrokerError> {
    let timeout = topics.timeout();
    let answer = topics.query().ask(move |client| {
        let metadata = client.fetch_metadata(None, timeout)?;
        let named = metadata.topics().iter().filter(|topic| topic.error().is_none());
        KafkaResult::Ok(
            named
                .map(|topic| {
                    let partitions = topic.partitions();
                    let replicas = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
                    let partitions = u32::try_from(partitions.len()).unwrap_or(u32::MAX);
                    (Arc::from(topic.name()), There { partitions, replicas })
                })
                .collect(),
        )
    });
    answer.await?.map_err(|error| topics.failed("", code(&error)))
}

/// Settings of a topic that the plan names, as Kafka names them.
fn settings_of(plan: &TopicPlan) -> Vec<(&str, String)> {
    let retention = plan.retention.map(|time| ("retention.ms", time.as_millis().min(i64::MAX as u128).to_string()));
    let bytes = plan.retention_bytes.map(|bytes| ("retention.bytes", bytes.min(i64::MAX as u64).to_string()));
    let insync = plan.min_insync_replicas.map(|replicas| ("min.insync.replicas", replicas.to_string()));
    let named = [retention, bytes, insync].into_iter().flatten();
    let named = named.filter(|(name, _)| !plan.config.contains_key(*name));
    named.chain(plan.config.iter().map(|(name, value)| (name.as_str(), value.clone()))).collect()
}

fn names_settings(plan: &TopicPlan) -> bool {
    !settings_of(plan).is_empty()
}

fn differences(
    settings: &Settings,
    plan: &TopicPlan,
    there: &There,
    entries: Option<ConfigResource>,
) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |field: &str, configured: String, current: String| {
        if configured != current {
            differences.push(Difference { field: field.to_owned(), configured, current });
        }
    };
    compare(PARTITIONS, plan.partitions.to_string(), there.partitions.to_string());
    if let Some(replicas) = plan.replication_factor.or(settings.replication_factor) {
        compare("replication_factor", replicas.to_string(), there.replicas.to_string());
    }
    for (name, value) in settings_of(plan) {
        let entry = entries.as_ref().and_then(|entries| entries.get(name));
        let current = entry.and_then(|entry| entry.value.clone());
        compare(name, value, current.unwrap_or_else(|| "nothing".to_owned()));
    }
    differences
}

/// The settings of topics, by their names.
async fn described(
    settings: &Settings,
    topics: &Topics,
    names: Vec<Arc<str>>,
) -> Result<HashMap<String, ConfigResource>, BrokerError> {
    let answer = administered(settings, move |client, options, runtime| {
        let asked: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        runtime.block_on(client.describe_configs(&asked, options))
    });
    let mut found = HashMap::new();
    for answer in answer.await?.map_err(|error| topics.failed("", code_of(&error)))? {
        let resource = answer.map_err(|code| topics.failed("", code))?;
        if let rdkafka::admin::OwnedResourceSpecifier::Topic(name) = &resource.specifier {
            found.insert(name.clone(), resource);
        }
    }
    Ok(found)
}

/// Makes topics, and partitions up to a number.
async fn change(
    settings: &Settings,
    topics: &Topics,
    make: Vec<(Arc<str>, TopicPlan)>,
    grow: Vec<(Arc<str>, u32)>,
) -> Result<(), BrokerError> {
    let replicas = settings.replication_factor;
    let answer = administered(settings, move |client, options, runtime| {
        let texts: Vec<Vec<(&str, String)>> = make.iter().map(|(_, plan)| settings_of(plan)).collect();
        let new: Vec<_> = make
            .iter()
            .zip(&texts)
            .map(|((name, plan), texts)| {
                let partitions = i32::try_from(plan.partitions.max(1)).unwrap_or(i32::MAX);
                // -1: as the servers are configured.
                let replicas = plan.replication_factor.or(replicas).map_or(-1, i32::from);
                let new = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
                texts.iter().fold(new, |new, (name, value)| new.set(name, value))
            })
            .collect();
        let more: Vec<_> = grow.iter().map(|(name, count)| NewPartitions::new(name, *count as usize)).collect();
        let mut results = Vec::new();
        if !new.is_empty() {
            results.extend(runtime.block_on(client.create_topics(&new, options))?);
        }
        if !more.is_empty() {
            results.extend(runtime.block_on(client.create_partitions(&more, options))?);
        }
        KafkaResult::Ok(results)
    });
    for result in answer.await?.map_err(|error| topics.failed("", code_of(&error)))? {
        match result {
            // Somebody was faster.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(not_made(topics, &name, code)),
        }
    }
    Ok(())
}

fn not_made(topics: &Topics, name: &str, code: RDKafkaErrorCode) -> BrokerError {
    use RDKafkaErrorCode as Code;
    let refused =
        |what: &str, code| BrokerError::Refused { reason: format!("Kafka does not make topic {name:?}: {what}"), code };
    match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => refused(
            "its user may not; give it the right, or make the topic otherwise",
            ReasonCode::AuthenticationFailed,
        ),
        Code::InvalidReplicationFactor => refused(
            "there are not as many servers as copies are asked for; correct kafka.replication_factor",
            ReasonCode::InvalidConfig,
        ),
        Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidConfig
        | Code::InvalidRequest
        | Code::PolicyViolation => {
            refused(&format!("{code}; correct it under kafka.topics"), ReasonCode::InvalidConfig)
        }
        code => topics.failed(name, code),
    }
}

/// Waits until servers tell of what was made: a publish would not find it otherwise.
async fn spread(topics: &Topics, made: &[Arc<str>], grown: &[(Arc<str>, u32)]) -> Result<(), BrokerError> {
    let until = Instant::now() + SPREADS_WITHIN;
    loop {
        let all = topics.all().await?;
        let is_there = made.iter().all(|name| all.contains_key(name))
            && grown.iter().all(|(name, count)| all.get(name).is_some_and(|there| there >= count));
        if is_there || Instant::now() >= until {
            return Ok(());
        }
        tokio::time::sleep(ASKED_EVERY).await;
    }
}

/// Asks over a client of its own, which lasts as long as the question: nothing polls it for what else it has to say.
async fn administered<T: Send + 'static>(
    settings: &Settings,
    question: impl FnOnce(&AdminClient<Watched>, &AdminOptions, &Handle) -> KafkaResult<T> + Send + 'static,
) -> Result<KafkaResult<T>, BrokerError> {
    let mut config = client::config(settings);
    config.set("statistics.interval.ms", "0");
    let condition = Arc::new(Condition::new(&settings.brokers));
    let timeout = Some(settings.connect_timeout);
    let runtime = Handle::current();
    let asked = spawn_blocking(move || {
        let client: AdminClient<Watched> =
            config.create_with_context(Watched(condition)).map_err(|error| client::refused(&error))?;
        let options = AdminOptions::new().request_timeout(timeout).operation_timeout(timeout);
        Ok(question(&client, &options, &runtime))
    });
    asked.await.map_err(|error| BrokerError::Lost(format!("a question to Kafka ended without an answer: {error}")))?
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    match error {
        KafkaError::AdminOp(code) => *code,
        error => code(error),
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {} and should be {}", self.field, self.current, self.configured)
    }
}
