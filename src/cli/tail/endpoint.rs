//! Where the server is, and the paths of its requests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyper::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::cli::Usage;

/// What a value in a query keeps as it is: RFC 3986, 2.3, "Unreserved Characters".
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The paths that a user may paste with the rest of the URL, since `notifier dev` prints them.
const KNOWN_PATHS: [&str; 2] = ["/v1/connect", "/v1/stream"];

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    is_secure: bool,
    host: String,
    port: u16,
    prefix: String,
}

impl Endpoint {
    /// Reads `http://host[:port][/prefix]`, or the same with `https://`, `ws://` or `wss://`.
    ///
    /// # Errors
    /// Says what the URL must not have.
    pub(super) fn parse(url: &str) -> Result<Self, Usage> {
        let usage = |problem: &str| Usage(format!("--url {problem}"));
        let uri: Uri = url.parse().map_err(|_| usage("is no URL such as http://127.0.0.1:8000"))?;
        let (is_secure, default_port) = match uri.scheme_str() {
            Some("http" | "ws") => (false, 80),
            Some("https" | "wss") => (true, 443),
            _ => return Err(usage("must begin with http://, https://, ws:// or wss://")),
        };
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| usage("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(usage("must not hold a name or password: the token goes into --token"));
        }
        if uri.query().is_some() {
            return Err(usage("must not have a query: use --token, --since and --device"));
        }
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            None if has_port => return Err(usage("has a port that is none")),
            port => port.unwrap_or(default_port),
        };
        let path = uri.path();
        let prefix = KNOWN_PATHS.iter().find_map(|known| path.strip_suffix(known)).unwrap_or(path);
        let prefix = prefix.trim_end_matches('/').to_owned();
        Ok(Self { is_secure, host: authority.host().to_owned(), port, prefix })
    }

    /// The listener of a node on this machine, with or without TLS.
    ///
    /// # Errors
    /// When its port is only known to the node.
    pub(super) fn local(key: &str, listen: SocketAddr, is_secure: bool) -> Result<Self, Usage> {
        if listen.port() == 0 {
            return Err(Usage(format!("--url is needed: {key} has port 0")));
        }
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        Ok(Self { is_secure, host, port: listen.port(), prefix: String::new() })
    }

    /// Whether it speaks TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The name that a certificate has to be for.
    pub(super) fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// What a socket connects to.
    pub(super) fn address(&self) -> (&str, u16) {
        (self.name(), self.port)
    }

    /// The value of the `Host` header.
    pub(super) fn host(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// A request's target in origin form; values that are `None` are left out.
    pub(super) fn target(&self, path: &str, query: &[(&str, Option<&str>)]) -> String {
        let mut target = format!("{}{path}", self.prefix);
        let given = query.iter().filter_map(|(name, value)| Some((name, (*value)?)));
        for (separator, (name, value)) in std::iter::once('?').chain(std::iter::repeat('&')).zip(given) {
            target.push(separator);
            target.push_str(name);
            target.push('=');
            target.extend(utf8_percent_encode(value, ESCAPED));
        }
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (String, String) {
        let endpoint = Endpoint::parse(url).unwrap();
        (endpoint.host(), endpoint.target("/v1/stream", &[]))
    }

    #[test]
    fn a_url_may_have_a_prefix_or_the_path_that_dev_prints() {
        let cases = [
            ("http://a.example", "a.example:80", "/v1/stream"),
            ("ws://127.0.0.1:8000/v1/connect", "127.0.0.1:8000", "/v1/stream"),
            ("http://[::1]:8000/", "[::1]:8000", "/v1/stream"),
            ("http://a:1/push//v1/stream", "a:1", "/push/v1/stream"),
            ("wss://a.example", "a.example:443", "/v1/stream"),
        ];
        for (url, host, target) in cases {
            assert_eq!(parsed(url), (host.to_owned(), target.to_owned()), "{url}");
        }
        assert_eq!(Endpoint::parse("http://[::1]:8000").unwrap().address(), ("::1", 8000));
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused_with_the_reason() {
        let cases = [
            ("a:8000", "http://"),
            ("/v1/connect", "http://"),
            ("ftp://a", "http://"),
            ("http://u:p@a/", "--token"),
            ("http://a/?access_token=x", "--token"),
            ("http://a:99999/", "port"),
            ("not a url", "URL"),
        ];
        for (url, reason) in cases {
            let problem = Endpoint::parse(url).unwrap_err();
            assert!(problem.0.starts_with("--url ") && problem.0.contains(reason), "{url}: {problem}");
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_this_machine() {
        for (listen, host) in
            [("0.0.0.0:8000", "127.0.0.1:8000"), ("[::]:8000", "[::1]:8000"), ("10.0.3.7:9000", "10.0.3.7:9000")]
        {
            assert_eq!(Endpoint::local("client.listen", listen.parse().unwrap(), false).unwrap().host(), host);
        }
        assert!(Endpoint::local("client.listen", "0.0.0.0:0".parse().unwrap(), false).is_err());
    }

    #[test]
    fn values_are_encoded_and_absent_ones_left_out() {
        let endpoint = Endpoint::parse("http://a").unwrap();
        let target =
            endpoint.target("/v1/connect", &[("since", None), ("device", Some("a b&c=ü")), ("x", Some("1-2"))]);
        assert_eq!(target, "/v1/connect?device=a%20b%26c%3D%C3%BC&x=1-2");
    }
}
