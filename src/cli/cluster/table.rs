//! A cluster as a table for people.

use std::{borrow::Cow, fmt};

use serde::Deserialize;

use crate::ids;

/// What `GET /v1/cluster` says. What a later release adds is passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Cluster {
    enabled: bool,
    node: String,
    version: u64,
    shards: usize,
    unowned: usize,
    members: Vec<Member>,
    moves: Vec<Move>,
}

#[derive(Debug, Deserialize)]
struct Member {
    id: String,
    state: String,
    shards: usize,
    sessions: Option<u64>,
    partitions: Option<Vec<i32>>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    zone: String,
    joined: u64,
}

#[derive(Debug, Deserialize)]
struct Move {
    from: Option<String>,
    to: String,
    shards: usize,
}

const HEADS: [&str; 8] = ["NODE", "STATE", "JOINED", "SHARDS", "SESSIONS", "PARTITIONS", "ZONE", "ADDRESS"];
/// Numbers are easier to compare when they end at the same place.
const IS_NUMBER: [bool; 8] = [false, false, true, true, true, false, false, false];

impl Member {
    fn cells(&self) -> [String; 8] {
        let unsaid = || "-".to_owned();
        [
            printable(&self.id).into_owned(),
            printable(&self.state).into_owned(),
            self.joined.to_string(),
            self.shards.to_string(),
            self.sessions.map_or_else(unsaid, |sessions| sessions.to_string()),
            self.partitions.as_deref().map_or_else(unsaid, ranges),
            printable(&self.zone).into_owned(),
            printable(&self.addresses.join(" ")).into_owned(),
        ]
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = printable(&self.node);
        if self.enabled {
            let alive = self.members.iter().filter(|member| member.state != "dead").count();
            let nodes = if alive == 1 { "node" } else { "nodes" };
            writeln!(f, "{alive} {nodes}, version {}, as {node} knows it", self.version)?;
        } else {
            writeln!(f, "one node, {node}: cluster.enabled is false")?;
        }
        let rows: Vec<[String; 8]> = self.members.iter().map(Member::cells).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([HEADS[column].len()]).max().unwrap_or_default()
        };
        let widths: [usize; 8] = std::array::from_fn(width);
        for row in std::iter::once(&HEADS.map(str::to_owned)).chain(&rows) {
            let cells = row.iter().zip(widths).zip(IS_NUMBER).map(|((cell, width), is_number)| {
                if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        write!(f, "{} of {} shards are served", self.shards - self.unowned.min(self.shards), self.shards)?;
        if self.unowned > 0 {
            write!(f, ", {} by nobody: what is for their users waits", self.unowned)?;
        }
        writeln!(f)?;
        for Move { from, to, shards } in &self.moves {
            let from = from.as_deref().map_or(Cow::Borrowed("nobody"), printable);
            writeln!(f, "moving: {shards} from {from} to {}", printable(to))?;
        }
        Ok(())
    }
}

/// `0-3,7`, of numbers in order.
fn ranges(numbers: &[i32]) -> String {
    let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let text = |run: &[i32]| match run {
        [first, .., last] => format!("{first}-{last}"),
        [one] => one.to_string(),
        [] => String::new(),
    };
    let texts: Vec<String> = runs.map(text).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(",") }
}

/// The text without characters that steer a terminal or reorder what stands around them.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let is_fine = |character: char| ids::check(character.encode_utf8(&mut [0; 4])).is_ok();
    if text.chars().all(is_fine) {
        return text.into();
    }
    text.chars().map(|character| if is_fine(character) { character } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_in_columns_and_what_is_not_known_is_a_dash() {
        let cluster: Cluster = serde_json::from_str(
            r#"{"enabled":true,"node":"n0","version":7,"shards":64,"unowned":3,"later":1,
            "members":[{"id":"n0","incarnation":"x","state":"active","addresses":["10.0.0.1:8003"],"joined":1,
            "shards":30,"sessions":1200,"partitions":[0,1,2,5]},
            {"id":"notifier-1","incarnation":"y","state":"draining","addresses":["10.0.0.2:8003"],"zone":"b","joined":4,
            "shards":31}],
            "moves":[{"from":"notifier-1","to":"n0","shards":31},{"to":"n0","shards":3}]}"#,
        )
        .unwrap();
        let expected = "\
2 nodes, version 7, as n0 knows it
NODE        STATE     JOINED  SHARDS  SESSIONS  PARTITIONS  ZONE  ADDRESS
n0          active         1      30      1200  0-2,5             10.0.0.1:8003
notifier-1  draining       4      31         -  -           b     10.0.0.2:8003
61 of 64 shards are served, 3 by nobody: what is for their users waits
moving: 31 from notifier-1 to n0
moving: 3 from nobody to n0
";
        assert_eq!(cluster.to_string(), expected);
    }

    #[test]
    fn partitions_are_told_in_ranges() {
        for (numbers, text) in [(&[][..], "none"), (&[4], "4"), (&[0, 1], "0-1"), (&[0, 2, 3, 4, 9], "0,2-4,9")] {
            assert_eq!(ranges(numbers), text);
        }
    }

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        assert_eq!(printable("a\u{1b}[2J\u{202e}é"), "a\u{fffd}[2J\u{fffd}é");
        assert_eq!(printable("no answer from a"), "no answer from a");
    }
}
