//! `x-death`: where a message was when the server dead-lettered it, newest first, one table for each queue and reason.
//! Source: RabbitMQ, "Dead Letter Exchanges", section "Effects on Messages".

use lapin::types::{AMQPValue, FieldArray, FieldTable};

use super::value;

/// What the names of queues begin with where messages of ours wait: passing through one is no death.
const RUNG_PREFIX: &str = "helixagent.retry";

/// The deaths that are not from our own waiting queues; `None` where there are none, or it is no such list.
pub(super) fn without_waiting(deaths: &AMQPValue) -> Option<AMQPValue> {
    let AMQPValue::FieldArray(deaths) = deaths else { return None };
    let kept: Vec<_> = deaths.as_slice().iter().filter(|death| !was_waiting(death)).cloned().collect();
    (!kept.is_empty()).then(|| AMQPValue::FieldArray(FieldArray::from(kept)))
}

/// First the later deaths of a copy, those of waiting left out, then those of the message before it was copied.
pub(super) fn joined(later: Option<&AMQPValue>, earlier: Option<AMQPValue>) -> Option<AMQPValue> {
    let all = [later.and_then(without_waiting), earlier].into_iter().flatten();
    let lists = all.filter_map(|deaths| match deaths {
        AMQPValue::FieldArray(deaths) => Some(deaths),
        _ => None,
    });
    let each: Vec<_> = lists.flat_map(|deaths| deaths.as_slice().to_vec()).collect();
    (!each.is_empty()).then(|| AMQPValue::FieldArray(FieldArray::from(each)))
}

fn was_waiting(death: &AMQPValue) -> bool {
    let AMQPValue::FieldTable(death) = death else { return false };
    queue(death).is_some_and(|queue| queue.starts_with(RUNG_PREFIX))
}

fn queue(death: &FieldTable) -> Option<&str> {
    value::plain(death.inner().get("queue")?)
}
