//! What several routes of the HTTP API say alike in its document.

use utoipa::{IntoParams, IntoResponses};

use crate::problem::Problem;

/// Whom a path is about.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only for the document")]
pub(crate) struct OfUser {
    /// The user.
    #[param(min_length = 1, max_length = 256, pattern = "^[^\\x00-\\x1f\\x7f]+$", example = "101")]
    user: String,
}

/// Why a caller that shows a token or an API key is refused.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for the document")]
pub(crate) enum Refusals {
    /// The path, a parameter or the body is wrong.
    #[response(status = 400, content_type = "application/problem+json")]
    Wrong(Problem),
    /// There is no credential, or it is not accepted.
    #[response(
        status = 401,
        content_type = "application/problem+json",
        headers(("WWW-Authenticate" = String, description = "Bearer"))
    )]
    Unknown(Problem),
    /// The credential is another user's, or lacks the scope; or the origin is not allowed.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// Not now: too many at the moment, the node is going away, or the store or the issuer of tokens does not answer.
    #[response(
        status = 503,
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait."))
    )]
    Later(Problem),
}

/// Why a client gets no session.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for the document")]
pub(crate) enum NotLetIn {
    /// A parameter or header is wrong.
    #[response(status = 400, content_type = "application/problem+json")]
    Wrong(Problem),
    /// There is no token, or it is not accepted.
    #[response(
        status = 401,
        content_type = "application/problem+json",
        headers(("WWW-Authenticate" = String, description = "Bearer"))
    )]
    Unknown(Problem),
    /// Too many connects, or the node is going away.
    #[response(
        status = 503,
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait."))
    )]
    Later(Problem),
}
