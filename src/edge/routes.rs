//! The HTTP surface: which path does what, and what a request must say to become a session.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Extension, Router,
    body::{Body, Bytes, HttpBody},
    extract::{Path, Query, Request, State},
    http::{self, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tower_http::{
    cors::{AllowOrigin, CorsLayer},
    limit::RequestBodyLimitLayer,
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
};

use super::{
    Shared,
    admission::Refusal,
    auth::{Denied, Identity},
    http::{Takeover, TakeoverSlot},
    metric,
    protocol::{Protocol, Sse},
    relay::Client,
};
use crate::{
    ids::{DeviceId, SessionId, Since},
    problem::Problem,
    wire::{Acknowledge, Close, CloseCode},
};

#[cfg(test)]
mod tests;

const CONNECT: &str = "/v1/connect";
const STREAM: &str = "/v1/stream";
/// What tower-http's CORS layer says of every answer.
const VARY: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");
const JSON_SUBPROTOCOL: &str = "notifier.v1.json";
const TOKEN_SUBPROTOCOL: &str = "notifier.token.";

/// What only `notifier dev` serves; the page looks for it.
pub trait DevRoutes: Send + Sync {
    /// Routes without state.
    fn routes(&self) -> Router;
}

/// All routes of the client port.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let limits = &shared.admission.limits;
    let mut router = Router::new()
        .route("/", get(page))
        .route(CONNECT, get(connect).head(only_get))
        .route(STREAM, get(stream).head(only_get))
        .route("/v1/sessions/{session}/ack", post(acknowledge))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method")
        })
        .with_state(shared.clone());
    if let Some(dev) = &shared.config.dev {
        router = router.merge(dev.routes());
    }
    router
        .layer(RequestBodyLimitLayer::new(shared.config.request_bytes_max))
        .layer(RequestBodyTimeoutLayer::new(limits.handshake_deadline))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, limits.handshake_deadline * 3))
        .layer(middleware::from_fn(as_problems))
        .layer(cors(&shared))
        .layer(middleware::from_fn_with_state(shared, refuse_foreign_origins))
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
    let mut problem = Problem::new(status, status.canonical_reason().unwrap_or("error")).into_response();
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
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("last-event-id")])
        .max_age(std::time::Duration::from_secs(3600))
}

fn is_listed(allowed: &[String], origin: &HeaderValue) -> bool {
    allowed.iter().any(|one| one == "*" || one.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
}

/// A browser's page of another origin must not act with what the browser knows. No Origin: no browser's page.
async fn refuse_foreign_origins(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if is_origin_allowed(&shared, &request) || !request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    metric::rejected(Refusal::Origin);
    Problem::new(StatusCode::FORBIDDEN, "this origin is not in client.allowed_origins").into_response()
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

async fn page() -> Response {
    const PAGE: &str = include_str!("page.html");
    let nonce = SessionId::random().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, PAGE.replace("{{nonce}}", &nonce)).into_response()
}

/// What may stand in the query of a connect. Unknown names are ignored: proxies and browsers add some.
#[derive(Deserialize)]
struct ConnectQuery {
    access_token: Option<String>,
    device: Option<String>,
    since: Option<String>,
    events: Option<String>,
}

async fn connect(
    State(shared): State<Arc<Shared>>,
    Extension(slot): Extension<TakeoverSlot>,
    request: Request,
) -> Result<Response, Problem> {
    websocket(&shared, &request).map(|answer| answer.leave_in(&slot))
}

async fn stream(
    State(shared): State<Arc<Shared>>,
    Extension(slot): Extension<TakeoverSlot>,
    request: Request,
) -> Result<Response, Problem> {
    server_sent_events(&shared, &request).map(|answer| answer.leave_in(&slot))
}

/// The usual request for a session, answered past the router, whose layers cost more than the rest of the answer.
/// What they add to it is added here; what they may refuse is `None` and goes through them.
pub(super) fn direct<B: HttpBody>(
    shared: &Shared,
    request: &http::Request<B>,
    slot: &TakeoverSlot,
) -> Option<Response> {
    if request.method() != Method::GET || !request.body().is_end_stream() || !is_origin_allowed(shared, request) {
        return None;
    }
    let answer = match request.uri().path() {
        CONNECT => websocket(shared, request),
        STREAM => server_sent_events(shared, request),
        _ => return None,
    };
    let mut response = answer.map_or_else(Problem::into_response, |answer| answer.leave_in(slot));
    let headers = response.headers_mut();
    headers.insert(header::VARY, VARY);
    let listed = request.headers().get(header::ORIGIN).filter(|o| is_listed(&shared.config.allowed_origins, o));
    if let Some(origin) = listed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    Some(response)
}

/// What makes a request a session: the head that is answered, and what follows it.
struct Answer {
    response: Response,
    takeover: Takeover,
}

impl Answer {
    fn leave_in(self, slot: &TakeoverSlot) -> Response {
        *slot.lock() = Some(self.takeover);
        self.response
    }
}

fn websocket<B>(shared: &Shared, request: &http::Request<B>) -> Result<Answer, Problem> {
    let headers = request.headers();
    let query = query(request)?;
    let is_upgrade =
        contains(headers, header::UPGRADE, "websocket") && contains(headers, header::CONNECTION, "upgrade");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_upgrade).ok_or_else(|| {
        Problem::new(StatusCode::UPGRADE_REQUIRED, "this path speaks WebSocket; /v1/stream has server-sent events")
    })?;
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(Problem::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let offered: Vec<&str> = list(headers, header::SEC_WEBSOCKET_PROTOCOL).collect();
    let token_offer = offered.iter().find(|offer| offer.starts_with(TOKEN_SUBPROTOCOL)).copied();
    let selected = if offered.contains(&JSON_SUBPROTOCOL) || offered.is_empty() {
        offered.first().map(|_| JSON_SUBPROTOCOL)
    } else if token_offer.is_some() && offered.len() == 1 {
        // A browser ends a connection whose server picks none of its offers.
        token_offer
    } else {
        return Err(Problem::bad_request(format!("of the offered subprotocols none is {JSON_SUBPROTOCOL}")));
    };
    let token = token_offer.map(|offer| &offer[TOKEN_SUBPROTOCOL.len()..]);
    let identity = identify(shared, headers, token.or(query.access_token.as_deref()))?;
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()));
    if let Some(selected) = selected {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, selected);
    }
    let takeover = Takeover {
        since: since(query.since.as_deref())?,
        client: client(identity, query.device)?,
        protocol: Protocol::WebSocket,
    };
    let_in(shared)?;
    Ok(Answer { response: response.body(Body::empty()).expect("made of valid parts"), takeover })
}

