//! The outline of a job: what it would be and do on this host, as a value. Pure.
//!
//! Made of the plan and of what [`crate::look`] saw of source and host, and printed by `virt-v2v-wrapper plan`: as JSON as
//! it stands ([`crate::schema`] describes it), for people by [`text`]. Command lines come from the functions that the
//! stages call (`commands`), so they are those that will run but for what nobody can know before; there stands `<...>`.
//! It holds no secret.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain;
use crate::guest::{self, Firmware};
use crate::job::Job;
use crate::look::{self, Seen};
use crate::plan::{Destination, LocalSource, Plan, Source};
use crate::source::vsphere::machine::PowerState;
use crate::source::vsphere::verdict::Verdict;
use crate::two_phase::earlier::Stage as Reached;

mod commands;
mod effects;
mod stages;
pub mod text;
mod warm;

/// Stands where the tag of the job will be.
pub const TAG: &str = "<tag>";

/// Version of the schema below.
const VERSION: u32 = 1;

/// What a document would come to. Whatever could not be found out is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Outline {
    /// Version of this schema.
    pub version: u32,
    /// Whether the job would run; `false`: it would be refused, see `problems`.
    pub would_run: bool,
    /// Why it would be refused: the sentences that the job itself would say.
    pub problems: Vec<String>,
    /// What the user should know although the job would run.
    pub warnings: Vec<String>,
    /// Who copies, and whether the machine runs meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Where the guest comes from: a URI without its password, or paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Where it goes: a directory, a URL, a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The guest, where the source tells it before the copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// The machine behind it, if vSphere has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Room for the disks and for the conversion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
    /// What is done, in its order.
    pub stages: Vec<Stage>,
    /// What is made or changed, here and on the source, and what becomes of it.
    pub effects: Vec<Effect>,
}

/// Who copies, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// virt-v2v copies and converts.
    OnePhase,
    /// This program copies a machine that is off, virt-v2v-in-place converts.
    TwoPhase,
    /// The same, of a machine that runs until the last round.
    Warm,
}

/// One virtual machine as its source describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Guest {
    /// Its plain name.
    pub name: String,
    /// `bios`, `efi`, `efi, secure boot`, or `unknown`: then the conversion finds out.
    pub firmware: String,
    /// Processors, all sockets and cores together.
    pub cpus: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// The source's word for the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Network interfaces, in the order of the source.
    pub nics: Vec<Nic>,
    /// Disks, in the order of the source, which is that of the copies.
    pub disks: Vec<Disk>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Nic {
    /// Its address, lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its network at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The network that `network_mappings` gives it; absent: none is for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub becomes: Option<String>,
    /// The source's model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Disk {
    /// `Hard disk 1`.
    pub label: String,
    /// Where its owner keeps it.
    pub path: String,
    /// What it hangs on and where, `scsi0:1`; only the bus where the source says no more.
    pub controller: String,
    /// Bytes of its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Where its copy goes (two-phase).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<PathBuf>,
    /// Whether vSphere lets it be copied while the machine runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<DiskVerdict>,
}

/// How a disk can be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DiskVerdict {
    /// `warm`: also while the machine runs; `cold`: only while it is off; `blocked`: not at all.
    pub how: String,
    /// Why not warm, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A machine of vSphere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Machine {
    /// Managed object id, e.g. `vm-62`.
    pub moref: String,
    /// `on`, `off`, `suspended` or `unknown`.
    pub power: String,
    /// VMware's word on its tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<String>,
    /// E.g. `vmx-13`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_version: Option<String>,
    /// Changed blocks are tracked already.
    pub change_tracking: bool,
    /// Names of its snapshots.
    pub snapshots: Vec<String>,
}

/// Room for the disks, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Room {
    /// Content of all disks, holes included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks_bytes: Option<u64>,
    /// Where the disks go, if that is a directory of this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Free there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// What the disks take there if they have no holes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_case_bytes: Option<u64>,
    /// Whether that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_enough: Option<bool>,
    /// `tmp_dir` of the site configuration, where the conversion writes what it changes.
    pub tmp_dir: PathBuf,
    /// Free there. What a conversion needs is not known before; some hundred MiB for each guest are usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp_free_bytes: Option<u64>,
}

/// A part of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Stage {
    /// `virt-v2v`, `place`, `shutdown`, `rounds`, `cutover`, `copy`, `verify`, `convert`, `commit`, `publish`, `put back`.
    pub name: String,
    /// What it does, in sentences.
    pub does: Vec<String>,
    /// The programs that it runs, in their order where one waits for the other.
    pub commands: Vec<Command>,
}

/// A program that is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Command {
    /// Program and arguments. `***` stands where a secret is read from, `<...>` for what is not known yet.
    pub argv: Vec<String>,
    /// What is set in its environment, `NAME=value`.
    pub environment: Vec<String>,
    /// The disk it is for, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<usize>,
}

/// Something that is made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Effect {
    /// `file`, `directory`, `attachment`, `snapshot`, `change tracking`, `power`, `virtual machine`.
    pub what: String,
    /// Its path or name.
    pub name: String,
    /// Whether it is there when the job has succeeded.
    pub stays: bool,
    /// What becomes of it.
    pub then: String,
}

impl Outline {
    /// Of a document that is refused before anything is looked at.
    pub fn refused(problems: Vec<String>, warnings: Vec<String>) -> Self {
        Self { version: VERSION, would_run: false, problems, warnings, ..Self::default() }
    }

