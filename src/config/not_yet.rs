//! Keys whose feature comes later: parsed, documented, and refused when they are set to anything
//! but their default. When a feature arrives, its row goes.

use serde_json::Value;

use super::Config;

/// Keys, or all keys of a section.
const NOT_YET: &[&str] = &["cluster.tls_cert_file", "cluster.tls_key_file", "cluster.tls_ca_file"];

/// Whether a key, or a section as a whole, waits for its feature.
pub(super) fn not_yet(key: &str) -> bool {
    let covers = |row: &&str| key.strip_prefix(*row).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    NOT_YET.iter().any(covers)
}

/// The first key that is set to what is not available, in alphabetical order.
pub(super) fn first(config: &Config) -> Option<String> {
    let value = |config| serde_json::to_value(config).expect("a configuration is plain values");
    differing("", &value(config), &value(&Config::default())).into_iter().find(|key| not_yet(key))
}

/// The keys whose values differ, as dotted paths. Secrets are masked, but there or not.
fn differing(key: &str, value: &Value, default: &Value) -> Vec<String> {
    match (value, default) {
        (Value::Object(table), Value::Object(defaults)) => table
            .iter()
            .flat_map(|(name, value)| {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                differing(&key, value, defaults.get(name).unwrap_or(&Value::Null))
            })
            .collect(),
        _ if value == default => Vec::new(),
        _ => vec![key.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::shape::Shape;

    #[test]
    fn every_row_names_a_key() {
        for row in NOT_YET {
            let shape = row.split('.').try_fold(Shape::config(), |shape, key| shape.get(key));
            assert!(shape.is_some(), "{row}");
        }
    }

    #[test]
    fn defaults_are_available() {
        assert_eq!(first(&Config::default()), None);
    }
}
