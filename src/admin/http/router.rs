//! Every call there is, as a table: what is not in it is not mounted.

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware::{from_fn, from_fn_with_state},
    routing::{MethodRouter, get, post},
};
use tower_http::catch_panic::CatchPanicLayer;

use super::{Context, dead_letters, explain, guard, health, openapi, plugins, problem::Problem, publish, stats, tail};

/// One call.
pub(super) struct Endpoint {
    pub(super) method: Method,
    /// With names in braces, as OpenAPI writes it too.
    pub(super) path: &'static str,
    /// Whether nobody needs a token for it.
    pub(super) open: bool,
    run: MethodRouter<Context>,
}

/// All calls.
pub(super) fn endpoints() -> Vec<Endpoint> {
    let open = |path, run| Endpoint { method: Method::GET, path, open: true, run };
    let reads = |path, run| Endpoint { method: Method::GET, path, open: false, run };
    let posts = |path, run| Endpoint { method: Method::POST, path, open: false, run };
    vec![
        open("/health", get(health::all)),
        open("/v1/messaging/health", get(health::all)),
        open("/health/live", get(health::live)),
        open("/health/ready", get(health::ready)),
        open("/metrics", get(stats::metrics)),
        open("/v1/messaging/metrics", get(stats::metrics)),
        open("/v1/messaging/openapi.json", get(openapi::document)),
        posts("/v1/messaging/tasks/{queue}", post(publish::task)),
        posts("/v1/messaging/events/{topic}", post(publish::event)),
        reads("/v1/messaging/tail", get(tail::tail)),
        reads("/v1/messaging/dlq", get(dead_letters::list)),
        reads("/v1/messaging/dlq/{id}", get(dead_letters::show)),
        reads("/v1/messaging/plugins", get(plugins::list)),
        reads("/v1/messaging/plugins/{name}", get(plugins::show)),
        reads("/v1/messaging/routes", get(explain::routes)),
        posts("/v1/messaging/routes/explain", post(explain::explain)),
        reads("/v1/messaging/stats", get(stats::stats)),
    ]
}

/// All calls, behind their guards.
pub(super) fn router(context: Context) -> Router {
    let (mut open, mut guarded) = (Router::new(), Router::new());
    for endpoint in endpoints() {
        tracing::trace!(method = %endpoint.method, path = endpoint.path, open = endpoint.open, "mounted");
        let router = if endpoint.open { &mut open } else { &mut guarded };
        *router = std::mem::take(router).route(endpoint.path, endpoint.run);
    }
    guarded
        .route_layer(from_fn_with_state(context.clone(), guard::authorized))
        .merge(open)
        .fallback(unknown)
        .method_not_allowed_fallback(not_that_way)
        .layer(CatchPanicLayer::custom(guard::panicked))
        .layer(from_fn_with_state(context.clone(), guard::local))
        .layer(from_fn(guard::mark))
        .with_state(context)
}

async fn unknown(uri: Uri) -> Problem {
    Problem::not_found(format!("there is no {}; /v1/messaging/openapi.json lists what there is", uri.path()))
}

async fn not_that_way(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}; the Allow header says what it takes", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", detail)
}
