//! What tokens are checked against and what ports show, as configured. Commands that only check ask for the same.

use std::{path::Path, sync::Arc};

use crate::{
    auth,
    config::{self, Config},
    edge::tls,
};

/// What tokens are checked against, as configured.
#[must_use]
pub fn auth_config(config: &Config) -> auth::Config {
    let jwt = &config.auth.jwt;
    auth::Config {
        hs256_secret: jwt.hs256_secret.as_ref().map(|secret| secret.expose().as_bytes().into()),
        hs256_secret_file: jwt.hs256_secret_file.clone(),
        public_key_files: jwt.public_key_files.clone(),
        jwks_url: jwt.jwks_url.clone(),
        algorithms: jwt.algorithms.as_ref().map(|listed| listed.iter().map(algorithm).collect()),
        leeway: jwt.leeway,
        issuer: jwt.issuer.clone(),
        audience: jwt.audience.clone(),
        api_keys: config.auth.api_keys.iter().map(api_key).collect(),
    }
}

fn algorithm(algorithm: &config::Algorithm) -> auth::Algorithm {
    match algorithm {
        config::Algorithm::Hs256 => auth::Algorithm::Hs256,
        config::Algorithm::Rs256 => auth::Algorithm::Rs256,
        config::Algorithm::Es256 => auth::Algorithm::Es256,
        config::Algorithm::EdDsa => auth::Algorithm::EdDsa,
    }
}

fn api_key(key: &config::ApiKey) -> auth::ApiKey {
    let scope = |scope: &config::Scope| match scope {
        config::Scope::Publish => auth::Scope::Publish,
        config::Scope::Sessions => auth::Scope::Sessions,
        config::Scope::Read => auth::Scope::Read,
    };
    let service = auth::Service { name: key.name.clone(), scopes: key.scopes.iter().map(scope).collect() };
    auth::ApiKey { sha256: *key.sha256.bytes(), service: Arc::new(service) }
}

/// TLS for the client port, if its keys are set: HTTP/1.1 inside.
///
/// # Errors
/// Names the key of the file that cannot be used.
pub fn client_tls(config: &Config) -> Result<Option<tls::Acceptor>, config::Error> {
    let config::Client { tls_cert_file, tls_key_file, .. } = &config.client;
    listener_tls(config, tls::Listener::Client, tls_cert_file.as_deref(), tls_key_file.as_deref(), &[b"http/1.1"])
}

/// The same for the gRPC port: HTTP/2 inside.
///
/// # Errors
/// Names the key of the file that cannot be used.
pub fn grpc_tls(config: &Config) -> Result<Option<tls::Acceptor>, config::Error> {
    let config::Grpc { tls_cert_file, tls_key_file, .. } = &config.grpc;
    listener_tls(config, tls::Listener::Grpc, tls_cert_file.as_deref(), tls_key_file.as_deref(), &[b"h2"])
}

fn listener_tls(
    config: &Config,
    listener: tls::Listener,
    cert: Option<&Path>,
    key: Option<&Path>,
    alpn: &[&[u8]],
) -> Result<Option<tls::Acceptor>, config::Error> {
    let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
    let files = tls::Files { cert: cert.to_owned(), key: key.to_owned() };
    tls::Acceptor::load(listener, files, alpn).map(Some).map_err(|error| {
        let file = match error.part {
            tls::Part::Certificate => "tls_cert_file",
            tls::Part::Key => "tls_key_file",
        };
        config.wrong(&format!("{}.{file}", listener.as_str()), error.to_string())
    })
}
