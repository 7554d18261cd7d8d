//! What the API's document says of an event. Events are read as text (`ingest::decode`), so that their bytes stay what
//! they are; so no type can say it.

use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, schema::Schema},
};

use super::batch::EVENTS_MAX;
use crate::ids::ID_BYTES_MAX;

/// Control characters, and those that reorder the text around them (`ids::check`), inside a pattern's brackets.
const CONTROLS: &str = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069";

/// A request's body.
pub(super) struct EventsBody;

/// An event in its short form.
struct Event;

/// An event as the protobuf's JSON mapping has it.
struct MappedEvent;

impl ToSchema for EventsBody {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        for (name, schema) in [(Event::name(), Event::schema()), (MappedEvent::name(), MappedEvent::schema())] {
            schemas.push((name.into_owned(), schema));
        }
    }
}

impl ToSchema for Event {}
impl ToSchema for MappedEvent {}

impl PartialSchema for EventsBody {
    fn schema() -> RefOr<Schema> {
        let forms = json!([
            { "$ref": "#/components/schemas/Event" },
            { "$ref": "#/components/schemas/MappedEvent" },
        ]);
        read(json!({
            "description": "One event, or an array of events.",
            "anyOf": [
                forms[0],
                forms[1],
                { "type": "array", "minItems": 1, "maxItems": EVENTS_MAX, "items": { "anyOf": forms } },
            ],
        }))
    }
}

impl PartialSchema for Event {
    fn schema() -> RefOr<Schema> {
        read(json!({
            "type": "object",
            "description": "An event in its short form. Other members are ignored; one that comes twice is refused.",
            "required": ["target", "type"],
            "properties": {
                "target": id("The user who gets it; an integer counts as its digits."),
                "type": notification_type(),
                "payload": {
                    // All there are; the library's schemas want some.
                    "type": ["object", "array", "string", "number", "boolean", "null"],
                    "description": "Any JSON value, passed on byte for byte; at most `limits.payload_bytes_max` \
                        bytes (256 KiB). Without one: `null`.",
                },
                "id": optional_id("Unique per user; the same id again is delivered once. Without one: a new one."),
                "session": optional_id("Only this session of the user; then it is transient."),
                "durability": durability(),
                "priority": priority(),
                "collapse_key": optional_text("A newer one takes the place of an older one that still waits."),
                "ttl": ttl(),
            },
        }))
    }
}

impl PartialSchema for MappedEvent {
    fn schema() -> RefOr<Schema> {
        read(json!({
            "type": "object",
            "description": "`atlas.notifier.v1.NotificationDeliveryRequested` in the protobuf's JSON mapping. The names \
                of the proto file are understood too (`user_id`), each field by one name only.",
            "required": ["userId", "notification"],
            "properties": {
                "target": { "type": "null", "description": "With a target it is an event in the short form." },
                "userId": id("The user who gets it."),
                "sessionId": optional_id("Only this session of the user; then it is transient."),
                "notificationId": optional_id("Unique per user; without one, the notification's, or a new one."),
                "notification": {
                    "type": "object",
                    "required": ["notificationType"],
                    "properties": {
                        "notificationType": notification_type(),
                        "data": {
                            "type": ["string", "null"],
                            "description": "The payload, a JSON text; any other text becomes a JSON string.",
                        },
                        "notificationId": optional_id("Where `notificationId` is not set."),
                        "createdAt": time(),
                    },
                },
                "options": {
                    "type": ["object", "null"],
                    "properties": {
                        "durability": durability(),
                        "priority": priority(),
                        "collapseKey": optional_text("A newer one takes the place of an older one that still waits."),
                        "ttl": ttl(),
                    },
                },
                "requestedAt": time(),
            },
        }))
    }
}

fn read(schema: Value) -> RefOr<Schema> {
    serde_json::from_value(schema).expect("a constant schema")
}

fn id(description: &str) -> Value {
    text(description, &["string", "integer"], &format!("^[^{CONTROLS}]+$"))
}

fn optional_id(description: &str) -> Value {
    text(description, &["string", "integer", "null"], &format!("^[^{CONTROLS}]*$"))
}

fn optional_text(description: &str) -> Value {
    text(description, &["string", "null"], &format!("^[^{CONTROLS}]*$"))
}

fn notification_type() -> Value {
    text("What kind of notification it is.", &["string"], &format!("^[^${CONTROLS}][^{CONTROLS}]*$"))
}

fn text(description: &str, types: &[&str], pattern: &str) -> Value {
    let description = format!("{description} At most {ID_BYTES_MAX} bytes of UTF-8 without control characters.");
    json!({ "type": types, "description": description, "maxLength": ID_BYTES_MAX, "pattern": pattern })
}

fn durability() -> Value {
    option(
        "What is kept for a user who is away; by default what is configured for the type.",
        "DURABILITY_",
        &["unspecified", "transient", "durable", "inbox"],
    )
}

fn priority() -> Value {
    option(
        "What goes first when a rate limit makes some wait.",
        "PRIORITY_",
        &["unspecified", "critical", "high", "normal", "low"],
    )
}

/// An enumeration's value by its short name, its name in the proto file, or its number.
fn option(description: &str, prefix: &str, names: &[&str]) -> Value {
    let long = names.iter().map(|name| format!("{prefix}{}", name.to_uppercase()));
    let names: Vec<_> = names.iter().map(ToString::to_string).chain(long).collect();
    json!({
        "description": description,
        "anyOf": [
            { "type": "string", "enum": names },
            { "type": "integer", "format": "int32", "minimum": i32::MIN, "maximum": i32::MAX },
            { "type": "null" },
        ],
    })
}

fn ttl() -> Value {
    json!({
        "description": "Not delivered any more after this long, such as `1h` or `2h 30m`; a number counts seconds.",
        "anyOf": [
            { "type": "string", "pattern": "^[1-9][0-9]{0,6}(ms|s|m|h|d|w)$" },
            { "type": "integer", "minimum": 1, "maximum": 315_576_000_000_u64 },
            { "type": "null" },
        ],
    })
}

fn time() -> Value {
    json!({ "type": ["string", "null"], "format": "date-time", "minLength": 20, "description": "RFC 3339." })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_schemas_is_lost_on_their_way_through_the_library() {
        let event = serde_json::to_value(Event::schema()).unwrap();
        assert_eq!(event["properties"]["ttl"], ttl());
        assert_eq!(event["properties"]["target"], id("The user who gets it; an integer counts as its digits."));
        assert_eq!(event["properties"]["durability"], durability());
        let body = serde_json::to_value(EventsBody::schema()).unwrap();
        assert_eq!(body["anyOf"][2]["maxItems"], EVENTS_MAX);
        let mapped = serde_json::to_value(MappedEvent::schema()).unwrap();
        assert_eq!(mapped["properties"]["target"]["type"], "null");
    }
}
