//! `GET` and `DELETE /v1/users/{user}/notifications/{id}`: what happened to one notification, and taking it back.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::{IntoParams, ToSchema};

use super::{Inner, notifications::away};
use crate::{
    auth::Scope,
    document::{OfUser, Refusals},
    edge::Carrier,
    event::{Durability, Priority, UnixMillis, unix_millis_now},
    ids::{NotificationId, Sequence, UserId},
    problem::Problem,
    state::{self, Reason},
    store::journal::{Account, Cancelled, Happened, standing},
    wire::timestamp_text,
};

/// So many are under way at a time, over all users.
pub(super) const CANCELLATIONS_MAX: usize = 4;
/// How long a cancellation may wait for the store. It may still happen afterwards.
const CANCEL: Duration = Duration::from_secs(5);

/// Which notification a path is about.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only for the document")]
struct OfNotification {
    /// The notification's id.
    #[param(
        min_length = 1,
        max_length = 256,
        pattern = "^[^\\x00-\\x1f\\x7f]+$",
        example = "0199b1c2-6f3e-7d51-9c2a-4b0d8e7f6a51"
    )]
    id: String,
}

/// One notification and what happened to it.
#[derive(Serialize, ToSchema)]
pub(super) struct Told {
    /// Whose it is.
    #[schema(example = "101")]
    target: String,
    /// Its id.
    #[schema(example = "0199b1c2-6f3e-7d51-9c2a-4b0d8e7f6a51")]
    id: String,
    /// What kind of notification it is.
    #[serde(rename = "type")]
    #[schema(example = "update_channel")]
    notification_type: String,
    /// Its place in the user's order; absent while it waits for a rate limit, and when it ended there.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Sequence>,
    /// What the producer sent.
    #[schema(value_type = Object)]
    payload: Box<RawValue>,
    /// What is promised for it.
    #[schema(value_type = String, example = "durable")]
    durability: Durability,
    /// Its class.
    #[schema(value_type = String, example = "normal")]
    priority: Priority,
    /// How it stands.
    state: state::State,
    /// Why, where there is a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    /// When it must not be delivered any more.
    #[schema(example = "2026-11-28T09:00:00.123Z")]
    expires_at: String,
    /// What happened to it, oldest first. It may end on one session and be given to others: each device has its own
    /// cursor.
    history: Vec<Occurrence>,
}

/// One thing that happened.
#[derive(Serialize, ToSchema)]
struct Occurrence {
    /// What it was from then on.
    state: state::State,
    /// When.
    #[schema(example = "2026-11-21T09:00:00.123Z")]
    at: String,
    /// On which session.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "3f0d5a7c9b1e4c6d8a2f4e6b8d0c2a4e")]
    session: Option<String>,
    /// On which device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "phone")]
    device: Option<String>,
    /// Why, where there is a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
}

impl Occurrence {
    fn of(happened: &Happened) -> Self {
        Self {
            state: happened.state,
            at: timestamp_text(happened.at),
            session: happened.session.map(|session| session.to_string()),
            device: happened.device.as_ref().map(ToString::to_string),
            reason: happened.reason,
        }
    }
}

impl Told {
    fn of(account: &Account, now: UnixMillis, sessions_since: UnixMillis) -> Self {
        let history = account.history(now, sessions_since);
        let (state, reason) = standing(&history);
        let event = &account.event;
        Self {
            target: event.user.to_string(),
            id: event.id.to_string(),
            notification_type: event.notification_type.to_string(),
            seq: account.seq,
            payload: RawValue::from_string(event.payload.to_string())
                .unwrap_or_else(|_| to_raw_value(&*event.payload).expect("a string is JSON")),
            durability: event.options.durability,
            priority: event.options.priority,
            state,
            reason,
            expires_at: timestamp_text(account.expires_at),
            history: history.iter().map(Occurrence::of).collect(),
        }
    }
}

/// What happened to one notification
///
/// "Why did I (not) get it?": its states with their times, sessions, devices and reasons. With the user's own token, or an
/// API key with the scope `read`.
#[utoipa::path(
    get,
    path = "/v1/users/{user}/notifications/{id}",
    tag = "notifications",
    security(("token" = []), ("api_key" = []), ("api_key_header" = [])),
    params(OfUser, OfNotification),
    responses(
        (status = 200, description = "The notification and its history.", body = Told),
        (status = 404, description = "No such notification is kept for this user. Transient ones never are.", body = Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn account(
    State(api): State<Arc<Inner>>,
    carrier: Option<Extension<Carrier>>,
    Path((user, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Told>, Problem> {
    let (user, id) = api.named(&headers, carrier, (user, id), Scope::Read).await?;
    match api.store.account(&user, &id).await.map_err(away)? {
        Some(account) => Ok(Json(Told::of(&account, unix_millis_now(), api.started_at))),
        None => Err(unknown()),
    }
}

/// Take a notification back
///
/// It is not delivered from here on: clients that have not got it are told of a gap (`cancelled`) in its place. What one of
/// the user's sessions has acknowledged cannot be taken back; what one of them shows and has not acknowledged is taken
/// from the others only. With the user's own token, or an API key with the scope `sessions`.
#[utoipa::path(
    delete,
    path = "/v1/users/{user}/notifications/{id}",
    tag = "notifications",
    security(("token" = []), ("api_key" = []), ("api_key_header" = [])),
    params(OfUser, OfNotification),
    responses(
        (status = 204, description = "It is not delivered any more."),
        (status = 404, description = "No such notification is kept for this user.", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "It has ended already: the detail says how.", body = Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn cancel(
    State(api): State<Arc<Inner>>,
    carrier: Option<Extension<Carrier>>,
    Path((user, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let (user, id) = api.named(&headers, carrier, (user, id), Scope::Sessions).await?;
    if api.store.account(&user, &id).await.map_err(away)?.is_none() {
        return Err(unknown());
    }
    let Ok(_under_way) = api.cancellations.try_acquire() else {
        let detail = "too many cancellations are under way";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1));
    };
    let cancelled = tokio::time::timeout(CANCEL, api.shards.cancel(&user, id)).await;
    match cancelled.ok().flatten() {
        Some(Cancelled::Done(_)) => Ok(StatusCode::NO_CONTENT),
        Some(Cancelled::Ended(state)) => {
            let detail = format!("the notification is {} already", state.as_str());
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        Some(Cancelled::Unknown) => Err(unknown()),
        None => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer").retry_after(1)),
    }
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such notification is kept for this user")
}

impl Inner {
    /// Which notification is meant, by somebody who may say so.
    async fn named(
        &self,
        headers: &HeaderMap,
        carrier: Option<Extension<Carrier>>,
        (user, id): (String, String),
        scope: Scope,
    ) -> Result<(UserId, NotificationId), Problem> {
        let user = self.acting_for(headers, carrier, user, scope).await?;
        let id = NotificationId::new(id).map_err(|error| Problem::bad_request(format!("id {error}")))?;
        Ok((user, id))
    }
}

#[cfg(test)]
mod tests;