fn server_sent_events<B>(shared: &Shared, request: &http::Request<B>) -> Result<Answer, Problem> {
    let headers = request.headers();
    let query = query(request)?;
    let named = match query.events.as_deref() {
        None => false,
        Some("type") => true,
        Some(_) => return Err(Problem::bad_request("events must be \"type\"")),
    };
    let identity = identify(shared, headers, query.access_token.as_deref())?;
    // Browsers repeat the URL of the first connect and add the header: what is newer is in the header.
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let since = since(last.or(query.since.as_deref()))?;
    let protocol = Protocol::Sse(Sse { chunked: request.version() != Version::HTTP_10, named });
    let takeover = Takeover { client: client(identity, query.device)?, protocol, since };
    let_in(shared)?;
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store, no-transform"),
        // The connection ends with the stream: nobody should send another request on it.
        (header::CONNECTION, "close"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    // Only the head is sent from here; the body is written by the session.
    let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
    Ok(Answer { response: (headers, body).into_response(), takeover })
}

fn query<B>(request: &http::Request<B>) -> Result<ConnectQuery, Problem> {
    let query = Query::try_from_uri(request.uri());
    query.map(|Query(query)| query).map_err(|error| Problem::bad_request(error.body_text()))
}

fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

fn contains(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    list(headers, name).any(|item| item.eq_ignore_ascii_case(wanted))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Who asks: by the header, or else by the token found elsewhere in the request.
fn identify(shared: &Shared, headers: &HeaderMap, elsewhere: Option<&str>) -> Result<Identity, Problem> {
    let token = bearer(headers).or(elsewhere).unwrap_or_default();
    shared.authenticator.check(token).map_err(|denied: Denied| {
        metric::rejected(Refusal::Unauthenticated);
        Problem::new(StatusCode::UNAUTHORIZED, denied.to_string())
    })
}

fn client(identity: Identity, device: Option<String>) -> Result<Client, Problem> {
    // What was no UTF-8 in the URL has become this character; nobody names a device so.
    if device.as_deref().is_some_and(|device| device.contains(char::REPLACEMENT_CHARACTER)) {
        return Err(Problem::bad_request("device is not UTF-8"));
    }
    let device =
        device.map(DeviceId::new).transpose().map_err(|error| Problem::bad_request(format!("device {error}")))?;
    Ok(Client { session: SessionId::random(), user: identity.user, device, expires_at: identity.expires_at })
}

fn since(text: Option<&str>) -> Result<Option<Since>, Problem> {
    let Some(text) = text else { return Ok(None) };
    Since::parse(text).map(Some).ok_or_else(|| Problem::bad_request("since must be <epoch>-<seq>"))
}

fn let_in(shared: &Shared) -> Result<(), Problem> {
    if shared.draining.load(Ordering::Relaxed) {
        metric::rejected(Refusal::Draining);
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this node is going away").retry_after(1));
    }
    shared.admission.connect().map_err(|wait| {
        metric::rejected(Refusal::ConnectRate);
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many connects at the moment");
        problem.retry_after(wait.as_secs() + 1)
    })
}

/// An acknowledgement from a client that cannot send one on its connection. The session's id is the right to do
/// it; a token, when there is one, must be the session's user's.
async fn acknowledge(
    State(shared): State<Arc<Shared>>,
    Path(session): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<StatusCode, Problem> {
    let body = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let relay = SessionId::parse(&session).and_then(|session| shared.registry.find(session));
    let relay = relay.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such session"))?;
    if bearer(&headers).is_some() && identify(&shared, &headers, None)?.user != relay.client.user {
        return Err(Problem::new(StatusCode::FORBIDDEN, "the session belongs to another user"));
    }
    let Acknowledge { ack } =
        Acknowledge::parse(&body).ok_or_else(|| Problem::bad_request("the body must be {\"ack\": <seq>}"))?;
    if !relay.acknowledge(ack) {
        relay.close(Close::new(CloseCode::BadFrame, "not an acknowledgement of what was sent"));
        return Err(Problem::bad_request("ack is above the highest number sent on this session"));
    }
    Ok(StatusCode::NO_CONTENT)
}
