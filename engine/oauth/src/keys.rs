//! Private keys that sign: those of clients (assertions, from PEM text) and those of our own authorization
//! server (made here, kept as PEM text, which the caller seals). One place knows PEM, key types and which
//! algorithm fits which key.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::Value;
use zeroize::Zeroizing;

pub use jsonwebtoken::{Algorithm, AlgorithmFamily};

/// The algorithms that keys of ours sign with, by the names of RFC 7518.
const SIGNING: [(&str, Algorithm); 8] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
];

/// The asymmetric algorithm of this name; `none` and the HMAC family have none here.
pub fn algorithm(name: &str) -> Option<Algorithm> {
    SIGNING.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
}

/// The name of an asymmetric algorithm.
pub fn algorithm_name(algorithm: Algorithm) -> &'static str {
    SIGNING.iter().find(|(_, known)| *known == algorithm).map_or("?", |(name, _)| name)
}

/// All names that [`algorithm`] knows.
pub fn algorithm_names() -> impl Iterator<Item = &'static str> {
    SIGNING.iter().map(|(name, _)| *name)
}

/// Why a key cannot be used. Never shows the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No such block in the text.
    #[error("there is no PEM private key in it")]
    NoKey,
    /// Septet has no way to ask for its passphrase.
    #[error("the private key is encrypted; store it decrypted in a file only Septet can read")]
    Encrypted,
    /// The block is damaged or of a kind that signs no tokens.
    #[error("the private key is neither an RSA key of 2048 to 8192 bits nor an EC key on P-256 or P-384")]
    Unsupported,
    /// A key of one kind, an algorithm of another.
    #[error("the algorithm {0} does not fit the key")]
    Mismatch(&'static str),
    /// The cipher library refused.
    #[error("the key could not be made or used")]
    Cipher,
}

/// A private key with the algorithm it signs with. `Debug` shows algorithm and key id.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    key_id: String,
    key: EncodingKey,
    pem: Zeroizing<String>,
    public: Jwk,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({} {})", algorithm_name(self.algorithm), self.key_id)
    }
}

impl SigningKey {
    /// A new key: RSA with 2048 bits, or EC on the curve that the algorithm asks for. Takes a moment.
    pub fn generate(algorithm: Algorithm) -> Result<Self, KeyError> {
        let der = match algorithm {
            Algorithm::ES256 => generate_ec(&ECDSA_P256_SHA256_FIXED_SIGNING)?,
            Algorithm::ES384 => generate_ec(&ECDSA_P384_SHA384_FIXED_SIGNING)?,
            _ if algorithm.family() == AlgorithmFamily::Rsa => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Cipher)?;
                let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Cipher)?;
                Zeroizing::new(der.as_ref().to_vec())
            }
            _ => return Err(KeyError::Mismatch(algorithm_name(algorithm))),
        };
        SigningKey::from_pem(&pem("PRIVATE KEY", &der), Some(algorithm))
    }

    /// A key from PEM text: PKCS#8, PKCS#1 (RSA) or SEC 1 (EC). Without an algorithm RSA signs RS256 and EC
    /// what belongs to its curve.
    pub fn from_pem(text: &str, wanted: Option<Algorithm>) -> Result<Self, KeyError> {
        let (label, der) = private_block(text)?;
        let (key, natural, pem) = match label {
            "RSA PRIVATE KEY" => rsa(RsaKeyPair::from_der(&der).map_err(|_| KeyError::Unsupported)?)?,
            "EC PRIVATE KEY" => ec(|alg| EcdsaKeyPair::from_private_key_der(alg, &der).ok())?,
            _ => match RsaKeyPair::from_pkcs8(&der) {
                Ok(pair) => rsa(pair)?,
                Err(_) => ec(|alg| EcdsaKeyPair::from_pkcs8(alg, &der).ok())?,
            },
        };
        let algorithm = wanted.unwrap_or(natural);
        let fits = match natural {
            Algorithm::RS256 => algorithm.family() == AlgorithmFamily::Rsa,
            other => algorithm == other,
        };
        if !fits {
            return Err(KeyError::Mismatch(algorithm_name(algorithm)));
        }
        let mut public = Jwk::from_encoding_key(&key, algorithm).map_err(|_| KeyError::Unsupported)?;
        let key_id = public.thumbprint(ThumbprintHash::SHA256).map_err(|_| KeyError::Cipher)?;
        public.common.key_id = Some(key_id.clone());
        public.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
        Ok(SigningKey { algorithm, key_id, key, pem, public })
    }

    /// What it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The thumbprint of its public half (RFC 7638).
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The private key as PKCS#8 PEM text, for keeping (sealed).
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The public half as a JWK (RFC 7517) with `kid`, `alg` and `use`.
    pub fn public(&self) -> Value {
        serde_json::to_value(&self.public).unwrap_or_default()
    }

    /// A signed JWT of this type (`typ`), naming this key.
    pub fn sign(&self, typ: &str, claims: &Value) -> Result<String, KeyError> {
        let mut header = Header::new(self.algorithm);
        header.typ = Some(typ.to_owned());
        self.sign_with(header, claims)
    }

    /// The same with a header of the caller's. Its algorithm is set here; a `kid` is added where it has none.
    pub fn sign_with(&self, mut header: Header, claims: &Value) -> Result<String, KeyError> {
        header.alg = self.algorithm;
        header.kid.get_or_insert_with(|| self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|_| KeyError::Cipher)
    }
}

