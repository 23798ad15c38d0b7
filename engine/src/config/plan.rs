//! A plan: a production whose every setting has been checked. Only a plan can run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::settings::{Admin, Common, Log, OAuthClient, Production, Store};
use crate::id::ItemName;
use crate::record::MessageTypes;
use crate::registry::{Built, ItemKind};

/// One checked item.
#[derive(Clone, Debug)]
pub struct ItemPlan {
    /// Its name.
    pub name: ItemName,
    /// Its kind.
    pub kind: ItemKind,
    /// Its class.
    pub type_name: &'static str,
    /// Common settings.
    pub common: Common,
    /// What its class made of the rest.
    pub built: Built,
    /// Changes when anything that this item's behaviour depends on changes, secrets and the clients and
    /// transforms it uses included: a reload restarts exactly the items whose fingerprint changed.
    pub fingerprint: String,
}

/// Everything checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `[production]`.
    pub production: Production,
    /// `[store]`.
    pub store: Store,
    /// `[admin]`.
    pub admin: Option<Admin>,
    /// `[log]`.
    pub log: Log,
    /// `[oauth.*]`.
    pub oauth: BTreeMap<String, Arc<OAuthClient>>,
    /// `[messages.*]`.
    pub types: MessageTypes,
    /// Items in file order.
    pub items: Vec<Arc<ItemPlan>>,
    /// Hash of all that was read, as the `version` of the API.
    pub version: String,
    /// The files as they were read (relative name, text): kept in the store for `--last-good`.
    pub sources: Arc<[(String, String)]>,
}

impl Plan {
    /// The item of this name.
    pub fn item(&self, name: &ItemName) -> Option<&Arc<ItemPlan>> {
        self.items.iter().find(|item| &item.name == name)
    }
}
