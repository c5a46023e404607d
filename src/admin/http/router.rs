//! Every call there is, as a table: what is not in it is not mounted.

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware::{from_fn, from_fn_with_state},
    routing::{MethodRouter, get, post},
};
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    Context, dead_letters, explain, guard, health, openapi, plugins, problem::Problem, publish, stats, tail,
    token::Role,
};

/// One call.
pub(super) struct Endpoint {
    pub(super) method: Method,
    /// With names in braces, as OpenAPI writes it too.
    pub(super) path: &'static str,
    /// What a token must allow for it; `None`: nobody needs one.
    pub(super) role: Option<Role>,
    run: MethodRouter<Context>,
}

/// All calls.
pub(super) fn endpoints() -> Vec<Endpoint> {
    let open = |path, run| Endpoint { method: Method::GET, path, role: None, run };
    let reads = |path, run| Endpoint { method: Method::GET, path, role: Some(Role::Read), run };
    let posts = |path, run| Endpoint { method: Method::POST, path, role: Some(Role::Operate), run };
    let asks = |path, run| Endpoint { method: Method::POST, path, role: Some(Role::Read), run };
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
        asks("/v1/messaging/routes/explain", post(explain::explain)),
        reads("/v1/messaging/stats", get(stats::stats)),
    ]
}

/// All calls, behind their guards.
pub(super) fn router(context: Context) -> Router {
    let mut router = Router::new();
    for endpoint in endpoints() {
        tracing::trace!(method = %endpoint.method, path = endpoint.path, role = ?endpoint.role, "mounted");
        let run = match endpoint.role {
            Some(role) => endpoint.run.layer(from_fn_with_state((context.clone(), role), guard::authorized)),
            None => endpoint.run,
        };
        router = router.route(endpoint.path, run);
    }
    router
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
