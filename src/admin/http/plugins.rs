//! Which version of which handler serves, since when, and what came of the last changes.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
};
use serde_json::{Value, json};

use super::{
    Context,
    params::{self, Params},
    problem::Problem,
    views::{self, HandlerView},
};

/// `GET /v1/messaging/plugins`
pub(super) async fn list(State(context): State<Context>, uri: Uri) -> Result<Json<Value>, Problem> {
    Params::read(&uri, &[], &[])?;
    let items: Vec<Value> = HandlerView::all(context.hub()).iter().map(HandlerView::json).collect();
    Ok(Json(json!({ "count": items.len(), "items": items })))
}

/// `GET /v1/messaging/plugins/{name}`
pub(super) async fn show(
    State(context): State<Context>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    Params::read(&uri, &[], &[])?;
    let name = params::name(path)?;
    match views::handler(context.hub(), &name) {
        Some(view) => Ok(Json(view.json())),
        None => Err(Problem::not_found(format!(
            "no plugin and no route's handler is called {name:?}; /v1/messaging/plugins lists those there are"
        ))),
    }
}
