//! Routes: which there are, and which one a message would take and why.

use axum::{
    Json,
    extract::{Request, State},
    http::Uri,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, body, health::complaint, params, params::Params, problem::Problem, views};
use crate::{
    hub::{Hub, RouteStatus},
    message::{Headers, Message, ReasonCode},
    route::Route,
};

/// Longest question, in bytes.
const QUESTION_BYTES_MAX: usize = 1 << 20;

/// `GET /v1/messaging/routes`
pub(super) async fn routes(State(context): State<Context>, uri: Uri) -> Result<Json<Value>, Problem> {
    Params::read(&uri, &[], &[])?;
    let hub = context.hub();
    let statuses = hub.routes();
    let items: Vec<Value> = hub.settings().routes.iter().map(|route| show(route, &statuses)).collect();
    Ok(Json(json!({ "count": items.len(), "items": items })))
}

fn show(route: &Route, statuses: &[RouteStatus]) -> Value {
    let status = statuses.iter().find(|status| status.route == route.name);
    json!({
        "name": route.name,
        "source": route.source.address,
        "group": route.source.group,
        "match": views::conditions(&route.matches),
        "handler": route.handler,
        "serving": status.is_some_and(|status| status.serving),
        "brake": status.map(|status| status.brake),
        "reason": status.and_then(complaint),
        "lanes": status.map_or(0, |status| status.lanes),
        "policy": views::policy(route),
    })
}

/// A message that somebody has in mind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    queue: Option<String>,
    topic: Option<String>,
    #[serde(default, rename = "type")]
    kind: String,
    key: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
}

/// `POST /v1/messaging/routes/explain`
pub(super) async fn explain(State(context): State<Context>, request: Request) -> Response {
    if let Err(problem) = Params::read(request.uri(), &[], &[]) {
        return body::refuse(request, problem).await;
    }
    match body::whole(&context, request, QUESTION_BYTES_MAX).await {
        Ok(question) => answer(context.hub(), &question).map(Json).into_response(),
        Err(refused) => refused.answer().await,
    }
}

fn answer(hub: &Hub, question: &[u8]) -> Result<Value, Problem> {
    let question: Question = serde_json::from_slice(question).map_err(|error| {
        Problem::invalid(format!(
            "{error}; ask with {{\"queue\" or \"topic\": …, \"type\": …, \"key\": …, \"headers\": {{…}}}}"
        ))
    })?;
    let source = params::source(question.queue.as_deref(), question.topic.as_deref())?;
    let source = hub.broker().plain(&source);
    let headers: Headers = question.headers.iter().collect();
    let key = question.key.map(bytes::Bytes::from);
    let message = Message { key, headers, ..Message::new(question.kind, bytes::Bytes::new(), 0) };

    let settings = hub.settings();
    let routes = settings.routes.reading(&source);
    let found = routes.iter().find(|route| route.matches.takes(&message));
    let mut taken: Option<&Route> = None;
    let considered: Vec<Value> = routes
        .iter()
        .map(|route| {
            let (takes, why) = match (taken, route.matches.objection(&message)) {
                (Some(before), _) => {
                    (false, format!("not asked: {} comes before it and takes the message", before.name))
                }
                (None, Some(objection)) => (false, objection),
                (None, None) => {
                    taken = Some(route);
                    let why = if route.matches.takes_all() {
                        "it takes every message of its source"
                    } else {
                        "all its conditions hold"
                    };
                    (true, why.to_owned())
                }
            };
            json!({ "route": route.name, "takes": takes, "why": why, "match": views::conditions(&route.matches) })
        })
        .collect();
    let explanation = match (found, routes.first()) {
        (Some(route), _) => format!("{} takes it and hands it to {}", route.name, route.handler),
        (None, Some(first)) => {
            format!(
                "no route of {source} takes it: it becomes a dead letter in {} with {}",
                first.dead_letter,
                ReasonCode::NoRoute
            )
        }
        (None, None) => format!("no route reads {source}: messages wait there until one does"),
    };
    let statuses = hub.routes();
    Ok(json!({
        "source": source,
        "route": found.map(|route| &route.name),
        "explanation": explanation,
        "considered": considered,
        "handler": found.and_then(|route| views::handler(hub, &route.handler)).map(|view| view.short()),
        "status": found.and_then(|route| statuses.iter().find(|status| status.route == route.name)).map(|status| json!({
            "serving": status.serving, "brake": status.brake, "reason": complaint(status), "lanes": status.lanes,
        })),
        "group": found.map(|route| &route.source.group),
        "policy": found.map(|route| views::policy(route)),
    }))
}
