//! `POST /v1/events`: what a request has to say, in which order it is looked at, and how it is answered.

use std::{error::Error, sync::Arc, time::Instant};

use axum::{
    Json,
    body::{Body, Bytes, HttpBody as _},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::oneshot;
use tower_http::timeout::TimeoutError;
use utoipa::{IntoParams, ToSchema};

use super::{
    Inner,
    batch::{self, Item, ItemError, Refused},
    idempotency::IdempotencyKey,
    metric,
    publish::{ItemResult, NoRoom, Outcome},
    schema::EventsBody,
    trace_context::TraceContext,
};
use crate::{
    auth::{Scope, Service},
    credential,
    edge::Carrier,
    ids::NotificationId,
    problem::Problem,
};

/// When to come back while Kafka does not answer, and while there is no room, in seconds.
const RETRY_KAFKA: u64 = 5;
const RETRY_ROOM: u64 = 1;

/// The events are in Kafka.
#[derive(Serialize, ToSchema)]
pub(super) struct Published {
    /// The events' ids, in the order of the request.
    #[schema(example = json!(["0199b1c2-6f3e-7d51-9c2a-4b0d8e7f6a51"]))]
    ids: Vec<String>,
}

/// Why events are not accepted, or not all of them are known to be in Kafka.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventsProblem {
    #[serde(flatten)]
    problem: Problem,
    /// Of an array, each event that breaks a rule; none was written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<ItemError>,
    /// What became of each event, in the order of the request, when some were handed to Kafka.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    results: Vec<ItemResult>,
}

impl From<Problem> for EventsProblem {
    fn from(problem: Problem) -> Self {
        Self { problem, errors: Vec::new(), results: Vec::new() }
    }
}

impl IntoResponse for EventsProblem {
    fn into_response(self) -> Response {
        self.problem.answer(&self)
    }
}

/// What a request may say besides its events.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only for the document")]
pub(super) struct Headers {
    /// Makes the ids of events that have none depend on this key, the caller's name and the event's place, so that a
    /// repeated request repeats them. In quotes as the IETF's draft has it, or bare. A new request needs a new key: one
    /// that was used before gives other events the ids of the earlier ones, and they count as those.
    #[param(
        rename = "Idempotency-Key",
        value_type = String,
        required = false,
        pattern = r#"^("[ !#-\[\]-~]{1,255}"|[!#-~]{1,255})$"#,
        example = "8e03978e-40d5-43e8-bc93-6894a57f9324"
    )]
    idempotency_key: Option<String>,
    /// W3C Trace Context; goes with the events into Kafka. What is none is ignored.
    #[param(value_type = String, required = false, example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    traceparent: Option<String>,
    /// More of the same.
    #[param(value_type = String, required = false, example = "vendor=1")]
    tracestate: Option<String>,
}

/// Write events
///
/// One event, or an array of at most 1,000. They are answered for when all in-sync replicas of Kafka have them.
///
/// All or nothing: when one event of an array breaks a rule, none is written, and `errors` names each that does. An
/// event that is accepted will not become a dead letter. A user's events keep the order of the array.
///
/// After 503 with `results` it is safe to repeat the request as it was when it has an `Idempotency-Key`, or ids of its
/// own, or is given those of `results`: an event that the user's log already has is not delivered again. This holds
/// within the log's deduplication window (`log.dedup_window`) and not for transient events, which are not kept.
#[utoipa::path(
    post,
    path = "/v1/events",
    tag = "events",
    security(("api_key" = []), ("api_key_header" = [])),
    params(Headers),
    request_body(content = EventsBody, content_type = "application/json", examples(
        ("one" = (summary = "One event", value = json!(
            {"target": "101", "type": "update_channel", "payload": {"channel": 999}}))),
        ("array" = (summary = "Two events, with options", value = json!([
            {"target": "101", "type": "invoice", "payload": {"amount": "12.50"}, "id": "invoice-77", "ttl": "30d"},
            {"target": 102, "type": "typing", "payload": null, "durability": "transient", "priority": "low"}]))),
        ("mapped" = (summary = "The protobuf's JSON mapping", value = json!(
            {"userId": "101", "notification": {"notificationType": "update_channel", "data": "{\"channel\":999}"}}))),
    )),
    responses(
        (status = 202, description = "All events are in Kafka.", body = Published),
        (status = 400, description = "Nothing was written: the body is no event, or an event or header breaks a rule.",
            body = EventsProblem, content_type = "application/problem+json"),
        (status = 401, description = "There is no API key, or it is not known.", body = EventsProblem,
            content_type = "application/problem+json",
            headers(("WWW-Authenticate" = String, description = "Bearer"))),
        (status = 403, description = "The API key lacks the scope `publish`, or the origin is not allowed.",
            body = EventsProblem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long, or Kafka refuses events of that size: then `results` \
            says which, and the others were written.", body = EventsProblem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not `application/json`.", body = EventsProblem,
            content_type = "application/problem+json",
            headers(("Accept-Post" = String, description = "application/json"))),
        (status = 503, description = "No room at the moment, the node is going away, or Kafka did not confirm all \
            events in time: then `results` says which it did.", body = EventsProblem,
            content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
    ),
)]
pub(super) async fn publish(State(api): State<Arc<Inner>>, request: Request) -> Result<Response, EventsProblem> {
    let (head, body) = request.into_parts();
    // Who asks comes first: nothing is read for anybody else.
    let service = identify(&api, &head)?;
    if !is_json(&head.headers) {
        return Ok(unsupported());
    }
    let key = IdempotencyKey::of(&head.headers).map_err(Problem::bad_request)?;
    let expected = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    let expected = expected.map_or(api.config.request_bytes_max, |bytes| bytes.min(api.config.request_bytes_max));
    let bytes = api.in_flight.bytes(expected).map_err(no_room)?;
    let body = read(&api, body).await?;
    let began = Instant::now();
    let new_id = |index| match &key {
        Some(key) => key.id(&service.name, index),
        None => NotificationId::time_ordered(),
    };
    let items = batch::read(&body, &api.decoder, new_id)?;
    drop(body);
    let events = api.in_flight.events(items.len()).map_err(no_room)?;
    let results = write(&api, items, TraceContext::of(&head.headers), (bytes, events)).await?;
    metric::publish(began.elapsed());
    Ok(answer(results))
}

