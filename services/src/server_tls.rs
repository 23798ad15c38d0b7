//! `tls = { cert, key, client_ca }` of a listener (CONTRACT §2.6). With `client_ca` a client must present a
//! certificate that one of these authorities signed.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use septet_engine::config::settings::ServerTls;
use septet_engine::host::HostFault;
use tokio_rustls::TlsAcceptor;

/// What makes TLS connections of accepted ones. Fails where a file is missing or broken.
pub(crate) fn acceptor(tls: &ServerTls) -> Result<TlsAcceptor, HostFault> {
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
    let mut config = config.with_single_cert(chain, key).map_err(|_| {
        let text = format!("{} and {} do not belong together", tls.cert.display(), tls.key.display());
        HostFault::new("certificate", text)
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
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
