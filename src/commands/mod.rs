//! The commands: one file each, with its arguments and what it does (CONTRACT §1).

pub(crate) mod check;
mod client;
pub(crate) mod doc;
mod export;
mod filters;
pub(crate) mod hash_password;
pub(crate) mod items;
pub(crate) mod listen;
pub(crate) mod messages;
pub(crate) mod oauth;
pub(crate) mod replay;
pub(crate) mod resend;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod send;
mod stop;
pub(crate) mod store;
mod store_backup;
pub(crate) mod test;
pub(crate) mod trace;