fn generate_ec(curve: &'static EcdsaSigningAlgorithm) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let pair = EcdsaKeyPair::generate(curve).map_err(|_| KeyError::Cipher)?;
    let der = pair.to_pkcs8v1().map_err(|_| KeyError::Cipher)?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

type Parsed = (EncodingKey, Algorithm, Zeroizing<String>);

fn rsa(pair: RsaKeyPair) -> Result<Parsed, KeyError> {
    if pair.public_modulus_len() < 256 {
        return Err(KeyError::Unsupported);
    }
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Cipher)?;
    let text = pem("PRIVATE KEY", der.as_ref());
    let key = EncodingKey::from_rsa_pem(text.as_bytes()).map_err(|_| KeyError::Unsupported)?;
    Ok((key, Algorithm::RS256, text))
}

fn ec(open: impl Fn(&'static EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>) -> Result<Parsed, KeyError> {
    let curves = [
        (&ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::ES256),
        (&ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::ES384),
    ];
    let found = curves.into_iter().find_map(|(curve, algorithm)| Some((open(curve)?, algorithm)));
    let (pair, algorithm) = found.ok_or(KeyError::Unsupported)?;
    let der = pair.to_pkcs8v1().map_err(|_| KeyError::Cipher)?;
    Ok((EncodingKey::from_ec_der(der.as_ref()), algorithm, pem("PRIVATE KEY", der.as_ref())))
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    let encoded = Zeroizing::new(STANDARD.encode(der));
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The DER of the first block of this label in PEM text (RFC 7468), for certificates too.
pub(crate) fn pem_block(text: &str, wanted: impl Fn(&str) -> bool) -> Option<(&str, Zeroizing<Vec<u8>>)> {
    let mut rest = text;
    loop {
        let (_, after) = rest.split_once("-----BEGIN ")?;
        let (label, after) = after.split_once("-----")?;
        let (encoded, after) = after.split_once("-----END ")?;
        if wanted(label) {
            let packed = Zeroizing::new(encoded.split_whitespace().collect::<String>());
            return Some((label, Zeroizing::new(STANDARD.decode(packed.as_bytes()).ok()?)));
        }
        rest = after;
    }
}

fn private_block(text: &str) -> Result<(&str, Zeroizing<Vec<u8>>), KeyError> {
    let encrypted = text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED");
    if encrypted {
        return Err(KeyError::Encrypted);
    }
    let known = |label: &str| matches!(label, "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY");
    pem_block(text, known).ok_or(KeyError::NoKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_of_every_kind_comes_back_from_its_pem_text_and_keeps_its_id() {
        for name in ["RS256", "RS512", "PS256", "ES256", "ES384"] {
            let key = SigningKey::generate(algorithm(name).unwrap()).unwrap();
            let again = SigningKey::from_pem(key.pem(), algorithm(name)).unwrap();
            assert_eq!(key.key_id(), again.key_id());
            assert_eq!(key.public().get("alg").unwrap(), name);
            assert_eq!(key.public(), again.public());
            assert!(key.public().get("d").is_none(), "the private half must not be shown");
            assert!(!format!("{key:?}").contains("PRIVATE"));
        }
    }

    #[test]
    fn a_key_that_cannot_sign_says_why() {
        let reason = |text: &str, alg: &str| SigningKey::from_pem(text, algorithm(alg)).unwrap_err();
        assert_eq!(reason("", "RS256"), KeyError::NoKey);
        assert_eq!(reason("-----BEGIN ENCRYPTED PRIVATE KEY-----", "RS256"), KeyError::Encrypted);
        let damaged = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----";
        assert_eq!(reason(damaged, "RS256"), KeyError::Unsupported);
        let ec = SigningKey::generate(Algorithm::ES256).unwrap();
        assert_eq!(reason(ec.pem(), "RS256"), KeyError::Mismatch("RS256"));
        assert_eq!(reason(ec.pem(), "ES384"), KeyError::Mismatch("ES384"));
    }
}
