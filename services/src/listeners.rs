//! HTTP listeners that several services share: services with the same `listen` have one socket, and the
//! path decides which of them gets a request (CONTRACT §2.1 `http`). A path takes everything below it, and
//! the longest path wins.
//!
//! A service *leases* its path when it binds and *serves* it while it runs. The socket opens with the first
//! lease and closes with the last, so that a reload can bind the new service before the old one stops. A
//! request for a path that is leased and not served yet (its service starts, while another of the listener
//! runs) waits for it, as it would in the backlog of a socket of its own; only where that takes too long it
//! is answered 503, so that senders keep their messages.
//!
//! There is no accept task: every serving service accepts from the shared socket and hands the connection
//! to a task of the listener. A request runs in a task of its own, so that a client that hangs up cancels
//! nothing half done. Slow clients are bounded: a connection's pace is watched in `connection`, bodies are read
//! by [`crate::bodies`].

mod connection;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use septet_engine::clock::SharedClock;
use septet_engine::config::settings::ServerTls;
use septet_engine::event::{Level, NewEvent};
use septet_engine::host::{HostFault, ServiceContext};
use septet_engine::id::ItemName;
use septet_engine::server_tls::Reloading;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use connection::connection;

/// How long a connection may wait between requests unless a service says otherwise.
const IDLE: Duration = Duration::from_secs(30);
/// Connections waiting to be accepted.
const BACKLOG: u32 = 1024;
/// How long a request waits for a service that is starting.
const STARTING: Duration = Duration::from_secs(10);
/// How long connections may take to end once their requests are answered.
const FAREWELL: Duration = Duration::from_secs(1);

/// What answers the requests below one path.
#[async_trait]
pub trait Mount: Send + Sync + 'static {
    /// Answers one request. Runs to its end also when the client has hung up. The client's address is in
    /// the request's extensions as [`ConnectInfo`], its TLS certificate as [`ClientCertificate`].
    async fn handle(&self, request: Request<Body>) -> Response;
}

