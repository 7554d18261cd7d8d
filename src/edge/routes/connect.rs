//! Requests that become a session: `/v1/connect` and `/v1/stream`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Extension,
    body::{Body, Bytes, HttpBody},
    extract::{Query, Request, State},
    http::{self, HeaderMap, HeaderName, Method, StatusCode, Version, header, response::Parts},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{CONNECT, EXPOSED, STREAM, VARY, is_listed, is_origin_allowed};
use crate::{
    credential::bearer,
    document::NotLetIn,
    edge::{
        Shared,
        entry::{Entered, Wish},
        headers,
        http::{Takeover, TakeoverSlot},
        metric,
        openapi::{Events, Handshake, LastEventId, Place},
        protocol::{Form, Protocol, Sse},
    },
    problem::Problem,
};

const SUBPROTOCOLS: [(&str, Form); 2] = [("notifier.v1.json", Form::Json), ("notifier.v1.proto", Form::Protobuf)];
const TOKEN_SUBPROTOCOL: &str = "notifier.token.";

pub(super) fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::new().routes(routes!(connect)).routes(routes!(stream))
}

/// What may stand in the query of a connect. Unknown names are ignored: proxies and browsers add some.
#[derive(Deserialize)]
struct ConnectQuery {
    access_token: Option<String>,
    session_id: Option<String>,
    user_id: Option<String>,
    device: Option<String>,
    since: Option<String>,
    events: Option<String>,
}

/// A request for a session, as far as it can be understood without asking who it is from.
struct Asked<'a> {
    token: Option<&'a str>,
    query: ConnectQuery,
    /// Where it resumes, by a header.
    last_event_id: Option<&'a str>,
    protocol: Protocol,
    /// The head of the answer.
    head: Parts,
}

impl<'a> Asked<'a> {
    fn wish(&'a self) -> Wish<'a> {
        let query = &self.query;
        Wish {
            token: self.token.or(query.access_token.as_deref()),
            session: query.session_id.as_deref(),
            user: query.user_id.as_deref(),
            device: query.device.as_deref(),
            // Browsers repeat the URL of the first connect and add the header: what is newer is in the header.
            since: self.last_event_id.or(query.since.as_deref()),
        }
    }
}

/// Connect by WebSocket
///
/// Subprotocol `notifier.v1.json`, also when none is offered, or `notifier.v1.proto`. Frames down are notifications, the first is `$hello`; up,
/// `{"ack": <seq>}`. A token may be the subprotocol `notifier.token.<JWT>`.
#[utoipa::path(
    get,
    path = "/v1/connect",
    tag = "sessions",
    security(("token" = []), ("token_in_query" = []), ("started_session" = [])),
    params(
        Place,
        Handshake,
    ),
    responses(
        (status = 101, description = "The connection speaks WebSocket from here on."),
        NotLetIn,
        (status = 426, description = "The request is no WebSocket handshake.", body = Problem,
            content_type = "application/problem+json", headers(("Upgrade" = String, description = "websocket"))),
    ),
)]
async fn connect(
    State(shared): State<Arc<Shared>>,
    Extension(slot): Extension<TakeoverSlot>,
    request: Request,
) -> Result<Response, Problem> {
    let asked = websocket(&request)?;
    let entered = shared.enter(&asked.wish()).await?;
    Ok(answer(asked, entered, &slot))
}

/// Read as server-sent events
///
/// `data:` is a notification, `id:` its `<epoch>-<seq>`, so that a browser's `EventSource` resumes by itself. Control
/// frames have their type as `event:`.
#[utoipa::path(
    get,
    path = "/v1/stream",
    tag = "sessions",
    security(("token" = []), ("token_in_query" = []), ("started_session" = [])),
    params(
        Place,
        Events,
        LastEventId,
    ),
    responses(
        (status = 200, description = "A stream that ends when the session does.", body = str,
            content_type = "text/event-stream"),
        NotLetIn,
    ),
)]
async fn stream(
    State(shared): State<Arc<Shared>>,
    Extension(slot): Extension<TakeoverSlot>,
    request: Request,
) -> Result<Response, Problem> {
    let asked = server_sent_events(&request)?;
    let entered = shared.enter(&asked.wish()).await?;
    Ok(answer(asked, entered, &slot))
}

