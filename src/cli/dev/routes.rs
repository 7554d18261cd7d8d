//! What the page needs and only `notifier dev` serves: tokens for the asking, and a way to send.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::Deserialize;
use serde_json::json;

use crate::{
    config::Config,
    edge::{DevRoutes, auth},
    event::Options,
    ids::UserId,
    ingest::decode::{Decoder, Record},
    kafka, node,
    problem::Problem,
};

const TOKEN_TTL: Duration = Duration::from_secs(3600);
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// The routes' state.
pub(super) struct Routes(Arc<Inner>);

struct Inner {
    auth: auth::Config,
    secret: Box<[u8]>,
    producer: FutureProducer,
    topic: String,
    decoder: Decoder,
}

impl Routes {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let auth = node::auth_config(config);
        let secret = auth.hs256_secret.clone().context("dev always has a secret")?;
        let producer = kafka::producer_config(&config.kafka).create().context("kafka.properties")?;
        let decoder =
            Decoder::new("dev", &config.kafka.topic, config.limits.payload_bytes_max, Arc::new(|_| Options::default()));
        Ok(Self(Arc::new(Inner { auth, secret, producer, topic: config.kafka.topic.clone(), decoder })))
    }
}

impl DevRoutes for Routes {
    fn routes(&self) -> Router {
        Router::new().route("/dev/token", get(token)).route("/dev/events", post(send)).with_state(self.0.clone())
    }
}

/// The page is served from this address; another origin's page must not get tokens here.
fn is_foreign(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site.as_bytes() != b"same-origin" && site.as_bytes() != b"none")
        || headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_none_or(|host| !is_local(host))
}

/// Only names that cannot be pointed elsewhere: a page of a rebound name would be of the same origin.
fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

#[derive(Deserialize)]
struct TokenQuery {
    user: String,
}

async fn token(State(inner): State<Arc<Inner>>, headers: HeaderMap, Query(query): Query<TokenQuery>) -> Response {
    if is_foreign(&headers) {
        return Problem::new(StatusCode::FORBIDDEN, "tokens are only given to this node's own page").into_response();
    }
    let user = match UserId::new(query.user) {
        Ok(user) => user,
        Err(error) => return Problem::new(StatusCode::BAD_REQUEST, format!("user {error}")).into_response(),
    };
    match auth::issue(&user, TOKEN_TTL, &inner.auth, &inner.secret) {
        Ok((token, expires_at)) => {
            let expires_at = jiff::Timestamp::from_millisecond(expires_at).map(|at| at.to_string()).unwrap_or_default();
            Json(json!({ "user": &*user, "token": token, "expires_at": expires_at })).into_response()
        }
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn send(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    if is_foreign(&headers) {
        return Problem::new(StatusCode::FORBIDDEN, "only this node's own page may send here").into_response();
    }
    // The node would put it among the dead letters: here the sender can be told.
    let id = uuid::Uuid::new_v4().to_string();
    let record = Record { value: Some(&body), headers: &[], timestamp: Some(0), partition: 0, offset: 0 };
    if let Err(rejected) = inner.decoder.decode(&record) {
        return Problem::new(StatusCode::BAD_REQUEST, rejected.to_string()).into_response();
    }
    let Some(body) = with_id(&body, &id) else {
        return Problem::new(StatusCode::BAD_REQUEST, "the event must be a JSON object").into_response();
    };
    let sent = inner.producer.send(FutureRecord::<(), _>::to(&inner.topic).payload(&body), SEND_DEADLINE).await;
    match sent {
        Ok(at) => {
            let answer = json!({ "ids": [id], "partition": at.partition, "offset": at.offset });
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
        Err((error, _)) => Problem::new(StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// The object with our id in front of its other fields, which stay byte for byte.
fn with_id(body: &[u8], id: &str) -> Option<Vec<u8>> {
    let at = body.iter().position(|byte| *byte == b'{')?;
    let mut out = format!("{{\"id\":\"{id}\",").into_bytes();
    out.extend_from_slice(&body[at + 1..]);
    Some(out)
}
