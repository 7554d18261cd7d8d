//! A key that tokens are verified with, bound to the one algorithm it is for, and what it is read from: a secret, a
//! PEM file, a JWK. What is read here can be used: nothing is left to fail, or to panic, when a token comes.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    DecodingKey,
    crypto::verify,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use x509_parser::{
    certificate::X509Certificate,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519},
    pem::Pem,
    prelude::FromDer as _,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

/// RFC 7518, section 3.3 asks for at least so many bits.
const RSA_BITS_MIN: usize = 2048;
/// The library verifies with none that is longer; each bit costs time that anybody who connects makes us spend.
const RSA_BITS_MAX: usize = 4096;
/// HS256 is as strong as its secret: RFC 7518, section 3.2 asks for at least the hash's size.
const SECRET_BYTES_MIN: usize = 32;
const ED25519_BYTES: usize = 32;

/// A signature algorithm of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// All of them, in the order of their variants.
    pub(super) const ALL: [Self; 4] = [Self::Hs256, Self::Rs256, Self::Es256, Self::EdDsa];

    /// As it stands in a token's header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The library's name for it.
    pub(super) fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }

    /// Whether tokens are verified with what everybody may know.
    pub(super) fn is_asymmetric(self) -> bool {
        self != Self::Hs256
    }
}

/// Why something holds no key that can be used. Each is the rest of a sentence that begins with what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// A secret that could be guessed.
    #[error("holds a secret that is too short; expected at least {SECRET_BYTES_MIN} bytes")]
    Short,
    /// Public keys are known to everybody: as a secret one would let everybody sign.
    #[error("is a PEM file; expected a secret")]
    NoSecret,
    /// There is nothing in it.
    #[error("holds no PEM block with a public key or certificate")]
    Nothing,
    /// It begins like PEM and does not go on so.
    #[error("is not PEM")]
    Pem,
    /// It has no place on a machine that only verifies.
    #[error("holds a private key; expected the public one")]
    Private,
    /// A PEM block of another kind.
    #[error("holds a PEM block that is neither a PUBLIC KEY nor a CERTIFICATE")]
    Block,
    /// The DER in a block is broken, or the numbers in it are no key.
    #[error("holds a public key or certificate that cannot be read")]
    Broken,
    /// No algorithm here is for such a key.
    #[error("holds a key of a kind that is not supported; expected RSA, EC on P-256, or Ed25519")]
    Unsupported,
    /// Too weak, or too much work.
    #[error("holds an RSA key of {0} bits; expected {RSA_BITS_MIN} to {RSA_BITS_MAX}")]
    RsaBits(usize),
}

/// A key that tokens are verified with.
#[derive(Clone)]
pub(super) struct Key {
    /// The one algorithm that it is for.
    pub(super) algorithm: Algorithm,
    /// The issuer's name for it (`kid`).
    pub(super) id: Option<String>,
    /// When its certificate ends, in seconds since 1970. Not enforced: whoever configured it trusts the key.
    pub(super) expires_at: Option<i64>,
    /// What the library verifies with.
    pub(super) decoding: DecodingKey,
}

impl Key {
    /// The key of HS256. How long it has to be is said where it is configured.
    pub(super) fn secret(secret: &[u8]) -> Self {
        Self { algorithm: Algorithm::Hs256, id: None, expires_at: None, decoding: DecodingKey::from_secret(secret) }
    }

