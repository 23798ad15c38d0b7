//! End to end: the real binary, real sockets, an independent vendor, kill -9.

mod check;
mod crash;
mod layout;
mod main_job;
mod operate;
mod readme;
mod support;
