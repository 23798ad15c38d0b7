//! What the HTTP services have in common: where they are reached, how much they take, and who may call. Each
//! names the settings in a struct of its own, so that a mistake is reported where it stands, and makes one
//! [`Endpoint`] of them.

use std::sync::Arc;
use std::time::Duration;

use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::ServerTls;
use septet_engine::config::units::{ByteSize, Listen};
use septet_engine::host::{HostFault, ServiceContext};
use septet_engine::registry::Facts;
use septet_oauth::Auth;

use crate::auth::{self, Guard};
use crate::listeners::{Lease, Limits, Mount, lease};

/// The settings that HTTP services share.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) listen: Listen,
    pub(crate) path: String,
    pub(crate) max_message: ByteSize,
    pub(crate) limits: Limits,
    /// How long the body of a request may take.
    pub(crate) patience: Duration,
    pub(crate) auth: Option<Auth>,
    pub(crate) tls: Option<ServerTls>,
}

impl Endpoint {
    /// Reports what is wrong; `patience` is the key under which the time for a body stands, `fhir` whether
    /// requests may be FHIR interactions.
    pub(crate) fn check(&self, build: &mut Build<'_>, patience: &str, fhir: bool) -> bool {
        let mut right = check_path(build, &self.path);
        let limits = [
            ("max_message", self.max_message.get() == 0),
            ("max_connections", self.limits.max_connections == 0),
            ("idle_timeout", self.limits.idle.is_some_and(|idle| idle.is_zero())),
            (patience, self.patience.is_zero()),
        ];
        for (key, _) in limits.iter().filter(|(_, zero)| *zero) {
            build.error("S0343", &[At::Key(key)], format!("{key} must be more than zero"), None);
            right = false;
        }
        if let Some(auth) = &self.auth {
            auth::check(build, auth, self.tls.as_ref(), fhir);
        }
        right
    }

    /// What the engine wants to know.
    pub(crate) fn facts(&self, needs_reply: bool) -> Facts {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Facts {
            listens: vec![(self.listen.get(), Some(self.path.clone()))],
            needs_reply,
            urls: vec![format!("{scheme}://{}{}", self.listen, self.path)],
            ..Facts::default()
        }
    }

    /// Lets callers in, for one run of a service.
    pub(crate) fn guard(&self, cx: &ServiceContext) -> Option<Guard> {
        self.auth.clone().map(|auth| Guard::new(auth, &self.path, cx))
    }

    /// Takes the path on the listener.
    fn lease(&self, cx: &ServiceContext) -> Result<Lease, HostFault> {
        lease(self.listen.get(), &self.path, self.tls.as_ref(), self.limits, cx)
    }
}

/// Checks the path of an HTTP service.
fn check_path(build: &mut Build<'_>, path: &str) -> bool {
    let legal = path.starts_with('/')
        && !path.contains(['{', '}', '?', '#', ' ', '*'])
        && !path.split('/').any(|segment| matches!(segment, "." | ".."));
    if !legal {
        let suggestion = Some("write it as /name; everything below it is served, too".to_owned());
        build.error("S0341", &[At::Key("path")], "this path cannot be served", suggestion);
    }
    legal
}

/// The place of a service on its listener, from binding to serving.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<Lease>);

impl Place {
    /// For [`septet_engine::host::BusinessService::bind`].
    pub(crate) fn bind(&mut self, endpoint: &Endpoint, cx: &ServiceContext) -> Result<(), HostFault> {
        self.0 = Some(endpoint.lease(cx)?);
        Ok(())
    }

    /// Serves until the service must stop.
    pub(crate) async fn serve(
        &mut self,
        endpoint: &Endpoint,
        mount: Arc<dyn Mount>,
        cx: &ServiceContext,
    ) -> Result<(), HostFault> {
        let lease = match self.0.take() {
            Some(lease) => lease,
            None => endpoint.lease(cx)?,
        };
        lease.serve(mount, cx).await;
        Ok(())
    }

    /// Where the listener really listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> Option<std::net::SocketAddr> {
        self.0.as_ref().map(Lease::address)
    }
}
