//! Whom the operation trusts, whom it shows a certificate, and files that change.

use axum::Router;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::TcpListener;

use super::*;

/// A file of the tests' own certificates.
fn pem(name: &str) -> std::path::PathBuf {
    format!("{}/../tests/tls/{name}", env!("CARGO_MANIFEST_DIR")).into()
}

/// Accepts TLS connections for axum; what fails its handshake is dropped.
struct Secure(TcpListener, tokio_rustls::TlsAcceptor);

impl axum::serve::Listener for Secure {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, peer) = self.0.accept().await.unwrap();
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// A vendor with the certificate `name`; with `ask`, clients must have one, too.
async fn secure_vendor(name: &str, ask: bool) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_file(pem(&format!("{name}.pem"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pem(&format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem("ca.pem")).unwrap()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = match ask {
        true => config.unwrap().with_client_cert_verifier(verifier.unwrap()),
        false => config.unwrap().with_no_client_auth(),
    };
    let config = config.with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let router = Router::new().fallback(|| async { "thanks" });
    let secure = Secure(listener, tokio_rustls::TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(async move { axum::serve(secure, router).await });
    url
}

/// The reply code, or the code of the fault.
async fn over_tls(url: &str, tls: ClientTls) -> String {
    let runtime = engine(Tokens::default());
    let mut operation = Setup { tls: Some(tls), ..PLAIN }.operation("Submit", url).await;
    let cx = delivery(1, submit(&runtime, json!({ "accession": "A1" })), &runtime);
    match operation.on_message(&cx).await {
        Ok(Outcome::Replied { code, .. }) => code,
        Ok(Outcome::Sent) => "sent".to_owned(),
        Err(error) => error.fault.code,
    }
}

#[tokio::test]
async fn a_peer_must_be_signed_by_a_trusted_authority_and_have_the_right_name() {
    let ca = || ClientTls { ca: Some(pem("ca.pem")), ..ClientTls::default() };
    let server = secure_vendor("server", false).await;
    assert_eq!(over_tls(&server, ca()).await, "200");
    assert_eq!(over_tls(&server, ClientTls::default()).await, "tls");
    let renamed = secure_vendor("renamed", false).await;
    assert_eq!(over_tls(&renamed, ca()).await, "tls");
    let named = ClientTls { server_name: Some("vendor.example".into()), ..ca() };
    assert_eq!(over_tls(&renamed, named.clone()).await, "200");
    assert_eq!(over_tls(&server, named).await, "tls");
}

#[tokio::test]
async fn a_pin_accepts_exactly_one_certificate() {
    let der = rustls::pki_types::CertificateDer::from_pem_file(pem("renamed.pem")).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let pin = || ClientTls { pin: Some(format!("sha256:{hex}")), ..ClientTls::default() };
    assert_eq!(over_tls(&secure_vendor("renamed", false).await, pin()).await, "200");
    assert_eq!(over_tls(&secure_vendor("server", false).await, pin()).await, "tls");
}

#[tokio::test]
async fn trust_that_changes_on_disk_is_taken_up_between_messages() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::copy(pem("client.pem"), &ca).unwrap();
    let url = secure_vendor("server", false).await;
    let runtime = engine(Tokens::default());
    let tls = Some(ClientTls { ca: Some(ca.clone()), ..ClientTls::default() });
    let mut operation = Setup { tls, ..PLAIN }.operation("Submit", &url).await;
    let cx = delivery(1, submit(&runtime, json!({ "accession": "A1" })), &runtime);
    assert_eq!(operation.on_message(&cx).await.unwrap_err().fault.code, "tls");
    std::fs::copy(pem("ca.pem"), &ca).unwrap();
    let taken_up = operation.on_message(&cx).await;
    assert!(taken_up.is_ok(), "{taken_up:?}");
    std::fs::write(&ca, "broken").unwrap();
    assert!(operation.on_message(&cx).await.is_ok(), "what cannot be used changes nothing");
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let url = secure_vendor("server", true).await;
    let ca = || ClientTls { ca: Some(pem("ca.pem")), ..ClientTls::default() };
    assert_ne!(over_tls(&url, ca()).await, "200");
    let client = || ClientTls { cert: Some(pem("client.pem")), key: Some(pem("client.key")), ..ca() };
    assert_eq!(over_tls(&url, client()).await, "200");
    let named = ClientTls { server_name: Some("localhost".into()), ..client() };
    assert_eq!(over_tls(&url, named).await, "200");
}
