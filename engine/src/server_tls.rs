//! `tls = { cert, key, client_ca }` of a listener (CONTRACT §2.6), for every listener there is. With `client_ca`
//! a client must present a certificate that one of these authorities signed. [`Reloading`] follows changes of
//! the files.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ::aws_lc_rs::digest::{SHA256, digest};

use crate::config::settings::ServerTls;
use crate::host::HostFault;
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;

fn config(tls: &ServerTls) -> Result<ServerConfig, HostFault> {
    let chain = certificates(&tls.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?).map_err(|_| broken(&tls.key, "private key"))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.map_err(|_| HostFault::new("certificate", "TLS cannot be set up"))?;
    let config = match &tls.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|_| broken(path, "certificate"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            config.with_client_cert_verifier(verifier.map_err(|_| broken(path, "certificate"))?)
        }
    };
    config.with_single_cert(chain, key).map_err(|_| {
        let text = format!("{} and {} do not belong together", tls.cert.display(), tls.key.display());
        HostFault::new("certificate", text)
    })
}

/// The certificate that a client showed and an authority of `client_ca` signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of its DER form: the thumbprint that tokens are bound to (RFC 8705 §3.1).
    pub sha256: [u8; 32],
}

impl ClientCertificate {
    /// Of a connection whose handshake is over.
    pub fn of(connection: &ServerConnection) -> Option<Self> {
        let certificate = connection.peer_certificates()?.first()?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Some(ClientCertificate { sha256 })
    }
}

/// Whether the listener's certificate is for this host (a name, or an address without brackets): clients that look
/// for it there refuse it otherwise.
pub fn is_for(tls: &ServerTls, host: &str) -> Result<bool, HostFault> {
    let chain = certificates(&tls.cert)?;
    let certificate = chain.first().and_then(|first| ParsedCertificate::try_from(first).ok());
    let (Some(certificate), Ok(name)) = (certificate, ServerName::try_from(host)) else { return Ok(false) };
    Ok(verify_server_name(&certificate, &name).is_ok())
}

/// An acceptor (without ALPN) that reads its files again when they have changed: a certificate is renewed
/// without a restart.
pub struct Reloading {
    tls: ServerTls,
    current: Mutex<(Stamps, TlsAcceptor)>,
}

/// Time and length of each file.
type Stamps = Vec<Option<(SystemTime, u64)>>;

impl Reloading {
    /// Fails where a file is missing or broken.
    pub fn new(tls: ServerTls) -> Result<Self, HostFault> {
        let stamps = stamps(&tls);
        let acceptor = TlsAcceptor::from(Arc::new(config(&tls)?));
        Ok(Reloading { tls, current: Mutex::new((stamps, acceptor)) })
    }

    /// The acceptor for the next connection; with it what is wrong with files that changed just now, in which
    /// case it is the one from before.
    pub fn acceptor(&self) -> (TlsAcceptor, Option<HostFault>) {
        let now = stamps(&self.tls);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fault = None;
        if current.0 != now {
            current.0 = now;
            match config(&self.tls) {
                Ok(config) => current.1 = TlsAcceptor::from(Arc::new(config)),
                Err(error) => fault = Some(error),
            }
        }
        (current.1.clone(), fault)
    }
}

impl std::fmt::Debug for Reloading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reloading").field(&self.tls).finish()
    }
}

fn stamps(tls: &ServerTls) -> Stamps {
    let stamp = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    [Some(&tls.cert), Some(&tls.key), tls.client_ca.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| stamp(path))
        .collect()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HostFault> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| broken(path, "certificate"))
}

fn read(path: &Path) -> Result<Vec<u8>, HostFault> {
    std::fs::read(path).map_err(|error| {
        HostFault::new("certificate", format!("cannot read {}: {}", path.display(), error.kind()))
    })
}

fn broken(path: &Path, what: &str) -> HostFault {
    HostFault::new("certificate", format!("{} holds no usable {what} in PEM form", path.display()))
}
