//! The protobuf forms: raw, and in Confluent's wire format.

use prost::Message as _;

use super::{Draft, Names, Payload, Rejected, fields, json};
use crate::proto::NotificationDeliveryRequested;

const NAMES: Names = Names::PROTOBUF;

/// Magic byte and schema id, in front of Confluent's message indexes.
const CONFLUENT_PREFIX_BYTES: usize = 5;

pub(super) fn read(value: &[u8]) -> Result<Draft, Rejected> {
    let event = NotificationDeliveryRequested::decode(value)
        .map_err(|problem| Rejected::undecodable("protobuf, nor JSON, which begins with {", problem))?;
    let notification = event.notification.unwrap_or_default();
    let options = event.options.unwrap_or_default();
    let requested_at = event.requested_at.map(|time| fields::proto_time(time, "requested_at")).transpose()?;
    let created_at =
        notification.created_at.map(|time| fields::proto_time(time, "notification.created_at")).transpose()?;
    Ok(Draft {
        names: &NAMES,
        user: event.user_id,
        session: event.session_id,
        id: if event.notification_id.is_empty() { notification.notification_id } else { event.notification_id },
        notification_type: notification.notification_type,
        payload: Payload::Text(notification.data),
        durability: fields::durability_number(options.durability),
        priority: fields::priority_number(options.priority),
        collapse_key: options.collapse_key,
        ttl: options.ttl.map(|ttl| fields::proto_duration(ttl, NAMES.ttl)).transpose()?,
        created_at: requested_at.or(created_at),
    })
}

/// Magic 0x00, four bytes of schema id, then either the indexes of the message type in its schema and
/// protobuf, or JSON (Confluent's JSON Schema form). The two cannot be mistaken for each other: as a
/// number of indexes `{` would be negative. The registry is not asked.
pub(super) fn confluent(value: &[u8]) -> Result<Draft, Rejected> {
    let undecodable = |problem| Rejected::undecodable("Confluent wire format", problem);
    let body = value.get(CONFLUENT_PREFIX_BYTES..).ok_or_else(|| undecodable("the schema id is cut off"))?;
    if body.first() == Some(&b'{') {
        return json::read(body);
    }
    let body = skip_indexes(body).ok_or_else(|| undecodable("the message indexes are cut off or wrong"))?;
    read(body)
}

/// Skips a count of indexes and the indexes, all zig-zag varints; a count of 0 stands for the one index 0.
fn skip_indexes(mut body: &[u8]) -> Option<&[u8]> {
    let count = zig_zag(&mut body)?;
    if count < 0 {
        return None;
    }
    for _ in 0..count {
        zig_zag(&mut body).filter(|index| *index >= 0)?;
    }
    Some(body)
}

fn zig_zag(body: &mut &[u8]) -> Option<i64> {
    let value = prost::encoding::decode_varint(body).ok()?;
    Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}
