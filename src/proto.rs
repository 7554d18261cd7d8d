//! The protobuf messages of `proto/atlas/notifier/v1`, generated at build time.
//!
//! Only the messages: gRPC's own code and the mapping to this crate's values live elsewhere.

include!(concat!(env!("OUT_DIR"), "/atlas.notifier.v1.rs"));

/// All of `proto/` as descriptors (`google.protobuf.FileDescriptorSet`), for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Write as _};

    use prost::Message;
    use prost_types::{Duration, Timestamp};

    use super::*;

    /// Fails when a field's number or type changes: producers and clients have these bytes. The
    /// literals come from protobuf's reference implementation.
    fn assert_golden<M: Message + Default + PartialEq + Debug>(message: &M, hex: &str) {
        let encoded = message.encode_to_vec().iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        });
        assert_eq!(encoded, hex);

        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("the literal is hexadecimal"))
            .collect();
        assert_eq!(&M::decode(bytes.as_slice()).expect("the literal is such a message"), message);
    }

    fn timestamp() -> Option<Timestamp> {
        Some(Timestamp { seconds: 1, nanos: 2 })
    }

    fn notification() -> Notification {
        Notification {
            notification_type: "update_channel".into(),
            data: r#"{"channel":999}"#.into(),
            notification_id: "n-1".into(),
            sequence: 300,
            created_at: Some(Timestamp { seconds: 1_795_251_600, nanos: 123_000_000 }),
        }
    }

    fn options() -> DeliveryOptions {
        DeliveryOptions {
            durability: Durability::Inbox.into(),
            priority: Priority::High.into(),
            collapse_key: "k".into(),
            ttl: Some(Duration { seconds: 3600, nanos: 5 }),
        }
    }

    #[test]
    fn event_bytes_are_fixed() {
        assert_golden(&options(), "080310021a016b220508901c1005");
        assert_golden(
            &NotificationDeliveryRequested {
                user_id: "101".into(),
                session_id: "s".into(),
                notification: Some(notification()),
                notification_id: "id".into(),
                options: Some(options()),
                requested_at: timestamp(),
            },
            "0a033130311201731a360a0e7570646174655f6368616e6e656c120f7b226368616e6e656c223a3939397d\
             1a036e2d3120ac022a0b0890bb85d80610c0a9d33a220269642a0e080310021a016b220508901c1005\
             320408011002",
        );
    }

    #[test]
    fn notification_bytes_are_fixed() {
        assert_golden(
            &notification(),
            "0a0e7570646174655f6368616e6e656c120f7b226368616e6e656c223a3939397d1a036e2d3120ac022a0b\
             0890bb85d80610c0a9d33a",
        );
    }

    #[test]
    fn receipt_bytes_are_fixed() {
        assert_golden(
            &NotificationDelivered {
                user_id: "101".into(),
                notification_id: "n-1".into(),
                session_id: "s".into(),
                sequence: 7,
                state: NotificationState::Sent.into(),
                at: timestamp(),
                reason: "x".into(),
            },
            "0a0331303112036e2d311a0173200728033204080110023a0178",
        );
    }

    #[test]
    fn service_message_bytes_are_fixed() {
        assert_golden(
            &ConnectionRequest {
                session_id: "s".into(),
                user_id: "101".into(),
                device: "phone".into(),
                since: "k3f9-12".into(),
            },
            "0a017312033130311a0570686f6e6522076b3366392d3132",
        );
        assert_golden(&AcknowledgeRequest { session_id: "s".into(), sequence: 12 }, "0a0173100c");
        assert_golden(&AcknowledgeResponse {}, "");
        assert_golden(&StartUserSessionRequest { user_id: "101".into() }, "0a03313031");
        assert_golden(
            &StartUserSessionResponse { session_id: "s".into(), expires_at: timestamp() },
            "0a0173120408011002",
        );
        assert_golden(&EndUserSessionRequest { session_id: "s".into(), user_id: "101".into() }, "0a01731203313031");
        assert_golden(&EndUserSessionResponse {}, "");
    }

    #[test]
    fn enum_numbers_are_fixed() {
        assert_eq!(
            ["UNSPECIFIED", "TRANSIENT", "DURABLE", "INBOX"]
                .map(|name| Durability::from_str_name(&format!("DURABILITY_{name}")).map(i32::from)),
            [Some(0), Some(1), Some(2), Some(3)],
        );
        assert_eq!(
            ["UNSPECIFIED", "CRITICAL", "HIGH", "NORMAL", "LOW"]
                .map(|name| Priority::from_str_name(&format!("PRIORITY_{name}")).map(i32::from)),
            [Some(0), Some(1), Some(2), Some(3), Some(4)],
        );
        assert_eq!(
            ["UNSPECIFIED", "PENDING", "ACTIVE", "SENT", "FAILED", "STALE", "DELETED"]
                .map(|name| NotificationState::from_str_name(&format!("NOTIFICATION_STATE_{name}")).map(i32::from)),
            [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)],
        );
    }
}
