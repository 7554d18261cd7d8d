//! `[types]`: delivery options by notification type.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::{DurationText, optional_duration};
use crate::{
    event::{Durability, Priority},
    ids::{self, InvalidId},
};

/// Options by pattern, in the form that is looked up for every event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, TypeOptions>", into = "BTreeMap<String, TypeOptions>")]
pub struct Types {
    by_pattern: BTreeMap<String, TypeOptions>,
    /// Best match first.
    compiled: Box<[(Pattern, ResolvedOptions)]>,
}

/// Options of the notification types that match a pattern. `*` in a pattern matches anything; the pattern with the longest text before its first `*` wins and is used alone; the event's own options win over it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TypeOptions {
    /// `transient` (not stored), `durable` (replayed to users who were away) or `inbox` (also listed). Unset: `durable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Which go first when a rate limit holds some back: `critical` (never held back), `high`, `normal` or `low`. Unset: `normal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Not delivered any more when its record is older than this. Unset: kept as long as `log.retention`.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DurationText>")]
    pub ttl: Option<Duration>,
}

/// The options that hold for a notification type where the event says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResolvedOptions {
    /// What is promised for it.
    pub durability: Durability,
    /// Its class.
    pub priority: Priority,
    /// After this long it is not delivered any more; `None`: as long as the log keeps it.
    pub ttl: Option<Duration>,
}

/// Why `[types]` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTypes {
    /// Nothing can match it.
    #[error("pattern {pattern:?} {reason}")]
    Pattern {
        /// As written.
        pattern: String,
        /// Which rule of notification types it breaks.
        reason: InvalidId,
    },
    /// Types that begin with `$` are this server's control frames.
    #[error("pattern {pattern:?} begins with `$`, which no producer's type may")]
    Reserved {
        /// As written.
        pattern: String,
    },
}

/// A pattern, taken apart at its `*`s.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// Before the first `*`.
    prefix: Box<str>,
    /// Between the first and the last; each occurs in this order.
    middle: Box<[Box<str>]>,
    /// After the last `*`; `None` where there is none, so that `prefix` is the whole type.
    suffix: Option<Box<str>>,
}

impl Types {
    /// Takes options by pattern.
    ///
    /// # Errors
    /// Names a pattern that no notification type can match.
    pub fn new(by_pattern: BTreeMap<String, TypeOptions>) -> Result<Self, InvalidTypes> {
        let mut compiled = Vec::with_capacity(by_pattern.len());
        for (pattern, options) in &by_pattern {
            ids::check(pattern).map_err(|reason| InvalidTypes::Pattern { pattern: pattern.clone(), reason })?;
            if pattern.starts_with('$') {
                return Err(InvalidTypes::Reserved { pattern: pattern.clone() });
            }
            compiled.push((Pattern::new(pattern), options.resolve()));
        }
        // Longest text before the first `*`; a type without `*` before `type*`; then the one with
        // more text. What is still equal keeps its alphabetical order, so the result is always the same.
        compiled.sort_by_key(|(pattern, _)| {
            std::cmp::Reverse((pattern.prefix.len(), pattern.suffix.is_none(), pattern.literal_len()))
        });
        Ok(Self { by_pattern, compiled: compiled.into() })
    }

    /// The options of a notification type; the defaults where no pattern matches.
    #[inline]
    #[must_use]
    pub fn options(&self, notification_type: &str) -> ResolvedOptions {
        self.compiled
            .iter()
            .find(|(pattern, _)| pattern.matches(notification_type))
            .map_or_else(ResolvedOptions::default, |(_, options)| *options)
    }

    /// The options as written, by pattern.
    #[must_use]
    pub fn by_pattern(&self) -> &BTreeMap<String, TypeOptions> {
        &self.by_pattern
    }
}

impl TryFrom<BTreeMap<String, TypeOptions>> for Types {
    type Error = InvalidTypes;

    fn try_from(by_pattern: BTreeMap<String, TypeOptions>) -> Result<Self, InvalidTypes> {
        Self::new(by_pattern)
    }
}

impl From<Types> for BTreeMap<String, TypeOptions> {
    fn from(types: Types) -> Self {
        types.by_pattern
    }
}

