//! Warm migration: machines that run and write while they are copied.
//!
//! The machines are those of a simulated vCenter with raw files behind their disks, the guest is a program that writes
//! into these files (tests/rigs). The oracle is all bytes of the files at the moment the machine went off.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// The source as it was found, however a job ends.
mod as_found;
/// Everything dies at any moment, and somebody goes on.
mod killed;
/// The vCenter, the guest, and jobs that move it.
pub mod lab;
/// The lab itself: what is measured with it is what it says.
mod lab_itself;
/// What the tests of lessons have in common.
mod lessons;
/// What clients of the old program see.
mod lessons_clients;
/// The one copy of a machine that ran.
mod lessons_cold;
/// From the last round to the machine that is off.
mod lessons_cutover;
/// Connections that end, hang or are refused.
mod lessons_network;
/// Rounds that go wrong.
mod lessons_rounds;
/// Snapshots that cannot be taken, removed or used.
mod lessons_snapshots;
/// Whole migrations.
mod whole;
