//! What the product says of itself on its admin port: whether it is ready, and its metrics.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The port of one server.
#[derive(Debug, Clone, Copy)]
pub struct Admin(pub SocketAddr);

impl Admin {
    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| is_ok(&answer))
    }

    /// The present value of a series, named as it stands on the page: `name` or `name{label="value"}`.
    ///
    /// # Errors
    ///
    /// When there is no answer, or no such series.
    pub fn metric(&self, series: &str) -> Result<f64> {
        let page = self.get("/metrics").context("no answer from the admin port")?;
        value_of(&page, series).with_context(|| format!("no metric {series} on the server's page"))
    }

    /// All metrics as they are now.
    ///
    /// # Errors
    ///
    /// When there is no answer, or another one than a page.
    pub fn page(&self) -> Result<Page> {
        let page = self.get("/metrics").with_context(|| format!("no answer from the admin port {}", self.0))?;
        anyhow::ensure!(is_ok(&page), "the admin port {} has no page of metrics", self.0);
        Ok(Page(page))
    }

    fn get(&self, path: &str) -> io::Result<String> {
        get(self.0, path, "")
    }
}

/// As HTTP/1.0: the answer ends with the connection and has no chunks. `headers`: more of them, each with its line's end.
pub fn get(address: SocketAddr, path: &str, headers: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A page of metrics.
pub struct Page(String);

impl Page {
    /// The values of all series of this name together; `None` when there is none.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sum_with(name, "")
    }

    /// The same of those series only that have this label, as it stands on the page.
    pub fn sum_with(&self, name: &str, label: &str) -> Option<f64> {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

fn is_ok(answer: &str) -> bool {
    answer.split(' ').nth(1) == Some("200")
}

fn value_of(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_found_by_its_whole_name() {
        let page = "HTTP/1.0 200 OK\r\n\r\n# TYPE users gauge\nusers_active_max 7\nusers_active 3\n\
                    events{outcome=\"away\"} 5\nevents{outcome=\"stored\"} 12\n";
        assert_eq!(value_of(page, "users_active"), Some(3.0));
        assert_eq!(value_of(page, "events{outcome=\"stored\"}"), Some(12.0));
        assert_eq!(value_of(page, "events"), None);
        assert_eq!(value_of(page, "users"), None);
        let page = Page(page.to_owned());
        assert_eq!(page.sum_with("events", "outcome=\"away\""), Some(5.0));
        assert_eq!((page.sum("events"), page.sum("users_active"), page.sum("users")), (Some(17.0), Some(3.0), None));
    }

    #[test]
    fn only_200_is_ready() {
        assert!(is_ok("HTTP/1.0 200 OK\r\n\r\n"));
        assert!(!is_ok("HTTP/1.0 503 Service Unavailable\r\n\r\n200"));
        assert!(!is_ok(""));
    }
}
