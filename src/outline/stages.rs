//! The stages of a job in words, with the programs that each runs. Pure.

use super::{Stage, commands, warm};
use crate::job::Job;
use crate::look::Seen;
use crate::plan::{Destination, LocalSource, ShutdownMode, Source, TwoPhase};
use crate::source::vsphere::machine::PowerState;
use crate::two_phase::earlier::Stage as Reached;
use crate::warm::off;

pub(super) fn stage(name: &str, does: impl IntoIterator<Item = String>) -> Stage {
    Stage { name: name.to_owned(), does: does.into_iter().collect(), commands: Vec::new() }
}

/// All of them in their order.
pub(super) fn stages(job: &Job, reached: Option<Reached>, seen: &Seen) -> Vec<Stage> {
    let Some(two_phase) = &job.plan.two_phase else { return vec![one_phase(job)] };
    let mut stages: Vec<Stage> = serve_volumes(job).into_iter().chain(place(job)).collect();
    match (reached, &two_phase.warm) {
        (Some(Reached::Copied | Reached::Converted), _) => {}
        (_, Some(terms)) => stages.extend(warm::stages(job, two_phase, terms, seen, reached)),
        (_, None) => {
            stages.extend(shutdown(two_phase, seen));
            stages.push(copy(job, two_phase, seen, reached));
            stages.push(verify(two_phase));
        }
    }
    if !two_phase.convert {
        stages.push(stage("publish", publish(job)));
        return stages;
    }
    if reached != Some(Reached::Converted) {
        let does = "a qcow2 overlay is made over each copy, and virt-v2v-in-place converts the guest on the overlays: the copies \
                    are not touched, and a conversion that fails is repeated without a copy";
        let mut convert = stage("convert", [does.to_owned()]);
        convert.commands = commands::convert(job, &two_phase.programs, seen);
        stages.push(convert);
    }
    let does = "what the conversion changed is written into the copies, one after the other, and the overlays are removed";
    let mut commit = stage("commit", [does.to_owned()]);
    commit.commands = commands::commit(job, &two_phase.programs, seen);
    stages.push(commit);
    stages.push(stage("publish", publish(job)));
    stages.extend(two_phase.warm.as_ref().map(|_| warm::put_back(two_phase, seen)));
    stages
}

fn one_phase(job: &Job) -> Stage {
    let mut does = Vec::new();
    match &job.plan.source {
        Source::Ssh { .. } => does.extend(agent(job)),
        Source::Local(LocalSource::Disks(_)) => {
            does.push("the images are described to virt-v2v by a libvirt XML".to_owned());
        }
        Source::Vddk { .. } | Source::Openstack { .. } | Source::Local(_) => {}
    }
    does.push("virt-v2v reads the source, converts the guest, and writes it to the destination".to_owned());
    let mut stage = stage("virt-v2v", does);
    stage.commands.push(commands::virt_v2v(job));
    stage
}

fn agent(job: &Job) -> Option<String> {
    let is_ssh = matches!(job.plan.source, Source::Ssh { .. } | Source::Openstack { .. });
    is_ssh.then(|| "an ssh-agent of the job's own holds the key".to_owned())
}

fn publish(job: &Job) -> Option<String> {
    let name = &job.plan.vm_name;
    match &job.plan.destination {
        Destination::Local { directory } => {
            let xml = directory.join(format!("{name}.xml"));
            Some(format!("{} describes the converted guest for libvirt", xml.display()))
        }
        Destination::Ovirt { .. } => Some(format!(
            "the disks are taken out of this host's own machine, and VM {name:?} is made of them, with its NICs on the mapped \
             networks"
        )),
        Destination::Openstack { project_id, .. } => Some(format!(
            "the volumes are taken out of the conversion server and handed to project {project_id}, ports are made there, \
             and server {name:?} of both"
        )),
        Destination::ExportDomain { .. } | Destination::Kubevirt { .. } => None,
    }
}

/// A guest of an OpenStack: how its volumes come to be read, and go back.
fn serve_volumes(job: &Job) -> Option<Stage> {
    let Source::Openstack { vm_id, converter_id, image, .. } = &job.plan.source else { return None };
    Some(stage(
        "serve",
        [
            format!(
                "the boot disk of server {vm_id} is copied inside its cloud, by a snapshot; its other volumes are detached from it"
            ),
            format!("all of them are attached to the source conversion host, server {converter_id}"),
            format!("a container of {image} serves them there, and is read through tunnels of ssh"),
            "at the end, whatever that is, the container is stopped, the volumes go back, copy and snapshot are removed"
                .to_owned(),
        ],
    ))
}

