//! The document of the HTTP API, `GET /openapi.json`: what the routes say of themselves, and what holds for all.
//!
//! A route is documented where its handler stands (`#[utoipa::path]`), and gets into the document by being added with
//! `routes!`. Nothing is listed here.

use axum::{
    body::Bytes,
    http::header,
    response::{IntoResponse, Response},
};
use utoipa::{
    IntoParams, PartialSchema as _, ToSchema,
    openapi::{
        Components, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, ResponseBuilder, Tag,
        path::{Operation, PathItem},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::problem::Problem;

/// What any request can be answered with before its route sees it: status, description, and whether only under `/v1/`.
const OF_ALL: [(&str, &str, bool); 3] = [
    ("403", "The request's `Origin` is not in `client.allowed_origins`.", true),
    ("408", "The request's body, or its answer, took too long.", false),
    ("413", "The body is longer than `limits.request_bytes_max`.", false),
];

/// The document as it is served.
pub(super) fn document(routes: OpenApi) -> Bytes {
    let document = complete(routes);
    serde_json::to_vec(&document).expect("a document is always JSON").into()
}

/// Answers with the document.
pub(super) fn answer(document: &Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.clone()).into_response()
}

/// Where a connect begins to read.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only for the document: the query is read as ConnectQuery")]
pub(super) struct Place {
    /// This device has a cursor of its own; without it, the user's shared one.
    #[param(min_length = 1, max_length = 256, example = "phone")]
    device: Option<String>,
    /// `<epoch>-<seq>`: resume after that number, and acknowledge up to it.
    #[param(pattern = "^[^-]{1,32}-[0-9]{1,19}$", example = "k3f9ab12-12")]
    since: Option<String>,
    /// A session that was started ahead, instead of a token.
    #[param(pattern = "^[0-9a-f]{32}$", example = "0123456789abcdef0123456789abcdef")]
    session_id: Option<String>,
    /// Whose session it is, which must be true.
    #[param(min_length = 1, max_length = 256, example = "101")]
    user_id: Option<String>,
}

/// A WebSocket handshake (RFC 6455). Browsers and libraries send it by themselves.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only for the document")]
pub(super) struct Handshake {
    /// Contains `Upgrade`.
    #[param(rename = "Connection", pattern = "^Upgrade$", example = "Upgrade")]
    connection: String,
    /// `websocket`.
    #[param(rename = "Upgrade", pattern = "^websocket$", example = "websocket")]
    upgrade: String,
    /// Always 13.
    #[param(rename = "Sec-WebSocket-Version", pattern = "^13$", example = "13")]
    version: String,
    /// 16 random bytes in base64.
    #[param(rename = "Sec-WebSocket-Key", pattern = "^[A-Za-z0-9+/]{22}==$", example = "dGhlIHNhbXBsZSBub25jZQ==")]
    key: String,
    /// `notifier.v1.json` or `notifier.v1.proto`, and `notifier.token.<JWT>` where a client cannot set headers.
    #[param(rename = "Sec-WebSocket-Protocol", value_type = String, required = false, pattern = "^notifier\\.v1\\.json$", example = "notifier.v1.json")]
    protocol: Option<String>,
}

/// How events are named.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only for the document: the query is read as ConnectQuery")]
pub(super) struct Events {
    /// `type`: events are named by their notification's type; else `onmessage` gets them all.
    #[param(pattern = "^type$", example = "type")]
    events: Option<String>,
}

/// Where a browser resumes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only for the document")]
pub(super) struct LastEventId {
    /// As `since`, and counts before it.
    #[param(rename = "Last-Event-ID", value_type = String, required = false, pattern = "^([^-]{1,32}-[0-9]{1,19})?$", example = "k3f9ab12-12")]
    id: Option<String>,
}

/// An acknowledgement, cumulative.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only for the document: it is read by `wire::Acknowledge`")]
pub(super) struct Acknowledgement {
    /// Everything up to this number is taken.
    #[schema(minimum = 0, example = 12)]
    ack: u64,
}

fn complete(mut document: OpenApi) -> OpenApi {
    document.info = InfoBuilder::new()
        .title("Notifier")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Events in, notifications out. Errors are problem details (RFC 9457). Any route may also be answered with \
             400 or 431 when the request is no HTTP or its head is longer than 16 KiB, and with 503 before it is read \
             when the node has no room for the connection.",
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let tag = |name: &str, description: &str| {
        let mut tag = Tag::new(name);
        tag.description = Some(description.to_owned());
        tag
    };
    document.tags = Some(vec![
        tag("events", "For services: write events."),
        tag("notifications", "Users' logs: what was delivered, and what waits."),
        tag("sessions", "For clients: connect, read, acknowledge."),
        tag("node", "About the node itself."),
    ]);
    let components = document.components.get_or_insert_with(Components::new);
    for (name, scheme) in security() {
        components.add_security_scheme(name, scheme);
    }
    components.schemas.insert(Problem::name().into_owned(), Problem::schema());
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            add_common(operation, path.starts_with("/v1/"));
        }
    }
    document
}

fn security() -> [(&'static str, SecurityScheme); 5] {
    let bearer = |format: &str, description: &str| {
        let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format(format);
        SecurityScheme::Http(http.description(Some(description)).build())
    };
    let value = |name: &str, description: &str| ApiKeyValue::with_description(name, description);
    [
        ("token", bearer("JWT", "A user's token: `sub` is the user, `exp` ends the session.")),
        (
            "token_in_query",
            SecurityScheme::ApiKey(ApiKey::Query(value(
                "access_token",
                "A user's token, where a client cannot set headers (`EventSource`). A WebSocket may have it as \
                 subprotocol `notifier.token.<JWT>` instead.",
            ))),
        ),
        (
            "started_session",
            SecurityScheme::ApiKey(ApiKey::Query(value("session_id", "A session that was started ahead."))),
        ),
        ("api_key", bearer("API key", "A service's key (`[[auth.api_keys]]`).")),
        ("api_key_header", SecurityScheme::ApiKey(ApiKey::Header(value("X-API-Key", "The same key.")))),
    ]
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}

fn add_common(operation: &mut Operation, is_v1: bool) {
    let reads = operation.request_body.is_some();
    for (status, description, only_v1) in OF_ALL {
        if (only_v1 && !is_v1) || (status == "408" && !reads) {
            continue;
        }
        let of_route = operation.responses.responses.entry(status.to_owned());
        of_route.or_insert_with(|| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
            RefOr::T(
                ResponseBuilder::new().description(description).content("application/problem+json", content).build(),
            )
        });
    }
}
