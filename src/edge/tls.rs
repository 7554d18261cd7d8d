//! TLS for a listener: the certificate and its key from files, read again when they change. Connections that are
//! open go on with the certificate they began with.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use metrics::{describe_gauge, gauge};
use parking_lot::{Mutex, RwLock};
use rustls::{
    InconsistentKeys, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::{error::X509Error, nom};

/// How often the files are looked at. Not watched: what Kubernetes mounts changes by symbolic links of directories,
/// and network file systems tell nobody.
const LOOK: Duration = Duration::from_secs(2);
/// One ticket is enough for a client that comes back; each costs a write in the handshake.
const TICKETS: usize = 1;

const EXPIRY: &str = "notifier_certificate_expiry_timestamp_seconds";

/// Whose certificate it is: the metric's label, and the section of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The port for WebSocket, server-sent events and HTTP.
    Client,
    /// The port for gRPC.
    Grpc,
    /// The port for other nodes, whose certificate is read once.
    Cluster,
}

impl Listener {
    /// The name of the configuration's section.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Grpc => "grpc",
            Self::Cluster => "cluster",
        }
    }
}

/// Where a certificate and its key are, as PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain, the listener's own certificate first.
    pub cert: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
}

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate chain.
    Certificate,
    /// The private key.
    Key,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Error {
    /// Which one.
    pub part: Part,
    path: PathBuf,
    reason: String,
}

/// Makes TLS connections of accepted sockets.
pub struct Acceptor {
    tls: TlsAcceptor,
    current: Arc<Current>,
    files: Files,
    listener: Listener,
    /// What the files held when they were last looked at.
    seen: Mutex<Seen>,
}

/// A fingerprint of the files' bytes, or why they could not be read.
type Seen = Result<[u8; 32], String>;

/// The certificate for new connections.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl Acceptor {
    /// Reads the files. `alpn` are the protocols that the listener speaks, the preferred one first: a client that
    /// offers others only is refused.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn load(listener: Listener, files: Files, alpn: &[&[u8]]) -> Result<Self, Error> {
        let read = Bytes::read(&files)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(read.certified_key(&files)?))));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("ring has cipher suites for both");
        let mut config = config.with_no_client_auth().with_cert_resolver(current.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // Clients keep their sessions themselves, as tickets: nothing is stored for those that never come back.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().expect("the system has random numbers");
        config.send_tls13_tickets = TICKETS;
        let tls = TlsAcceptor::from(Arc::new(config));
        Ok(Self { tls, current, files, listener, seen: Mutex::new(Ok(read.fingerprint())) })
    }

    /// Shakes hands. Waits for the peer for as long as it is polled.
    ///
    /// # Errors
    /// When the peer is gone or does not speak TLS.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, socket: S) -> io::Result<TlsStream<S>> {
        self.tls.accept(socket).await
    }

    /// Reads the files again whenever they change, for as long as it is polled. Files that cannot be used are
    /// reported, and the certificate stays as it is.
    pub async fn watch(self: Arc<Self>) {
        self.announce();
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            ticks.tick().await;
            let acceptor = self.clone();
            // A panic in there is no reason to end.
            let _ = tokio::task::spawn_blocking(move || acceptor.look()).await;
        }
    }

    fn look(&self) {
        let listener = self.listener.as_str();
        match self.read_again() {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(listener, "the certificate was read again");
                self.announce();
            }
            Err(error) => tracing::error!(listener, %error, "the certificate stays as it is: a file cannot be used"),
        }
    }

    /// Takes what the files hold, if that is not what they held the last time; whether it did.
    fn read_again(&self) -> Result<bool, Error> {
        let read = Bytes::read(&self.files);
        let now = read.as_ref().map(Bytes::fingerprint).map_err(ToString::to_string);
        if *self.seen.lock() == now {
            return Ok(false);
        }
        *self.seen.lock() = now;
        let key = read?.certified_key(&self.files)?;
        *self.current.0.write() = Arc::new(key);
        Ok(true)
    }

    fn announce(&self) {
        if let Some(cert) = self.current.0.read().cert.first() {
            announce(self.listener, &self.files.cert, cert);
        }
    }
}

/// Publishes when the first certificate of a chain expires, for a listener that does not read it again.
pub fn announce_expiry(listener: Listener, file: &Path, chain: &[u8]) {
    if let Some(Ok(cert)) = CertificateDer::pem_slice_iter(chain).next() {
        announce(listener, file, &cert);
    }
}

