//! The index of the suites that convert real guests with the real virt-v2v, through the built binary. No fakes but
//! the source's side: a simulated vCenter, a stand-in for the VDDK, an sshd of our own.
//!
//! `cargo test --test real` runs all (about ten minutes without KVM), `cargo test --test real failure::` one suite.
//! `packaging/test` installs what they need. A missing tool skips a test with a printed reason; with `CI` set it fails
//! the test. A test's directory is kept when `V2V_TEST_KEEP` is set.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// Cancel and death in the middle of a real conversion: no process, no partial disk, no temporary file stays.
mod cancel;
/// Guests that cannot be converted: the state says why in one sentence, and nothing is left.
mod failure;
/// Conversion in place of copied disks: under overlays, with a commit that is repeated after a kill.
mod in_place;
/// Local images: raw, several disks to qcow2, an OVA, an encrypted guest; what is written is what was read.
mod local;
/// The way clients come: the program started over ssh, the state fetched by sftp, the cancel sent by ssh.
mod ssh;
/// Two phases: our own copy, proven, then the conversion in place; what is left when either of them does not end well.
mod two_phase;
/// VMware through the simulated vCenter and VDDK: every disk arrives, and the password is seen nowhere.
mod vddk;

/// Disk images, looked into without an appliance.
mod disks;
/// A job: what its client sees, which processes it has, how it may end.
mod job;
/// What the suites stand on: the tools, a site's directories and configuration, servers.
mod lab;
/// The watch for passwords and keys.
mod secrets;
