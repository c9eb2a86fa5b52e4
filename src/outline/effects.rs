//! What a job makes and changes, and what becomes of it. Pure.

use std::path::Path;

use super::Effect;
use crate::job::Job;
use crate::look::Seen;
use crate::plan::{Destination, ShutdownMode, Source, TwoPhase};
use crate::source::local::device_name;
use crate::source::slots;
use crate::source::vsphere::machine::PowerState;
use crate::warm::snapshots;

const OF_THE_JOB: &str = "stays until the job is removed";
const REMOVED: &str = "removed at the end";

fn effect(what: &str, name: impl Into<String>, stays: bool, then: &str) -> Effect {
    Effect { what: what.to_owned(), name: name.into(), stays, then: then.to_owned() }
}

fn directory(path: &Path, stays: bool, then: &str) -> Effect {
    effect("directory", path.display().to_string(), stays, then)
}

/// All of it: on this host, at the destination, on the source.
pub(super) fn effects(job: &Job, seen: &Seen) -> Vec<Effect> {
    let tmp_dir = &job.plan.tools.tmp_dir;
    let mut effects = vec![directory(&job.files.directory, true, OF_THE_JOB)];
    if job.files.log_directory != job.files.directory {
        effects.push(directory(&job.files.log_directory, true, OF_THE_JOB));
    }
    effects.push(directory(&job.files.private_directory(tmp_dir), false, REMOVED));
    if job.plan.two_phase.is_some() {
        let kept = "lists of what is proven; removed when the guest is converted";
        effects.push(directory(&job.files.copies(), false, kept));
        let overlays = match &seen.replay {
            Some(replay) => replay.overlays.clone(),
            None => job.files.overlay_directory(tmp_dir),
        };
        effects.push(directory(&overlays, false, "overlays; removed when they are committed"));
    }
    if seen.exports.iter().any(|export| slots::host(export).is_some()) {
        effects.push(directory(
            &job.files.hosts(),
            true,
            "counts the disks that all jobs read from a host; stays",
        ));
    }
    effects.extend(of_destination(job, seen));
    if let Some(two_phase) = &job.plan.two_phase {
        effects.extend(of_source(job, two_phase, seen));
    }
    effects
}

fn of_destination(job: &Job, seen: &Seen) -> Vec<Effect> {
    let name = &job.plan.vm_name;
    let guest = "the converted guest";
    let made = |what: &str, place: String| vec![effect(what, place, true, guest)];
    let directory = match &job.plan.destination {
        Destination::Local { directory } => directory,
        Destination::Ovirt { url, .. } => {
            return [attachments(job, seen), made("virtual machine", format!("{name} in {url}"))].concat();
        }
        Destination::ExportDomain { domain } => {
            return made("virtual machine", format!("{name} in {domain}"));
        }
        Destination::Openstack { .. } => {
            return [attachments(job, seen), made("virtual machine", format!("{name} in OpenStack"))]
                .concat();
        }
        Destination::Kubevirt { directory } => return made("file", directory.display().to_string()),
    };
    let file = |name: String| effect("file", directory.join(name).display().to_string(), true, guest);
    let name = match (&job.plan.source, &job.plan.two_phase) {
        // virt-v2v takes the name that stands in the vmx file, and it alone reads it.
        (Source::Ssh { .. }, None) => "<displayName of the vmx file>",
        _ => name.as_str(),
    };
    let disks = match &seen.guest {
        Some(guest) => {
            (0..guest.disks.len()).map(|disk| format!("{name}-{}", device_name("sd", disk))).collect()
        }
        None => vec![format!("{name}-<sda and so on>")],
    };
    disks.into_iter().chain([format!("{name}.xml")]).map(file).collect()
}

/// Disks of a cloud that are copied by us: attached to this host meanwhile.
fn attachments(job: &Job, seen: &Seen) -> Vec<Effect> {
    let disks = seen.guest.as_ref().filter(|_| job.plan.two_phase.is_some());
    let disks = disks.map_or(0, |guest| guest.disks.len());
    let one = |disk| {
        let name = format!("{}_Disk{disk}", job.plan.vm_name);
        effect("attachment", name, false, "attached to this host while it is copied and converted")
    };
    (1..=disks).map(one).collect()
}

/// On vSphere; nothing else is changed by us.
fn of_source(job: &Job, two_phase: &TwoPhase, seen: &Seen) -> Vec<Effect> {
    let Some(machine) = &seen.machine else { return Vec::new() };
    let machine = &machine.inventory;
    let shown = || format!("VM {:?} ({})", machine.guest.name, machine.moref);
    let mut effects = Vec::new();
    if two_phase.warm.is_some() {
        let name = snapshots::name(&job.files.tag, "<round>", "");
        effects.push(effect("snapshot", name, false, "one at a time; removed after its round"));
        if !machine.change_tracking {
            effects.push(match two_phase.keep_change_tracking {
                true => effect("change tracking", shown(), true, "stays on (keep_change_tracking)"),
                false => effect("change tracking", shown(), false, "switched off again at the end"),
            });
        }
    }
    if machine.power != PowerState::Off
        && matches!(two_phase.shutdown.mode, ShutdownMode::Auto | ShutdownMode::Force)
    {
        let then = "switched off; on again if the job fails";
        effects.push(effect("power", shown(), true, then));
    }
    effects
}