    /// The key of HS256, from a file that may end with the line end that editors leave.
    pub(super) fn from_secret_file(content: &[u8]) -> Result<Self, InvalidKey> {
        let line = content.strip_suffix(b"\n").map_or(content, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if line.starts_with(b"-----BEGIN ") {
            return Err(InvalidKey::NoSecret);
        }
        if line.len() < SECRET_BYTES_MIN { Err(InvalidKey::Short) } else { Ok(Self::secret(line)) }
    }

    /// The public keys in a PEM file: all of them.
    pub(super) fn from_pem(content: &[u8]) -> Result<Vec<Self>, InvalidKey> {
        let mut keys = Vec::new();
        for block in Pem::iter_from_buffer(content) {
            let block = block.map_err(|_| InvalidKey::Pem)?;
            keys.push(match block.label.as_str() {
                "PUBLIC KEY" => {
                    let (_, info) = SubjectPublicKeyInfo::from_der(&block.contents).map_err(|_| InvalidKey::Broken)?;
                    Self::public(&info)?
                }
                "CERTIFICATE" => {
                    let (_, certificate) =
                        X509Certificate::from_der(&block.contents).map_err(|_| InvalidKey::Broken)?;
                    let expires_at = Some(certificate.validity().not_after.timestamp());
                    Self { expires_at, ..Self::public(certificate.public_key())? }
                }
                label if label.ends_with("PRIVATE KEY") => return Err(InvalidKey::Private),
                _ => return Err(InvalidKey::Block),
            });
        }
        if keys.is_empty() { Err(InvalidKey::Nothing) } else { Ok(keys) }
    }

    fn public(info: &SubjectPublicKeyInfo) -> Result<Self, InvalidKey> {
        let kind = &info.algorithm.algorithm;
        let bytes = &*info.subject_public_key.data;
        if *kind == OID_PKCS1_RSAENCRYPTION {
            let Ok(PublicKey::RSA(key)) = info.parsed() else { return Err(InvalidKey::Broken) };
            Self::rsa(key.modulus, key.exponent)
        } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            if curve != Some(OID_EC_P256) {
                return Err(InvalidKey::Unsupported);
            }
            Self::checked(Algorithm::Es256, DecodingKey::from_ec_der(bytes))
        } else if *kind == OID_SIG_ED25519 {
            Self::ed25519(bytes)
        } else {
            Err(InvalidKey::Unsupported)
        }
    }

    /// A key of the issuer's set.
    pub(super) fn from_jwk(jwk: &Jwk) -> Result<Self, InvalidKey> {
        let common = &jwk.common;
        let may_verify = common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !may_verify || common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return Err(InvalidKey::Unsupported);
        }
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| InvalidKey::Broken);
        let key = match &jwk.algorithm {
            AlgorithmParameters::RSA(key) => Self::rsa(&bytes(&key.n)?, &bytes(&key.e)?)?,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                let point = [&[4], &*bytes(&key.x)?, &*bytes(&key.y)?].concat();
                Self::checked(Algorithm::Es256, DecodingKey::from_ec_der(&point))?
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                Self::ed25519(&bytes(&key.x)?)?
            }
            // A shared secret has no place in a public set: whoever read it there could sign.
            _ => return Err(InvalidKey::Unsupported),
        };
        match common.key_algorithm {
            Some(named) if named != key.algorithm.library().into() => Err(InvalidKey::Unsupported),
            _ => Ok(Self { id: common.key_id.clone(), ..key }),
        }
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, InvalidKey> {
        let [modulus, exponent] =
            [modulus, exponent].map(|number| &number[number.iter().take_while(|byte| **byte == 0).count()..]);
        let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(InvalidKey::RsaBits(bits));
        }
        // Odd and from 3 to 2³²: what every issuer uses is 65537.
        let is_sound = matches!(exponent, [.., last] if exponent.len() <= 4 && last % 2 == 1) && exponent != [1];
        if !is_sound {
            return Err(InvalidKey::Broken);
        }
        Self::checked(Algorithm::Rs256, DecodingKey::from_rsa_raw_components(modulus, exponent))
    }

    fn ed25519(bytes: &[u8]) -> Result<Self, InvalidKey> {
        // The library takes the first 32 bytes, and panics when there are fewer.
        if bytes.len() != ED25519_BYTES {
            return Err(InvalidKey::Broken);
        }
        Self::checked(Algorithm::EdDsa, DecodingKey::from_ed_der(bytes))
    }

    /// Has the library look at the numbers: a point has to be on its curve.
    fn checked(algorithm: Algorithm, decoding: DecodingKey) -> Result<Self, InvalidKey> {
        verify("", &[], &decoding, algorithm.library()).map_err(|_| InvalidKey::Broken)?;
        Ok(Self { algorithm, id: None, expires_at: None, decoding })
    }
}

#[cfg(test)]
mod tests;
