//! The admin listener, with TLS where `[admin]` says so. Handshakes run beside each other: a client that
//! begins one and goes silent holds up nobody.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use septet_engine::config::settings::Admin;
use septet_engine::server_tls::{ClientCertificate, Reloading};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// On loopback, or behind a proxy that ends TLS.
    Plain(TcpListener),
    /// With TLS of its own.
    Tls(Tls),
}

/// Connections that have been through their handshake.
pub struct Tls {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.address)
    }
}

/// Who is at the other end of a TLS connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// What the client has shown.
    pub(crate) certificate: Option<ClientCertificate>,
}

impl Connected<IncomingStream<'_, Tls>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Tls>) -> Self {
        Peer { certificate: ClientCertificate::of(stream.io().get_ref().1) }
    }
}

/// Binds what `[admin]` asks for; the error says what stands in the way.
pub async fn bind(settings: &Admin) -> Result<Listener, String> {
    let tls = settings.tls.clone().map(Reloading::new).transpose().map_err(|fault| fault.text)?;
    let tcp = TcpListener::bind(settings.listen).await;
    let tcp = tcp.map_err(|error| format!("cannot listen on {}: {error}", settings.listen))?;
    let Some(tls) = tls else { return Ok(Listener::Plain(tcp)) };
    let (sender, ready) = mpsc::channel(16);
    let address = tcp.local_addr().unwrap_or(settings.listen);
    tokio::spawn(accept(tcp, tls, sender));
    Ok(Listener::Tls(Tls { address, ready }))
}

/// Accepts until the server that takes the connections is gone.
async fn accept(tcp: TcpListener, tls: Reloading, sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    loop {
        let accepted = tokio::select! {
            accepted = tcp.accept() => accepted,
            () = sender.closed() => return,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors, most likely: a pause lets some go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, trouble) = tls.acceptor();
        if let Some(trouble) = trouble {
            tracing::error!("the admin API keeps its certificate: {trouble}");
        }
        let sender = sender.clone();
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                // A server that is gone takes no connections.
                let _ = sender.send((stream, peer)).await;
            }
        });
    }
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
