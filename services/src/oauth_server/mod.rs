//! `type = "oauth.server"`: an OAuth 2.0 authorization server as an item (CONTRACT §2.6): client credentials,
//! authorization codes with sign-in and consent, refresh tokens, assertions (RFC 7523), signed JWT access tokens
//! (RFC 9068), id tokens, introspection, revocation, userinfo, registration, key set and discovery. It brings no
//! messages in.
//!
//! This file is the host. Its settings are in [`settings`], what they must be in [`checked`]. What it answers:
//! [`server`] has the routes, [`discovery`] describes them, [`token`] gives tokens ([`issue`] makes them),
//! [`inspect`] says what they are worth and ends them, [`authorize`] talks to people (with [`pages`], [`words`],
//! [`form`] and [`users`]), [`registration`] takes new clients. Who asks is found out in [`authenticate`] (with
//! [`clients`], [`assertion`] and [`guesses`]). What must not be forgotten: [`grants`], [`remembered`], [`keys`],
//! all of it through [`kept`].

mod assertion;
mod authenticate;
mod authorize;
mod checked;
mod clients;
mod discovery;
mod form;
mod grants;
mod guesses;
mod inspect;
mod issue;
mod kept;
mod keys;
mod pages;
mod registration;
mod remembered;
mod request;
mod server;
mod settings;
mod token;
mod users;
mod words;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use septet_engine::config::build::Build;
use septet_engine::event::{Level, NewEvent};
use septet_engine::host::{BusinessService, HostFault, ServiceContext, ServiceFactory};
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind};
use septet_engine::server_tls::is_for;
use serde_json::Value;

use self::checked::Checked;
use self::keys::{KeyStore, Keys};
use self::server::Server;
pub use self::settings::{ClientSettings, Registration, RegistrationSettings, Settings, UserSettings};
use crate::listeners::{self, Lease, Limits};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "oauth.server",
    kind: ItemKind::Service,
    summary: "Issues OAuth 2.0 tokens: client credentials, sign-in with codes, signed JWTs, discovery.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Connections beyond this number are closed at once.
const MAX_CONNECTIONS: u32 = 1024;

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let checked = checked::check(build, &settings)?;
    let facts = Facts {
        listens: vec![(settings.listen.get(), Some("/".to_owned()))],
        no_messages: true,
        urls: vec![format!("{}/oauth2/token", checked.issuer_text.trim_end_matches('/'))],
        ..Facts::default()
    };
    let factory = ServerFactory { settings: Arc::new(checked), running: Arc::default() };
    Some(Built { factory: Factory::Service(Arc::new(factory)), facts })
}

/// The server that runs, for orders; set by each run for as long as it lasts.
type Running = Arc<Mutex<Option<Server>>>;

#[derive(Debug)]
struct ServerFactory {
    settings: Arc<Checked>,
    running: Running,
}

#[async_trait]
impl ServiceFactory for ServerFactory {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(AuthorizationServer {
            settings: self.settings.clone(),
            running: self.running.clone(),
            bound: None,
        })
    }

    /// `rotate`: another key signs from now on.
    async fn order(&self, order: &str, who: Option<&str>) -> Option<Result<Value, HostFault>> {
        if order != "rotate" {
            return None;
        }
        let server = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stopped = HostFault::new("stopped", "the authorization server is not running");
        Some(match server {
            Some(server) => server.rotate(who).await,
            None => Err(stopped),
        })
    }
}

/// Takes orders for as long as it lives.
struct TakesOrders(Running);

impl TakesOrders {
    fn new(running: &Running, server: Server) -> Self {
        *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        TakesOrders(running.clone())
    }
}

impl Drop for TakesOrders {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The running item.
struct AuthorizationServer {
    settings: Arc<Checked>,
    running: Running,
    bound: Option<Lease>,
}

impl AuthorizationServer {
    async fn keys(&self, cx: &ServiceContext) -> Result<Keys, HostFault> {
        let now = cx.runtime.clock.now();
        let store = KeyStore { item: &cx.item, keep: cx.runtime.keep.as_ref(), now };
        store.open(self.settings.algorithm, self.settings.access_token_lifetime()).await
    }

    /// A certificate for another host than the issuer's is what clients complain of without saying so.
    fn check_certificate(&self, cx: &ServiceContext) -> Result<(), HostFault> {
        let (Some(tls), Some(host)) = (&self.settings.tls, self.settings.issuer.host_str()) else {
            return Ok(());
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if !is_for(tls, host)? {
            let text = format!(
                "the certificate of tls is not for {host}, the host of the issuer: clients will refuse it"
            );
            cx.event(NewEvent::new(Level::Warning, "item.error", text));
        }
        Ok(())
    }
}

#[async_trait]
impl BusinessService for AuthorizationServer {
    async fn bind(&mut self, cx: &ServiceContext) -> Result<(), HostFault> {
        let Checked { listen, tls, .. } = self.settings.as_ref();
        let lease =
            listeners::lease(listen.get(), "/", tls.as_ref(), Limits::connections(MAX_CONNECTIONS), cx)?;
        // Keys that cannot be read must undo a reload rather than stop the item after it.
        self.keys(cx).await?;
        self.check_certificate(cx)?;
        self.bound = Some(lease);
        Ok(())
    }

    async fn run(mut self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        if self.bound.is_none() {
            self.bind(&cx).await?;
        }
        // What is kept is read here and not in `bind`: until now the server before this one may have changed it.
        let server = Server::open(self.settings.clone(), self.keys(&cx).await?, cx.clone()).await?;
        if let Some(lease) = self.bound.take() {
            let _orders = TakesOrders::new(&self.running, server.clone());
            lease.serve(Arc::new(server::router(server)), &cx).await;
        }
        Ok(())
    }
}
