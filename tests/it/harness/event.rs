//! An event as a producer thinks of it, and its encodings.

use notifier::proto::{DeliveryOptions, Durability, Notification, NotificationDeliveryRequested, Priority};
use prost::Message as _;
use serde_json::{Value, json};

/// One event, encoded on demand.
#[derive(Clone, Debug, Default)]
pub struct Event {
    pub user: String,
    pub session: String,
    pub kind: String,
    pub data: String,
    pub id: String,
    pub collapse_key: String,
    pub ttl_secs: Option<i64>,
    pub transient: bool,
    pub critical: bool,
}

impl Event {
    /// A durable event whose data is `{}`.
    pub fn new(user: &str, kind: &str) -> Self {
        Self { user: user.into(), kind: kind.into(), data: "{}".into(), ..Self::default() }
    }

    /// A durable event with `{"n":n}` as data: what the order checks read.
    pub fn numbered(user: &str, n: u64) -> Self {
        Self::new(user, "numbered").data(&format!("{{\"n\":{n}}}"))
    }

    pub fn data(mut self, data: &str) -> Self {
        self.data = data.into();
        self
    }

    pub fn id(mut self, id: &str) -> Self {
        self.id = id.into();
        self
    }

    pub fn session(mut self, session: &str) -> Self {
        self.session = session.into();
        self
    }

    pub fn collapse_key(mut self, key: &str) -> Self {
        self.collapse_key = key.into();
        self
    }

    pub fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    pub fn critical(mut self) -> Self {
        self.critical = true;
        self
    }

    pub fn ttl_secs(mut self, seconds: i64) -> Self {
        self.ttl_secs = Some(seconds);
        self
    }

    fn durability(&self) -> Durability {
        if self.transient { Durability::Transient } else { Durability::Durable }
    }

    /// The bytes of `NotificationDeliveryRequested`.
    pub fn protobuf(&self) -> Vec<u8> {
        NotificationDeliveryRequested {
            user_id: self.user.clone(),
            session_id: self.session.clone(),
            notification: Some(Notification {
                notification_type: self.kind.clone(),
                data: self.data.clone(),
                ..Notification::default()
            }),
            notification_id: self.id.clone(),
            options: Some(DeliveryOptions {
                durability: self.durability() as i32,
                priority: if self.critical { Priority::Critical } else { Priority::Normal } as i32,
                collapse_key: self.collapse_key.clone(),
                ttl: self.ttl_secs.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            }),
            requested_at: None,
        }
        .encode_to_vec()
    }

    /// The Confluent wire format: magic byte, schema id, message indexes, protobuf.
    pub fn confluent(&self, indexes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, 42];
        bytes.extend_from_slice(indexes);
        bytes.extend(self.protobuf());
        bytes
    }

    /// The protobuf's JSON mapping with lowerCamelCase names.
    pub fn camel(&self) -> Value {
        json!({
            "userId": self.user,
            "notification": {"notificationType": self.kind, "data": self.data},
            "notificationId": self.id,
            "options": {"durability": "DURABILITY_DURABLE", "priority": "PRIORITY_HIGH"},
            "requestedAt": "2026-11-21T09:00:00.123Z",
        })
    }

    /// The protobuf's JSON mapping with the names of the file.
    pub fn snake(&self) -> Value {
        json!({
            "user_id": self.user,
            "notification": {"notification_type": self.kind, "data": self.data},
            "notification_id": self.id,
            "options": {"durability": "durable", "ttl": "3600s"},
        })
    }
}
