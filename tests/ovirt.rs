//! oVirt: the real program against a small engine of ours, over TLS, from the document to the machine whose disks hold the
//! bytes.
//!
//! The engine ([`engine`], [`world`]) keeps the rules of a real one that a client can break: disks are locked for a while,
//! names are taken, an active disk cannot be detached from a machine that runs. It can be told to fail anywhere
//! ([`faults`]).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// Jobs that are cancelled while the engine works.
mod cancelled;
/// Its rules about disks.
pub mod disks;
/// Answers, tokens and connections of the engine.
pub mod engine;
/// Requests that fail, time out, are refused or are lost, wherever they stand.
pub mod faults;
/// Jobs that are killed while the engine works.
mod killed;
/// What is looked up, and said when it is wrong.
mod lookups;
/// virt-v2v makes the disks.
mod one_phase;
/// A sandbox with an engine.
pub mod site;
/// The program makes the disks.
mod two_phase;
/// Engines that answer otherwise than this one, and are right.
mod variants;
/// What the engine holds, and its rules.
pub mod world;
