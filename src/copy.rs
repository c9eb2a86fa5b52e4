//! The copy engine.

pub mod chunk;
pub mod ledger;
pub mod target;
