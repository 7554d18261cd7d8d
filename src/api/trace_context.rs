//! W3C Trace Context: what a request says of its trace goes with its events into Kafka.

use axum::http::{HeaderMap, HeaderName};

/// The header's name, in HTTP and in Kafka.
pub(super) const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// What every participant has to pass on.
const STATE_CHARS_MAX: usize = 512;

/// A trace and the caller's place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TraceContext(Vec<(&'static str, String)>);

impl TraceContext {
    /// The request's, or an empty one: what is no trace context is ignored, as the specification wants it.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut parents = headers.get_all(HeaderName::from_static(PARENT)).into_iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else { return Self::default() };
        let Some(parent) = parent.to_str().ok().filter(|text| is_parent(text)) else { return Self::default() };
        let mut context = vec![(PARENT, parent.to_owned())];
        let states = headers.get_all(HeaderName::from_static(STATE)).into_iter();
        let state = states.filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
        if !state.is_empty() && state.len() <= STATE_CHARS_MAX {
            context.push((STATE, state));
        }
        Self(context)
    }

    /// The headers of a record.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// `version-trace-parent-flags`, in lowercase hexadecimal digits; neither id is zero.
fn is_parent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut digits = |count: usize| {
        parts
            .next()
            .filter(|part| part.len() == count && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
    };
    let (Some(version), Some(trace), Some(parent), Some(_)) = (digits(2), digits(32), digits(16), digits(2)) else {
        return false;
    };
    let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
    // A later version may have more behind the flags.
    let ends = parts.next().is_none() || version != "00";
    ends && version != "ff" && !is_zero(trace) && !is_zero(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_parent_is_passed_on_with_its_state_and_nothing_else_is() {
        let of = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(HeaderName::from_static(name), value.parse().unwrap());
            }
            TraceContext::of(&headers)
        };
        assert_eq!(of(&[(PARENT, GOOD)]), TraceContext(vec![(PARENT, GOOD.into())]));
        let both = of(&[(PARENT, GOOD), (STATE, "a=1"), (STATE, "b=2")]);
        assert_eq!(both.headers().collect::<Vec<_>>(), [(PARENT, GOOD), (STATE, "a=1,b=2")]);
        assert_eq!(of(&[(PARENT, GOOD), (STATE, &"x".repeat(513))]), of(&[(PARENT, GOOD)]));
        for nothing in [&[(STATE, "a=1")][..], &[(PARENT, GOOD), (PARENT, GOOD)], &[(PARENT, "x"), (STATE, "a=1")]] {
            assert_eq!(of(nothing), TraceContext::default());
        }
    }

    #[test]
    fn only_a_trace_parent_is_one() {
        assert!(is_parent(GOOD) && is_parent(&format!("01{}-more", &GOOD[2..])));
        for bad in [
            &format!("ff{}", &GOOD[2..]),
            &format!("{GOOD}-more"),
            &GOOD.to_uppercase(),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD[..54],
            "",
        ] {
            assert!(!is_parent(bad), "{bad}");
        }
    }
}
