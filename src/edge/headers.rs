//! What every answer of the client port says to browsers and caches, whatever it answers.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};

use super::metric;

/// Nothing here is a document, but for the page, which says so itself.
const NO_CONTENT_ALLOWED: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
/// Two years, as browsers' preload lists want it.
const TLS_ONLY: HeaderValue = HeaderValue::from_static("max-age=63072000");

/// A middleware: sets the headers, and counts the request by route and status. `strict_transport`: TLS is on.
pub(super) async fn complete(State(strict_transport): State<bool>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    metric::requested(route.as_ref().map_or("other", MatchedPath::as_str), response.status());
    secure(&mut response, strict_transport);
    response
}

/// Sets what the answer does not say itself.
pub(super) fn secure(response: &mut Response, strict_transport: bool) {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // It has no content, and there are many of them.
        return;
    }
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: HeaderValue| _ = headers.entry(name).or_insert(value);
    set(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    set(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Tokens, ids and what belongs to a user: nothing that a cache should have.
    set(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    set(header::CONTENT_SECURITY_POLICY, NO_CONTENT_ALLOWED);
    if strict_transport {
        set(header::STRICT_TRANSPORT_SECURITY, TLS_ONLY);
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Response};

    use super::*;

    #[test]
    fn what_an_answer_says_itself_stays_and_tls_is_asked_for_only_where_it_is_on() {
        let own = || Response::builder().header(header::CACHE_CONTROL, "no-transform").body(Body::empty()).unwrap();
        let (mut plain, mut tls) = (own(), own());
        secure(&mut plain, false);
        secure(&mut tls, true);
        for answer in [&plain, &tls] {
            assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-transform");
            assert_eq!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        }
        assert!(!plain.headers().contains_key(header::STRICT_TRANSPORT_SECURITY));
        assert!(tls.headers()[header::STRICT_TRANSPORT_SECURITY].to_str().unwrap().starts_with("max-age="));
    }
}
