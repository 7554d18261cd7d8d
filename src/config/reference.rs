//! The configuration reference as a Markdown page, from the types and their doc comments.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Config, shape::Shape};

const INTRODUCTION: &str = "\
# Configuration

<!-- Generated: notifier check-config --reference > docs/configuration.md -->

A TOML file (`--config`, or `NOTIFIER_CONFIG`), overridden by environment variables: `NOTIFIER__SECTION__KEY`, such as
`NOTIFIER__KAFKA__BROKERS` or `NOTIFIER__AUTH__JWT__HS256_SECRET`, in upper or lower case. As variables, lists and
tables are written as TOML (`[\"a\", \"b\"]`), everything else as it is, without quotes; an empty text takes back a key that
may be unset.

An unknown key, a wrong type or an impossible combination stops the start and is named. `notifier check-config` shows
the configuration in effect, with secrets masked.

* A duration is a number and a unit: `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`, `\"7d\"`.
* A size is a number and a unit, `\"64KiB\"`, `\"1MiB\"`, `\"1GiB\"`, or a number of bytes.
";

/// The sections in the order in which people read them.
const SECTIONS: [&str; 14] = [
    "node", "client", "grpc", "admin", "cluster", "kafka", "store", "log", "auth", "sessions", "limits", "buffer",
    "types", "drain",
];

/// The reference of all keys: type, default and meaning, as Markdown.
#[must_use]
pub fn reference() -> String {
    let defaults = serde_json::to_value(Config::default()).expect("a configuration is plain values");
    let mut page = INTRODUCTION.to_owned();
    for name in SECTIONS {
        let shape = Shape::config().get(name).expect("every section is a key");
        section(&mut page, name, shape, &defaults[name]);
    }
    page
}

/// Writes a section's own keys as a table, then the sections in it.
fn section(page: &mut String, path: &str, shape: Shape, defaults: &Value) {
    if let Some(options) = shape.any_name().filter(|options| options.keys().is_some()) {
        return table(page, &format!(r#"[{path}."PATTERN"]"#), options, &Value::Null);
    }
    if let Some(item) = shape.items() {
        return table(page, &format!("[[{path}]]"), item, &Value::Null);
    }
    table(page, &format!("[{path}]"), shape, defaults);
    for (key, inner) in shape.keys().into_iter().flatten().filter(|(_, inner)| is_section(*inner)) {
        section(page, &format!("{path}.{key}"), inner, &defaults[key]);
    }
}

fn table(page: &mut String, heading: &str, shape: Shape, defaults: &Value) {
    let keys: Vec<_> = shape.keys().into_iter().flatten().filter(|(_, key)| !is_section(*key)).collect();
    // `[auth]` holds sections only.
    if keys.is_empty() {
        return;
    }
    let description = shape.description();
    let mut write = |line: std::fmt::Arguments| page.write_fmt(line).expect("writing to a String does not fail");
    write(format_args!("\n## `{heading}`\n\n{description}\n\n"));
    write(format_args!("| key | type | default | meaning |\n|---|---|---|---|\n"));
    for (key, shape) in keys {
        let default = match defaults {
            Value::Null => default_text(shape.default_value()),
            defaults => default_text(defaults.get(key)),
        };
        let meaning = shape.description().replace('|', r"\|");
        write(format_args!("| `{key}` | {} | {default} | {meaning} |\n", type_text(shape)));
    }
}

/// Whether a key gets a section of its own: it has keys, or is a list of such.
fn is_section(shape: Shape) -> bool {
    shape.keys().is_some() || shape.items().is_some_and(is_section)
}

fn type_text(shape: Shape) -> String {
    if let Some(item) = shape.items() {
        let item_text = type_text(item);
        return if item_text == "string" { "list of strings".to_owned() } else { format!("list of {item_text}") };
    }
    let words = shape.words();
    if !words.is_empty() {
        let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
        return words.join(", ");
    }
    if let Some(format @ ("duration" | "size" | "secret" | "url" | "file" | "address")) = shape.format() {
        return format.to_owned();
    }
    let kinds = [("string", "string"), ("integer", "integer"), ("number", "number"), ("boolean", "boolean")];
    kinds.iter().find(|(kind, _)| shape.takes(kind)).map_or("table of strings", |(_, text)| text).to_owned()
}

fn default_text(default: Option<&Value>) -> String {
    match default {
        None | Some(Value::Null) => "–".to_owned(),
        Some(value) => format!("`{value}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_reference_is_up_to_date() {
        let committed = include_str!("../../docs/configuration.md");
        assert!(
            committed == reference(),
            "docs/configuration.md is not up to date: notifier check-config --reference > docs/configuration.md",
        );
    }

    #[test]
    fn every_key_is_documented() {
        fn check(path: &str, shape: Shape) {
            assert!(!shape.description().is_empty(), "{path} has no doc comment");
            for (key, inner) in shape.keys().into_iter().flatten() {
                check(&format!("{path}.{key}"), inner);
            }
            for inner in shape.items().into_iter().chain(shape.any_name()).filter(|inner| inner.keys().is_some()) {
                check(&format!("{path}.*"), inner);
            }
        }
        for (name, shape) in Shape::config().keys().expect("the configuration has sections") {
            assert!(SECTIONS.contains(&name), "{name} is missing in SECTIONS");
            check(name, shape);
        }
    }
}
