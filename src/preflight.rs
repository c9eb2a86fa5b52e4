//! What can be seen on this host before the fork, without a network: the vault, the output directory, local files.
//!
//! An edge. [`crate::plan`] judged the document alone; this looks at what the plan names. Its problems are reported
//! like the plan's: one line each, exit 1, nothing on stdout. Called once, between plan and fork. [`of_guest`] is asked
//! later, when the source has told what the guest is.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use crate::guest::Guest;
use crate::json::one_line;
use crate::plan::problems::Problems;
use crate::plan::{Destination, DiskFormat, LocalSource, Plan, Source, Surroundings, TwoPhasePrograms};
use crate::two_phase::earlier::Stage;
use crate::{undo, vault};

/// Looks around for [`crate::plan::plan`].
pub fn surroundings(
    env: &dyn Fn(&str) -> Option<OsString>,
    virt_v2v: PathBuf,
    two_phase_programs: TwoPhasePrograms,
) -> std::io::Result<Surroundings> {
    Ok(Surroundings {
        home: env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from),
        // Not canonical: virt-v2v is to see the path the pod's owner knows.
        pod_directory: Path::new("data/vm").exists().then(|| std::path::absolute("data/vm")).transpose()?,
        virt_v2v,
        two_phase_programs,
        // The kernel's own generator saves a dependency.
        guest_id: std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned(),
    })
}

/// Reads the vault into the plan and checks what the plan names on this host. `resumed` says how far the job came that
/// is gone on with.
pub fn check(plan: &mut Plan, resumed: Option<Stage>) -> Result<(), Problems> {
    let mut lines = Vec::new();
    match vault::read(&plan.luks_vault, geteuid().as_raw()) {
        Ok((keys, warning)) => {
            plan.luks_keys = keys;
            plan.warnings.extend(warning);
        }
        Err(error) => lines.push(error.to_string()),
    }
    // Disks that are copied are not looked at any more: they may be gone.
    let is_read = resumed.is_none_or(|stage| stage == Stage::Copying);
    if let (Source::Local(source), true) = (&plan.source, is_read) {
        local_source(source, &mut lines);
    }
    if let Destination::Local { directory } = &plan.destination {
        output_directory(directory, &plan.vm_name, resumed.is_some(), &mut lines);
    }
    let warm = plan.two_phase.as_ref().and_then(|two_phase| two_phase.warm.as_ref());
    let now = jiff::Timestamp::now().as_second();
    if warm.and_then(|warm| warm.finalize_at).is_some_and(|at| at <= now) {
        // Not refused: a job that is resumed has it in its document.
        let text = "finalize_at is over already: the last copy begins as soon as the first one is done";
        plan.warnings.push(text.to_owned());
    }
    if lines.is_empty() { Ok(()) } else { Err(Problems::new(lines)) }
}

fn local_source(source: &LocalSource, lines: &mut Vec<String>) {
    match source {
        LocalSource::Disk(path) => source_file("source_path", path, Kinds::Image, lines),
        LocalSource::LibvirtXml(path) | LocalSource::Vmx(path) => {
            source_file("source_path", path, Kinds::File, lines);
        }
        // virt-v2v also takes the directory of an unpacked OVA.
        LocalSource::Ova(path) => source_file("source_path", path, Kinds::FileOrDirectory, lines),
        LocalSource::Disks(paths) => {
            for (index, path) in paths.iter().enumerate() {
                source_file(&format!("source_disks[{index}]"), path, Kinds::Image, lines);
            }
        }
    }
}

/// What a source path may be.
#[derive(Clone, Copy, PartialEq)]
enum Kinds {
    File,
    FileOrDirectory,
    /// A file or a block device.
    Image,
}

fn source_file(key: &str, path: &Path, kinds: Kinds, lines: &mut Vec<String>) {
    let shown = path.display();
    let kind = match std::fs::metadata(path) {
        Ok(data) => data.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return lines.push(format!("{key} {shown} does not exist"));
        }
        Err(error) => return lines.push(format!("{key} {shown} cannot be read: {error}")),
    };
    let fits = match kinds {
        Kinds::File => kind.is_file(),
        Kinds::FileOrDirectory => kind.is_file() || kind.is_dir(),
        Kinds::Image => kind.is_file() || kind.is_block_device(),
    };
    if !fits {
        let wanted = if kinds == Kinds::Image { "a file or a block device" } else { "a file" };
        return lines.push(format!("{key} {shown} is not {wanted}"));
    }
    if access(path, AccessFlags::R_OK).is_err() {
        lines.push(format!("{key} {shown} is not readable by the user running virt-v2v-wrapper"));
    }
}