/// Where the destination is a cloud: what is made there before the first byte is copied.
pub(super) fn place(job: &Job) -> Option<Stage> {
    let does = match &job.plan.destination {
        Destination::Ovirt { conversion_host, .. } => {
            let host = conversion_host.as_deref().unwrap_or("of this host");
            format!(
                "a disk is made for each of the guest's, and attached to machine {host}, which is this host"
            )
        }
        Destination::Openstack { server_id, .. } => {
            format!("a volume is made for each disk, and attached to server {server_id}, which is this host")
        }
        Destination::Local { .. } | Destination::ExportDomain { .. } | Destination::Kubevirt { .. } => {
            return None;
        }
    };
    Some(stage("place", [does]))
}

/// A machine that runs, before its only copy.
fn shutdown(two_phase: &TwoPhase, seen: &Seen) -> Option<Stage> {
    let machine = &seen.machine.as_ref()?.inventory;
    match machine.power {
        PowerState::On | PowerState::Unknown => {}
        PowerState::Off | PowerState::Suspended => return None,
    }
    Some(stage("shutdown", switching_off(two_phase, seen)))
}

/// What is done about a machine that runs when its last copy begins (`shutdown_mode`).
pub(super) fn switching_off(two_phase: &TwoPhase, seen: &Seen) -> Vec<String> {
    let tools = seen.machine.as_ref().and_then(|machine| machine.inventory.tools.as_deref());
    let tools_run = matches!(tools, Some("guestToolsRunning" | "guestToolsExecutingScripts"));
    let asked = || {
        format!(
            "the guest is asked to shut down, and switched off when it has not after {} s",
            off::GUEST_PATIENCE.as_secs()
        )
    };
    let by_somebody = "is waited for until somebody has shut it down";
    let first = match two_phase.shutdown.mode {
        ShutdownMode::Never => {
            return vec![
                "shutdown_mode never: a machine that still runs then is refused; shut it down before"
                    .to_owned(),
            ];
        }
        ShutdownMode::Auto if tools_run => format!("shutdown_mode auto: {}", asked()),
        ShutdownMode::Auto => format!(
            "shutdown_mode auto: {}; while its VMware Tools do not run, as now, it {by_somebody}",
            asked()
        ),
        ShutdownMode::Force => {
            "shutdown_mode force: the machine is switched off at once, without its guest".to_owned()
        }
        ShutdownMode::Manual => format!("shutdown_mode manual: the machine {by_somebody}"),
    };
    let settle = seen.guest.as_ref().map(|guest| off::settle(&two_phase.shutdown, guest).as_secs());
    let settle =
        settle.map(|seconds| format!("then its storage has {seconds} s to settle (finalize_settle_seconds)"));
    [first].into_iter().chain(settle).collect()
}

fn copy(job: &Job, two_phase: &TwoPhase, seen: &Seen, reached: Option<Reached>) -> Stage {
    let mut does = vec!["all disks are copied side by side, what is no data is left out".to_owned()];
    does.extend(agent(job));
    does.extend(resumed(two_phase, reached));
    let mut stage = stage("copy", does);
    let programs = &two_phase.programs;
    stage.commands = commands::serve(job, programs, seen, &seen.exports);
    stage.commands.extend(commands::targets(job, programs, seen, reached.is_some()));
    stage
}

/// What a job does otherwise that goes on with another.
pub(super) fn resumed(two_phase: &TwoPhase, reached: Option<Reached>) -> Option<String> {
    let tag = two_phase.resume.as_deref()?;
    reached.map(|_| {
        format!(
            "what job {tag} copied and proved is not copied again; a qcow2 copy that is there is checked by qemu-img, and made \
             again only if nothing of it was proven"
        )
    })
}

pub(super) fn verify(two_phase: &TwoPhase) -> Stage {
    let does = match two_phase.verify {
        true => "each 4 MiB is read back from the copy and compared by its hash before it counts as copied",
        false => "verify is off: what was written is flushed, and not read back",
    };
    stage("verify", [does.to_owned()])
}
