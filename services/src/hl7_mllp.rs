//! `type = "hl7.mllp"`: receives HL7 messages over MLLP and answers each in order (CONTRACT §2.1).
//!
//! This file has the settings and the listener; a connection's life is in `connection`, what is true for
//! every HL7 service in [`crate::hl7_common`]. While the store takes no messages the listener is closed, so
//! that senders see at once that they must wait, and opened again by itself.

mod connection;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use septet_engine::config::build::Build;
use septet_engine::config::settings::ServerTls;
use septet_engine::config::units::{ByteSize, DurationText, Listen, MaybeNever};
use septet_engine::event::{Level, NewEvent};
use septet_engine::host::{BusinessService, HostFault, ServiceContext, ServiceFactory};
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind};
use septet_engine::server_tls::Reloading;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::defaults::{a_day, auto, half_a_minute, max_connections, max_message};
use crate::hl7_common::{
    AckMode, BatchMode, DuplicatePolicy, Policy, Receiver, Validate, WhenUnavailable, Written,
};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "hl7.mllp",
    kind: ItemKind::Service,
    summary: "Receives HL7 messages over MLLP and answers each in order.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// How long a client may take for its part of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections waiting to be accepted.
const BACKLOG: u32 = 1024;
/// Silence after which the system asks whether a peer is still there, and how often.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));

/// Settings of an `hl7.mllp` service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address and port to listen on.
    pub listen: Listen,
    /// When a message is answered: once stored (`immediate`), after the target's reply (`application`), as
    /// MSH-15 and MSH-16 ask (`msh`), or not at all (`never`). Messages whose MSH-9.1 is ACK or MCF are stored
    /// and routed, never answered.
    #[serde(default)]
    pub ack: AckMode,
    /// How long `application` waits for the reply; then the answer is AE, and the message goes on.
    #[serde(default = "half_a_minute")]
    pub reply_timeout: DurationText,
    /// What happens to a message that has been here before: `accept` it as a new one, `answer_again` without
    /// processing it again (the default for `application`), or `refuse` it.
    #[serde(default)]
    pub duplicates: Option<DuplicatePolicy>,
    /// How long a message is remembered; at most the newest 1,000,000 are.
    #[serde(default = "a_day")]
    pub duplicate_window: DurationText,
    /// While the store takes no messages: answer AR once, close and stop accepting until it does (`pause`), or
    /// answer AR each time (`answer`).
    #[serde(default)]
    pub when_unavailable: WhenUnavailable,
    /// What a message must have: a readable MSH (`none`), or also MSH-9 and MSH-10 (`header`).
    #[serde(default)]
    pub validate: Validate,
    /// How the messages of a batch belong together; a batch is answered by one frame.
    #[serde(default)]
    pub batch: BatchMode,
    /// Larger messages are answered AR.
    #[serde(default = "max_message")]
    pub max_message: ByteSize,
    /// Connections beyond this number are closed at once.
    #[serde(default = "max_connections")]
    pub max_connections: u32,
    /// The longest time from the first byte of a frame to its end; then it is stored as rejected, answered AE
    /// where its header is readable, and the connection is closed.
    #[serde(default = "half_a_minute")]
    pub frame_timeout: DurationText,
    /// Connections on which nothing comes for this long are closed.
    #[serde(default)]
    pub idle_timeout: MaybeNever,
    /// The charset of messages whose MSH-18 is empty: a name of HL7 Table 0211, or `auto`: UTF-8 where the bytes
    /// are, else windows-1252.
    #[serde(default = "auto")]
    pub charset: String,
    /// MLLP over TLS: certificate and key of this listener, and the authorities of client certificates where
    /// clients must have one. Read again when the files change.
    #[serde(default)]
    pub tls: Option<ServerTls>,
}

impl Settings {
    fn written(&self) -> Written<'_> {
        Written {
            ack: self.ack,
            reply_timeout: self.reply_timeout,
            duplicates: self.duplicates,
            duplicate_window: self.duplicate_window,
            validate: self.validate,
            batch: self.batch,
            charset: &self.charset,
            max_message: self.max_message,
        }
    }
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let policy = settings.written().check(build);
    for (key, zero) in [
        ("max_message", settings.max_message.get() == 0),
        ("max_connections", settings.max_connections == 0),
        ("frame_timeout", settings.frame_timeout.get().is_zero()),
    ] {
        if zero {
            build.error("S0356", &[key.into()], format!("{key} must be more than zero"), None);
            return None;
        }
    }
    let facts = Facts {
        listens: vec![(settings.listen.get(), None)],
        needs_reply: settings.ack == AckMode::Application,
        urls: vec![format!(
            "{}://{}",
            if settings.tls.is_some() { "mllps" } else { "mllp" },
            settings.listen
        )],
        ..Facts::default()
    };
    let factory = MllpFactory { policy: policy?, settings: Arc::new(settings) };
    Some(Built { factory: Factory::Service(Arc::new(factory)), facts })
}

#[derive(Debug)]
struct MllpFactory {
    settings: Arc<Settings>,
    policy: Policy,
}

