//! The host that all operations over HTTP share: it starts with a client and its trust, makes one exchange for
//! each message, and has the class say what the reply means. A class is its settings, a request and an
//! outcome: a [`Dialogue`]. What crosses the network and how is in [`crate::http_client`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Request;
use septet_engine::config::build::Build;
use septet_engine::host::{
    BusinessOperation, HostFault, OperationContext, OperationError, OperationFactory, Outcome, Runtime,
};
use septet_engine::id::ItemName;
use septet_engine::record::{Record, map_sealed};
use septet_engine::registry::{Built, Factory, Facts};
use septet_engine::reply::Family;
use septet_engine::token::AccessToken;
use septet_engine::vault::{Vault, VaultError};
use serde_json::Value;

use crate::http_client::{Peer, PeerPlan, Reply, Secrets};
use crate::oauth_use::OauthUse;

/// What one class of operation says to its peer, and what it makes of the answer. Both are pure.
pub(crate) trait Dialogue: Send + Sync + 'static {
    /// Whom it talks to.
    fn peer(&self) -> &PeerPlan;

    /// The request for the message of `cx`: the same for every attempt, the token excepted (P3). Called twice
    /// where the first token is refused. `form_token` is the token where its place is the body; anywhere else
    /// it is put in later. Clear text of secrets that it sends goes into `secrets`.
    fn request(
        &self,
        cx: &OperationContext,
        form_token: Option<&AccessToken>,
        secrets: &mut Secrets,
    ) -> Result<Request, OperationError>;

    /// What the reply means for the message; `peer` is `host:port`, for texts.
    fn outcome(&self, reply: Reply, cx: &OperationContext, peer: &str) -> Result<Outcome, OperationError>;
}

/// The operation that talks as `dialogue` says, as the registry wants it.
pub(crate) fn built<D: Dialogue>(
    build: &Build<'_>,
    oauth: Option<&OauthUse>,
    replies: Family,
    dialogue: D,
) -> Built {
    let oauth = oauth.map(|oauth| oauth.clients(build.names)).unwrap_or_default();
    let facts = Facts { oauth, replies: Some(replies), answers: true, ..Facts::default() };
    Built { factory: Factory::Operation(Arc::new(HttpFactory(Arc::new(dialogue)))), facts }
}

/// Makes the hosts of one operation.
struct HttpFactory<D>(Arc<D>);

impl<D: Dialogue> fmt::Debug for HttpFactory<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpOperation({})", self.0.peer().name)
    }
}

impl<D: Dialogue> OperationFactory for HttpFactory<D> {
    fn create(&self, _runtime: &Runtime, _item: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(HttpOperation::new(self.0.clone()))
    }
}

/// One slot of an operation over HTTP.
pub(crate) struct HttpOperation<D> {
    dialogue: Arc<D>,
    /// There once started.
    peer: Option<Peer>,
}

impl<D> HttpOperation<D> {
    pub(crate) fn new(dialogue: Arc<D>) -> Self {
        HttpOperation { dialogue, peer: None }
    }
}

#[async_trait]
impl<D: Dialogue> BusinessOperation for HttpOperation<D> {
    async fn start(&mut self) -> Result<(), HostFault> {
        self.peer = Some(Peer::new(self.dialogue.peer())?);
        Ok(())
    }

    async fn on_message(&mut self, cx: &OperationContext) -> Result<Outcome, OperationError> {
        let peer = Peer::ready(&mut self.peer, cx)?;
        let dialogue = &self.dialogue;
        let reply =
            peer.exchange(cx, |form_token, secrets| dialogue.request(cx, form_token, secrets)).await?;
        dialogue.outcome(reply, cx, &peer.name)
    }
}

/// Remembers the secrets of a record that is about to be sent.
pub(crate) fn note_secrets(
    record: &Record,
    vault: &Vault,
    secrets: &mut Secrets,
) -> Result<(), OperationError> {
    let noted = map_sealed(&record.fields, &mut |value| {
        let clear = vault.open_json(value).unwrap_or(Err(VaultError::Damaged))?;
        secrets.add(&clear);
        Ok(Value::Null)
    });
    noted.map(drop).map_err(sealed)
}

/// The record's fields with its secrets in clear: for the peer alone.
pub(crate) fn reveal(record: &Record, vault: &Vault) -> Result<Value, OperationError> {
    record.reveal(vault).map_err(sealed)
}

fn sealed(error: VaultError) -> OperationError {
    OperationError::message("secret", error.to_string())
}
