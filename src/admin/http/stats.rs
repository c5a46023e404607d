//! Numbers: metrics as Prometheus reads them, and what lies in queues and topics.

use axum::{
    Json,
    extract::State,
    http::{Uri, header},
    response::IntoResponse,
};
use serde_json::{Value, json};

use super::{Context, params::Params, problem::Problem};
use crate::{message::Kind, telemetry};

/// `GET /metrics`
pub(super) async fn metrics() -> Result<impl IntoResponse, Problem> {
    let text =
        telemetry::metrics().render().map_err(|error| Problem::internal(format!("a metric has no text: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

/// `GET /v1/messaging/stats`
pub(super) async fn stats(State(context): State<Context>, uri: Uri) -> Result<Json<Value>, Problem> {
    Params::read(&uri, &[], &[])?;
    let broker = context.hub().broker();
    let (mut queues, mut topics) = (Vec::new(), Vec::new());
    for stats in broker.stats() {
        let name = &stats.address.name;
        match stats.address.kind {
            Kind::Queue => queues.push(json!({
                "name": name,
                "ready": stats.ready,
                "delayed": stats.delayed,
                "unsettled": stats.unsettled,
                "bytes": stats.bytes,
                "dropped": stats.dropped,
                "dead_lettered": stats.dead_lettered,
            })),
            Kind::Topic => topics.push(json!({
                "name": name,
                "kept": stats.ready,
                "delayed": stats.delayed,
                "unsettled": stats.unsettled,
                "bytes": stats.bytes,
                "lag": stats.lag.iter().map(|(group, lag)| (group.to_string(), Value::from(*lag))).collect::<serde_json::Map<_, _>>(),
                "dropped": stats.dropped,
                "dead_lettered": stats.dead_lettered,
            })),
        }
    }
    Ok(Json(json!({ "broker": broker.name(), "queues": queues, "topics": topics })))
}