/// The usual request for a session, answered past the router, whose layers cost more than the rest of the answer.
/// What they add to it is added here; what they may refuse, and what has to be waited for, is `None` and goes
/// through them.
pub(in crate::edge) fn direct<B: HttpBody>(
    shared: &Shared,
    request: &http::Request<B>,
    slot: &TakeoverSlot,
) -> Option<Response> {
    if request.method() != Method::GET || !request.body().is_end_stream() || !is_origin_allowed(shared, request) {
        return None;
    }
    let asked = match request.uri().path() {
        CONNECT => websocket(request),
        STREAM => server_sent_events(request),
        _ => return None,
    };
    let mut response = match asked {
        Err(problem) => problem.into_response(),
        Ok(asked) => match shared.enter_at_once(&asked.wish())? {
            Err(refused) => Problem::from(refused).into_response(),
            Ok(entered) => answer(asked, entered, slot),
        },
    };
    metric::requested(request.uri().path(), response.status());
    headers::secure(&mut response, shared.config.client.tls.is_some());
    let headers = response.headers_mut();
    headers.insert(header::VARY, VARY);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    let listed = request.headers().get(header::ORIGIN).filter(|o| is_listed(&shared.config.allowed_origins, o));
    if let Some(origin) = listed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    Some(response)
}

/// Only the head is sent from here; what follows is written by the session, which takes the socket over.
fn answer(asked: Asked<'_>, entered: Entered, slot: &TakeoverSlot) -> Response {
    let Entered { client, since } = entered;
    let body = match asked.protocol {
        Protocol::Sse(_) => Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>()),
        Protocol::WebSocket(_) | Protocol::Grpc(_) => Body::empty(),
    };
    *slot.lock() = Some(Takeover { client, protocol: asked.protocol, since });
    Response::from_parts(asked.head, body)
}

fn websocket<B>(request: &http::Request<B>) -> Result<Asked<'_>, Problem> {
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
    // The client's order is its preference (RFC 6455, 4.1).
    let known = offered.iter().find_map(|offer| SUBPROTOCOLS.iter().find(|(name, _)| name == offer));
    let (selected, form) = match known {
        Some((name, form)) => (Some(*name), *form),
        None if offered.is_empty() => (None, Form::Json),
        // A browser ends a connection whose server picks none of its offers.
        None if token_offer.is_some() && offered.len() == 1 => (token_offer, Form::Json),
        None => {
            let names = SUBPROTOCOLS.map(|(name, _)| name).join(" or ");
            return Err(Problem::bad_request(format!("of the offered subprotocols none is {names}")));
        }
    };
    let mut head = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()));
    if let Some(selected) = selected {
        head = head.header(header::SEC_WEBSOCKET_PROTOCOL, selected);
    }
    Ok(Asked {
        token: bearer(headers).or(token_offer.map(|offer| &offer[TOKEN_SUBPROTOCOL.len()..])),
        query,
        last_event_id: None,
        protocol: Protocol::WebSocket(form),
        head: head.body(()).expect("made of valid parts").into_parts().0,
    })
}

fn server_sent_events<B>(request: &http::Request<B>) -> Result<Asked<'_>, Problem> {
    let headers = request.headers();
    let query = query(request)?;
    let named = match query.events.as_deref() {
        None => false,
        Some("type") => true,
        Some(_) => return Err(Problem::bad_request("events must be \"type\"")),
    };
    let head = Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store, no-transform")
        // The connection ends with the stream: nobody should send another request on it.
        .header(header::CONNECTION, "close")
        .header(HeaderName::from_static("x-accel-buffering"), "no");
    Ok(Asked {
        token: bearer(headers),
        query,
        last_event_id: headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty()),
        protocol: Protocol::Sse(Sse { chunked: request.version() != Version::HTTP_10, named }),
        head: head.body(()).expect("made of valid parts").into_parts().0,
    })
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