#[async_trait]
impl Mount for axum::Router {
    async fn handle(&self, request: Request<Body>) -> Response {
        match self.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// What a service allows the connections of its listener. Of services that share one the most generous decides.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections beyond this number are closed at once.
    pub max_connections: u32,
    /// How long a connection may wait between requests; `None` for ever.
    pub idle: Option<Duration>,
}

impl Limits {
    /// So many connections, which wait for the usual time.
    pub fn connections(max_connections: u32) -> Limits {
        Limits { max_connections, idle: Some(IDLE) }
    }
}

/// All open listeners of this process.
static OPEN: Mutex<Vec<Weak<Listener>>> = Mutex::new(Vec::new());

fn opened() -> MutexGuard<'static, Vec<Weak<Listener>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One socket. Closed when the last lease goes; its connections end then, after the request they have.
struct Listener {
    asked: SocketAddr,
    address: SocketAddr,
    socket: TcpListener,
    shared: Arc<Shared>,
}

/// What connections know of their listener.
struct Shared {
    tls: Option<(ServerTls, Reloading)>,
    routes: Mutex<BTreeMap<String, Route>>,
    /// A route is served from now on, or gone.
    changed: Notify,
    connections: TaskTracker,
    /// The largest that a service allows, like `idle`.
    max_connections: AtomicU32,
    /// Milliseconds; the largest number is never.
    idle: AtomicU64,
    closing: CancellationToken,
    clock: SharedClock,
}

/// One leased path.
struct Route {
    owner: Owner,
    leases: u32,
    /// `None` while nobody serves it.
    served: Option<Served>,
}

type Owner = (Arc<str>, ItemName);

#[derive(Clone)]
struct Served {
    serial: u64,
    mount: Arc<dyn Mount>,
    requests: TaskTracker,
    cx: ServiceContext,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The right to serve one path of one listener.
pub struct Lease {
    listener: Arc<Listener>,
    path: String,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({}{})", self.listener.address, self.path)
    }
}

/// Opens (or joins) the listener of `address` and takes `path` on it. For [`septet_engine::host::BusinessService::bind`].
pub fn lease(
    address: SocketAddr,
    path: &str,
    tls: Option<&ServerTls>,
    limits: Limits,
    cx: &ServiceContext,
) -> Result<Lease, HostFault> {
    let listener = find_or_open(address, tls, cx)?;
    if listener.shared.tls.as_ref().map(|(settings, _)| settings) != tls {
        let text = format!("services that share {address} need the same tls settings");
        return Err(HostFault::new("bind", text));
    }
    listener.shared.allow(limits);
    let owner = (cx.runtime.production.clone(), cx.item.clone());
    {
        let mut routes = listener.shared.routes();
        let route = routes.entry(path.to_owned()).or_insert_with(|| Route {
            owner: owner.clone(),
            leases: 0,
            served: None,
        });
        if route.owner != owner {
            let text = format!("{address}{path} is taken by {} of {}", route.owner.1, route.owner.0);
            return Err(HostFault::new("bind", text));
        }
        route.leases += 1;
    }
    Ok(Lease { listener, path: path.to_owned() })
}

fn find(open: &mut Vec<Weak<Listener>>, address: SocketAddr) -> Option<Arc<Listener>> {
    open.retain(|listener| listener.strong_count() > 0);
    // Port 0 asks for a port of one's own.
    let same = |listener: &Arc<Listener>| listener.asked == address && address.port() != 0;
    open.iter().filter_map(Weak::upgrade).find(same)
}

fn find_or_open(
    address: SocketAddr,
    tls: Option<&ServerTls>,
    cx: &ServiceContext,
) -> Result<Arc<Listener>, HostFault> {
    if let Some(listener) = find(&mut opened(), address) {
        return Ok(listener);
    }
    let tls = match tls {
        Some(settings) => Some((settings.clone(), Reloading::new(settings.clone())?)),
        None => None,
    };
    // Of services that start together one opens the socket, and the others find it: both under one lock.
    let mut open = opened();
    if let Some(listener) = find(&mut open, address) {
        return Ok(listener);
    }
    let socket = listen(address).map_err(|error| bind_fault(address, &error))?;
    let bound = socket.local_addr().map_err(|error| bind_fault(address, &error))?;
    let shared = Shared {
        tls,
        routes: Mutex::default(),
        changed: Notify::new(),
        connections: TaskTracker::new(),
        max_connections: AtomicU32::new(0),
        idle: AtomicU64::new(0),
        closing: CancellationToken::new(),
        clock: cx.runtime.clock.clone(),
    };
    let listener = Listener { asked: address, address: bound, socket, shared: Arc::new(shared) };
    let listener = Arc::new(listener);
    open.push(Arc::downgrade(&listener));
    Ok(listener)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for the system to forget the old connections.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_fault(address: SocketAddr, error: &io::Error) -> HostFault {
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => format!("{address} is in use by another program or item"),
        io::ErrorKind::AddrNotAvailable => format!("{address} is no address of this machine"),
        io::ErrorKind::PermissionDenied => format!("the system does not allow listening on {address}"),
        _ => format!("cannot listen on {address}: {error}"),
    };
    HostFault::new("bind", text)
}

// === impl Lease ===

impl Lease {
    /// Where the listener really listens: with port 0 the system has chosen.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Serves the path until the service must stop; returns when the requests in flight are answered.
    pub async fn serve(self, mount: Arc<dyn Mount>, cx: &ServiceContext) {
        let requests = TaskTracker::new();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let served = Served { serial, mount, requests: requests.clone(), cx: cx.clone() };
        let shared = self.listener.shared.clone();
        if let Some(route) = shared.routes().get_mut(&self.path) {
            route.served = Some(served);
        }
        shared.changed.notify_waiters();
        let mut full = false;
        loop {
            let accepted = tokio::select! {
                () = cx.stop.cancelled() => break,
                accepted = self.listener.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let limit = shared.max_connections.load(Ordering::Relaxed);
                    if shared.connections.len() < limit as usize {
                        full = false;
                        let acceptor = shared.acceptor(cx);
                        shared.connections.spawn(connection(stream, peer, acceptor, shared.clone()));
                    } else if !std::mem::replace(&mut full, true) {
                        let text =
                            format!("more than max_connections ({limit}) connections: new ones are closed");
                        cx.event(NewEvent::new(Level::Warning, "item.error", text));
                    }
                }
                Err(error) => accept_failed(&error, cx).await,
            }
        }
        if let Some(route) = shared.routes().get_mut(&self.path)
            && route.served.as_ref().is_some_and(|served| served.serial == serial)
        {
            route.served = None;
        }
        // The last lease closes the socket and asks the connections to end.
        drop(self);
        requests.close();
        requests.wait().await;
        if shared.closing.is_cancelled() {
            shared.connections.close();
            tokio::select! {
                () = shared.connections.wait() => {}
                () = cx.runtime.clock.sleep(FAREWELL) => {}
            }
        }
    }
}

