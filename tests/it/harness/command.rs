//! Commands of the program, and real clients written by others, as child processes.

use std::{path::PathBuf, process::Command, time::Duration};

use serde_json::Value;

use super::{
    node::NOTIFIER,
    process::{Finished, Process, command, find, required},
};

/// How long a command that ends by itself may take.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// How long a foreign client may take (a browser starts slowly on a busy machine).
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(90);

/// `notifier` with arguments; the caller adds what else it needs.
pub fn notifier(arguments: &[&str]) -> Command {
    let mut command = command(NOTIFIER);
    command.args(arguments);
    command
}

/// Runs `notifier` with arguments to its end.
pub async fn run(arguments: &[&str]) -> Finished {
    Process::run("notifier", notifier(arguments), COMMAND_DEADLINE).await
}

/// Runs a prepared command to its end.
pub async fn finish(command: Command) -> Finished {
    Process::run("notifier", command, COMMAND_DEADLINE).await
}

/// A Python client of `tests/clients`.
pub fn python(script: &str) -> Command {
    let mut command = command(required("NOTIFIER_TEST_PYTHON"));
    command.arg(client(script));
    command
}

/// A Node.js client of `tests/clients`.
pub fn node(script: &str) -> Command {
    // Read here so that a missing variable is named before Node.js says something else.
    let modules = required("NOTIFIER_TEST_NODE_MODULES");
    let mut command = command("node");
    command.arg(client(script)).env("NOTIFIER_TEST_NODE_MODULES", modules);
    command
}

/// `node` for a client that drives a browser.
pub fn browser(script: &str) -> Command {
    let chromium = required("NOTIFIER_TEST_CHROMIUM");
    let mut command = node(script);
    command.env("NOTIFIER_TEST_CHROMIUM", chromium);
    command
}

/// A command that `tests/run` built with Go.
pub fn gotool(name: &str) -> Command {
    command(PathBuf::from(required("NOTIFIER_TEST_GO_TOOLS")).join(name))
}

/// kcat, with `input` on its standard input.
pub fn kcat(arguments: &[&str], input: &str) -> Command {
    assert!(find("kcat").is_some(), "kcat is missing: `tests/run` installs it");
    // Through a file: a child of the harness has no input of its own.
    let mut command = command("sh");
    let script = "printf '%s\\n' \"$INPUT\" | kcat \"$@\"";
    command.args(["-c", script, "sh"]).args(arguments).env("INPUT", input);
    command
}

/// The lines of an output that are JSON objects.
pub fn json_lines(output: &str) -> Vec<Value> {
    let objects = output.lines().filter(|line| line.starts_with('{'));
    objects.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The notifications among JSON lines: what is no control frame.
pub fn notifications(output: &str) -> Vec<Value> {
    let mut lines = json_lines(output);
    lines.retain(|line| line["type"].as_str().is_some_and(|kind| !kind.starts_with('$')));
    lines
}

/// A file of `tests/clients`.
pub fn client(script: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}
