//! The command lines of a job that is only shown. Pure: each is made by the function that the run itself calls, with the
//! paths that the job would have but for its tag.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Command;
use crate::copy::target::file::Allocation;
use crate::copy::target::nbd_image::Image;
use crate::export::{Export, Files};
use crate::in_place;
use crate::job::Job;
use crate::look::Seen;
use crate::overlay::Overlay;
use crate::plan::{DiskFormat, Source, TwoPhasePrograms};
use crate::run;
use crate::source::{Session, ssh};
use crate::v2v::args::CommandLine;

/// The job's private directory, which is not made.
fn private(job: &Job) -> PathBuf {
    job.files.private_directory(&job.plan.tools.tmp_dir)
}

fn command(program: &Path, line: &CommandLine, disk: Option<usize>) -> Command {
    let mut argv = vec![program.display().to_string()];
    argv.extend(line.words());
    let environment = line.env.iter().map(|(name, value)| format!("{name}={}", value.redacted()));
    Command { argv, environment: environment.collect(), disk: disk.map(|disk| disk + 1) }
}

fn qemu_img(programs: &TwoPhasePrograms, args: Vec<OsString>, disk: usize) -> Command {
    let mut argv = vec![programs.qemu_img.display().to_string()];
    argv.extend(args.iter().map(|arg| arg.to_string_lossy().into_owned()));
    Command { argv, environment: Vec::new(), disk: Some(disk + 1) }
}

/// virt-v2v of a one-phase job.
pub(super) fn virt_v2v(job: &Job) -> Command {
    let private = private(job);
    let agent = matches!(job.plan.source, Source::Ssh { .. }).then(|| ssh::agent_socket(&private));
    let line = run::command_line(job, &private, &Session { ssh_auth_sock: agent });
    command(&job.plan.tools.virt_v2v, &line, None)
}

/// By what the source disks are served.
pub(super) fn serve(job: &Job, programs: &TwoPhasePrograms, seen: &Seen, exports: &[Export]) -> Vec<Command> {
    let private = private(job);
    let line = |(disk, export): (usize, &Export)| {
        let files = Files::new(&private, export.program(), disk as u32);
        let line = export.command_line(&files, seen.filters, seen.library_path.as_deref());
        command(export.program().path(programs), &line, Some(disk))
    };
    exports.iter().enumerate().map(line).collect()
}

/// How copies with a format are made and written; raw ones need no program. Those of an earlier job (`resumed`) are there.
pub(super) fn targets(job: &Job, programs: &TwoPhasePrograms, seen: &Seen, resumed: bool) -> Vec<Command> {
    let private = private(job);
    let allocation = Allocation::of(job.plan.allocation.as_deref());
    let mut commands = Vec::new();
    let sizes = seen.guest.iter().flat_map(|guest| &guest.disks).map(|disk| disk.size);
    for (disk, (placed, size)) in seen.placed.iter().zip(sizes).enumerate() {
        if placed.format == DiskFormat::Raw {
            continue;
        }
        let image = Image { tag: &job.files.tag, path: &placed.path, format: placed.format };
        if let (Some(size), false) = (size, resumed) {
            commands.push(qemu_img(programs, image.create_args(size, allocation), disk));
        }
        let line = image.command_line(&Files::of_target(&private, disk));
        commands.push(command(&programs.qemu_nbd, &line, Some(disk)));
    }
    commands
}

/// The overlays of the job, or those that an earlier one left.
fn overlays(job: &Job, seen: &Seen) -> Vec<Overlay> {
    let left = seen.replay.as_ref().map(|replay| replay.overlays.clone());
    let directory = left.unwrap_or_else(|| job.files.overlay_directory(&job.plan.tools.tmp_dir));
    seen.placed.iter().enumerate().map(|(disk, base)| Overlay::new(disk, base, &directory)).collect()
}

/// The conversion of the copies.
pub(super) fn convert(job: &Job, programs: &TwoPhasePrograms, seen: &Seen) -> Vec<Command> {
    let overlays = overlays(job, seen);
    let made = overlays.iter().map(|overlay| qemu_img(programs, overlay.create_args(), overlay.disk));
    let line = in_place::command_line(job);
    made.chain([command(&programs.virt_v2v_in_place, &line, None)]).collect()
}

/// What the conversion changed, brought into the copies.
pub(super) fn commit(job: &Job, programs: &TwoPhasePrograms, seen: &Seen) -> Vec<Command> {
    let committed = |disk| seen.replay.as_ref().is_some_and(|replay| replay.committed.contains(&disk));
    let overlays = overlays(job, seen);
    let left = overlays.iter().filter(|overlay| !committed(overlay.disk));
    left.map(|overlay| qemu_img(programs, overlay.commit_args(), overlay.disk)).collect()
}
