//! The index of the suites that drive the real binary: a document on stdin, the reply, the state file, signals.
//! Unit tests stand at the foot of the modules they test; here nothing knows the program's inside.
//!
//! `cargo test --test main` runs all; `cargo test --test main contract::` one suite. A case's directory is kept
//! when `V2V_TEST_KEEP` is set; `V2V_TEST_ONLY=<part of a name>` narrows the table of `contract`.

/// The client contract as a table: every folder of `fixtures/contract` is one run of the program.
mod contract;
/// The copy engine: every byte of the source on the target, whatever fails between.
mod copy;
/// Disks served over NBD until a signal comes (`nbd_export_only`).
mod export_only;
/// Sources served as NBD exports by the real nbdkit and qemu-nbd, read back, and stopped.
mod exports;
/// A disk for states that is full when the job ends.
mod full_disk;
/// A pod of KubeVirt: its annotations tell how far the conversion is, and a server that is away ends none.
mod kubevirt;
/// The NBD client against servers that lie and servers that are real.
mod nbd;
/// OpenStack as a destination: the real services on loopback, and a fake that fails.
mod openstack;
/// The client of OpenStack against a scripted server: tokens, projects, pages, microversions, names.
mod openstack_client;
/// A guest of an OpenStack that goes to another one, with a conversion host beside it.
mod openstack_source;
/// Overlays over copied disks with the real qemu-img, killed at any moment.
mod overlays;
/// oVirt: jobs against an engine of ours, which fails where it is told to.
mod ovirt;
/// Logs that real virt-v2v printed, through the parsers.
mod parser_replay;
/// The verb `plan`: what it shows, what it refuses as the job does, and that it begins nothing.
mod plan;
/// Cancel and death: TERM, INT and KILL to virt-v2v, worker and supervisor, and what is left afterwards.
mod signals;
/// Guests of this host and of an ssh host opened for the copy engine: what each disk serves is the disk.
mod sources;
/// Starts beside each other and after each other: a dead job is told from one that is just being started.
mod starts;
/// One reader that never rests: no state file it sees is torn, missing or older than the one before.
mod state_reader;
/// What clients ask of a warm job by files: the verbs that make them, and files that are not this job's.
mod triggers;
/// Two-phase jobs: copied, proven, converted, committed; interrupted anywhere and resumed.
mod two_phase;
/// The verbs beside the document on stdin: `watch`, `jobs`, `schema`, `checksum`, and mistakes.
mod verbs;

/// vSphere's client, against a scripted server and against govmomi's simulator.
mod vsphere;
/// Warm migration: machines that run and write while they are copied.
mod warm;

/// What the suites stand on: a job's private surroundings, a watcher of its processes, a comparer of JSON.
mod rig;
