//! `GET /v1/users/{user}/notifications`: a user's log as it is kept, page by page.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, Uri},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Inner;
use crate::{
    auth::{Principal, Scope},
    credential,
    document::{OfUser, Refusals},
    edge::Carrier,
    ids::{Sequence, UserId},
    problem::Problem,
    store::{self, Entry, PageLimit},
    wire::{Frame, Gap},
};

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 500;
/// What a page holds at the most, in bytes of events; one that is longer comes alone.
const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// When to come back while the store does not answer, in seconds.
const RETRY_STORE: u64 = 1;

/// Which page.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub(super) struct Wanted {
    /// The page begins behind this number: `next` of the page before.
    #[param(minimum = 0, maximum = 9_223_372_036_854_775_807_u64, example = 0)]
    after: Sequence,
    /// How many notifications a page holds at the most; it may hold fewer.
    #[param(minimum = 1, maximum = 500, example = 100)]
    limit: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { after: 0, limit: LIMIT_DEFAULT }
    }
}

/// A page of a user's log.
#[derive(Serialize, ToSchema)]
pub(super) struct LogPage {
    /// Names this life of the log: numbers of another one mean nothing in it.
    #[schema(example = "k3f9")]
    epoch: String,
    /// The highest number given; 0: none yet.
    head: Sequence,
    /// Up to here everything is acknowledged by the user's clients that name no device.
    cursor: Sequence,
    /// In the order of their numbers, each as the user's clients get it.
    #[schema(value_type = Vec<Object>, example = json!([{"target": "101", "type": "update_channel", "payload": {"channel": 999},
        "id": "0199b1c2-6f3e-7d51-9c2a-4b0d8e7f6a51", "seq": 12, "ts": "2026-11-21T09:00:00.123Z"}]))]
    notifications: Vec<Box<RawValue>>,
    /// Numbers of this page that are gone, and why.
    #[schema(value_type = Vec<Object>, example = json!([{"from": 1, "to": 8, "reason": "expired"}]))]
    gaps: Vec<Gap>,
    /// `after` of the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Sequence>,
}

/// Read a user's log
///
/// Durable notifications that are kept, whether they were acknowledged or not: what the user got, and what waits. With
/// the user's own token, or an API key with the scope `read`.
#[utoipa::path(
    get,
    path = "/v1/users/{user}/notifications",
    tag = "notifications",
    security(("token" = []), ("api_key" = []), ("api_key_header" = [])),
    params(OfUser, Wanted),
    responses(
        (status = 200, description = "The page; an empty one for a user who never got anything.", body = LogPage),
        Refusals,
    ),
)]
pub(super) async fn read(
    State(api): State<Arc<Inner>>,
    carrier: Option<Extension<Carrier>>,
    Path(user): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<LogPage>, Problem> {
    let user = api.acting_for(&headers, carrier, user, Scope::Read).await?;
    let Query(Wanted { after, limit }) =
        Query::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::bad_request(format!("limit must be 1 to {LIMIT_MAX}")));
    }
    let opened = api.store.open(&user, None).await.map_err(away)?;
    let page = api.store.read(&user, after, PageLimit { items: limit, bytes: PAGE_BYTES_MAX }).await.map_err(away)?;
    // Some may have come since it was opened. A page without entries covers whatever was asked for.
    let head = if page.entries.is_empty() { opened.head } else { opened.head.max(page.covers) };
    let mut answer = LogPage {
        epoch: (*api.store.epoch()).to_owned(),
        head,
        cursor: opened.cursor,
        notifications: Vec::with_capacity(page.entries.len()),
        gaps: Vec::new(),
        next: (page.covers > after && page.covers < head).then_some(page.covers),
    };
    for entry in page.entries {
        match entry {
            Entry::Notification(notification) => {
                let frame = String::from_utf8(Frame::notification(&notification).json().to_vec());
                let json = RawValue::from_string(frame.expect("frames are UTF-8"));
                answer.notifications.push(json.expect("frames are JSON"));
            }
            Entry::Gap(gap) => answer.gaps.push(gap),
        }
    }
    Ok(Json(answer))
}

impl Inner {
    /// The user of a path, for somebody who may act there: the user, or a service with the scope.
    pub(super) async fn acting_for(
        &self,
        headers: &HeaderMap,
        carrier: Option<Extension<Carrier>>,
        user: String,
        scope: Scope,
    ) -> Result<UserId, Problem> {
        let user = UserId::new(user).map_err(|error| Problem::bad_request(format!("user {error}")))?;
        let credential = credential::shown(headers).unwrap_or_default();
        match self.authenticator.principal_fresh(credential, scope).await? {
            Principal::User(identity) if identity.user != user => {
                return Err(Problem::new(StatusCode::FORBIDDEN, "the log belongs to another user"));
            }
            Principal::User(_) | Principal::Service(_) => {}
        }
        if let Some(Extension(carrier)) = carrier {
            carrier.identify();
        }
        Ok(user)
    }
}

pub(super) fn away(error: store::Error) -> Problem {
    tracing::warn!(%error, "reading a log");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer").retry_after(RETRY_STORE)
}

#[cfg(test)]
mod tests;