/// A connection that was gone before it was accepted is nothing; what the system cannot give (file
/// descriptors) may come back.
async fn accept_failed(error: &io::Error, cx: &ServiceContext) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        return;
    }
    let text = format!("cannot accept connections: {error}");
    cx.event(NewEvent::new(Level::Warning, "item.error", text));
    tokio::select! {
        () = cx.runtime.clock.sleep(Duration::from_secs(1)) => {}
        () = cx.stop.cancelled() => {}
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut routes = self.listener.shared.routes();
        if let Some(route) = routes.get_mut(&self.path) {
            route.leases -= 1;
            if route.leases == 0 {
                routes.remove(&self.path);
                self.listener.shared.changed.notify_waiters();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

// === Connections ===

impl Shared {
    fn routes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allow(&self, limits: Limits) {
        self.max_connections.fetch_max(limits.max_connections, Ordering::Relaxed);
        let idle = limits.idle.map_or(u64::MAX, |idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        self.idle.fetch_max(idle, Ordering::Relaxed);
    }

    fn idle(&self) -> Option<Duration> {
        let milliseconds = self.idle.load(Ordering::Relaxed);
        (milliseconds != u64::MAX).then_some(Duration::from_millis(milliseconds))
    }

    /// For the next connection of a TLS listener. Certificates that have changed and cannot be used are an
    /// event, and the ones from before go on.
    fn acceptor(&self, cx: &ServiceContext) -> Option<TlsAcceptor> {
        let (_, reloading) = self.tls.as_ref()?;
        let (acceptor, fault) = reloading.acceptor();
        if let Some(fault) = fault {
            cx.event(NewEvent::new(Level::Error, "item.error", fault.to_string()));
        }
        Some(acceptor)
    }

    /// Who serves `path`, as [`Shared::route`] says; waits a while for a service that is starting.
    async fn served(&self, path: &str) -> Option<Option<Served>> {
        let route = self.route(path);
        if !matches!(route, Some(None)) {
            return route;
        }
        let mut patience = std::pin::pin!(self.clock.sleep(STARTING));
        loop {
            // Before the look: what changes after it wakes us.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let route = self.route(path);
            if !matches!(route, Some(None)) {
                return route;
            }
            tokio::select! {
                () = changed => {}
                () = patience.as_mut() => return route,
                () = self.closing.cancelled() => return route,
            }
        }
    }

    /// Who serves `path`; `None` within where its service does not run.
    fn route(&self, path: &str) -> Option<Option<Served>> {
        let routes = self.routes();
        let below = |route: &str| {
            let rest = path.strip_prefix(route.strip_suffix('/').unwrap_or(route));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let longest = routes.iter().filter(|(route, _)| below(route)).max_by_key(|(route, _)| route.len());
        longest.map(|(_, route)| route.served.clone())
    }
}