impl TypeOptions {
    fn resolve(&self) -> ResolvedOptions {
        ResolvedOptions {
            durability: self.durability.unwrap_or_default(),
            priority: self.priority.unwrap_or_default(),
            ttl: self.ttl,
        }
    }
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        let mut parts = pattern.split('*');
        let prefix = parts.next().unwrap_or_default().into();
        let suffix = parts.next_back().map(Box::from);
        Self { prefix, middle: parts.filter(|part| !part.is_empty()).map(Box::from).collect(), suffix }
    }

    fn literal_len(&self) -> usize {
        let middle: usize = self.middle.iter().map(|part| part.len()).sum();
        self.prefix.len() + middle + self.suffix.as_ref().map_or(0, |suffix| suffix.len())
    }

    fn matches(&self, text: &str) -> bool {
        let Some(rest) = text.strip_prefix(&*self.prefix) else { return false };
        let Some(suffix) = &self.suffix else { return rest.is_empty() };
        let Some(mut rest) = rest.strip_suffix(&**suffix) else { return false };
        // The leftmost place for each part leaves the most room for those after it.
        self.middle.iter().all(|part| match rest.find(&**part) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(patterns: &[&str]) -> Types {
        // The time-to-live tells which pattern was taken.
        let options =
            |index: usize| TypeOptions { ttl: Some(Duration::from_secs(index as u64)), ..TypeOptions::default() };
        Types::new(
            patterns.iter().enumerate().map(|(index, pattern)| ((*pattern).to_owned(), options(index))).collect(),
        )
        .expect("valid patterns")
    }

    fn matched(patterns: &[&str], notification_type: &str) -> Option<usize> {
        types(patterns).options(notification_type).ttl.map(|ttl| usize::try_from(ttl.as_secs()).expect("small"))
    }

    #[test]
    fn star_matches_anything_and_longest_prefix_wins() {
        let patterns = ["*", "billing.*", "billing.invoice.*", "billing.invoice", "*.urgent", "a*b*c"];
        for (notification_type, expected) in [
            ("chat", Some(0)),
            ("billing.", Some(1)),
            ("billing.paid", Some(1)),
            ("billing.invoice.paid", Some(2)),
            ("billing.invoice", Some(3)),
            ("chat.urgent", Some(4)),
            ("billing.urgent", Some(1)),
            ("abc", Some(5)),
            ("a-b-b-c", Some(5)),
            ("ac", Some(0)),
            ("abcb", Some(0)),
            ("Billing.paid", Some(0)),
        ] {
            assert_eq!(matched(&patterns, notification_type), expected, "{notification_type}");
        }
    }

    #[test]
    fn parts_of_a_pattern_do_not_overlap() {
        assert_eq!(matched(&["aba*aba"], "aba"), None);
        assert_eq!(matched(&["aba*aba"], "ababa"), None);
        assert_eq!(matched(&["aba*aba"], "abaaba"), Some(0));
        assert_eq!(matched(&["a*b*b"], "ab"), None);
        assert_eq!(matched(&["**"], "anything"), Some(0));
    }

    #[test]
    fn exact_type_wins_over_a_pattern_with_the_same_prefix() {
        assert_eq!(matched(&["chat*", "chat"], "chat"), Some(1));
        assert_eq!(matched(&["chat.*", "chat.*.urgent"], "chat.1.urgent"), Some(1));
    }

    #[test]
    fn unmatched_type_has_the_defaults() {
        let defaults = ResolvedOptions { durability: Durability::Durable, priority: Priority::Normal, ttl: None };
        assert_eq!(Types::default().options("chat"), defaults);
        assert_eq!(types(&["billing.*"]).options("chat"), defaults);
    }

    #[test]
    fn impossible_pattern_is_named() {
        for pattern in ["", "a\nb", "$bye", &"x".repeat(257)] {
            let error = Types::new(BTreeMap::from([(pattern.to_owned(), TypeOptions::default())])).expect_err(pattern);
            assert!(error.to_string().contains(&format!("{pattern:?}")), "{error}");
        }
    }
}
