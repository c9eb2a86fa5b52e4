//! Two-phase jobs, from the document to the disks: the real program, nbdkit, qemu-nbd and qemu-img, and a fake
//! virt-v2v-in-place that changes the disks it is given.
//!
//! The oracle is all bytes of the disks: those of the source, with the conversion's change in them or without. What the
//! engine does below is in `tests/copy.rs`, the real conversion in `tests/real`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// Signals while copies are made, converted and committed.
mod cancelled;
/// What `plan` shows, against what runs.
mod planned;
/// What is refused before anything begins.
mod refused;
/// Interrupted jobs, and those that go on with them.
mod resumed;
/// Jobs from their beginning to their end.
mod whole;

/// A sandbox with two disks.
pub mod site;
