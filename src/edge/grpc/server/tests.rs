//! What anybody may ask for, without a connection.

use axum::http;
use http_body_util::BodyExt as _;
use tonic::Code;

use super::*;
use crate::edge::fakes::shared;

/// Whether a call is refused whose request has a text of so many bytes in its first field.
async fn is_refused(path: &str, bytes: usize) -> bool {
    let mut message = Vec::new();
    prost::encoding::string::encode(1, &"x".repeat(bytes), &mut message);
    // Of reflection: which services there are.
    prost::encoding::string::encode(7, &"x".to_owned(), &mut message);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = Body::from([&[0], &length[..], &message].concat());
    let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/grpc").body(body).unwrap();
    let (head, body) = routes(&shared()).await.oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = head.headers.get("grpc-status").or_else(|| trailers.get("grpc-status"));
    match Code::from_bytes(status.expect("every call ends with a status").as_bytes()) {
        Code::OutOfRange => true,
        // Reflection's answers just end.
        Code::Ok => body.to_bytes().is_empty(),
        _ => false,
    }
}

#[tokio::test]
async fn requests_of_strangers_are_short_whatever_they_ask() {
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/atlas.notifier.v1.Notifier/Connect",
        "/atlas.notifier.v1.CommandHandler/StartUserSession",
    ] {
        assert!(is_refused(path, 17_000).await && !is_refused(path, 1000).await, "{path}");
    }
}
