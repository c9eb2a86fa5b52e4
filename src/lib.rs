//! virt-v2v-wrapper: moves one virtual machine to KVM, and keeps a JSON state file true until the end.
//!
//! ```text
//! stdin ─► document ─► plan ─► stages of run, two_phase (all I/O is here) ─► state file
//! bytes    typed,      checked,  │                                           reply, CLI: readers only
//!          lenient     complete  │
//!                                ├ one-phase: source ─► convert (virt-v2v) ─► destination
//!                                ├ two-phase: source ─► copy ─► in_place (virt-v2v-in-place) ─► destination
//!                                └ warm:      source ─► copy, copy, … until the cutover ─► in_place ─► destination
//! ```
//!
//! One way, no arrows back. The pure core takes values and gives values: [`document`], [`plan`], [`phase`],
//! [`event`], [`state`], [`extent`], [`v2v`], [`guest`] and [`domain`], and the readers of what describes a guest: [`vmx`],
//! [`libvirt`], [`ovf`], [`vmdk`], [`xml`]. The edges are thin and do one thing each. Stages emit [`event::Event`]s,
//! [`state::State::apply`] folds them, [`state_file`] stores the result; nothing else writes state.
//!
//! | where | what |
//! | --- | --- |
//! | [`cli`], [`start`], [`preflight`], [`reply`] | the process the client spawned: document to reply, the verbs |
//! | [`daemon`], [`supervise`], [`run`], [`signals`] | the background: a supervisor, and its worker that runs the stages |
//! | [`job`], [`journal`], [`undo`], [`sweep`], [`leftovers`] | a job's files, what it has begun, how that is undone |
//! | [`export_only`] | disks served over NBD until a signal comes: no job, for the other end of an OpenStack source |
//! | [`look`], [`outline`] | a job that is only shown: what it would find, and what it would do |
//! | [`footprint`], [`things`], [`put_back`] | what a job has changed on the source machine (snapshots, change tracking, power) and at clouds, and who puts it back |
//! | [`source`] | `local`, `ssh`, `vsphere`: what the guest is, and by what each disk is served |
//! | [`convert`], [`v2v`], [`follow`], [`trace`] | virt-v2v and virt-v2v-in-place: arguments, logs, failures, their signals |
//! | [`destination`] | `local`, `ovirt`, `openstack`, `kubevirt`: where the guest goes |
//! | [`orphans`] | what dead jobs left at a destination, removed by the next one that goes there |
//! | [`http`], [`tls`], [`openstack`], [`records`], [`things`] | clouds: requests, whom to trust, what was made there and must go again |
//! | [`process`], [`secret`], [`log`], [`site`] | tools, what is kept out of texts, the wrapper's log, the host's configuration |
//! | [`throttle`] | limits of a running job |
//!
//! Two-phase and warm, in the order of the bytes:
//!
//! | where | what |
//! | --- | --- |
//! | [`two_phase`] | the order of the stages, and jobs that go on with an earlier one |
//! | [`export`], [`nbd`] | a source disk served by nbdkit or qemu-nbd, and our client of it |
//! | [`warm`] | a machine that runs while it is copied: rounds of what changed, when the next one begins, what clients ask for meanwhile, and the cutover; why no change is lost is its first page |
//! | [`copy`] | extents in, proven extents out: why a wrong disk cannot be reported as right is its first page |
//! | [`in_place`], [`overlay`], [`qemu_img`] | conversion on overlays, and their commit |
//! | [`domain`] | the guest as libvirt XML, for virt-v2v-in-place and for the user |
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
pub mod export_only;
pub mod extent;
pub mod follow;
pub mod footprint;
pub mod guest;
pub mod http;
pub mod in_place;
pub mod job;
pub mod journal;
pub mod json;
pub mod leftovers;
pub mod libvirt;
pub mod log;
pub mod look;
pub mod nbd;
pub mod openstack;
pub mod orphans;
pub mod outline;
pub mod overlay;
pub mod ovf;
pub mod phase;
pub mod plan;
pub mod preflight;
pub mod process;
pub mod put_back;
pub mod qemu_img;
pub mod recorder;
pub mod records;
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
pub mod things;
pub mod throttle;
pub mod tls;
pub mod trace;
pub mod two_phase;
pub mod undo;
pub mod uri;
pub mod v2v;
pub mod vault;
pub mod vmdk;
pub mod vmx;
pub mod warm;
pub mod xml;
