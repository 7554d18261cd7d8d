//! Certificates for the node's own port, made by openssl as operators make them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;

use super::{
    command::COMMAND_DEADLINE,
    node::Builder,
    process::{Process, command},
};

/// An authority, and a certificate of it with its key for `localhost` and the loopback network.
pub struct Certs {
    dir: TempDir,
}

impl Certs {
    /// Makes an authority and a certificate that is valid for two days.
    pub async fn new() -> Self {
        let certs = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        certs
            .openssl(&[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=authority",
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
            ])
            .await;
        certs.renew(2).await;
        certs
    }

    /// Puts another certificate with another key in the place of both, as one step for each file.
    pub async fn renew(&self, days: u32) {
        let (days, names) = (days.to_string(), "subjectAltName=DNS:localhost,IP:127.0.0.1");
        std::fs::write(self.path("names"), names).expect("a writable directory");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=node",
            "-keyout",
            "new.key",
            "-out",
            "new.csr",
        ])
        .await;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            "new.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            &days,
            "-extfile",
            "names",
            "-out",
            "new.pem",
        ])
        .await;
        for (new, current) in [("new.key", "node.key"), ("new.pem", "node.pem")] {
            std::fs::rename(self.path(new), self.path(current)).expect("a writable directory");
        }
    }

    async fn openssl(&self, arguments: &[&str]) {
        let mut command = command("openssl");
        command.args(arguments).current_dir(self.dir.path());
        Process::run("openssl", command, COMMAND_DEADLINE).await.ok();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What clients trust.
    pub fn authority(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The node's certificate.
    pub fn cert(&self) -> PathBuf {
        self.path("node.pem")
    }

    /// Its key.
    pub fn key(&self) -> PathBuf {
        self.path("node.key")
    }

    /// A node with this certificate on its client port.
    pub fn on(&self, builder: Builder) -> Builder {
        self.on_port("client", builder)
    }

    /// The same for one of the ports: `client` or `grpc`.
    pub fn on_port(&self, port: &str, builder: Builder) -> Builder {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let builder = builder.set(&format!("{port}.tls_cert_file"), text(&self.cert()));
        builder.set(&format!("{port}.tls_key_file"), text(&self.key()))
    }

    /// A client that trusts the authority.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client_of(&[&TLS13, &TLS12])
    }

    /// The same with TLS 1.2 only.
    pub fn client_of_1_2(&self) -> Arc<ClientConfig> {
        self.client_of(&[&TLS12])
    }

    /// The first bytes that a client says.
    pub fn client_hello(&self) -> Vec<u8> {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(self.client(), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("memory");
        bytes
    }

    fn client_of(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.authority()).expect("a certificate")).expect("an authority");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions of the provider");
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }
}
