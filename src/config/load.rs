//! From file and environment to typed values: reads, merges, and names what does not fit.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    Config,
    error::{Error, Origins},
    kafka::Properties,
    secret::Secret,
    shape::Shape,
};

/// What a variable's name begins with; the keys follow, separated by `__`.
const PREFIX: &str = "notifier__";
const PROPERTIES: &str = "kafka.properties";

/// Reads the configuration: the file, if there is one, overridden by the `NOTIFIER__SECTION__KEY`
/// among the given environment variables.
///
/// Names of variables are case-insensitive. Lists and tables are given as TOML text; an empty text
/// takes back a key that may be unset. Only types are checked here; [`Config::validate`] does the rest.
///
/// # Errors
/// Names the key, or the variable, and what was expected.
pub fn load(path: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Config, Error> {
    let mut table = path.map(read).transpose()?.unwrap_or_default();
    flatten_properties(&mut table);
    let mut origins = Origins { file: path.map(Path::to_owned), ..Origins::default() };
    collect_keys(&table, "", &mut origins);

    let env: Vec<_> = env.collect();
    for (keys, (variable, text)) in overrides(&env)? {
        apply(&mut table, &keys, variable, text)?;
        flatten_properties(&mut table);
        origins.variables.insert(keys.join("."), variable.to_owned());
    }

    check_known(&table, Shape::config(), "", &origins)?;
    let mut config = typed(table, &origins)?;
    config.origins = origins;
    read_secret_files(&mut config)?;
    if config.node.id.is_empty() {
        config.node.id = host_name(&env);
    }
    Ok(config)
}

fn read(path: &Path) -> Result<Table, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    // Not the error's own text: it shows the line, which can hold a secret.
    text.parse().map_err(|error: toml::de::Error| Error::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1),
        reason: error.message().to_owned(),
    })
}

/// `security.protocol = "SSL"` is a table in a table to TOML; librdkafka's names have dots.
fn flatten_properties(table: &mut Table) {
    fn flatten(table: Table, prefix: &str, flat: &mut Table) {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match value {
                Value::Table(inner) => flatten(inner, &format!("{name}."), flat),
                value => {
                    flat.insert(name, value);
                }
            }
        }
    }

    let properties = table.get_mut("kafka").and_then(|kafka| kafka.get_mut("properties"));
    if let Some(Value::Table(properties)) = properties {
        let mut flat = Table::new();
        flatten(std::mem::take(properties), "", &mut flat);
        *properties = flat;
    }
}

fn collect_keys(table: &Table, prefix: &str, origins: &mut Origins) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            Value::Table(inner) if !inner.is_empty() => collect_keys(inner, &format!("{key}."), origins),
            _ => {
                origins.keys.insert(key);
            }
        }
    }
}

/// The variables that are keys, by key: a section before what is in it.
fn overrides(env: &[(String, String)]) -> Result<BTreeMap<Vec<String>, (&str, &str)>, Error> {
    let mut overrides = BTreeMap::new();
    for (variable, text) in env {
        let name = variable.to_lowercase();
        let Some(name) = name.strip_prefix(PREFIX) else { continue };
        let keys = keys_of(name).map_err(|reason| Error::UnknownVariable { variable: variable.clone(), reason })?;
        let key = keys.join(".");
        if let Some((first, _)) = overrides.insert(keys, (variable.as_str(), text.as_str())) {
            return Err(Error::TwoVariables { key, first: first.to_owned(), second: variable.clone() });
        }
    }
    Ok(overrides)
}

/// Finds the keys that the rest of a variable's name stands for.
///
/// # Errors
/// Returns what was expected instead.
fn keys_of(name: &str) -> Result<Vec<String>, String> {
    let mut keys: Vec<String> = Vec::new();
    let mut shape = Shape::config();
    for part in name.split("__") {
        if shape.any_name().is_some() {
            if keys != ["kafka", "properties"] || part.is_empty() {
                return Err(format!("[{}] is set as a whole, as TOML text", keys.join(".")));
            }
            // Names of librdkafka's properties have dots and no underscores, those of variables the opposite.
            let (property, suffix) = part.strip_suffix("_file").map_or((part, ""), |property| (property, "_file"));
            keys.push(format!("{}{suffix}", property.replace('_', ".")));
            shape = shape.any_name().unwrap_or(shape);
            continue;
        }
        shape = match shape.keys() {
            None => return Err(format!("{} is not a section", keys.join("."))),
            Some(_) => shape.get(part).ok_or_else(|| format!("expected one of {}", known(shape)))?,
        };
        keys.push(part.to_owned());
    }
    Ok(keys)
}

fn known(shape: Shape) -> String {
    let keys: Vec<&str> = shape.keys().into_iter().flatten().map(|(key, _)| key).collect();
    keys.join(", ")
}

