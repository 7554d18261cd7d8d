//! The admin port: liveness, readiness, metrics. Reads what others report; decides nothing.

use std::{io, net::SocketAddr};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{health::Health, problem::Problem};

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    /// The node's parts and loops.
    pub health: Health,
    /// The metrics.
    pub metrics: PrometheusHandle,
}

/// Serves until the task is aborted.
///
/// # Errors
/// When the listener has no address.
pub fn start(listener: TcpListener, admin: Admin, more: Router) -> io::Result<(SocketAddr, JoinHandle<()>)> {
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin)
        .merge(more)
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method")
        });
    let serving = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin port failed");
        }
    });
    Ok((address, serving))
}

async fn livez(State(admin): State<Admin>) -> Response {
    let stuck = admin.health.stuck();
    let loops: Vec<_> = stuck.iter().map(|(name, age)| json!({ "loop": name, "age_seconds": age.as_secs() })).collect();
    answer(stuck.is_empty(), json!({ "live": stuck.is_empty(), "stuck": loops }))
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let failing = admin.health.failing();
    let parts: Vec<_> = failing.iter().map(|(part, why)| json!({ "part": part, "reason": why })).collect();
    answer(failing.is_empty(), json!({ "ready": failing.is_empty(), "failing": parts }))
}

fn answer(good: bool, body: serde_json::Value) -> Response {
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    metrics_process::Collector::default().collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render()).into_response()
}
