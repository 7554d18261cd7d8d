//! TLS to the server: whom to trust.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio_rustls::TlsConnector;

use crate::cli::Usage;

/// A connector that trusts the authorities in `ca_file`, or else the system's, and offers one protocol (RFC 7301).
///
/// # Errors
/// When there are none that can be read.
pub(super) fn connector(ca_file: Option<&Path>, alpn: &[u8]) -> Result<TlsConnector, Usage> {
    let roots = match ca_file {
        Some(path) => from_file(path)?,
        None => from_system()?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("ring has cipher suites for both");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn from_file(path: &Path) -> Result<RootCertStore, Usage> {
    let usage = |problem: String| Usage(format!("--ca-file {}: {problem}", path.display()));
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| usage(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| usage(error.to_string()))?;
        roots.add(certificate).map_err(|error| usage(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(usage("holds no certificate".to_owned()));
    }
    Ok(roots)
}

fn from_system() -> Result<RootCertStore, Usage> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Usage("--ca-file is needed: this system has no certificates of authorities".to_owned()));
    }
    Ok(roots)
}
