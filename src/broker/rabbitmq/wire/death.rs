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

fn was_waiting(death: &AMQPValue) -> bool {
    let AMQPValue::FieldTable(death) = death else { return false };
    queue(death).is_some_and(|queue| queue.starts_with(RUNG_PREFIX))
}

fn queue(death: &FieldTable) -> Option<&str> {
    value::plain(death.inner().get("queue")?)
}
