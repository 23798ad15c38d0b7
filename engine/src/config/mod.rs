//! The production file: text with spans → [`node::Node`] tree → settings, every problem a
//! [`diagnostic::Diagnostic`] with file, line and column → a [`plan::Plan`], the only thing that can run.

pub mod build;
pub mod diagnostic;
pub mod hours;
pub mod node;
pub mod plan;
pub mod settings;
pub mod units;
