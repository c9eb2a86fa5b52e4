//! The copy engine on real servers: what is on the target afterwards is what was on the source, or the copy failed.
//!
//! The oracle of every test is a comparison of all bytes of both. The suite drives the library, because faults are put
//! between its steps; the whole way through the program is in `tests/two_phase.rs`. Where a copy must be killed, it is
//! a program of its own (`examples/copy-disk.rs`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// Changed blocks as qemu tracks them.
mod bitmap;
/// A part of a disk that changed is copied into a copy.
mod delta;
/// Reads that fail, and servers that die, hang or leave.
mod failures;
/// Copies that are killed, and gone on with.
mod killed;
/// Large disks and little memory.
mod memory;
/// What was written is read back, and what is found there.
mod proof;
/// Sizes, holes, blocks and how much is read at a time.
mod reads;
/// Targets that are full.
mod room;
/// What a target holds before, and what kind it is.
mod targets;

/// A copy as a program of its own.
mod child;
/// nbdkit behind a script.
mod front;
/// A source, its copy and its ledger.
mod rig;
