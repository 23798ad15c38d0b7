//! Tests of the HL7 core as its users see it: mutated input, the parser of others as oracle, and the corpus where present.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod corpus;
mod fuzz;
mod oracle;
mod seeds;
