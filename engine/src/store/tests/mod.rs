//! The contract suite runs on every implementation; the rest is about the journal: crashes, power cuts,
//! faults, damage, format.

mod backup;
mod contract;
mod derived;
mod faults;
mod format;
mod held_up;
mod keys;
mod model;
mod offline;
mod power;
mod purge;
mod purge_beside;
mod purge_cut;
mod reads;
mod reopen;
pub(in crate::store) mod sim;
pub(in crate::store) mod support;
mod suspended;
mod text;
mod unreadable;
