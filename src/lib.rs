//! virt-v2v-wrapper: moves one virtual machine to KVM, and keeps a JSON state file true until the end.
//!
//! ```text
//! stdin ─► document ─► plan ─► stages: source ─► copy ─► convert ─► destination ─► state file
//! bytes    typed,      checked,         (all I/O is here)                          reply, CLI: readers only
//!          lenient     complete
//! ```
//!
//! One way, no arrows back. The pure core takes values and gives values: [`document`], [`plan`], [`phase`],
//! [`event`], [`state`], [`extent`], [`v2v`], and the readers of what describes a guest: [`vmx`], [`libvirt`], [`ovf`],
//! [`vmdk`], [`xml`]. The edges are thin and do one thing each. Stages emit [`event::Event`]s,
//! [`state::State::apply`] folds them, [`state_file`] stores the result; nothing else writes state.
//!
//! The ground of the copy engine (two-phase conversion) is laid in [`extent`], [`nbd`], [`export`] and
//! [`source::open_disks`]; no job uses them yet.
#![deny(unsafe_code)]

pub mod cli;
pub mod convert;
pub mod copy;
pub mod daemon;
pub mod destination;
pub mod document;
pub mod domain;
pub mod event;
pub mod export;
pub mod extent;
pub mod follow;
pub mod guest;
pub mod in_place;
pub mod job;
pub mod journal;
pub mod json;
pub mod leftovers;
pub mod libvirt;
pub mod log;
pub mod nbd;
pub mod overlay;
pub mod ovf;
pub mod phase;
pub mod plan;
pub mod preflight;
pub mod process;
pub mod qemu_img;
pub mod recorder;
pub mod reply;
pub mod run;
pub mod schema;
pub mod secret;
pub mod signals;
pub mod site;
pub mod source;
pub mod start;
pub mod state;
pub mod state_file;
pub mod supervise;
pub mod sweep;
pub mod tar;
pub mod throttle;
pub mod trace;
pub mod two_phase;
pub mod undo;
pub mod uri;
pub mod v2v;
pub mod vault;

pub mod vmdk;
pub mod vmx;
pub mod xml;
