//! What black-box tests can do to a node from outside; in other builds, nothing.

use std::sync::Arc;
#[cfg(feature = "faults")]
use std::time::Duration;

use crate::{health::Health, ingest::Ingest, link::Versions};

/// Test builds only: `POST /faults/assignment` takes partitions away and gives them back, `POST /faults/stall`
/// makes a loop that liveness watches stand still, `POST /faults/kafka` makes a client of no use any more.
#[cfg(feature = "faults")]
pub(super) fn routes(ingest: &Arc<Ingest>, health: &Health) -> axum::Router {
    use axum::{Json, http::StatusCode, routing::post};

    use crate::ingest::Assignment;

    #[derive(serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Everything {
        All,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Wanted {
        All(Everything),
        Only(std::collections::BTreeSet<i32>),
    }
    #[derive(serde::Deserialize)]
    struct Body {
        partitions: Wanted,
    }
    let (ingest, failing) = (ingest.clone(), ingest.clone());
    let assign = async move |Json(body): Json<Body>| {
        ingest.assign(match body.partitions {
            Wanted::All(Everything::All) => Assignment::All,
            Wanted::Only(wanted) => Assignment::Only(wanted),
        });
        StatusCode::NO_CONTENT
    };
    #[derive(serde::Deserialize)]
    struct Stall {
        r#loop: String,
        seconds: u64,
    }
    let health = health.clone();
    let stall = async move |Json(Stall { r#loop, seconds }): Json<Stall>| {
        let known = health.stall(&r#loop, Duration::from_secs(seconds));
        if known { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
    };
    #[derive(serde::Deserialize)]
    struct Fail {
        consumer: bool,
    }
    let fail = async move |Json(Fail { consumer }): Json<Fail>| {
        failing.fail(consumer);
        StatusCode::NO_CONTENT
    };
    axum::Router::new()
        .route("/faults/assignment", post(assign))
        .route("/faults/stall", post(stall))
        .route("/faults/kafka", post(fail))
}

#[cfg(not(feature = "faults"))]
pub(super) fn routes(_: &Arc<Ingest>, _: &Health) -> axum::Router {
    axum::Router::new()
}

/// Test builds only: the node speaks those versions of the link that `FAULT_LINK_VERSIONS` says.
#[cfg(feature = "faults")]
pub(super) fn link_versions() -> Versions {
    let said = std::env::var("FAULT_LINK_VERSIONS");
    said.map_or(Versions::OURS, |text| text.parse().expect("FAULT_LINK_VERSIONS"))
}

#[cfg(not(feature = "faults"))]
pub(super) fn link_versions() -> Versions {
    Versions::OURS
}
