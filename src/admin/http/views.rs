//! How handlers and routes are shown: their state in one word, and everything that was decided about them.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    codec::time::rfc3339,
    handler::{Limits, Receipt, ReloadResult, Slot, Terms},
    hub::Hub,
    message::{HandlerIdentity, UnixMs},
    route::{CrashBudget, Match, OutageBrake, Route},
    settle::RetryPolicy,
};

/// How a handler is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum HandlerState {
    /// A version of it handles messages.
    Serving,
    /// A version of it is loaded, and no route names it.
    Waiting,
    /// A route names it, and there is no file.
    Missing,
    /// Its file was refused, and nothing serves.
    Refused,
    /// Its file is gone, and no route names it.
    Removed,
}

/// A handler, as far as people are concerned.
#[derive(Debug)]
pub(super) struct HandlerView {
    pub(super) name: Arc<str>,
    pub(super) state: HandlerState,
    identity: Option<HandlerIdentity>,
    since: Option<UnixMs>,
    routes: Vec<Arc<str>>,
    receipts: Vec<Receipt>,
}

impl HandlerView {
    /// Every handler that a file or a route names, by name.
    pub(super) fn all(hub: &Hub) -> Vec<Self> {
        let settings = hub.settings();
        let routes: Vec<&Arc<Route>> = settings.routes.iter().collect();
        let slots = hub.registry().slots();
        let mut all: Vec<Self> = slots.iter().filter_map(|slot| Self::of(slot, &routes)).collect();
        // Where a route could not be started its handler may have no slot yet.
        for route in &routes {
            if !all.iter().any(|view| view.name == route.handler) {
                all.push(Self::missing(&route.handler, &routes));
            }
        }
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn of(slot: &Slot, routes: &[&Arc<Route>]) -> Option<Self> {
        let serving = slot.serving();
        let receipts = slot.receipts();
        let routes = naming(slot.name(), routes);
        let refused = matches!(receipts.last(), Some(Receipt { result: ReloadResult::Refused(_), .. }));
        let state = match (&serving, refused, routes.is_empty()) {
            (Some(_), _, false) => HandlerState::Serving,
            (Some(_), _, true) => HandlerState::Waiting,
            (None, true, _) => HandlerState::Refused,
            (None, false, false) => HandlerState::Missing,
            (None, false, true) if receipts.is_empty() => return None,
            (None, false, true) => HandlerState::Removed,
        };
        Some(Self {
            name: Arc::clone(slot.name()),
            state,
            identity: serving.as_ref().map(|version| version.handler.identity().clone()),
            since: serving.as_ref().map(|version| version.since),
            routes,
            receipts,
        })
    }

    fn missing(name: &Arc<str>, routes: &[&Arc<Route>]) -> Self {
        let routes = naming(name, routes);
        Self {
            name: Arc::clone(name),
            state: HandlerState::Missing,
            identity: None,
            since: None,
            routes,
            receipts: Vec::new(),
        }
    }

    /// What is wrong with it, in words; `None`: nothing.
    pub(super) fn complaint(&self) -> Option<String> {
        let refusal = self.receipts.last().and_then(|receipt| match &receipt.result {
            ReloadResult::Refused(reason) => Some(reason.as_str()),
            _ => None,
        });
        match (self.state, refusal) {
            (HandlerState::Serving | HandlerState::Waiting, Some(reason)) => {
                Some(format!("the newest file was refused, and the version before it serves: {reason}"))
            }
            (HandlerState::Waiting, None) => Some("it is loaded, and no route names it".to_owned()),
            (HandlerState::Refused, reason) => {
                Some(format!("its file was refused, and nothing serves: {}", reason.unwrap_or("no reason was kept")))
            }
            (HandlerState::Missing, _) => Some(format!("no file {}.wasm is there; messages for it wait", self.name)),
            _ => None,
        }
    }

    /// Everything about it.
    pub(super) fn json(&self) -> Value {
        let last = self.receipts.iter().rev().map(receipt).collect::<Vec<_>>();
        let mut shown = self.short();
        shown.insert("routes".into(), json!(self.routes));
        shown.insert("reason".into(), json!(self.complaint()));
        shown.insert("receipts".into(), Value::Array(last));
        Value::Object(shown)
    }

    /// Which version serves since when.
    pub(super) fn short(&self) -> Map<String, Value> {
        let identity = self.identity.as_ref();
        let mut shown = Map::new();
        shown.insert("name".into(), json!(self.name));
        shown.insert("state".into(), json!(self.state));
        shown.insert("version".into(), json!(identity.and_then(|identity| identity.version.as_deref())));
        shown.insert(
            "digest".into(),
            json!(identity.map(|identity| &identity.digest).filter(|digest| !digest.is_empty())),
        );
        shown.insert("since".into(), json!(self.since.and_then(rfc3339)));
        shown
    }
}

fn naming(name: &str, routes: &[&Arc<Route>]) -> Vec<Arc<str>> {
    routes.iter().filter(|route| &*route.handler == name).map(|route| Arc::clone(&route.name)).collect()
}

fn receipt(receipt: &Receipt) -> Value {
    let (result, reason) = match &receipt.result {
        ReloadResult::Loaded => ("loaded", None),
        ReloadResult::Refused(reason) => ("refused", Some(reason)),
        ReloadResult::Removed => ("removed", None),
        ReloadResult::RolledBack => ("rolled_back", None),
    };
    json!({
        "at": rfc3339(receipt.at),
        "result": result,
        "reason": reason,
        "digest": receipt.digest,
        "took_ms": receipt.took.as_secs_f64() * 1000.0,
        "cached": receipt.cached,
    })
}

/// Which messages a route takes.
pub(super) fn conditions(matches: &Match) -> Value {
    json!({ "types": matches.types, "headers": matches.headers })
}

/// Every value that holds for messages of a route, defaults included, named as the configuration names them. Taken apart
/// field by field, so that one that is added cannot be forgotten here.
pub(super) fn policy(route: &Route) -> Value {
    let Route {
        name: _,
        source,
        matches: _,
        handler: _,
        order,
        delivery,
        concurrency,
        terms,
        retry,
        dead_letter,
        crash_budget,
        outage,
    } = route;
    let Terms { route: _, isolation, limits, destinations, may_reply } = &**terms;
    let RetryPolicy { attempts_max, delay, factor, delay_max, jitter } = retry;
    let CrashBudget { failures_max, probes_max, probe_interval, rollback_within } = crash_budget;
    let OutageBrake { failures_max: different_max, probe_interval: outage_probe } = outage;
    json!({
        "order": order,
        "delivery": delivery,
        "concurrency": concurrency,
        "isolation": isolation,
        "timeout_ms": millis(limits.timeout),
        "limits": limits_but_time(limits),
        "retry": {
            "attempts_max": attempts_max,
            "delay_ms": millis(*delay),
            "factor": factor,
            "delay_max_ms": millis(*delay_max),
            "jitter": jitter,
            "wait": source.aside,
        },
        "dead_letter": dead_letter,
        "destinations": destinations,
        "reply": may_reply,
        "crash_budget": {
            "failures_max": failures_max,
            "probes_max": probes_max,
            "probe_interval_ms": millis(*probe_interval),
            "rollback_within_ms": millis(*rollback_within),
        },
        "outage": { "failures_max": different_max, "probe_ms": millis(*outage_probe) },
    })
}

fn limits_but_time(limits: &Limits) -> Value {
    let Limits {
        timeout: _,
        extend_factor_max,
        memory_bytes_max,
        resources_max,
        results_max,
        results_bytes_max,
        message_bytes_max,
        log_lines_per_second_max,
        hops_max,
        instance_messages_max,
    } = limits;
    json!({
        "extend_factor_max": extend_factor_max,
        "memory_bytes_max": memory_bytes_max,
        "resources_max": resources_max,
        "results_max": results_max,
        "results_bytes_max": results_bytes_max,
        "message_bytes_max": message_bytes_max,
        "log_lines_per_second_max": log_lines_per_second_max,
        "hops_max": hops_max,
        "instance_messages_max": instance_messages_max,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The handler of that name, if anything names it.
pub(super) fn handler(hub: &Hub, name: &str) -> Option<HandlerView> {
    HandlerView::all(hub).into_iter().find(|view| &*view.name == name)
}
