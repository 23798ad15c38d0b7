//! Business processes of Septet: the router, flows, transforms and the scripts in them. Pure: a job goes
//! in, effects come out; no I/O and no clock but the job's. The engine knows this crate only through
//! [`CLASSES`], [`check_transform`] and [`lane_factory`].
#![allow(dead_code)]
pub mod script;
mod time;
