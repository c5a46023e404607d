//! How the engine is doing. Nothing here waits: what is said was known before it was asked.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Context, views::HandlerView};
use crate::{
    broker::{BrokerStatus, Circuit, SpoolStats},
    codec::time::rfc3339,
    hub::{BrakeState, Hub, RouteStatus},
};

/// `GET /health`
pub(super) async fn all(State(context): State<Context>) -> Response {
    let hub = context.hub();
    let unfit = unfit(hub);
    let mut reasons: Vec<String> = unfit.iter().cloned().collect();
    let handlers: Vec<Value> = HandlerView::all(hub)
        .iter()
        .map(|view| {
            let complaint = view.complaint();
            reasons.extend(complaint.iter().map(|reason| format!("handler {}: {reason}", view.name)));
            let mut shown = view.short();
            shown.insert("status".into(), status(complaint.as_ref()));
            shown.insert("reason".into(), json!(complaint));
            Value::Object(shown)
        })
        .collect();
    let routes: Vec<Value> = hub
        .routes()
        .iter()
        .map(|route| {
            let complaint = complaint(route);
            reasons.extend(complaint.iter().map(|reason| format!("route {}: {reason}", route.route)));
            json!({
                "name": route.route,
                "status": status(complaint.as_ref()),
                "reason": complaint,
                "source": route.source,
                "handler": route.handler,
                "serving": route.serving,
                "brake": route.brake,
                "lanes": route.lanes,
                "restarts": route.restarts,
                "last_restart": route.last_restart.and_then(rfc3339),
            })
        })
        .collect();
    let mut brokers = Vec::new();
    for system in hub.broker().systems() {
        let (status, reason) = match system.status {
            BrokerStatus::Failed { reason } => ("unavailable", Some(reason)),
            _ if hub.is_stopping() => ("unavailable", Some(STOPPING.to_owned())),
            BrokerStatus::Degraded { reason } => ("degraded", Some(reason)),
            BrokerStatus::Ready if system.circuit != Circuit::Closed => ("degraded", Some(NOT_PUBLISHED.to_owned())),
            BrokerStatus::Ready => ("ok", None),
        };
        if let ("degraded", Some(reason)) = (status, &reason) {
            reasons.push(format!("broker {}: {reason}", system.name));
        }
        brokers.push(json!({
            "name": system.name,
            "status": status,
            "reason": reason,
            "state": system.state,
            "circuit": system.circuit,
            "spool": system.spool.as_ref().map(spool),
            "durable": system.is_durable,
        }));
    }
    let body = json!({
        "status": if unfit.is_some() { "unavailable" } else if reasons.is_empty() { "ok" } else { "degraded" },
        "reasons": reasons,
        "version": &*context.api.options.version,
        "brokers": brokers,
        "routes": routes,
        "handlers": handlers,
    });
    let code = if unfit.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(body)).into_response()
}

/// `GET /health/live`
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /health/ready`
pub(super) async fn ready(State(context): State<Context>) -> Response {
    match unfit(context.hub()) {
        None => Json(json!({ "status": "ok" })).into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "unavailable", "reason": reason })))
            .into_response(),
    }
}

/// Why no messages should be sent here now.
fn unfit(hub: &Hub) -> Option<String> {
    if let BrokerStatus::Failed { reason } = hub.broker().status() {
        Some(format!("broker {}: {reason}", hub.broker().name()))
    } else if hub.is_stopping() {
        Some(STOPPING.to_owned())
    } else if !hub.is_ready() {
        Some("the plugins are still being loaded".to_owned())
    } else {
        let stalled = |route: RouteStatus| Some(format!("{} has stalled: {}", route.source, route.stalled?));
        hub.routes().into_iter().find_map(stalled)
    }
}

const STOPPING: &str = "the engine is stopping";
const NOT_PUBLISHED: &str = "nothing is published there for now; whether it takes messages again is being tried";

/// What waits for a system.
fn spool(stats: &SpoolStats) -> Value {
    json!({
        "durable": stats.is_durable,
        "messages": stats.messages,
        "bytes": stats.bytes,
        "oldest_ms": stats.oldest_ms,
        "refused": stats.refused,
    })
}

fn status(complaint: Option<&String>) -> Value {
    Value::from(if complaint.is_some() { "degraded" } else { "ok" })
}

/// What is wrong with a route, in words.
pub(super) fn complaint(route: &RouteStatus) -> Option<String> {
    if route.other_kind {
        return Some(format!(
            "handler {} does not take messages from a {}; they wait",
            route.handler, route.source.kind
        ));
    }
    if !route.serving {
        return Some(format!("no version of handler {} serves; messages wait", route.handler));
    }
    if let Some(destination) = &route.waits_for {
        return Some(format!("{destination} takes no messages for now; messages wait until it does"));
    }
    if let (BrakeState::Slowed, Some(outage)) = (route.brake, &route.outage) {
        return Some(format!(
            "different messages fail alike, {} times since the last success ({}: {}); one at a time is tried until one is \
             handled, and none uses up an attempt",
            outage.failures, outage.code, outage.text
        ));
    }
    if let Some(stalled) = &route.stalled {
        return Some(stalled.clone());
    }
    match route.brake {
        BrakeState::Open if route.lanes == 0 => Some("none of its lanes runs".to_owned()),
        BrakeState::Open => None,
        BrakeState::Slowed => Some(format!("handler {} keeps dying; one message at a time is tried", route.handler)),
        BrakeState::Held => {
            Some(format!("handler {} kept dying; messages wait until it or the configuration changes", route.handler))
        }
    }
}
