//! The topology as a file that servers import: `rabbitmqctl import_definitions`, `POST /api/definitions`, or
//! `load_definitions` in rabbitmq.conf. Source: RabbitMQ, "Schema Definition Export and Import".
//!
//! It has no users and no permissions: who may connect is the operator's, and passwords do not belong into files.

use serde_json::{Value, json};

use super::{Arguments, Topology};

/// The definitions for one virtual host, which importing makes where it is missing. Importing never changes or deletes
/// a queue or an exchange that is there. What belongs to one connection cannot be imported and is left out.
#[must_use]
pub fn export(topology: &Topology, vhost: &str) -> Value {
    let exchanges: Vec<_> = topology
        .exchanges
        .iter()
        .map(|(name, exchange)| {
            json!({
                "name": name, "vhost": vhost, "type": exchange.kind, "durable": exchange.durable,
                "auto_delete": exchange.auto_delete, "internal": exchange.internal,
                "arguments": table(&exchange.arguments),
            })
        })
        .collect();
    let queues: Vec<_> = topology
        .queues
        .iter()
        .filter(|(_, queue)| !queue.exclusive)
        .map(|(name, queue)| {
            let mut arguments = table(&queue.arguments);
            arguments.insert("x-queue-type".to_owned(), queue.kind.as_str().into());
            json!({
                "name": name, "vhost": vhost, "durable": queue.durable, "auto_delete": queue.auto_delete,
                "arguments": arguments,
            })
        })
        .collect();
    let bindings: Vec<_> = topology
        .bindings
        .iter()
        .filter(|binding| topology.queues.get(&binding.queue).is_none_or(|queue| !queue.exclusive))
        .map(|binding| {
            json!({
                "source": binding.exchange, "vhost": vhost, "destination": binding.queue, "destination_type": "queue",
                "routing_key": binding.routing_key, "arguments": table(&binding.arguments),
            })
        })
        .collect();
    json!({
        "vhosts": [{ "name": vhost }],
        "policies": [],
        "exchanges": exchanges,
        "queues": queues,
        "bindings": bindings,
    })
}

fn table(arguments: &Arguments) -> serde_json::Map<String, Value> {
    arguments.iter().map(|(name, value)| (name.clone(), serde_json::to_value(value).unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::rabbitmq::topology::{QueueKind, standard};

    #[test]
    fn the_committed_definitions_are_those_of_the_code() {
        let mut text = serde_json::to_string_pretty(&export(&standard(QueueKind::Classic), "/")).unwrap();
        text.push('\n');
        let committed = std::fs::read_to_string("configs/rabbitmq/definitions.json").unwrap_or_default();
        assert_eq!(committed, text, "write it anew: helixmq topology export --file configs/rabbitmq/definitions.json");
    }

    #[test]
    fn what_belongs_to_a_connection_is_left_out() {
        let mut all = standard(QueueKind::Classic);
        let count = |all: &Topology, part: &str| export(all, "v")[part].as_array().unwrap().len();
        let before = (count(&all, "queues"), count(&all, "bindings"));
        all.queues.get_mut("helixagent.tasks.llm").unwrap().exclusive = true;
        assert_eq!((count(&all, "queues"), count(&all, "bindings")), (before.0 - 1, before.1 - 1));
    }
}
