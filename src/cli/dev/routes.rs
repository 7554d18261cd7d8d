//! What the page needs and only `notifier dev` serves: tokens for the asking, and a way to send.

use std::{borrow::Cow, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use rdkafka::producer::FutureRecord;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;

use crate::{
    config::Config,
    edge::{DevRoutes, auth},
    event::Options,
    ids::UserId,
    ingest::decode::{Decoder, Record},
    kafka::{self, Log, Producer},
    node,
    problem::Problem,
};

const TOKEN_TTL: Duration = Duration::from_secs(3600);
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// The routes' state.
pub(super) struct Routes(Arc<Inner>);

struct Inner {
    auth: auth::Config,
    secret: Box<[u8]>,
    producer: Producer,
    topic: String,
    decoder: Decoder,
}

impl Routes {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let auth = node::auth_config(config);
        let secret = auth.hs256_secret.clone().context("dev always has a secret")?;
        let producer =
            kafka::producer_config(&config.kafka).create_with_context(Log::default()).context("kafka.properties")?;
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
    let record = Record { value: Some(&body), headers: &[], timestamp: Some(0), partition: 0, offset: 0 };
    let event = match inner.decoder.decode(&record) {
        Ok(event) => event,
        Err(rejected) => return Problem::new(StatusCode::BAD_REQUEST, rejected.to_string()).into_response(),
    };
    let (id, body) = with_id(&body, &event.id);
    let sent =
        inner.producer.send(FutureRecord::to(&inner.topic).key(&*event.user).payload(&*body), SEND_DEADLINE).await;
    match sent {
        Ok(at) => {
            let answer = json!({ "ids": [id], "partition": at.partition, "offset": at.offset });
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
        Err((error, _)) => Problem::new(StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// The event with an id: its own, or a new one in front of its other fields, which stay byte for byte.
fn with_id<'a>(body: &'a [u8], decoded: &str) -> (String, Cow<'a, [u8]>) {
    #[derive(Deserialize)]
    struct Given {
        target: Option<IgnoredAny>,
        #[serde(alias = "notificationId", alias = "notification_id")]
        id: Option<IgnoredAny>,
        notification: Option<GivenInside>,
    }
    #[derive(Deserialize)]
    struct GivenInside {
        #[serde(alias = "notificationId")]
        notification_id: Option<IgnoredAny>,
    }
    let given: Option<Given> = serde_json::from_slice(body).ok();
    let has_id = given.as_ref().is_none_or(|given| {
        given.id.is_some() || given.notification.as_ref().is_some_and(|inside| inside.notification_id.is_some())
    });
    let Some(at) = body.iter().position(|byte| *byte == b'{').filter(|_| !has_id) else {
        return (decoded.to_owned(), body.into());
    };
    let id = uuid::Uuid::new_v4().to_string();
    let name = if given.is_some_and(|given| given.target.is_some()) { "id" } else { "notificationId" };
    let mut out = format!("{{\"{name}\":\"{id}\",").into_bytes();
    out.extend_from_slice(&body[at + 1..]);
    (id, out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_keeps_its_own_id_or_gets_one_in_its_own_form() {
        for own in [
            r#"{"target":1,"type":"t","payload":1,"id":"mine"}"#,
            r#"{"userId":"1","notificationId":"mine"}"#,
            r#"{"user_id":"1","notification":{"notification_id":"mine"}}"#,
        ] {
            let (id, body) = with_id(own.as_bytes(), "mine");
            assert_eq!((id.as_str(), &*body), ("mine", own.as_bytes()));
        }
        let (id, body) = with_id(br#"{"target":1}"#, "derived");
        assert_eq!(String::from_utf8_lossy(&body), format!(r#"{{"id":"{id}","target":1}}"#));
        let (id, body) = with_id(br#"{"userId":"1"}"#, "derived");
        assert_eq!(String::from_utf8_lossy(&body), format!(r#"{{"notificationId":"{id}","userId":"1"}}"#));
    }
}