/// Puts a variable's value at its place.
fn apply(table: &mut Table, keys: &[String], variable: &str, text: &str) -> Result<(), Error> {
    let value_error = |reason: String| Error::Value {
        key: keys.join("."),
        reason,
        origin: super::Origin::Variable(variable.to_owned()),
    };

    let (last, sections) = keys.split_last().expect("a variable's name has at least one part");
    let shape = keys.iter().try_fold(Shape::config(), |shape, key| shape.get(key)).expect("the keys are known");
    let mut section = table;
    for (depth, key) in sections.iter().enumerate() {
        let inner = section.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
        section = inner
            .as_table_mut()
            .ok_or_else(|| value_error(format!("{} is not a section", keys[..=depth].join("."))))?;
    }

    if text.is_empty() && shape.takes("null") {
        section.remove(last);
        return Ok(());
    }
    let value = if shape.takes("string") {
        Value::String(text.to_owned())
    } else {
        text.parse().map_err(|_| value_error(format!("expected {}", kind(shape))))?
    };
    section.insert(last.clone(), value);
    Ok(())
}

fn kind(shape: Shape) -> &'static str {
    if shape.takes("boolean") {
        "true or false"
    } else if shape.takes("array") {
        r#"a list as TOML text, such as ["a", "b"]"#
    } else if shape.takes("object") {
        "a table as TOML text, such as {key = 1}"
    } else {
        "a number"
    }
}

/// Names the first key that does not exist. serde would too, but not with its place.
fn check_known(table: &Table, shape: Shape, prefix: &str, origins: &Origins) -> Result<(), Error> {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        let Some(shape) = shape.get(key) else {
            // Below a place that takes no table: a wrong type, which is said elsewhere.
            if shape.keys().is_none() {
                continue;
            }
            return Err(Error::UnknownKey { origin: origins.of(&path), key: path, known: known(shape) });
        };
        match (value, shape.items()) {
            (Value::Table(inner), _) => check_known(inner, shape, &format!("{path}."), origins)?,
            (Value::Array(items), Some(item_shape)) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Table(inner) = item {
                        check_known(inner, item_shape, &format!("{path}[{index}]."), origins)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn typed(table: Table, origins: &Origins) -> Result<Config, Error> {
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
        let key = error.path().to_string();
        let secret = is_secret(&key);
        Error::Value {
            origin: origins.of(&key),
            // serde repeats the value that it did not expect.
            reason: if secret { "expected a string".to_owned() } else { reason(&key, error.inner().message()) },
            key,
        }
    })
}

/// What serde says, in an operator's words rather than Rust's.
fn reason(key: &str, message: &str) -> String {
    if shape_of(key).is_some_and(|shape| shape.format() == Some("address")) {
        return r#"expected an IP address and a port, such as "0.0.0.0:8000""#.to_owned();
    }
    match message.rsplit_once(", expected ") {
        Some((found, "usize" | "u32" | "u64")) => format!("{found}, expected a whole number from 0"),
        Some((found, name)) if name.starts_with("struct ") => format!("{found}, expected a section"),
        _ => message.to_owned(),
    }
}

fn shape_of(key: &str) -> Option<Shape<'static>> {
    key.split('.').try_fold(Shape::config(), |shape, key| shape.get(key))
}

fn is_secret(key: &str) -> bool {
    if let Some(property) = key.strip_prefix(PROPERTIES) {
        return Properties::is_secret(property);
    }
    shape_of(key).is_some_and(|shape| matches!(shape.format(), Some("secret" | "url")))
}

/// Puts the content of each `…_file` where it belongs.
fn read_secret_files(config: &mut Config) -> Result<(), Error> {
    let Config { auth, cluster, kafka, origins, .. } = config;
    let read = |key: &str, path: &Path| {
        let unreadable =
            |source| Error::Unreadable { key: key.to_owned(), path: path.to_owned(), source, origin: origins.of(key) };
        let mut text = fs::read_to_string(path).map_err(unreadable)?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    };
    let twice = |key: &str, other: &str| Error::Value {
        key: key.to_owned(),
        reason: format!("set together with {other}; expected one of them"),
        origin: origins.of(key),
    };

    let jwt = &mut auth.jwt;
    for (key, secret, file) in [
        ("auth.jwt.hs256_secret", &mut jwt.hs256_secret, &jwt.hs256_secret_file),
        ("cluster.secret", &mut cluster.secret, &cluster.secret_file),
    ] {
        let Some(path) = file else { continue };
        let file_key = format!("{key}_file");
        if secret.is_some() {
            return Err(twice(&file_key, key));
        }
        *secret = Some(Secret::from(read(&file_key, path)?));
    }

    let names: Vec<String> =
        kafka.properties.iter().filter_map(|(name, _)| Some(name.strip_suffix("_file")?.to_owned())).collect();
    for name in names {
        let (key, file_key) = (format!("{PROPERTIES}.{name}"), format!("{PROPERTIES}.{name}_file"));
        if kafka.properties.get(&name).is_some() {
            return Err(twice(&file_key, &key));
        }
        if let Some(path) = kafka.properties.remove(&format!("{name}_file")) {
            kafka.properties.set(name, read(&file_key, &PathBuf::from(path))?);
        }
    }
    Ok(())
}

/// The host's name: what the kernel says, else the variable that many shells and orchestrators set.
pub fn host_name(env: &[(String, String)]) -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let variable = env.iter().find(|(name, _)| name == "HOSTNAME").map(|(_, value)| value.as_str());
    [kernel.trim(), variable.unwrap_or_default().trim(), "notifier-0"]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_default()
        .to_owned()
}
