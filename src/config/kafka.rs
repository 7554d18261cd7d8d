//! Where events come from: `[kafka]`, and which librdkafka properties may be set.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};

use super::{
    secret::MASK,
    value::{DurationText, SizeText, duration, size},
};

/// Where events come from, and where dead letters and receipts go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kafka {
    /// The brokers to ask first: `"HOST:PORT,…"`. Required by `notifier serve`.
    pub brokers: String,
    /// The topic that events are read from.
    pub topic: String,
    /// The name that positions are committed under. The nodes do not join it as a consumer group.
    pub group: String,
    /// Where a group without committed positions begins: `earliest` or `latest`.
    pub start: Start,
    /// The topic for records that cannot be delivered to anybody.
    pub dead_letter_topic: String,
    /// The topic for receipts; `""` switches them off.
    pub receipts_topic: String,
    /// Any librdkafka property (TLS, SASL, …) but those that safety depends on. A name that ends with `_file`, such as `"sasl.password_file"`, names a file that holds the value. As variables, `_` stands for `.`: `NOTIFIER__KAFKA__PROPERTIES__SECURITY_PROTOCOL`.
    pub properties: Properties,
    /// How often new partitions of the topic are looked for.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub partition_refresh: Duration,
    /// How many events a node has read and not settled, at most; a quarter of them of one partition. 4 to 524288.
    pub in_flight_events: usize,
    /// The same in bytes. A quarter of it must hold an event of `limits.payload_bytes_max`.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub in_flight_bytes: usize,
}

/// Where a group without committed positions begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the oldest record there is.
    #[default]
    Earliest,
    /// With the records written from then on.
    Latest,
}

/// librdkafka properties by name. `Debug` and `Serialize` mask those that are secret.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(transparent)]
pub struct Properties(#[schemars(with = "BTreeMap<String, String>")] BTreeMap<String, Scalar>);

/// A property's value: librdkafka takes text only, people write `true` and `100` all the same.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "RawScalar")]
struct Scalar(String);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, a number, true or false")]
enum RawScalar {
    Text(String),
    Bool(bool),
    Integer(i64),
    Float(f64),
}

/// Properties that are set by this program, whose promises depend on them, each with the key to use
/// instead where there is one.
const REFUSED: &[(&str, Option<&str>)] = &[
    ("bootstrap.servers", Some("kafka.brokers")),
    ("metadata.broker.list", Some("kafka.brokers")),
    ("group.id", Some("kafka.group")),
    ("group.instance.id", None),
    ("group.protocol", None),
    ("enable.auto.commit", None),
    ("auto.commit.enable", None),
    ("enable.auto.offset.store", None),
    ("auto.offset.reset", Some("kafka.start")),
    ("isolation.level", None),
    ("enable.partition.eof", None),
    ("partition.assignment.strategy", None),
    ("enable.idempotence", None),
    ("acks", None),
    ("request.required.acks", None),
    ("statistics.interval.ms", None),
    ("plugin.library.paths", None),
    ("transactional.id", None),
];

/// Properties that name files which have to be readable.
const FILES: &[&str] = &["ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.keystore.location"];

impl Properties {
    /// Sets a property, as text.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), Scalar(value.into()));
    }

    /// The value of a property, secret or not.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.0.as_str())
    }

    /// All properties with their values, the secret ones too, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.0.as_str()))
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).map(|value| value.0)
    }

    /// The first property that must not be set, with the key to use instead.
    pub(super) fn refused(&self) -> Option<(&str, Option<&'static str>)> {
        self.iter().find_map(|(name, _)| {
            // librdkafka cuts this prefix off what it does not know, so `topic.acks` is `acks`.
            let plain = name.strip_prefix("topic.").unwrap_or(name);
            REFUSED.iter().find(|(refused, _)| *refused == plain).map(|(_, instead)| (name, *instead))
        })
    }

    /// The properties that name files which have to be readable.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        FILES
            .iter()
            .filter_map(|name| Some((*name, self.get(name)?)))
            // librdkafka's word for "look in the usual places".
            .filter(|(name, value)| (*name, *value) != ("ssl.ca.location", "probe"))
    }

    /// Whether a property's value must not be shown.
    pub(super) fn is_secret(name: &str) -> bool {
        ["password", "passphrase", "secret", "key.pem", "sasl.oauthbearer.config"]
            .iter()
            .any(|part| name.contains(part))
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let shown = self.iter().map(|(name, value)| (name, if Self::is_secret(name) { MASK } else { value }));
        formatter.debug_map().entries(shown).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, if Self::is_secret(name) { MASK } else { value })?;
        }
        map.end()
    }
}

impl From<RawScalar> for Scalar {
    fn from(raw: RawScalar) -> Self {
        Self(match raw {
            RawScalar::Text(text) => text,
            RawScalar::Bool(value) => value.to_string(),
            RawScalar::Integer(value) => value.to_string(),
            RawScalar::Float(value) => value.to_string(),
        })
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            topic: "notifier.events.v1".to_owned(),
            group: "notifier".to_owned(),
            start: Start::default(),
            dead_letter_topic: "notifier.events.v1.dlq".to_owned(),
            receipts_topic: "notifier.delivered.v1".to_owned(),
            properties: Properties::default(),
            partition_refresh: Duration::from_secs(30),
            in_flight_events: 4096,
            in_flight_bytes: 32 << 20,
        }
    }
}
