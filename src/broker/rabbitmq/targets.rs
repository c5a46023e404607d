//! Which exchange and routing key a message is published with. Pure.

use std::{collections::BTreeMap, sync::Arc};

use super::settings::Settings;
use crate::message::{Address, Kind, Message};

/// The exchange of events. Source: SPEC section 2.
pub(super) const EVENTS: &str = "helixagent.events";

/// Where addresses are on the server.
#[derive(Debug)]
pub(super) struct Targets {
    /// Queues that are bound to an exchange under a key without wildcards: exchange and key.
    queues: BTreeMap<Arc<str>, (Arc<str>, String)>,
    /// Topics that are exchanges.
    exchanges: std::collections::BTreeSet<Arc<str>>,
    /// Of all other queues.
    otherwise: String,
}

impl Targets {
    pub(super) fn new(settings: &Settings) -> Self {
        let topology = &settings.topology;
        let mut queues = BTreeMap::new();
        for binding in &topology.bindings {
            let kind = topology.exchanges.get(&binding.exchange).map(|exchange| exchange.kind.as_str());
            let is_plain = !binding.routing_key.contains(['*', '#']);
            if matches!(kind, Some("direct" | "topic")) && is_plain && binding.arguments.is_empty() {
                let target = (Arc::clone(&binding.exchange), binding.routing_key.clone());
                queues.entry(Arc::clone(&binding.queue)).or_insert(target);
            }
        }
        Self {
            queues,
            exchanges: topology.exchanges.keys().cloned().collect(),
            otherwise: settings.exchange.clone().unwrap_or_default(),
        }
    }

    /// Exchange and routing key of a message.
    pub(super) fn of<'a>(&'a self, to: &'a Address, message: &'a Message) -> (&'a str, &'a str) {
        match to.kind {
            Kind::Queue => match self.queues.get(&to.name) {
                Some((exchange, key)) => (exchange, key),
                None => (&self.otherwise, &to.name),
            },
            Kind::Topic if self.exchanges.contains(&to.name) => (&to.name, &message.kind),
            Kind::Topic => (EVENTS, &to.name),
        }
    }

    /// Whether the queue itself is meant, by its name: what is not routed then is not there.
    pub(super) fn is_by_name(&self, to: &Address) -> bool {
        self.otherwise.is_empty() && !self.queues.contains_key(&to.name)
    }
}