fn output_directory(directory: &Path, vm_name: &str, resumes: bool, lines: &mut Vec<String>) {
    let shown = directory.display();
    match std::fs::metadata(directory) {
        Ok(data) if !data.is_dir() => {
            return lines.push(format!("output_directory {shown} is not a directory"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return lines.push(format!("output_directory {shown} does not exist: create it or name another"));
        }
        Err(error) => return lines.push(format!("output_directory {shown} cannot be used: {error}")),
    }
    if access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return lines.push(format!(
            "output_directory {shown} is not writable by the user running virt-v2v-wrapper: change its owner or mode, \
             or name another"
        ));
    }
    if resumes {
        // What is there of this machine is what is gone on with.
        return;
    }
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return lines.push(format!("output_directory {shown} cannot be listed: {error}")),
    };
    let mut earlier: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| undo::is_output_of(name.as_ref(), &BTreeSet::from([vm_name])))
        .collect();
    earlier.sort_unstable();
    if let Some(name) = earlier.first() {
        // virt-v2v would overwrite it without a word.
        lines.push(format!(
            "output_directory {shown} already holds {}: remove what is there of this virtual machine, or name another \
             directory",
            one_line(name, 300)
        ));
    }
}

/// Where virt-v2v looks for Windows drivers when nobody says where (contract.md 1.2, `virtio_win`).
const VIRTIO_WIN: &str = "/usr/share/virtio-win";

/// Are the Windows drivers where they are looked for?
pub fn windows_drivers(configured: Option<&Path>) -> Result<(), String> {
    let path = configured.unwrap_or(Path::new(VIRTIO_WIN));
    if path.exists() {
        return Ok(());
    }
    Err(format!("There are no Windows drivers at {}: install virtio-win or set virtio_win", path.display()))
}

/// What the user should know of this guest on this host, as soon as the guest is known and before hours of copying.
/// `resumed`: some of its copies are there already.
pub fn of_guest(plan: &Plan, guest: &Guest, resumed: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if let (true, Err(missing)) = (guest.is_windows(), windows_drivers(plan.tools.virtio_win.as_deref())) {
        lines.push(format!(
            "the guest is a Windows, and is converted without virtio drivers, to slow devices: {missing}"
        ));
    }
    if let (Some(room), false) = (room(plan, guest), resumed)
        && !room.is_enough()
    {
        lines.push(format!(
            "output_directory {} has {} MiB free, and the disks may grow to {} MiB there: when it is full, {}",
            room.directory.display(),
            room.free >> 20,
            room.worst_case >> 20,
            if plan.two_phase.is_some() { "the copy waits for room" } else { "the conversion fails" }
        ));
    }
    lines
}

/// Room where the disks of a guest go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The directory.
    pub directory: PathBuf,
    /// Bytes that are free there.
    pub free: u64,
    /// Bytes of the disks when all of their content is data.
    pub worst_case: u64,
}

impl Room {
    /// Also in the worst case.
    pub fn is_enough(&self) -> bool {
        self.free >= self.worst_case
    }
}

/// The room for a guest's disks; `None` where they do not go into a directory, or a size is not known.
pub fn room(plan: &Plan, guest: &Guest) -> Option<Room> {
    let Destination::Local { directory } = &plan.destination else { return None };
    let free = free_bytes(directory)?;
    let sizes: Option<Vec<u64>> = guest.disks.iter().map(|disk| disk.size).collect();
    let largest = sizes?.into_iter().map(|size| match plan.output_format {
        DiskFormat::Raw => size,
        // 8 bytes of table and 2 of reference count for each cluster of 64 KiB, and some clusters of its own.
        DiskFormat::Qcow2 => size.saturating_add(size / 4096 + (1 << 20)),
    });
    Some(Room { directory: directory.clone(), free, worst_case: largest.fold(0, u64::saturating_add) })
}

/// Bytes that this user may still write to the file system of a directory.
pub fn free_bytes(directory: &Path) -> Option<u64> {
    let system = nix::sys::statvfs::statvfs(directory).ok()?;
    Some(system.blocks_available().saturating_mul(system.fragment_size()))
}

#[cfg(test)]
mod tests;