    /// Of a job that never begins: its tag is [`TAG`]. `reached` is how far the job came that it resumes; `warnings` are
    /// those of before the look.
    pub fn of(job: &Job, reached: Option<Reached>, seen: &Seen, warnings: Vec<String>) -> Self {
        let mut all = warnings;
        for warning in &seen.warnings {
            if !all.contains(warning) {
                all.push(warning.clone());
            }
        }
        Self {
            version: VERSION,
            would_run: seen.problems.is_empty(),
            problems: seen.problems.clone(),
            warnings: all,
            mode: Some(mode(&job.plan)),
            source: Some(source(&job.plan)),
            destination: Some(destination(&job.plan.destination)),
            guest: seen.guest.as_ref().map(|guest| described(&job.plan, guest, seen)),
            machine: seen.machine.as_ref().map(machine),
            room: Some(room(&job.plan, seen)),
            stages: stages::stages(job, reached, seen),
            effects: effects::effects(job, seen),
        }
    }
}

fn mode(plan: &Plan) -> Mode {
    match &plan.two_phase {
        None => Mode::OnePhase,
        Some(two_phase) if two_phase.warm.is_some() => Mode::Warm,
        Some(_) => Mode::TwoPhase,
    }
}

fn source(plan: &Plan) -> String {
    let shown = |path: &Path| path.display().to_string();
    match &plan.source {
        Source::Vddk { uri, .. } | Source::Ssh { uri, .. } => uri.clone(),
        Source::Openstack { vm_id, .. } => format!("OpenStack server {vm_id}"),
        Source::Local(
            LocalSource::Disk(path)
            | LocalSource::LibvirtXml(path)
            | LocalSource::Vmx(path)
            | LocalSource::Ova(path),
        ) => shown(path),
        Source::Local(LocalSource::Disks(paths)) => {
            paths.iter().map(|path| shown(path)).collect::<Vec<_>>().join(", ")
        }
    }
}

fn destination(destination: &Destination) -> String {
    match destination {
        Destination::Local { directory } | Destination::Kubevirt { directory } => {
            directory.display().to_string()
        }
        Destination::Ovirt { url, .. } => url.clone(),
        Destination::ExportDomain { domain } => domain.clone(),
        Destination::Openstack { project_id, .. } => format!("OpenStack project {project_id}"),
    }
}

fn described(plan: &Plan, guest: &guest::Guest, seen: &Seen) -> Guest {
    let verdicts = seen.machine.iter().flat_map(|machine| &machine.verdicts).map(|disk| Some(&disk.verdict));
    let copies = seen.placed.iter().map(|placed| Some(&placed.path));
    let (mut verdicts, mut copies) =
        (verdicts.chain(std::iter::repeat(None)), copies.chain(std::iter::repeat(None)));
    let disks = guest.disks.iter().map(|disk| Disk {
        label: disk.label.clone(),
        path: disk.path.clone(),
        controller: match (disk.controller, disk.unit) {
            (Some(controller), Some(unit)) => format!("{}{controller}:{unit}", disk.bus.as_str()),
            _ => disk.bus.as_str().to_owned(),
        },
        size_bytes: disk.size,
        copy: copies.next().flatten().cloned(),
        verdict: verdicts.next().flatten().map(told),
    });
    Guest {
        name: guest.name.clone(),
        firmware: match guest.firmware {
            Firmware::Unknown => "unknown",
            Firmware::Bios => "bios",
            Firmware::Efi { secure_boot: false } => "efi",
            Firmware::Efi { secure_boot: true } => "efi, secure boot",
        }
        .to_owned(),
        cpus: guest.vcpus,
        memory_bytes: guest.memory_kib.saturating_mul(1024),
        os: guest.os.clone(),
        disks: disks.collect(),
        nics: guest.nics.iter().map(|nic| described_nic(plan, nic)).collect(),
    }
}

fn described_nic(plan: &Plan, nic: &guest::Nic) -> Nic {
    let mapping = domain::mapping(nic, &plan.network_mappings);
    Nic {
        mac: nic.mac.clone(),
        network: nic.network.clone(),
        becomes: mapping.map(|mapping| mapping.destination.clone()),
        model: nic.model.clone(),
    }
}

fn told(verdict: &Verdict) -> DiskVerdict {
    let (how, reason) = match verdict {
        Verdict::Warm => ("warm", None),
        Verdict::Cold { reason } => ("cold", Some(reason.clone())),
        Verdict::Blocked { reason } => ("blocked", Some(reason.clone())),
    };
    DiskVerdict { how: how.to_owned(), reason }
}

fn machine(machine: &look::Machine) -> Machine {
    let look::Machine { inventory, snapshots, .. } = machine;
    Machine {
        moref: inventory.moref.clone(),
        power: match inventory.power {
            PowerState::Off => "off",
            PowerState::On => "on",
            PowerState::Suspended => "suspended",
            PowerState::Unknown => "unknown",
        }
        .to_owned(),
        tools: inventory.tools.clone(),
        hardware_version: inventory.hardware_version.clone(),
        change_tracking: inventory.change_tracking,
        snapshots: snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
    }
}

fn room(plan: &Plan, seen: &Seen) -> Room {
    let sizes = seen.guest.as_ref().map(|guest| guest.disks.iter().map(|disk| disk.size));
    let target = seen.room.as_ref();
    Room {
        disks_bytes: sizes
            .and_then(|mut sizes| sizes.try_fold(0_u64, |sum, size| Some(sum.saturating_add(size?)))),
        directory: target.map(|room| room.directory.clone()),
        free_bytes: target.map(|room| room.free),
        worst_case_bytes: target.map(|room| room.worst_case),
        is_enough: target.map(|room| room.is_enough()),
        tmp_dir: plan.tools.tmp_dir.clone(),
        tmp_free_bytes: seen.tmp_free,
    }
}
