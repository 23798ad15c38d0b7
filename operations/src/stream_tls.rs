//! TLS over a TCP stream, from the client's side: for protocols that are not HTTP.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use septet_engine::client_tls::{self, Stamp};
use septet_engine::config::settings::ClientTls;
use septet_engine::config::units::HostPort;
use septet_engine::host::{HostFault, OperationError};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Makes TLS connections; reads its files again when they have changed.
pub(crate) struct Tls {
    settings: ClientTls,
    stamp: Stamp,
    connector: TlsConnector,
}

impl Tls {
    /// Fails where a file is missing or broken.
    pub(crate) fn new(settings: ClientTls) -> Result<Self, HostFault> {
        let stamp = Stamp::of(Some(&settings));
        let connector = TlsConnector::from(Arc::new(client_tls::config(&settings)?));
        Ok(Tls { settings, stamp, connector })
    }

    /// A TLS connection over `stream`, whose other end is `peer`.
    pub(crate) async fn connect(
        &mut self,
        peer: &HostPort,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, OperationError> {
        let fault =
            |text: String| OperationError::fault("tls", format!("no TLS connection with {peer}: {text}"));
        let now = Stamp::of(Some(&self.settings));
        if now != self.stamp {
            let config = client_tls::config(&self.settings).map_err(|error| fault(error.text))?;
            self.connector = TlsConnector::from(Arc::new(config));
            self.stamp = now;
        }
        let name = ServerName::try_from(peer.host.clone()).map_err(|error| fault(error.to_string()))?;
        self.connector.connect(name, stream).await.map_err(|error| fault(error.to_string()))
    }
}
