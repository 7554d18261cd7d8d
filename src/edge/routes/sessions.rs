//! Sessions over HTTP: started, listed, ended, acknowledged for.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use tower_http::limit::RequestBodyLimitLayer;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    credential::{bearer, shown},
    document::{OfUser, Refusals},
    edge::{
        Carrier, Shared,
        openapi::Acknowledgement,
        sessions::{Holder, Listed},
    },
    event::UnixMillis,
    problem::Problem,
    wire::Acknowledge,
};

/// The longest body: an id, or a number.
const BODY_BYTES_MAX: usize = 4 * 1024;

pub(super) fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(acknowledge))
        .routes(routes!(list, end_all))
        .routes(routes!(end))
        // Who asks is known only afterwards: a stranger's body must not cost much.
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
}

/// Whom a session is started for; a user that asks for itself need not say it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Start {
    #[schema(min_length = 1, max_length = 256, pattern = "^[^\\x00-\\x1f\\x7f]+$", example = "101")]
    user: Option<String>,
}

/// A session that was started.
#[derive(Serialize, ToSchema)]
struct Answer {
    #[schema(example = "6f9c0b1e5d2a4f7f8a3be1c2d4f50617")]
    session_id: String,
    #[schema(example = "101")]
    user: String,
    /// In ms since 1970.
    expires_at_ms: UnixMillis,
}

/// A user's sessions.
#[derive(Serialize, ToSchema)]
struct List {
    sessions: Vec<Listed>,
    /// Nodes of the cluster that did not answer in time: what is connected to them is missing. Absent: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false, example = json!(["notifier-2"]))]
    unanswered: Vec<String>,
}

/// Start a session
///
/// Ahead of its connection: whoever has the id connects as the user, on any protocol, until it expires or is ended. For
/// oneself by a token, for anybody by an API key with the scope `sessions`.
#[utoipa::path(
    post,
    path = "/v1/sessions",
    tag = "sessions",
    security(("token" = []), ("api_key" = []), ("api_key_header" = [])),
    request_body(content = Option<Start>, content_type = "application/json"),
    responses(
        (status = 201, description = "The session is started.", body = Answer),
        Refusals,
        (status = 429, description = "The user has too many started sessions.", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn start(
    State(shared): State<Arc<Shared>>,
    Extension(carrier): Extension<Carrier>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, Problem> {
    let body = read(body)?;
    let start = if body.is_empty() {
        Start { user: None }
    } else {
        let start: Option<Start> =
            serde_json::from_slice(&body).map_err(|error| Problem::bad_request(format!("the body: {error}")))?;
        start.unwrap_or(Start { user: None })
    };
    let started = shared.start_session(shown(&headers).unwrap_or_default(), start.user.as_deref()).await?;
    carrier.identify();
    let answer = Answer {
        session_id: started.session.to_string(),
        user: started.user.to_string(),
        expires_at_ms: started.expires_at,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

fn read(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {BODY_BYTES_MAX} bytes"))
        }
        status => Problem::new(status, error.body_text()),
    })
}

/// List a user's sessions
///
/// Those that are connected, to whichever node, and those that were started and are not connected.
#[utoipa::path(
    get,
    path = "/v1/users/{user}/sessions",
    tag = "sessions",
    security(("token" = []), ("api_key" = []), ("api_key_header" = [])),
    params(OfUser),
    responses(
        (status = 200, description = "The sessions.", body = List),
        Refusals,
    ),
)]
async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(carrier): Extension<Carrier>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    let (sessions, unanswered) = shared.list_sessions(shown(&headers).unwrap_or_default(), &user).await?;
    carrier.identify();
    Ok(Json(List { sessions, unanswered }))
}

/// End all sessions of a user
///
/// Their connections are closed with 4003, to whichever node they are, and started ones are of no use any more. 503 when
/// a node does not answer, which may have others: ask again.
#[utoipa::path(
    delete,
    path = "/v1/users/{user}/sessions",
    tag = "sessions",
    security(("token" = []), ("api_key" = []), ("api_key_header" = [])),
    params(OfUser),
    responses(
        (status = 204, description = "They are ended, if there were any."),
        Refusals,
    ),
)]
async fn end_all(
    State(shared): State<Arc<Shared>>,
    Extension(carrier): Extension<Carrier>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    shared.end_sessions(shown(&headers).unwrap_or_default(), &user, None).await?;
    carrier.identify();
    Ok(StatusCode::NO_CONTENT)
}

/// End a session
///
/// Its connection is closed with 4003, to whichever node it is, and it is of no use any more. 503 when a node does not
/// answer, which may have it: ask again.
#[utoipa::path(
    delete,
    path = "/v1/users/{user}/sessions/{session}",
    tag = "sessions",
    security(("token" = []), ("api_key" = []), ("api_key_header" = [])),
    params(OfUser, ("session" = String, Path, description = "The session's id.", example = "6f9c0b1e5d2a4f7f8a3be1c2d4f50617")),
    responses(
        (status = 204, description = "It is ended."),
        Refusals,
        (status = 404, description = "The user has no such session.", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn end(
    State(shared): State<Arc<Shared>>,
    Extension(carrier): Extension<Carrier>,
    Path((user, session)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    shared.end_sessions(shown(&headers).unwrap_or_default(), &user, Some(&session)).await?;
    carrier.identify();
    Ok(StatusCode::NO_CONTENT)
}

/// Acknowledge
///
/// For clients that cannot acknowledge on their connection. The session's id is the right to do it; a token, when
/// there is one, must be the session's user's. One that is above what was sent ends the session.
#[utoipa::path(
    post,
    path = "/v1/sessions/{session}/ack",
    tag = "sessions",
    security((), ("token" = [])),
    params(("session" = String, Path, description = "From `$hello`.", example = "6f9c0b1e5d2a4f7f8a3be1c2d4f50617")),
    request_body(content = Acknowledgement, content_type = "application/json"),
    responses(
        (status = 204, description = "Everything up to that number is taken."),
        (status = 400, description = "The body is no acknowledgement, or its number was never sent.", body = Problem,
            content_type = "application/problem+json"),
        (status = 401, description = "The token is not accepted.", body = Problem,
            content_type = "application/problem+json", headers(("WWW-Authenticate" = String, description = "Bearer"))),
        (status = 403, description = "The session belongs to another user, or the origin is not allowed.",
            body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such session.", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "A node of the cluster does not answer, which may have the session.", body = Problem,
            content_type = "application/problem+json", headers(("Retry-After" = u64, description = "Seconds to wait."))),
    ),
)]
async fn acknowledge(
    State(shared): State<Arc<Shared>>,
    Extension(carrier): Extension<Carrier>,
    Path(session): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let body = read(body)?;
    let holder = shared.holder(&session, bearer(&headers)).await?;
    if let Holder::Here(_) = holder {
        carrier.identify();
    }
    let Acknowledge { ack } =
        Acknowledge::parse(&body).ok_or_else(|| Problem::bad_request("the body must be {\"ack\": <seq>}"))?;
    let is_taken = shared.acknowledge(&holder, ack).await?;
    carrier.identify();
    if !is_taken {
        return Err(Problem::bad_request("ack is above the highest number sent on this session"));
    }
    Ok(StatusCode::NO_CONTENT)
}