fn announce(listener: Listener, file: &Path, cert: &CertificateDer<'_>) {
    describe_gauge!(EXPIRY, "When a listener's certificate expires, in seconds since 1970");
    let (listener, Ok(expiry)) = (listener.as_str(), expiry(cert)) else { return };
    gauge!(EXPIRY, "listener" => listener).set(expiry.as_secs_f64());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if expiry <= now {
        tracing::error!(listener, file = %file.display(), "the certificate has expired");
    }
}

/// The files as they are at one moment.
struct Bytes {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Bytes {
    fn read(files: &Files) -> Result<Self, Error> {
        let read = |part, path: &Path| {
            std::fs::read(path).map_err(|error| wrong(part, path, format!("cannot be read: {error}")))
        };
        Ok(Self { cert: read(Part::Certificate, &files.cert)?, key: read(Part::Key, &files.key)? })
    }

    fn fingerprint(&self) -> [u8; 32] {
        let hash = Sha256::new().chain_update(Sha256::digest(&self.cert)).chain_update(Sha256::digest(&self.key));
        hash.finalize().into()
    }

    fn certified_key(&self, files: &Files) -> Result<CertifiedKey, Error> {
        let bad_cert = |reason: String| wrong(Part::Certificate, &files.cert, reason);
        let bad_key = |reason: String| wrong(Part::Key, &files.key, reason);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .map_err(|error| bad_cert(format!("is no PEM file: {error}")))?;
        let first = chain.first().ok_or_else(|| bad_cert("holds no certificate".to_owned()))?;
        expiry(first).map_err(|error| bad_cert(format!("the certificate cannot be read: {error}")))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| bad_key(format!("holds no private key that can be read: {error}")))?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                bad_key(format!("is not the key of the certificate in {}", files.cert.display()))
            }
            rustls::Error::InvalidCertificate(error) => bad_cert(format!("the certificate is invalid: {error:?}")),
            error => bad_key(format!("the key cannot be used: {error}")),
        })
    }
}

fn wrong(part: Part, path: &Path, reason: String) -> Error {
    Error { part, path: path.to_owned(), reason }
}

/// When a certificate expires, as time since 1970.
fn expiry(cert: &CertificateDer<'_>) -> Result<Duration, X509Error> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).map_err(|error| match error {
        nom::Err::Error(error) | nom::Err::Failure(error) => error,
        nom::Err::Incomplete(_) => X509Error::InvalidCertificate,
    })?;
    Ok(Duration::from_secs(u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate and its key, as files.
    fn issued() -> [String; 2] {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        [certified.cert.pem(), certified.signing_key.serialize_pem()]
    }

    #[test]
    fn files_that_cannot_be_used_are_named_once_and_the_certificate_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        let write = |[cert, key]: [&str; 2]| {
            std::fs::write(&files.cert, cert).unwrap();
            std::fs::write(&files.key, key).unwrap();
        };
        let ([cert, key], [other_cert, other_key]) = (issued(), issued());
        write([&cert, &key]);
        let acceptor = Acceptor::load(Listener::Client, files.clone(), &[]).unwrap();
        let shown = || acceptor.current.0.read().clone();
        let first = shown();
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (bad, part, reason) in [
            ([garbage, &key], Part::Certificate, "the certificate cannot be read"),
            (["garbage", &key], Part::Certificate, "holds no certificate"),
            (["", &key], Part::Certificate, "holds no certificate"),
            ([&cert, "garbage"], Part::Key, "holds no private key"),
            ([&cert, ""], Part::Key, "holds no private key"),
            ([&cert, &other_key], Part::Key, "is not the key of the certificate"),
            // Written one after the other, as some do it.
            ([&other_cert, &key], Part::Key, "is not the key of the certificate"),
        ] {
            write(bad);
            let error = acceptor.read_again().unwrap_err();
            assert!(error.part == part && error.reason.contains(reason), "{reason}: {error:?}");
            assert!(!acceptor.read_again().unwrap(), "said again: {reason}");
            assert!(Arc::ptr_eq(&shown(), &first), "{reason}");
        }
        std::fs::remove_file(&files.cert).unwrap();
        assert!(acceptor.read_again().unwrap_err().reason.contains("cannot be read"));
        assert!(Arc::ptr_eq(&shown(), &first));

        write([&other_cert, &other_key]);
        assert!(acceptor.read_again().unwrap());
        assert_ne!(shown().cert, first.cert);
    }
}
