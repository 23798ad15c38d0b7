//! Files against a naive model of them, and files that somebody damaged.

mod damage;
mod model;
mod world;
