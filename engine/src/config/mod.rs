//! The production file: text with spans → [`node::Node`] tree → settings, every problem a
//! [`diagnostic::Diagnostic`] with file, line and column → a [`plan::Plan`], the only thing that can run.

pub mod auth;
pub mod build;
mod certificates;
mod check;
pub mod codes;
pub mod common;
mod de;
pub mod definitions;
pub mod diagnostic;
pub mod document;
pub mod env;
mod files;
mod fingerprint;
mod graph;
pub mod hours;
mod items;
pub mod load;
pub mod node;
mod oauth;
mod parse;
pub mod plan;
pub mod problem;
mod read;
mod report;
mod resolve;
mod sections;
pub mod settings;
pub mod source;
pub mod units;

#[cfg(test)]
mod tests;