impl ServiceFactory for MllpFactory {
    fn create(&self) -> Box<dyn BusinessService> {
        let (settings, policy) = (self.settings.clone(), self.policy.clone());
        Box::new(MllpService { settings, policy, listener: None, tls: None })
    }
}

struct MllpService {
    settings: Arc<Settings>,
    policy: Policy,
    listener: Option<TcpListener>,
    tls: Option<Reloading>,
}

/// What all connections of a service share.
#[derive(Debug)]
struct Shared {
    settings: Arc<Settings>,
    receiver: Receiver,
    tls: Option<Reloading>,
    /// A connection has seen that the store takes no messages.
    pause: Notify,
}

#[async_trait]
impl BusinessService for MllpService {
    async fn bind(&mut self, _cx: &ServiceContext) -> Result<(), HostFault> {
        self.tls = self.settings.tls.clone().map(Reloading::new).transpose()?;
        self.listener = Some(listen(self.settings.listen)?);
        Ok(())
    }

    async fn run(self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        let MllpService { settings, policy, listener, tls } = *self;
        let mut listener = match listener {
            Some(listener) => listener,
            None => listen(settings.listen)?,
        };
        // With port 0 the system has chosen; it must be the same one after a pause.
        let address = listener.local_addr().map(Listen).unwrap_or(settings.listen);
        let receiver = Receiver::new(cx.clone(), policy);
        let shared = Arc::new(Shared { settings, receiver, tls, pause: Notify::new() });
        let mut connections = Connections::default();
        loop {
            tokio::select! {
                () = cx.stop.cancelled() => break,
                Some(ended) = connections.tasks.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        cx.event(NewEvent::new(Level::Error, "item.error", "a connection ended in a panic"));
                    }
                }
                () = shared.pause.notified() => {
                    drop(listener);
                    tokio::select! {
                        () = cx.intake.until_accepting() => listener = listen(address)?,
                        () = cx.stop.cancelled() => {
                            connections.end().await;
                            return Ok(());
                        }
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => connections.add(stream, &shared, &cx),
                    Err(error) => connections.failed(&error, &cx).await,
                },
            }
        }
        drop(listener);
        connections.end().await;
        Ok(())
    }
}

/// The connections of one run.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The limit was reached, and somebody has been told.
    full: bool,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, shared: &Arc<Shared>, cx: &ServiceContext) {
        let limit = shared.settings.max_connections;
        if self.tasks.len() >= limit as usize {
            if !std::mem::replace(&mut self.full, true) {
                let text = format!("more than max_connections ({limit}) connections: new ones are closed");
                cx.event(NewEvent::new(Level::Warning, "item.error", text));
            }
            return;
        }
        self.full = false;
        let (time, interval) = KEEPALIVE;
        let keepalive = socket2::TcpKeepalive::new().with_time(time).with_interval(interval);
        // A system that cannot do either has only the timeouts.
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let _ = stream.set_nodelay(true);
        match &shared.tls {
            None => self.tasks.spawn(connection::serve(stream, shared.clone())),
            Some(tls) => {
                let (acceptor, fault) = tls.acceptor();
                if let Some(fault) = fault {
                    cx.event(NewEvent::new(Level::Error, "item.error", fault.to_string()));
                }
                self.tasks.spawn(shake_hands(stream, acceptor, shared.clone()))
            }
        };
    }

    /// A connection that was gone before it was accepted is nothing; what the system cannot give (file
    /// descriptors) may come back.
    async fn failed(&mut self, error: &io::Error, cx: &ServiceContext) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            cx.event(NewEvent::new(
                Level::Warning,
                "item.error",
                format!("cannot accept connections: {error}"),
            ));
            tokio::select! {
                () = cx.runtime.clock.sleep(Duration::from_secs(1)) => {}
                () = cx.stop.cancelled() => {}
            }
        }
    }

    /// Lets every connection finish the frames it has and answer them.
    async fn end(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// A connection is served once it is a TLS connection; those that never become one are dropped.
async fn shake_hands(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let cx = shared.receiver.context();
    let shaken = tokio::select! {
        shaken = acceptor.accept(stream) => shaken,
        () = cx.runtime.clock.sleep(HANDSHAKE) => return,
        () = cx.stop.cancelled() => return,
    };
    match shaken {
        Ok(stream) => connection::serve(stream, shared).await,
        Err(error) => {
            let text = format!("no TLS connection with a client: {error}");
            cx.event(NewEvent::new(Level::Warning, "item.error", text));
        }
    }
}

fn listen(address: Listen) -> Result<TcpListener, HostFault> {
    let address = address.get();
    let fault = |error: io::Error| {
        let text = match error.kind() {
            io::ErrorKind::AddrInUse => format!("{address} is in use by another program or item"),
            io::ErrorKind::AddrNotAvailable => format!("{address} is no address of this machine"),
            io::ErrorKind::PermissionDenied => format!("the system does not allow listening on {address}"),
            _ => format!("cannot listen on {address}: {error}"),
        };
        HostFault::new("bind", text)
    };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(fault)?;
    // A restart must not wait for the system to forget the old connections.
    #[cfg(unix)]
    socket.set_reuseaddr(true).map_err(fault)?;
    socket.bind(address).map_err(fault)?;
    socket.listen(BACKLOG).map_err(fault)
}
