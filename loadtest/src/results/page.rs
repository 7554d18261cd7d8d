//! Results as one HTML page that needs nothing else: the data and the script that draws it are in it.

use anyhow::{Context, Result};

use super::Results;

const PAGE: &str = include_str!("page.html");
const PLACE: &str = "\"RESULTS\"";

/// The whole page.
pub fn html(results: &Results) -> Result<String> {
    // In a script element only `<` could end it; inside JSON's texts it may be written so.
    let data = serde_json::to_string(results).context("JSON")?.replace('<', "\\u003c");
    Ok(PAGE.replacen(PLACE, &data, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Run;
    use crate::scenario::Scenario;

    #[test]
    fn the_page_holds_the_data_and_no_text_ends_its_script() {
        let (name, text) = Scenario::bundled().next().unwrap();
        let mut run = Run::new(&Scenario::parse(name, text).unwrap(), "notifier", 1);
        run.error = Some("</script><b>".to_owned());
        let page = html(&Results::new(vec![run])).unwrap();
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
}
