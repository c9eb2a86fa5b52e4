//! Which disks of a machine can be copied while it runs, and why not the others. Pure; asked before anything is begun.
//!
//! A disk that vSphere's change tracking does not cover is told before hours of copying, with what to do about it
//! (peers.md 6.3, rows 8 and 9). What only the attempt can show (tracking that does not begin) is not here.

use super::machine::{Backing, Inventory, PowerState};
use super::snapshot::FoundSnapshot;
use crate::guest::Disk;

/// Change tracking came with this one (ESX 4.0).
const TRACKING_SINCE: u32 = 7;
/// What the program of 2.x called its snapshots, and what this one's begin with (contract.md 6.3).
const OURS: &str = "v2v_cbt";
/// Snapshots that are named in a sentence.
const MOST_NAMED: usize = 3;

/// How a disk can be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// While the machine runs, and at any other time.
    Warm,
    /// Only while it is off.
    Cold {
        /// Why, and what to do about it.
        reason: String,
    },
    /// Not at all.
    Blocked {
        /// Why, and what to do about it.
        reason: String,
    },
}

/// What is to be said of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskVerdict {
    /// `Hard disk 1`.
    pub label: String,
    /// Its newest file.
    pub path: String,
    /// How it can be copied.
    pub verdict: Verdict,
}

/// One for each disk of the machine, in its order. `ours` says which names of snapshots are this job's own.
pub fn verdicts(
    machine: &Inventory,
    snapshots: &[FoundSnapshot],
    ours: &dyn Fn(&str) -> bool,
) -> Vec<DiskVerdict> {
    let common = of_machine(machine, snapshots, ours);
    let disks = machine.guest.disks.iter().zip(&machine.backings);
    disks.map(|(disk, backing)| of_disk(machine, disk, backing, &common)).collect()
}

fn of_disk(machine: &Inventory, disk: &Disk, backing: &Backing, common: &[String]) -> DiskVerdict {
    let blocked = if machine.template {
        Some("the machine is a template, which can neither run nor be changed: convert it to a virtual machine".to_owned())
    } else {
        blocked(backing)
    };
    let verdict = match blocked {
        Some(reason) => Verdict::Blocked { reason },
        None => {
            let reasons: Vec<String> = common.iter().cloned().chain(cold(backing)).collect();
            if reasons.is_empty() { Verdict::Warm } else { Verdict::Cold { reason: reasons.join("; ") } }
        }
    };
    DiskVerdict { label: disk.label.clone(), path: disk.path.clone(), verdict }
}

/// What keeps a disk from being read at all.
fn blocked(backing: &Backing) -> Option<String> {
    let kind = backing.kind.as_str();
    if backing.compatibility.as_deref() == Some("physicalMode") {
        return Some(
            "it is a LUN mapped in physical mode (RDM), which only the machine itself can read: map it in virtual mode, or \
             copy its data in the guest"
                .to_owned(),
        );
    }
    let raw = kind.contains("RawDisk") && !kind.starts_with("RawDiskMapping");
    if raw || backing.file.is_empty() {
        return Some(format!(
            "it is a device of the host and no file ({kind}), which VDDK does not read: copy its data in the guest"
        ));
    }
    None
}

/// What keeps all disks from being copied warm.
fn of_machine(machine: &Inventory, snapshots: &[FoundSnapshot], ours: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let version = machine.hardware_version.as_deref();
    let number = version.and_then(|version| version.strip_prefix("vmx-")?.parse::<u32>().ok());
    if let (Some(version), Some(..TRACKING_SINCE)) = (version, number) {
        reasons.push(format!(
            "hardware version {version} has no change tracking: upgrade the machine's compatibility to vmx-07 or later"
        ));
    }
    let others: Vec<&FoundSnapshot> = snapshots.iter().filter(|snapshot| !ours(&snapshot.name)).collect();
    if !others.is_empty() {
        let named = others.iter().take(MOST_NAMED);
        let mut names: Vec<String> =
            named.map(|snapshot| format!("{:?} ({})", snapshot.name, snapshot.moref)).collect();
        if others.len() > MOST_NAMED {
            names.push(format!("and {} more", others.len() - MOST_NAMED));
        }
        let names = names.join(", ");
        reasons.push(match others.iter().any(|snapshot| snapshot.name.starts_with(OURS)) {
            true => format!(
                "snapshots that are not this job's make change tracking unsafe: {names}, maybe left over from a job that \
                 died; see `virt-v2v-wrapper cleanup`, or delete them in the vSphere client"
            ),
            false => format!(
                "snapshots that are not this job's make change tracking unsafe: {names}; delete them (which consolidates \
                 the disks)"
            ),
        });
    }
    reasons
}

/// What keeps one disk from being copied warm.
fn cold(backing: &Backing) -> Vec<String> {
    let mut reasons = Vec::new();
    match backing.mode.as_deref() {
        Some(mode) if mode.starts_with("independent") => reasons.push(format!(
            "its mode is {mode}: snapshots leave it out; set the mode to dependent while the machine is off"
        )),
        Some(mode @ ("nonpersistent" | "undoable" | "append")) => {
            reasons
                .push(format!("its mode is {mode}, with which snapshots do not work; set it to persistent"));
        }
        _ => {}
    }
    let bus = backing.bus_sharing.as_deref();
    if backing.sharing.as_deref() == Some("sharingMultiWriter") {
        reasons.push(
            "it is shared with other machines (multi-writer), which snapshots do not support: all machines that share it \
             must be off"
                .to_owned(),
        );
    } else if let Some(bus) = bus {
        reasons.push(format!(
            "its controller shares the bus ({bus}), with which snapshots do not work: all machines on it must be off"
        ));
    }
    if backing.encrypted {
        reasons.push(
            "it is encrypted by vSphere: the user of vmware_uri needs the privilege Cryptographic operations > Direct \
             Access, and VDDK reads it over nbdssl only"
                .to_owned(),
        );
    }
    if backing.kind.contains("PMem") {
        reasons.push("it is persistent memory of the host, of which there are no snapshots".to_owned());
    }
    reasons
}

/// What the user should know although it keeps nothing from going on.
pub fn notes(machine: &Inventory) -> Vec<String> {
    let mut notes = Vec::new();
    let name = &machine.guest.name;
    let runs = matches!(machine.tools.as_deref(), Some("guestToolsRunning" | "guestToolsExecutingScripts"));
    // Those of a machine that is off do not run either.
    if machine.power == PowerState::On && !runs {
        notes.push(format!(
            "VMware Tools do not run in VM {name:?}: its snapshots are like disks after a power failure, and its guest \
             cannot be asked to shut down"
        ));
    }
    if machine.guest.is_windows() {
        notes.push(format!(
            "VM {name:?} is a Windows guest: switch off hibernation and fast startup in it, for Windows that was not shut \
             down in full cannot be converted"
        ));
    }
    if !machine.connection.is_empty() && machine.connection != "connected" {
        notes.push(format!(
            "the connection state of VM {name:?} is {:?}: its disks may be out of reach",
            machine.connection
        ));
    }
    if machine.snapshots == 0 {
        let linked = machine.guest.disks.iter().zip(&machine.backings);
        for (disk, _) in linked.filter(|(_, backing)| backing.has_parent) {
            notes.push(format!(
                "{} of VM {name:?} has older files below it although there is no snapshot: it is a linked clone, or needs \
                 consolidation",
                disk.label
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests;
