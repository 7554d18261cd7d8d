//! Key pairs and certificates that openssl made, and tokens signed with them.

use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    command::COMMAND_DEADLINE,
    process::{Process, command},
    token::now_secs,
};

/// A private key, and what the world may know of it.
pub struct KeyPair {
    algorithm: Algorithm,
    signing: EncodingKey,
    public_pem: String,
    dir: TempDir,
}

impl KeyPair {
    /// A new one for RS256, ES256 or EdDSA.
    pub async fn new(algorithm: Algorithm) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        let kind: &[&str] = match algorithm {
            Algorithm::RS256 => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            Algorithm::ES256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Algorithm::EdDSA => &["-algorithm", "ED25519"],
            other => panic!("{other:?} is not asked for"),
        };
        let (private, public, der) = (path("private.pem"), path("public.pem"), path("private.der"));
        openssl(&[&["genpkey"], kind].concat(), &[("-out", &private)]).await;
        openssl(&["pkey", "-pubout"], &[("-in", &private), ("-out", &public)]).await;
        let convert: &[&str] =
            if algorithm == Algorithm::RS256 { &["rsa", "-traditional"] } else { &["pkcs8", "-topk8", "-nocrypt"] };
        openssl(&[convert, &["-outform", "DER"]].concat(), &[("-in", &private), ("-out", &der)]).await;
        let der = std::fs::read(der).expect("openssl has written it");
        let signing = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_der(&der),
            Algorithm::ES256 => EncodingKey::from_ec_der(&der),
            _ => EncodingKey::from_ed_der(&der),
        };
        let public_pem = std::fs::read_to_string(public).expect("openssl has written it");
        Self { algorithm, signing, public_pem, dir }
    }

    /// The public key (SPKI).
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// The private key's file.
    pub fn private_file(&self) -> PathBuf {
        self.dir.path().join("private.pem")
    }

    /// A certificate for the key, good for `days`, also of a server on 127.0.0.1.
    pub async fn certificate(&self, days: u32) -> String {
        // Of an end, not of an authority, which openssl would make it by itself.
        const CONFIG: &str = "[req]\ndistinguished_name = name\nx509_extensions = extensions\nprompt = no\n\
                              [name]\nCN = test\n\
                              [extensions]\nsubjectAltName = IP:127.0.0.1\nbasicConstraints = critical,CA:FALSE\n";
        let (config, path) = (self.dir.path().join("openssl.cnf"), self.dir.path().join("certificate.pem"));
        std::fs::write(&config, CONFIG).expect("a writable directory");
        let files = [("-config", &*config), ("-key", &self.private_file()), ("-out", &path)];
        openssl(&["req", "-x509", "-new", "-days", &days.to_string()], &files).await;
        std::fs::read_to_string(path).expect("openssl has written it")
    }

    /// The public key as an issuer publishes it.
    pub fn jwk(&self, kid: &str) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.signing, self.algorithm).expect("a public key");
        jwk.common.key_id = Some(kid.into());
        serde_json::to_value(jwk).expect("JSON")
    }

    /// `claims`, signed.
    pub fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.signing).expect("claims are JSON")
    }

    /// A good token for `user`, valid for an hour.
    pub fn token(&self, kid: Option<&str>, user: &str) -> String {
        self.sign(kid, &json!({"sub": user, "exp": now_secs() + 3600}))
    }
}

async fn openssl(arguments: &[&str], files: &[(&str, &Path)]) {
    let mut command = command("openssl");
    command.args(arguments);
    for (flag, path) in files {
        command.arg(flag).arg(path);
    }
    Process::run("openssl", command, COMMAND_DEADLINE).await.ok();
}
