//! Transient notifications for a client that takes nothing right now: of each collapse key the latest one is kept.

use std::collections::VecDeque;

use super::metric;
use crate::{
    event::{Event, Notification},
    wire::Frame,
};

/// So many keys of one session are kept.
const KEYS_MAX: usize = 32;
/// So many bytes of frames of one session are kept.
const BYTES_MAX: usize = 64 * 1024;

/// The latest of each key, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Latest {
    kept: VecDeque<(Notification, Frame)>,
    bytes: usize,
}

fn key(event: &Event) -> Option<&str> {
    event.options.collapse_key.as_deref()
}

impl Latest {
    /// Keeps one that has a key, in the place of an older one; when there are too many, the oldest go.
    pub(super) fn keep(&mut self, notification: &Notification, frame: &Frame) {
        let Some(of) = key(&notification.event) else { return };
        if let Some(at) = self.kept.iter().position(|(older, _)| key(&older.event) == Some(of)) {
            self.remove(at);
        }
        self.bytes += frame.len();
        self.kept.push_back((notification.clone(), frame.clone()));
        while self.kept.len() > KEYS_MAX || self.bytes > BYTES_MAX {
            self.remove(0);
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some((_, frame)) = self.kept.remove(at) {
            self.bytes -= frame.len();
            metric::conflated();
        }
    }

    /// Takes out the oldest.
    pub(super) fn next(&mut self) -> Option<(Notification, Frame)> {
        let next = self.kept.pop_front()?;
        self.bytes -= next.1.len();
        Some(next)
    }

    /// Puts back what could not be sent after all.
    pub(super) fn put_back(&mut self, (notification, frame): (Notification, Frame)) {
        self.bytes += frame.len();
        self.kept.push_front((notification, frame));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fakes;

    fn one(id: &str, key: Option<&str>, bytes: usize) -> (Notification, Frame) {
        let mut event = (*fakes::transient(&fakes::user(), id)).clone();
        event.options.collapse_key = key.map(Into::into);
        event.payload = format!("\"{}\"", "x".repeat(bytes)).into();
        let notification = Notification { seq: None, event: Arc::new(event) };
        let frame = Frame::notification(&notification);
        (notification, frame)
    }

    fn ids(mut latest: Latest) -> Vec<String> {
        let ids = std::iter::from_fn(|| latest.next()).map(|(notification, _)| notification.event.id.to_string());
        let ids = ids.collect();
        assert_eq!(latest.bytes, 0);
        ids
    }

    fn kept(all: impl IntoIterator<Item = (Notification, Frame)>) -> Latest {
        let mut latest = Latest::default();
        all.into_iter().for_each(|(notification, frame)| latest.keep(&notification, &frame));
        latest
    }

    #[test]
    fn the_latest_of_each_key_is_kept() {
        let all = [("1", Some("a")), ("2", Some("b")), ("3", None), ("4", Some("a"))].map(|(id, key)| one(id, key, 1));
        assert_eq!(ids(kept(all)), ["2", "4"]);
    }

    #[test]
    fn keys_and_bytes_are_bounded_and_the_oldest_go() {
        let many = (0..100).map(|n| one(&n.to_string(), Some(&n.to_string()), 1));
        assert_eq!(ids(kept(many)), (68..100).map(|n| n.to_string()).collect::<Vec<_>>());
        let large = (0..10).map(|n| one(&n.to_string(), Some(&n.to_string()), 20_000));
        assert_eq!(ids(kept(large)), ["7", "8", "9"]);
    }
}
