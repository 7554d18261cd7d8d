//! What to do after a connection could not be made or came to its end. Pure: the table that the loop follows.

use std::{fmt, time::Duration};

use hyper::StatusCode;

use crate::wire::CloseCode;

/// No server makes us wait longer, whatever it names.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// How a connection was not made, or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody answers there, or not in time.
    Unreachable(String),
    /// The server answered with an error.
    Refused { status: StatusCode, detail: String, retry_after: Option<Duration> },
    /// What answered is no notifier.
    Foreign(String),
    /// The server said goodbye.
    Closed(Closed),
    /// The connection ended without a word, or is dead.
    Lost(String),
}

/// A goodbye: `$bye`, the close frame, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    /// The close code; `None`: a close frame without one.
    pub(super) code: Option<u16>,
    /// The server's words.
    pub(super) reason: String,
    /// When to come back, if the server named a time.
    pub(super) wait: Option<Duration>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Connect again.
    Again(Wait),
    /// Connecting again would end the same way.
    GiveUp,
}

/// How long to wait before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The time that the server named for this client.
    Exactly(Duration),
    /// The time within which the server wants its clients back, spread out.
    UpTo(Duration),
    /// The server named none: longer each time.
    Backoff,
}

/// What follows on `failure`. `renews_token`: the next connect shows another token. `reconnect`: the ceiling that
/// this connection's `$hello` named, if it came that far.
pub(super) fn decide(failure: &Failure, renews_token: bool, reconnect: Option<Duration>) -> Decision {
    let again = |named: Option<Duration>| {
        let wait = match (named, reconnect.filter(|ceiling| !ceiling.is_zero())) {
            (Some(wait), _) => Wait::Exactly(wait.min(WAIT_MAX)),
            (None, Some(ceiling)) => Wait::UpTo(ceiling.min(WAIT_MAX)),
            (None, None) => Wait::Backoff,
        };
        Decision::Again(wait)
    };
    match failure {
        Failure::Unreachable(_) => Decision::Again(Wait::Backoff),
        Failure::Lost(_) => again(None),
        Failure::Foreign(_) => Decision::GiveUp,
        Failure::Refused { status, retry_after, .. } => match *status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => again(*retry_after),
            status if status.is_server_error() => again(*retry_after),
            _ => Decision::GiveUp,
        },
        Failure::Closed(closed) => match closed.code {
            Some(code) if code == CloseCode::Unauthenticated as u16 && renews_token => again(closed.wait),
            Some(code) if is_final(code) => Decision::GiveUp,
            _ => again(closed.wait),
        },
    }
}

/// Codes after which the same client would be sent away again.
fn is_final(code: u16) -> bool {
    const FINAL: [CloseCode; 7] = [
        CloseCode::ProtocolError,
        CloseCode::NotUtf8,
        CloseCode::Policy,
        CloseCode::TooBig,
        CloseCode::Unauthenticated,
        CloseCode::Replaced,
        CloseCode::BadFrame,
    ];
    FINAL.iter().any(|one| *one as u16 == code)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "cannot connect: {why}"),
            Self::Refused { status, detail, .. } => write!(f, "the server refused: {detail} ({})", status.as_u16()),
            Self::Foreign(why) => write!(f, "this is no notifier server: {why}"),
            Self::Lost(why) => write!(f, "connection lost: {why}"),
            Self::Closed(Closed { code, reason, .. }) => {
                let meaning = match *code {
                    Some(code) if code == CloseCode::Unauthenticated as u16 => ", the token is not valid any more",
                    Some(code) if code == CloseCode::Replaced as u16 => ", replaced or disconnected by an operator",
                    _ => "",
                };
                f.write_str("the server closed the connection")?;
                match code {
                    Some(code) => write!(f, ": {reason} ({code}{meaning})"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn closed(code: impl Into<Option<u16>>, wait: Option<Duration>) -> Failure {
        Failure::Closed(Closed { code: code.into(), reason: "draining".into(), wait })
    }

    fn refused(status: u16, retry_after: Option<Duration>) -> Failure {
        Failure::Refused {
            status: StatusCode::from_u16(status).unwrap(),
            detail: "the token has expired".into(),
            retry_after,
        }
    }

    #[test]
    fn the_servers_wait_goes_before_its_ceiling_and_that_before_the_backoff() {
        let again = |wait| Decision::Again(wait);
        let cases = [
            (closed(1001, Some(3 * SECOND)), Some(SECOND), again(Wait::Exactly(3 * SECOND))),
            (closed(1001, None), Some(SECOND), again(Wait::UpTo(SECOND))),
            (closed(1001, None), None, again(Wait::Backoff)),
            (closed(None, None), Some(Duration::ZERO), again(Wait::Backoff)),
            (closed(4002, None), Some(SECOND), again(Wait::UpTo(SECOND))),
            (closed(1013, Some(Duration::MAX)), None, again(Wait::Exactly(WAIT_MAX))),
            (closed(1013, None), Some(Duration::MAX), again(Wait::UpTo(WAIT_MAX))),
            (Failure::Lost("reset".into()), Some(SECOND), again(Wait::UpTo(SECOND))),
            (Failure::Unreachable("refused".into()), None, again(Wait::Backoff)),
            (refused(503, Some(SECOND)), None, again(Wait::Exactly(SECOND))),
            (refused(502, None), None, again(Wait::Backoff)),
            (refused(429, Some(SECOND)), None, again(Wait::Exactly(SECOND))),
            (refused(408, None), None, again(Wait::Backoff)),
        ];
        for (failure, reconnect, expected) in cases {
            assert_eq!(decide(&failure, false, reconnect), expected, "{failure:?}");
        }
    }

    #[test]
    fn what_would_end_the_same_way_is_not_tried_again() {
        for code in [1002, 1007, 1008, 1009, 4001, 4003, 4004] {
            assert_eq!(decide(&closed(code, Some(SECOND)), false, Some(SECOND)), Decision::GiveUp, "{code}");
        }
        for status in [301, 400, 401, 403, 404, 426] {
            assert_eq!(decide(&refused(status, None), true, None), Decision::GiveUp, "{status}");
        }
        assert_eq!(decide(&Failure::Foreign("200".into()), true, None), Decision::GiveUp);
    }

    #[test]
    fn an_expired_session_goes_on_where_the_next_token_is_another_one() {
        assert_eq!(decide(&closed(4001, None), true, Some(SECOND)), Decision::Again(Wait::UpTo(SECOND)));
        assert_eq!(decide(&closed(4003, None), true, Some(SECOND)), Decision::GiveUp);
    }

    #[test]
    fn a_failure_says_what_the_server_said() {
        let texts = [refused(401, None).to_string(), closed(4003, None).to_string()];
        assert_eq!(texts[0], "the server refused: the token has expired (401)");
        assert_eq!(
            texts[1],
            "the server closed the connection: draining (4003, replaced or disconnected by an operator)"
        );
    }
}
