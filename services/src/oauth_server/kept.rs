//! What the server must not forget, in the store: codes, families of refresh tokens, revocations, used
//! assertions, registered clients, and the key of its forms. Values live in memory; a change is saved before
//! anything that depends on it leaves.
//!
//! All are kept under `ITEM/KIND/ID` in [`KeepFamily::Service`], sealed at rest by the engine.

use bytes::Bytes;
use septet_engine::host::{HostFault, KeepFamily, ServiceContext};
use septet_engine::store::StoreFailed;

use super::server::Server;

/// One value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// A code, by its hash.
    Code(&'a str),
    /// A family of refresh tokens, by its grant.
    Family(&'a str),
    /// A token id or a grant's tag that counts no more.
    Revoked(&'a str),
    /// An assertion that has been used.
    Seen(&'a str),
    /// A client that registered itself.
    Client(&'a str),
}

/// The kinds, as they stand in the keys.
pub(super) const CODE: &str = "code";
pub(super) const FAMILY: &str = "refresh";
pub(super) const REVOKED: &str = "revoked";
pub(super) const SEEN: &str = "seen";
pub(super) const CLIENT: &str = "client";

impl Place<'_> {
    fn key(self, cx: &ServiceContext) -> String {
        let (kind, id) = match self {
            Place::Code(id) => (CODE, id),
            Place::Family(id) => (FAMILY, id),
            Place::Revoked(id) => (REVOKED, id),
            Place::Seen(id) => (SEEN, id),
            Place::Client(id) => (CLIENT, id),
        };
        format!("{}/{kind}/{id}", cx.item)
    }
}

impl Server {
    /// Makes a value durable as it is now, its end included. Where it changes meanwhile, it is saved again: two
    /// requests must not leave the older of their values behind.
    pub(super) async fn save(&self, place: Place<'_>) -> Result<(), StoreFailed> {
        let cx = self.cx();
        let key = place.key(cx);
        loop {
            let value = self.current(place);
            cx.runtime.keep.put(KeepFamily::Service, &key, value.clone().map(Bytes::from)).await?;
            if self.current(place) == value {
                return Ok(());
            }
        }
    }

    fn current(&self, place: Place<'_>) -> Option<Vec<u8>> {
        match place {
            Place::Code(hash) => self.grants().kept_code(hash),
            Place::Family(grant) => self.grants().kept_family(grant),
            Place::Revoked(id) => self.revoked().kept(id),
            Place::Seen(id) => self.seen().kept(id),
            Place::Client(id) => self.registered().kept(id),
        }
    }
}

/// Takes in every kept value of a kind; those that `restore` does not take go from the disk.
pub(super) async fn restore(
    cx: &ServiceContext,
    kind: &str,
    mut restore: impl FnMut(&str, &[u8]) -> bool,
) -> Result<(), HostFault> {
    let prefix = format!("{}/{kind}/", cx.item);
    let mut stale = Vec::new();
    for (key, value) in cx.runtime.keep.scan(KeepFamily::Service, &prefix) {
        if !restore(key.strip_prefix(&prefix).unwrap_or_default(), &value) {
            stale.push(key);
        }
    }
    for key in stale {
        cx.runtime.keep.put(KeepFamily::Service, &key, None).await.map_err(|error| fault(&error))?;
    }
    Ok(())
}

/// The kept value of a name, or the one that `make` gives, kept from now on.
pub(super) async fn keep_once(
    cx: &ServiceContext,
    name: &str,
    make: impl FnOnce() -> Option<Vec<u8>>,
) -> Result<Vec<u8>, HostFault> {
    let key = format!("{}/{name}", cx.item);
    if let Some(kept) = cx.runtime.keep.get(KeepFamily::Service, &key) {
        return Ok(kept.to_vec());
    }
    let made = make().ok_or_else(|| HostFault::new("key", "the system gives no random numbers"))?;
    let value = Some(Bytes::from(made.clone()));
    cx.runtime.keep.put(KeepFamily::Service, &key, value).await.map_err(|error| fault(&error))?;
    Ok(made)
}

fn fault(error: &StoreFailed) -> HostFault {
    HostFault::new("store", format!("what the authorization server keeps: {error}"))
}
