//! `notifier cluster`: who takes part in the cluster, and who serves what, once or as it changes.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;

use super::{
    DEV_DIRECTORY, Usage,
    tail::{Api, NoAnswer},
};
use crate::config::Config;

mod table;

use table::Cluster;

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Where `notifier dev` keeps a key.
const DEV_KEY: &str = "api-key";
const PATH: &str = "/v1/cluster";
/// ECMA-48, 8.3.21, "Cursor position", and 8.3.39, "Erase in page": from the top left on.
const CLEAR: &str = "\x1b[H\x1b[2J";

const EXAMPLES: &str = "Examples:
  notifier cluster --url http://notifier-0:8000 --api-key \"$KEY\"
  notifier cluster --watch
  notifier cluster --json | jq '.members[] | {id, shards, sessions}'

Asks one node, which asks the others: - stands for what one of them did not say in time.";

/// Print who takes part in the cluster, and who serves what.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A node, such as https://notifier.example.com [default: client.listen, on this machine]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The authorities that the node's certificate may be from, a PEM file [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A service's key with the scope read [default: the one that `notifier dev` keeps here]
    #[arg(long, value_name = "KEY", env = "NOTIFIER_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Print the answer's JSON text, on one line
    #[arg(long)]
    json: bool,
    /// Go on, and print it again whenever it has changed
    #[arg(long, short)]
    watch: bool,
}

/// Prints the cluster; with `--watch` until SIGTERM or SIGINT.
///
/// # Errors
/// [`Usage`] for arguments that nobody can be asked with; else why there is no answer.
pub async fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let key = match args.api_key {
        Some(key) => key,
        None => dev_key(Path::new(DEV_DIRECTORY))?,
    };
    let api = Api::new(args.url.as_deref(), args.ca_file.as_deref(), &key, config)?;
    let printer = Printer { is_json: args.json, redraws: io::stdout().is_terminal() && args.watch && !args.json };
    if !args.watch {
        printer.print(&api.get(PATH).await?, &mut io::stdout())?;
        return Ok(());
    }
    tokio::select! {
        ended = watch(&api, &printer) => ended,
        () = super::stop_signal() => Ok(()),
    }
}

/// The key that `notifier dev` keeps, if it runs here.
fn dev_key(directory: &Path) -> Result<String, Usage> {
    let key = std::fs::read_to_string(directory.join(DEV_KEY)).map(|key| key.trim().to_owned());
    key.map_err(|_| Usage("--api-key is needed: a service's key with the scope read".to_owned()))
}

async fn watch(api: &Api, printer: &Printer) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut last, mut said) = (Bytes::new(), String::new());
    loop {
        ticks.tick().await;
        match api.get(PATH).await {
            Ok(now) if now == last && said.is_empty() => {}
            Ok(now) => {
                if !printer.print(&now, &mut io::stdout())? {
                    return Ok(());
                }
                (last, said) = (now, String::new());
            }
            Err(problem @ NoAnswer { is_final: true, .. }) => return Err(problem.into()),
            Err(problem) => {
                let text = problem.to_string();
                if text != said {
                    let _ = writeln!(io::stderr(), "notifier: {}; asking again", table::printable(&text));
                    said = text;
                }
            }
        }
    }
}

struct Printer {
    is_json: bool,
    redraws: bool,
}

impl Printer {
    /// `false`: nobody reads any more.
    fn print(&self, answer: &[u8], out: &mut impl io::Write) -> anyhow::Result<bool> {
        let cluster: Cluster = serde_json::from_slice(answer).context("the answer is no cluster's")?;
        let text = match (self.is_json, self.redraws) {
            (true, _) => format!("{}\n", String::from_utf8_lossy(answer).replace(['\n', '\r'], " ")),
            (false, true) => format!("{CLEAR}{cluster}"),
            (false, false) => cluster.to_string(),
        };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            written => Ok(written.is_ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"enabled":false,"node":"a","version":0,"shards":64,"unowned":0,"members":[],"moves":[]}"#;

    fn printed(is_json: bool, redraws: bool, answer: &str) -> anyhow::Result<String> {
        let mut out = Vec::new();
        Printer { is_json, redraws }.print(answer.as_bytes(), &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn json_is_the_answer_on_one_line_and_a_terminal_is_cleared_before_the_table() {
        assert_eq!(
            printed(true, false, &ANSWER.replace(',', ",\n")).unwrap(),
            format!("{}\n", ANSWER.replace(',', ", "))
        );
        let table = printed(false, false, ANSWER).unwrap();
        assert!(table.contains("cluster.enabled"), "{table}");
        assert_eq!(printed(false, true, ANSWER).unwrap(), format!("{CLEAR}{table}"));
        assert!(printed(true, false, "<html>").is_err(), "no server of ours");
    }

    #[test]
    fn without_a_key_the_flag_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(dev_key(directory.path()).unwrap_err().0.starts_with("--api-key"));
        std::fs::write(directory.path().join(DEV_KEY), "dev-1\n").unwrap();
        assert_eq!(dev_key(directory.path()).unwrap(), "dev-1");
    }

    #[test]
    fn what_nobody_can_be_asked_with_is_refused_by_its_flag() {
        let config = Config::default();
        let refused = |url, ca_file: Option<&str>, key| {
            let api = Api::new(url, ca_file.map(Path::new), key, &config);
            api.err().map(|usage| usage.0).unwrap_or_default()
        };
        assert_eq!(refused(Some("http://a"), None, "key"), "");
        assert_eq!(refused(None, None, "key"), "");
        for url in ["a:8000", "http://a?x=1", "http://u:p@a", "ftp://a"] {
            let text = refused(Some(url), None, "key");
            assert!(text.starts_with("--url"), "{url}: {text}");
        }
        assert!(refused(Some("http://a"), Some("ca.pem"), "key").starts_with("--ca-file"));
        assert!(refused(Some("http://a"), None, "a\nb").starts_with("--api-key"));
        assert!(refused(Some("http://a"), None, " ").starts_with("--api-key"));
    }
}
