//! The `tls` table of clients (CONTRACT §2.6), for every client there is, of operations and of OAuth: trusted
//! authorities, a client certificate, another name to verify, or exactly one certificate to accept.
//! Verification cannot be switched off: a pin replaces the chain and the name by something stricter, and the
//! handshake's signature is verified in every case. The files are read again when they change ([`Stamp`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::config::settings::ClientTls;
use crate::host::HostFault;

/// Time and size of each file of a `tls` table: differs once a file was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<(SystemTime, u64)>>);

impl Stamp {
    /// As the files are now.
    pub fn of(tls: Option<&ClientTls>) -> Stamp {
        let of = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        let files = tls.into_iter().flat_map(|tls| [&tls.ca, &tls.cert, &tls.key].into_iter().flatten());
        Stamp(files.map(of).collect())
    }
}

/// The digest that `sha256:…` names.
pub fn pin_digest(pin: &str) -> Option<[u8; 32]> {
    let hex: String = pin.strip_prefix("sha256:")?.chars().filter(|c| *c != ':').collect();
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// The trust that `tls` describes, for connections that speak HTTP: they offer HTTP/2.
pub fn http_config(tls: &ClientTls) -> Result<ClientConfig, HostFault> {
    let mut config = config(tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The trust that `tls` describes. Fails where a file is missing or broken.
pub fn config(tls: &ClientTls) -> Result<ClientConfig, HostFault> {
    let provider = Arc::new(provider::default_provider());
    let wrong = |_| HostFault::new("tls", "these TLS settings do not fit together");
    let verifier: Arc<dyn ServerCertVerifier> = match (&tls.pin, &tls.server_name, &tls.ca) {
        (Some(pin), ..) => {
            let digest =
                pin_digest(pin).ok_or_else(|| HostFault::new("tls", "the pin names no certificate"))?;
            Arc::new(Judge { accepts: Accepts::Pinned(digest), provider: provider.clone() })
        }
        (None, name, ca) => {
            let inner: Arc<dyn ServerCertVerifier> = match ca {
                Some(ca) => authorities(ca, &provider)?,
                None => system(&provider)?,
            };
            match name {
                None => inner,
                Some(name) => {
                    let name = ServerName::try_from(name.clone());
                    let name = name.map_err(|_| HostFault::new("tls", "server_name is no host name"))?;
                    Arc::new(Judge { accepts: Accepts::Renamed(name, inner), provider: provider.clone() })
                }
            }
        }
    };
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(wrong)?.dangerous().with_custom_certificate_verifier(verifier);
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let private =
                PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| broken(key, "a private key"))?;
            config.with_client_auth_cert(chain, private).map_err(wrong)
        }
        _ => Ok(config.with_no_client_auth()),
    }
}

fn system(provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, HostFault> {
    let verifier = rustls_platform_verifier::Verifier::new(provider.clone());
    let none = |_| HostFault::new("certificate", "the system has no certificate authorities to trust");
    Ok(Arc::new(verifier.map_err(none)?))
}

fn authorities(ca: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, HostFault> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(ca)? {
        roots.add(cert).map_err(|_| broken(ca, "certificates"))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    verifier.map_err(|_| broken(ca, "certificates"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HostFault> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| broken(path, "certificates"))
}

fn read(path: &Path) -> Result<Vec<u8>, HostFault> {
    std::fs::read(path).map_err(|error| {
        HostFault::new("certificate", format!("cannot read {}: {}", path.display(), error.kind()))
    })
}

fn broken(path: &Path, what: &str) -> HostFault {
    HostFault::new("certificate", format!("{} holds no {what} in PEM form", path.display()))
}

/// Judges the server's certificate as the settings say; the handshake's signature is verified as ever.
#[derive(Debug)]
struct Judge {
    accepts: Accepts,
    provider: Arc<CryptoProvider>,
}

/// Which certificate is accepted.
#[derive(Debug)]
enum Accepts {
    /// Exactly the one with this digest, whatever its name and dates.
    Pinned([u8; 32]),
    /// What this verifier accepts for another name than that of the host connected to.
    Renamed(ServerName<'static>, Arc<dyn ServerCertVerifier>),
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.accepts {
            Accepts::Renamed(name, inner) => {
                inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
            }
            Accepts::Pinned(pin) if digest::digest(&digest::SHA256, end_entity).as_ref() == pin => {
                Ok(ServerCertVerified::assertion())
            }
            Accepts::Pinned(_) => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_a_sha256_in_hex_with_or_without_colons() {
        let plain = format!("sha256:{}", "ab".repeat(32));
        let colons = format!("sha256:{}", vec!["AB"; 32].join(":"));
        assert_eq!(pin_digest(&plain), Some([0xab; 32]));
        assert_eq!(pin_digest(&colons), Some([0xab; 32]));
        for wrong in ["sha256:ab", "sha1:abab", &format!("sha256:{}", "zz".repeat(32))] {
            assert_eq!(pin_digest(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none.pem");
        let tls = ClientTls { ca: Some(missing.clone()), ..ClientTls::default() };
        let fault = config(&tls).err().unwrap();
        assert!(fault.text.contains("none.pem"), "{fault}");
        std::fs::write(&missing, "no certificate").unwrap();
        let fault = config(&tls).err().unwrap();
        assert!(fault.text.contains("holds no certificates"), "{fault}");
    }
}
