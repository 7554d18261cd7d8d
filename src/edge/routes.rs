//! The HTTP surface: which path does what, and what a request must say to become a session.

mod connect;
mod sessions;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{Request, State},
    http::{self, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::head,
};
use tower_http::{
    cors::{AllowOrigin, CorsLayer},
    limit::RequestBodyLimitLayer,
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::connect::direct;
use super::{Shared, admission::Refusal, grpc, headers, metric, openapi};
use crate::{ids::SessionId, problem::Problem};

#[cfg(test)]
mod tests;

pub(super) const CONNECT: &str = "/v1/connect";
pub(super) const STREAM: &str = "/v1/stream";
/// How long an answer may take besides its request's body.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// What pages of allowed origins may send and read: ours, and gRPC-Web's.
const REQUEST_HEADERS: [&str; 10] = [
    "authorization",
    "content-type",
    "last-event-id",
    "idempotency-key",
    "x-api-key",
    "traceparent",
    "tracestate",
    "x-grpc-web",
    "x-user-agent",
    "grpc-timeout",
];
const ANSWER_HEADERS: [&str; 4] = ["grpc-status", "grpc-message", "grpc-retry-pushback-ms", "retry-after"];
/// The latter as one header.
const EXPOSED: HeaderValue = HeaderValue::from_static("grpc-status,grpc-message,grpc-retry-pushback-ms,retry-after");
/// What a body is told that is refused before a route reads it.
const TOO_LONG: &str = "the body is longer than limits.request_bytes_max, or than the 4 KiB that /v1/sessions takes";
/// What tower-http's CORS layer says of every answer.
const VARY: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");

/// All routes of the client port.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let limits = &shared.admission.limits;
    let (routes, document) = OpenApiRouter::new()
        .routes(routes!(page))
        .routes(routes!(openapi_document))
        .merge(connect::routes())
        .merge(sessions::routes())
        .with_state(shared.clone())
        .merge(shared.config.others.clone())
        .split_for_parts();
    let document = openapi::document(document);
    routes
        .route(CONNECT, head(only_get))
        .route(STREAM, head(only_get))
        .layer(Extension(Document(document)))
        .merge(grpc::web(&shared))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method")
        })
        .layer(RequestBodyLimitLayer::new(shared.config.request_bytes_max))
        .layer(RequestBodyTimeoutLayer::new(limits.handshake_deadline))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            limits.handshake_deadline * 2 + ANSWER_DEADLINE,
        ))
        .layer(middleware::from_fn(as_problems))
        .layer(cors(&shared))
        .layer(middleware::from_fn_with_state(shared.clone(), refuse_foreign_origins))
        .layer(middleware::from_fn_with_state(shared.config.client.tls.is_some(), headers::complete))
}

/// A HEAD request must not become a session, as it would where it is answered like a GET.
async fn only_get() -> Response {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path knows GET only");
    ([(header::ALLOW, "GET")], problem).into_response()
}

/// Errors that the layers below answer in plain text become problem details.
async fn as_problems(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let is_problem =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == b"application/problem+json");
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let detail = match status {
        StatusCode::PAYLOAD_TOO_LARGE => TOO_LONG,
        _ => status.canonical_reason().unwrap_or("error"),
    };
    let mut problem = Problem::new(status, detail).into_response();
    if let Some(allow) = response.headers().get(header::ALLOW) {
        problem.headers_mut().insert(header::ALLOW, allow.clone());
    }
    problem
}

fn cors(shared: &Arc<Shared>) -> CorsLayer {
    let allowed = shared.config.allowed_origins.clone();
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| is_listed(&allowed, origin)))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(REQUEST_HEADERS.map(HeaderName::from_static))
        .expose_headers(ANSWER_HEADERS.map(HeaderName::from_static))
        .max_age(Duration::from_secs(3600))
}

fn is_listed(allowed: &[String], origin: &HeaderValue) -> bool {
    allowed.iter().any(|one| one == "*" || one.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
}

/// A browser's page of another origin must not act with what the browser knows. No Origin: no browser's page.
async fn refuse_foreign_origins(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if is_origin_allowed(&shared, &request) || !is_for_clients(request.uri().path()) {
        return next.run(request).await;
    }
    metric::rejected(Refusal::Origin);
    Problem::new(StatusCode::FORBIDDEN, "this origin is not in client.allowed_origins").into_response()
}

fn is_for_clients(path: &str) -> bool {
    path.starts_with("/v1/") || path.starts_with(grpc::PREFIX)
}

fn is_origin_allowed<B>(shared: &Shared, request: &http::Request<B>) -> bool {
    let headers = request.headers();
    headers.get(header::ORIGIN).is_none_or(|origin| {
        is_listed(&shared.config.allowed_origins, origin) || is_same_host(origin, headers.get(header::HOST))
    })
}

fn is_same_host(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let host = host.and_then(|host| host.to_str().ok());
    matches!((origin, host), (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host))
}

/// The page
///
/// Shows what arrives for a user; for people, not for programs.
#[utoipa::path(get, path = "/", tag = "node", responses((status = 200, description = "The page.", body = str,
    content_type = "text/html; charset=utf-8")))]
async fn page() -> Response {
    const PAGE: &str = include_str!("page.html");
    let nonce = SessionId::random().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy.as_str())];
    (headers, PAGE.replace("{{nonce}}", &nonce)).into_response()
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "node", responses((status = 200, description = "OpenAPI 3.1.",
    body = Object, content_type = "application/json")))]
async fn openapi_document(Extension(Document(document)): Extension<Document>) -> Response {
    openapi::answer(&document)
}

/// The document of all routes, encoded.
#[derive(Clone)]
struct Document(Bytes);
