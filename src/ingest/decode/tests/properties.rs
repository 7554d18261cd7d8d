//! What holds for any bytes, any damage and any payload.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(value: Vec<u8>, lead in 0..6_usize, header: Vec<u8>, which in 0..4) {
        let lead: &[u8] = [&b""[..], b"\0", b"\0\0\0\0\x01\0", b"{", b"{\"target\":", b"\x0a\x01u"][lead];
        let headers: &Headers<'_> = match which {
            0 => &[],
            1 => &[("ce_type", Some(&header))],
            2 => &[CE_EVENT, ("ce_subject", Some(&header))],
            _ => &[STRUCTURED],
        };
        let _ = decode(&[lead, &value].concat(), headers);
    }

    #[test]
    fn damaged_events_never_panic(at in 0..200_usize, byte: u8, cut in 0..200_usize) {
        for value in [&message().encode_to_vec()[..], SHORT, CAMEL, SNAKE] {
            let mut value = value.to_vec();
            let at = at % value.len();
            value[at] = byte;
            value.truncate(value.len() - cut % value.len());
            for headers in [&[][..], &[CE_EVENT], &[STRUCTURED], &[CE_TYPE, CE_SUBJECT]] {
                let _ = decode(&value, headers);
            }
        }
    }

    #[test]
    fn protobuf_keeps_every_json_payload(payload in arbitrary_json(), user in "[a-zA-Z0-9é]{1,80}") {
        let mut message = message();
        message.user_id.clone_from(&user);
        message.notification.as_mut().unwrap().data.clone_from(&payload);
        let raw = message.encode_to_vec();
        for value in [raw.clone(), confluent(&[0], &raw)] {
            let event = decode_by(&Decoder::new("c", "t", usize::MAX, Arc::new(|_| Options::default())), &value, &[]).unwrap();
            prop_assert_eq!(&*event.payload, &payload);
            prop_assert_eq!(&*event.user, &user);
        }
    }

    #[test]
    fn any_text_is_delivered_as_the_json_string_of_itself(data in "[^\\[\\]{}0-9\"]{1,60}") {
        prop_assume!(!matches!(fields::trim_json(&data), "null" | "true" | "false"));
        let mut message = message();
        message.notification.as_mut().unwrap().data.clone_from(&data);
        let event = decode(&message.encode_to_vec(), &[]).unwrap();
        prop_assert_eq!(serde_json::from_str::<String>(&event.payload).unwrap(), data);
    }
}

fn arbitrary_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<i128>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" ,\n"))),
            prop::collection::vec((any::<String>(), inner), 0..6).prop_map(|fields| {
                let fields: Vec<_> =
                    fields.iter().map(|(k, v)| format!("{} : {v}", serde_json::to_string(k).unwrap())).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}
