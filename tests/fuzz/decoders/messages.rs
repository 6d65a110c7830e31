//! Messages of a move: what decodes is, encoded and decoded again, the same.

use migrate_engine::migration::protocol::{FromDestination, FromSource, decode};
use migrate_engine::transport::hello::{ClientHello, ServerHello};
use serde_json::Value;

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    fn twice<T: serde::Serialize + for<'a> serde::Deserialize<'a> + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
        let Ok(message) = decode::<T>(bytes, "a peer") else { return };
        let again = serde_json::to_vec(&message).expect("messages have string keys only");
        let again_decoded = decode::<T>(&again, "a peer").expect("what was encoded can be decoded");
        // Options have no fractions; JSON may lose their last bit.
        if !serde_json::to_value(&message).is_ok_and(|value| has_fraction(&value)) {
            assert_eq!(again_decoded, message);
        }
    }
    twice::<FromSource>(bytes);
    twice::<FromDestination>(bytes);
    twice::<ClientHello>(bytes);
    twice::<ServerHello>(bytes);
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(fields) => fields.values().any(has_fraction),
        _ => false,
    }
}
