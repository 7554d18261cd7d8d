//! Which keys there are and what they take, from the configuration's own types.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Config;

/// The schema of the whole configuration, without references.
static CONFIG: LazyLock<Value> = LazyLock::new(|| {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
});

/// What stands at a place of the configuration.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a>(&'a Value);

impl Shape<'static> {
    /// The whole configuration.
    pub(super) fn config() -> Self {
        Self(&CONFIG)
    }
}

impl<'a> Shape<'a> {
    /// The keys of a section, in alphabetical order; `None` for anything else.
    pub(super) fn keys(self) -> Option<impl Iterator<Item = (&'a str, Shape<'a>)>> {
        let keys = self.0.get("properties")?.as_object()?;
        Some(keys.iter().map(|(key, shape)| (key.as_str(), Shape(shape))))
    }

    /// What a key of a section, or any name in a free table, takes.
    pub(super) fn get(self, key: &str) -> Option<Shape<'a>> {
        match self.0.get("properties") {
            Some(keys) => keys.get(key).map(Shape),
            None => self.any_name(),
        }
    }

    /// What the values of a table with free names are; `None` for anything else.
    pub(super) fn any_name(self) -> Option<Shape<'a>> {
        self.0.get("additionalProperties").filter(|shape| shape.is_object()).map(Shape)
    }

    /// What the items of a list are; `None` for anything else.
    pub(super) fn items(self) -> Option<Shape<'a>> {
        self.0.get("items").map(Shape)
    }

    /// The doc comment, on one line.
    pub(super) fn description(self) -> String {
        let text = self.0.get("description").and_then(Value::as_str).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// What holds where the key is left out.
    pub(super) fn default_value(self) -> Option<&'a Value> {
        self.0.get("default")
    }

    /// The name of a text's own form: `duration`, `size`, `secret` …
    pub(super) fn format(self) -> Option<&'a str> {
        self.0.get("format").and_then(Value::as_str)
    }

    /// Whether a value of this JSON type is taken: `string`, `null`, `boolean` …
    pub(super) fn takes(self, kind: &str) -> bool {
        let named = match self.0.get("type") {
            Some(Value::String(name)) => name == kind,
            Some(Value::Array(names)) => names.iter().any(|name| name == kind),
            _ => false,
        };
        named || self.alternatives().any(|shape| shape.takes(kind))
    }

    /// The words that are taken, where only some are.
    pub(super) fn words(self) -> Vec<&'a str> {
        let listed = self.0.get("enum").and_then(Value::as_array).into_iter().flatten();
        let own = listed.chain(self.0.get("const")).filter_map(Value::as_str);
        own.chain(self.alternatives().flat_map(Shape::words)).collect()
    }

    fn alternatives(self) -> impl Iterator<Item = Shape<'a>> {
        ["oneOf", "anyOf"].into_iter().filter_map(move |name| self.0.get(name)?.as_array()).flatten().map(Shape)
    }
}
