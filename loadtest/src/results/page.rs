//! Results as one HTML page that needs nothing else: the data and the script that draws it are in it. What counts, medians
//! and ratios are the [`Table`]'s: the script only shows them.

use anyhow::{Context, Result};
use serde::Serialize;

use super::table::{Set, Table, column_name};
use super::{Machine, Results, Run};

const PAGE: &str = include_str!("page.html");
const PLACE: &str = "\"RESULTS\"";

/// What the script reads.
#[derive(Serialize)]
struct Data<'a> {
    machines: Vec<Place<'a>>,
    runs: Vec<Shown<'a>>,
    table: Table,
}

/// Where one file was measured.
#[derive(Serialize)]
struct Place<'a> {
    file: Option<&'a str>,
    machine: &'a Machine,
}

#[derive(Serialize)]
struct Shown<'a> {
    /// Its column in the table.
    column: String,
    #[serde(flatten)]
    run: &'a Run,
}

fn shown<'a>(set: &Set<'a>, run: &'a Run) -> Shown<'a> {
    Shown { column: column_name(&run.target, set.name), run }
}

/// The whole page, of one file or of several with their names.
pub fn html(files: &[(Option<&str>, &Results)]) -> Result<String> {
    let sets: Vec<_> = files.iter().map(|(name, results)| Set { name: *name, runs: &results.runs }).collect();
    let data = Data {
        machines: files.iter().map(|(file, results)| Place { file: *file, machine: &results.machine }).collect(),
        runs: sets.iter().flat_map(|set| set.runs.iter().map(move |run| shown(set, run))).collect(),
        table: Table::of(&sets, None),
    };
    // In a script element only `<` could end it; inside JSON's texts it may be written so.
    let data = serde_json::to_string(&data).context("JSON")?.replace('<', "\\u003c");
    Ok(PAGE.replacen(PLACE, &data, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::table::tests::{rounds, run};

    #[test]
    fn the_page_holds_the_data_and_no_text_ends_its_script() {
        let mut broken = run("notifier", 1, 1.0, None);
        broken.error = Some("</script><b>".to_owned());
        let page = html(&[(None, &Results::new(vec![broken]))]).unwrap();
        assert!(page.contains("\\u003c/script>\\u003cb>") && !page.contains("</script><b>"));
        assert!(!page.contains(PLACE));
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for outside in ["http:", "https:", "//cdn", "src=", "@import", "url("] {
            let namespace = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!namespace.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_page_has_the_terminal_s_figures_and_keeps_files_apart() {
        let (before, after) = (Results::new(rounds()), Results::new(vec![run("notifier", 1, 7.0, None)]));
        let page = html(&[(Some("before"), &before), (Some("after"), &after)]).unwrap();
        for shown in [
            r#""figure":"20.0 (10.0–30.0)","ratio":"2.50 (2.00–3.00)""#,
            r#"{"figure":"7.00 (7.00–7.00)","ratio":null}"#,
            r#""column":"notifier, before""#,
            r#""column":"notifier, after""#,
            r#"{"file":"after","machine":{"cores":"#,
        ] {
            assert!(page.contains(shown), "{shown}");
        }
        assert!(!PAGE.contains("median ="), "the script computes no median of its own");
    }
}
