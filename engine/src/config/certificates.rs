//! What `check` says about the files of a `tls` table: a certificate that has expired or a key of another one
//! would be found out by every peer at the first handshake, and by nobody before.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::diagnostic::Severity;

/// Within this time a certificate is worth a warning.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What is wrong: how bad, a code, and words.
pub(crate) type Finding = (Severity, &'static str, String);

/// Looks into a file of this schema format; files that cannot be read are somebody else's finding.
pub(crate) fn look(format: &str, path: &Path, now: Timestamp) -> Option<Finding> {
    let pem = std::fs::read(path).ok()?;
    let none = |what: &str| {
        let text = format!("{} holds no {what} in PEM form", path.display());
        Some((Severity::Error, "S0621", text))
    };
    match format {
        "septet-key" if PrivateKeyDer::from_pem_slice(&pem).is_err() => none("private key"),
        "septet-authorities" if first(&pem).is_none() => none("certificate"),
        "septet-certificate" => match first(&pem) {
            None => none("certificate"),
            Some(certificate) => dates(path, &certificate, now),
        },
        _ => None,
    }
}

fn first(pem: &[u8]) -> Option<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).next()?.ok()
}

fn dates(path: &Path, certificate: &CertificateDer<'_>, now: Timestamp) -> Option<Finding> {
    let path = path.display();
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Some((Severity::Error, "S0621", format!("{path} holds no certificate that can be read")));
    };
    let validity = parsed.validity();
    let until = Timestamp::from_second(validity.not_after.timestamp()).ok()?;
    let from = Timestamp::from_second(validity.not_before.timestamp()).ok()?;
    if until < now {
        return Some((Severity::Error, "S0621", format!("the certificate of {path} expired at {until}")));
    }
    if from > now {
        return Some((Severity::Error, "S0621", format!("the certificate of {path} is valid from {from}")));
    }
    let soon = until.duration_since(now) < SOON;
    soon.then(|| (Severity::Warning, "S0622", format!("the certificate of {path} expires at {until}")))
}

/// Whether key and certificate are known not to belong together.
pub(crate) fn strangers(cert: &Path, key: &Path) -> bool {
    let (Ok(cert), Ok(key)) = (std::fs::read(cert), std::fs::read(key)) else { return false };
    let (Some(certificate), Ok(key)) = (first(&cert), PrivateKeyDer::from_pem_slice(&key)) else {
        return false;
    };
    let pair = CertifiedKey::from_der(vec![certificate], key, &default_provider());
    matches!(pair, Err(rustls::Error::InconsistentKeys(_)))
}
