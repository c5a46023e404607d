//! For now: makes topics.

use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};

use super::{
    client::{self, Watched},
    condition::Condition,
    settings::{Settings, TopicPlan},
};
use crate::broker::{BrokerError, TopicSettings};

pub(super) async fn declare(
    settings: &Settings,
    condition: &Arc<Condition>,
    wanted: Vec<(Arc<str>, TopicPlan)>,
) -> Result<(), BrokerError> {
    let admin: AdminClient<Watched> = client::config(settings)
        .create_with_context(Watched(Arc::clone(condition)))
        .map_err(|error| client::refused(&error))?;
    let retention: Vec<Option<String>> =
        wanted.iter().map(|(_, plan)| plan.retention.map(|time| time.as_millis().to_string())).collect();
    let topics = wanted.iter().zip(&retention).map(|((name, plan), retention)| {
        let mut topic = NewTopic::new(name, i32::try_from(plan.partitions).unwrap_or(1), TopicReplication::Fixed(1));
        if let Some(retention) = retention {
            topic = topic.set("retention.ms", retention);
        }
        topic
    });
    let topics: Vec<_> = topics.collect();
    admin
        .create_topics(&topics, &AdminOptions::new())
        .await
        .map_err(|error| BrokerError::Lost(format!("topics cannot be made: {error}")))?;
    Ok(())
}

pub(super) fn plan_of(settings: &TopicSettings) -> TopicPlan {
    TopicPlan { partitions: settings.partitions, retention: settings.retention, ..TopicPlan::default() }
}
