use std::{sync::Arc, time::Duration};

use super::{settings, topic, topics, unique};
use crate::{
    broker::{
        BrokerError, TopicSettings,
        kafka::{
            Settings,
            settings::TopicPlan,
            topology::{Compared, How, State, compare, declare, plan_of},
        },
    },
    message::{Address, ReasonCode},
};

async fn state(settings: &Settings, name: &str, plan: &TopicPlan, how: How) -> State {
    let compared = compare(settings, &topics(settings), &[(name.into(), plan.clone())], how).await.unwrap();
    let [Compared { name: of, state }] = compared.try_into().unwrap();
    assert_eq!(&*of, name);
    state
}

fn fields(state: State) -> Vec<String> {
    match state {
        State::Differs(differences) => differences.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_topic_is_made_once_and_compared_field_by_field() {
    let (settings, name) = (settings(), unique("made"));
    let plan = TopicPlan {
        partitions: 3,
        replication_factor: Some(1),
        retention: Some(Duration::from_secs(3600)),
        retention_bytes: Some(1 << 30),
        min_insync_replicas: Some(1),
        config: [("cleanup.policy".to_owned(), "compact,delete".to_owned())].into(),
    };
    assert_eq!(state(&settings, &name, &plan, How::Look).await, State::Missing);
    assert_eq!(state(&settings, &name, &plan, How::Make).await, State::Made);
    assert_eq!(state(&settings, &name, &plan, How::Make).await, State::Same);
    assert_eq!(
        state(&settings, &name, &TopicPlan { partitions: 3, ..TopicPlan::default() }, How::Look).await,
        State::Same
    );
    let other = TopicPlan {
        partitions: 2,
        replication_factor: Some(3),
        retention: Some(Duration::from_secs(60)),
        retention_bytes: Some(1),
        min_insync_replicas: Some(2),
        config: [("cleanup.policy".to_owned(), "delete".to_owned()), ("no.such".to_owned(), "1".to_owned())].into(),
    };
    let expected = [
        "partitions is 3 and should be 2",
        "replication_factor is 1 and should be 3",
        "retention.ms is 3600000 and should be 60000",
        "retention.bytes is 1073741824 and should be 1",
        "min.insync.replicas is 1 and should be 2",
        "cleanup.policy is compact,delete and should be delete",
        "no.such is nothing and should be 1",
    ];
    for how in [How::Look, How::Make, How::Grow] {
        assert_eq!(fields(state(&settings, &name, &other, how).await), expected, "{how:?}");
    }
}

#[tokio::test]
async fn only_asked_for_it_grows_and_keeps_its_settings() {
    let (settings, name) = (settings(), topic("grows", 1, &[("retention.ms", "12345")]).await);
    let plan = TopicPlan { partitions: 4, retention: Some(Duration::from_millis(12_345)), ..TopicPlan::default() };
    for how in [How::Look, How::Make] {
        assert_eq!(fields(state(&settings, &name, &plan, how).await), ["partitions is 1 and should be 4"]);
    }
    assert_eq!(state(&settings, &name, &plan, How::Grow).await, State::Grown);
    assert_eq!(state(&settings, &name, &plan, How::Look).await, State::Same);
    assert_eq!(topics(&settings).partitions(&name).await.unwrap(), Some(4));
}

#[tokio::test]
async fn starting_up_refuses_what_differs_unless_it_is_accepted() {
    let settings = settings();
    let (one, other, new) = (topic("one", 1, &[]).await, topic("other", 1, &[]).await, unique("new"));
    let plan = |partitions| TopicPlan { partitions, ..TopicPlan::default() };
    let wanted: Vec<(Arc<str>, _)> =
        vec![(new.as_str().into(), plan(2)), (one.as_str().into(), plan(2)), (other.as_str().into(), plan(1))];
    let topics = topics(&settings);
    match declare(&settings, &topics, &wanted, false).await {
        Err(BrokerError::Mismatch { address, differences }) => {
            assert_eq!(
                (address, differences),
                (Address::topic(one), vec!["partitions is 1 and should be 2".to_owned()])
            );
        }
        other => panic!("{other:?}"),
    }
    declare(&settings, &topics, &wanted, true).await.unwrap();
    assert_eq!(topics.partitions(&new).await.unwrap(), Some(2));
    assert_eq!(topics.partitions(&unique("missing")).await.unwrap(), None);
}

#[tokio::test]
async fn what_the_server_will_not_make_says_what_to_correct() {
    let settings = settings();
    for (plan, says) in [
        (TopicPlan { partitions: 1, replication_factor: Some(3), ..TopicPlan::default() }, "kafka.replication_factor"),
        (
            TopicPlan {
                partitions: 1,
                config: [("no.such".to_owned(), "1".to_owned())].into(),
                ..TopicPlan::default()
            },
            "kafka.topics",
        ),
    ] {
        let name = unique("refused");
        match compare(&settings, &topics(&settings), &[(name.as_str().into(), plan)], How::Make).await {
            Err(BrokerError::Refused { reason, code: ReasonCode::InvalidConfig }) => {
                assert!(reason.contains(says) && reason.contains(&name), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_declaration_means_what_the_settings_say_of_its_name_or_what_it_says() {
    let by_name = TopicPlan { partitions: 9, ..TopicPlan::default() };
    let settings = Settings { topics: [("known".into(), by_name.clone())].into(), ..Settings::default() };
    let declared =
        TopicSettings { partitions: 2, retention: None, retention_bytes: Some(7), ..TopicSettings::default() };
    assert_eq!(plan_of("known", &declared, &settings), by_name);
    let plan = plan_of("other", &declared, &settings);
    assert_eq!((plan.partitions, plan.retention, plan.retention_bytes), (2, None, Some(7)));
    assert_eq!(plan.config.get("retention.ms").map(String::as_str), Some("-1"));
}
