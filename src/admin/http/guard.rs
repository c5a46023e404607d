//! Who may call.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    Context, Options, body,
    problem::Problem,
    token::{Caller, Role},
};
use crate::message::ReasonCode;

/// Lets through who brings a token that allows as much, and says who it is.
pub(super) async fn authorized(
    State((context, needed)): State<(Context, Role)>,
    mut request: Request,
    next: Next,
) -> Response {
    match caller(&context, request.headers()).and_then(|caller| allowed(caller, needed)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => body::refuse(request, problem).await,
    }
}

fn allowed(caller: Caller, needed: Role) -> Result<Caller, Problem> {
    if caller.role >= needed {
        return Ok(caller);
    }
    let detail = format!("the token {:?} may only look; this call needs one with the role operate", caller.name);
    Err(Problem::new(StatusCode::FORBIDDEN, "NOT_ALLOWED", detail))
}

fn caller(context: &Context, headers: &HeaderMap) -> Result<Caller, Problem> {
    let options = &context.api.options;
    if options.open {
        return Ok(Options::anybody());
    }
    let refused =
        |detail: &str| Err(Problem::new(StatusCode::UNAUTHORIZED, ReasonCode::AuthenticationFailed.as_str(), detail));
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        return refused("this call needs the header \"Authorization: Bearer TOKEN\"");
    };
    let Some((scheme, given)) = given.as_bytes().split_at_checked(7) else {
        return refused("the Authorization header is not \"Bearer TOKEN\"");
    };
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return refused("the Authorization header is not \"Bearer TOKEN\"");
    }
    match options.caller(given.trim_ascii()) {
        Some(caller) => Ok(caller),
        None if options.token.is_some() || !options.tokens.is_empty() => {
            refused("the token is not the engine's; it is in the configuration, or in the data directory")
        }
        None => refused("the engine has no token, so that none is right; configure one"),
    }
}

/// Keeps web pages from calling through a browser on this machine: a name that an attacker's name server points here
/// (DNS rebinding), or a page of another site. Only where nobody else can reach the server anyway; elsewhere its names
/// are not known.
pub(super) async fn local(State(context): State<Context>, request: Request, next: Next) -> Response {
    if context.loopback
        && let Err(problem) = is_local(request.uri(), request.headers())
    {
        return body::refuse(request, problem).await;
    }
    next.run(request).await
}

fn is_local(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |what: &str, name: &str| {
        let name: String = name.chars().take(128).collect();
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "HOST_REFUSED",
            format!(
                "the server listens on this machine only, and {what} {name:?} is not a name of it (DNS rebinding looks \
                 like this); call it as localhost or 127.0.0.1, or let http.listen name an address that others reach"
            ),
        ))
    };
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    for authority in uri.authority().map(|authority| authority.as_str()).into_iter().chain(host) {
        if !is_loopback(authority) {
            return refused("the host", authority);
        }
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        if !origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority)) {
            return refused("the origin", origin);
        }
    }
    Ok(())
}

/// Whether `host` or `host:port` means this machine.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => {
            let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// What every answer says to browsers and caches.
pub(super) async fn mark(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let marks: [(HeaderName, &str); 2] =
        [(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    for (name, value) in marks {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What a call that panicked is answered.
pub(super) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = crate::handler::native::panic_text(&*panic);
    tracing::error!("a call of the HTTP interface {text}");
    Problem::internal("a mistake of the engine; its log says more").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_names_of_this_machine() {
        for (authority, wanted) in [
            ("localhost", true),
            ("LOCALHOST.:7061", true),
            ("api.localhost:80", true),
            ("127.0.0.1:7061", true),
            ("127.9.9.9", true),
            ("[::1]:7061", true),
            ("[::ffff:127.0.0.1]", true),
            ("localhost.evil.example", false),
            ("evil.example:7061", false),
            ("10.0.0.1", false),
            ("[2001:db8::1]:80", false),
            ("", false),
            ("127.0.0.1.evil.example", false),
        ] {
            assert_eq!(is_loopback(authority), wanted, "{authority}");
        }
    }
}