/// Which service asks, if it may publish.
fn identify(api: &Inner, head: &Parts) -> Result<Arc<Service>, Problem> {
    let service = api.authenticator.service(credential::shown(&head.headers).unwrap_or_default(), Scope::Publish)?;
    if let Some(carrier) = head.extensions.get::<Carrier>() {
        carrier.identify();
    }
    Ok(service)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

fn unsupported() -> Response {
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type: expected application/json");
    ([(HeaderName::from_static("accept-post"), "application/json")], problem).into_response()
}

fn no_room(no_room: NoRoom) -> Problem {
    let detail = match no_room {
        NoRoom::Full => "too many events are on their way to Kafka",
        NoRoom::Closed => "this node is going away",
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_ROOM)
}

async fn read(api: &Inner, body: Body) -> Result<Bytes, Problem> {
    let too_slow = || Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let reading = axum::body::to_bytes(body, api.config.request_bytes_max);
    let read = tokio::time::timeout(api.config.body_deadline, reading).await.map_err(|_| too_slow())?;
    read.map_err(|error| {
        let first: &(dyn Error + 'static) = &error;
        let mut causes = std::iter::successors(Some(first), |&error| error.source());
        if causes.clone().any(|cause| cause.is::<http_body_util::LengthLimitError>()) {
            let detail =
                format!("the body has more than limits.request_bytes_max = {} bytes", api.config.request_bytes_max);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        } else if causes.any(|cause| cause.is::<TimeoutError>()) {
            too_slow()
        } else {
            Problem::bad_request("the body could not be read")
        }
    })
}

/// Writes in a task of its own, which keeps what the request holds until Kafka has it or has let go of it, although its
/// caller may have hung up by then or have its answer.
async fn write(
    api: &Arc<Inner>,
    items: Vec<Item>,
    trace: TraceContext,
    held: impl Send + 'static,
) -> Result<Vec<ItemResult>, Problem> {
    let publisher = api.publisher.clone();
    let (answer, answered) = oneshot::channel();
    tokio::spawn(async move {
        let (results, pending) = publisher.write(items, &trace).await;
        let _ = answer.send(results);
        pending.settled().await;
        drop(held);
    });
    answered.await.map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "writing the events failed"))
}

fn answer(results: Vec<ItemResult>) -> Response {
    let any = |outcomes: &[Outcome]| results.iter().any(|result| outcomes.contains(&result.state()));
    let problem = if any(&[Outcome::Unconfirmed, Outcome::NotWritten]) {
        let detail = "Kafka did not confirm all events in time; repeat those that are not written, with their ids";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_KAFKA)
    } else if any(&[Outcome::TooLarge]) {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "Kafka refuses events of that size: the topic's max.message.bytes")
    } else {
        let ids = results.iter().map(|result| result.id().to_string()).collect();
        return (StatusCode::ACCEPTED, Json(Published { ids })).into_response();
    };
    EventsProblem { results, ..problem.into() }.into_response()
}

impl From<Refused> for EventsProblem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Body(detail) | Refused::Event(detail) => Problem::bad_request(detail).into(),
            Refused::Items(errors) => {
                let detail = format!("nothing was written: {} of the events cannot be accepted", errors.len());
                Self { errors, ..Problem::bad_request(detail).into() }
            }
        }
    }
}
