//! The journal: what a job is about to do and has done outside itself, one JSON line each, on disk before it happens.
//!
//! [`crate::undo`] works from it alone, also when the job's processes are gone. It holds no secret and is private
//! (0600) all the same. A line that a crash cut short is the last one and is ignored: what it announced had not begun.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use crate::footprint::Footprint;
use crate::job::JobFiles;
use crate::things::{self, Kind, Side};
use crate::v2v::output::Drivers;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "entry")]
pub enum Entry {
    /// A private directory is about to be made: removed whole at the end, whatever the outcome.
    PrivateDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A conversion is about to write into a directory of the user.
    OutputDirectory {
        /// The directory.
        path: PathBuf,
        /// Names the guest may have; the files made are `<name>-sda`, `<name>.xml` and so on.
        guest_names: Vec<String>,
        /// What was there before and is never touched.
        existing: Vec<String>,
    },
    /// The tool said (or was seen) to write this file below an output directory.
    OutputFile {
        /// The file.
        path: PathBuf,
    },
    /// A tool's own directory for temporary files, made outside the private one: removed when the job is over.
    ToolDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A cgroup is about to be made for the job's processes: removed when they are gone.
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
    /// The log told another name of the guest; files of that name are the job's too.
    GuestName {
        /// The name.
        name: String,
    },
    /// virt-v2v's log told which disk of the guest this volume is.
    VolumeIndex {
        /// The volume's id.
        id: String,
        /// The disk, from 0.
        disk: usize,
    },
    /// Overlays are about to be made in this directory: removed at the end, unless they hold what [`Self::Converted`]
    /// says and [`Self::Succeeded`] does not yet.
    OverlayDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The overlays hold a guest that is converted whole: from here on only their commit is missing, which can be
    /// repeated as often as need be, and copies and overlays are kept. One line, so that a job which takes them over
    /// from another knows all or nothing.
    Converted {
        /// Directory of the overlays.
        overlays: PathBuf,
        /// Disks, from 0, whose overlay an earlier job committed.
        committed: BTreeSet<usize>,
        /// The converter's exit code, 0.
        return_code: i32,
        /// What it told about the guest.
        drivers: Box<Drivers>,
    },
    /// The overlay of this disk is about to be committed: until [`Self::Committed`] its copy is neither old nor new.
    CommitStarted {
        /// The disk, from 0.
        disk: usize,
    },
    /// The copy of this disk is converted, and on disk.
    Committed {
        /// The disk, from 0.
        disk: usize,
    },
    /// Whose journal this is.
    Job {
        /// Its tag.
        tag: String,
    },
    /// Disks are about to be copied by us; ledgers of what is finished are in this directory.
    Copies {
        /// The directory.
        directory: PathBuf,
    },
    /// Something is copied for good: from here on a failure keeps the copies, so that a later job can go on with them.
    Resumable,
    /// All disks are copied.
    Copied,
    /// Nothing of the job is to stay: the user cancelled it, or a cloud would not take the finished guest.
    Cancelled,
    /// The copies are about to change hands; in the journal of either job. Who has their directory has them, and the source.
    Resuming {
        /// The other job's tag.
        tag: String,
    },
    /// A later job took over the copies.
    ResumedBy {
        /// Its tag.
        tag: String,
    },
    /// The entries that follow, up to the next of this kind, are about this machine of the source (its id).
    Machine {
        /// E.g. `vm-62`.
        moref: String,
    },
    /// Tracking of changed blocks, which was off, is about to be switched on.
    TrackingOn,
    /// It is off again, as it was found.
    TrackingOff,
    /// A snapshot is about to be taken.
    Snapshot {
        /// Its name, which no other has.
        name: String,
    },
    /// It is gone, or was never taken.
    SnapshotGone {
        /// Its name.
        name: String,
    },
    /// The last round is to be copied: the machine is about to be switched off, by whomever.
    Cutover,
    /// The machine, which ran, is about to be switched off by us.
    SwitchedOff,
    /// It is about to be switched on again: what was copied of it grows old, and the cutover is void.
    SwitchingOn,
    /// It runs again, as it was found.
    SwitchedOn,
    /// Where the guest goes, if that is a cloud: whoever goes there later can remove what this job leaves.
    Destination {
        /// [`crate::plan::Destination::cloud`].
        cloud: String,
        /// Name of the guest.
        vm_name: String,
        /// The id by which virt-v2v marks its volumes (OpenStack).
        guest_id: Option<String>,
    },
    /// Something is about to be made, or changed, at a cloud ([`crate::things`]).
    Making {
        /// Which cloud.
        side: Side,
        /// What it is.
        kind: Kind,
        /// Finds it where its id is not known.
        mark: String,
        /// What it belongs to.
        of: String,
    },
    /// It is there.
    Made {
        /// Its mark.
        mark: String,
        /// Its id.
        id: String,
    },
    /// It is gone, was put back, or was never made.
    Gone {
        /// Its mark.
        mark: String,
    },
    /// The conversion is done and what it made is the user's: undo removes no output from here on.
    Succeeded {
        /// virt-v2v's exit code, 0.
        return_code: i32,
    },
}

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A line could not be made durable; what it announces must not be begun.
    #[error("cannot write the journal {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be read.
    #[error("cannot read the journal {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Name of a journal that was put away beside the copies it speaks of.
pub const PUT_AWAY: &str = "journal.jsonl";

/// Far more than the lines of one job.
const RESERVED: i64 = 64 << 10;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// A new, empty journal: what an earlier job in the same place (layout `uci`) left there is over.
    /// Room for its lines is reserved: on a disk that fills up meanwhile the job can still say how it ended.
    pub fn create(path: &Path) -> Result<Self, JournalError> {
        let journal = Self::open_with(path, OpenOptions::new().write(true).create(true).truncate(true))?;
        match fallocate(&journal.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, RESERVED) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(journal),
            Err(errno) => Err(JournalError::Write { path: path.to_owned(), source: errno.into() }),
        }
    }

    /// The journal of a job that already has one. A line that was cut short at its end must not take the next one with it.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let mut journal = Self::open_with(path, OpenOptions::new().read(true).append(true).create(true))?;
        let mut ended = || -> std::io::Result<()> {
            let length = journal.file.metadata()?.len();
            // A job of many rounds writes more than was reserved at first. Where there is no room left, there is none.
            let reserved = i64::try_from(length).unwrap_or(0) + RESERVED;
            let _ = fallocate(&journal.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, reserved);
            let mut last = [b'\n'];
            if length > 0 {
                journal.file.read_exact_at(&mut last, length - 1)?;
            }
            if last == [b'\n'] { Ok(()) } else { journal.file.write_all(b"\n") }
        };
        ended().map_err(|source| JournalError::Write { path: path.to_owned(), source })?;
        Ok(journal)
    }

    fn open_with(path: &Path, options: &mut OpenOptions) -> Result<Self, JournalError> {
        let file = options.mode(0o600).open(path);
        let file = file.map_err(|source| JournalError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The same, unless this job has recorded it before.
    pub fn record_once(&mut self, entry: &Entry) -> Result<(), JournalError> {
        match read(&self.path)?.contains(entry) {
            true => Ok(()),
            false => self.record(entry),
        }
    }

    /// Appends a line and waits until it is on disk.
    pub fn record(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let error = |source| JournalError::Write { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(entry).map_err(|source| error(source.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(error)
    }
}

/// In layout `uci` all jobs have their journal in the same place: one that a later job may need, or that tells what is left
/// on a source, goes to the copies it speaks of.
pub fn put_away(files: &JobFiles) -> Result<(), JournalError> {
    let path = files.journal();
    let entries = read(&path)?;
    let old = entries.iter().find_map(|entry| match entry {
        Entry::Copies { directory } => Some(directory.join(PUT_AWAY)),
        _ => None,
    });
    let fate = fate(&entries);
    let machine_left = !Footprint::of(&entries).after(fate == Fate::Delivered).is_clean();
    let is_left = machine_left || !things::to_undo(&entries, fate).is_empty();
    match old.filter(|to| to.parent().is_some_and(Path::is_dir)) {
        Some(to) if fate == Fate::Kept || is_left => {
            std::fs::rename(&path, &to).map_err(|source| JournalError::Write { path: to, source })
        }
        _ => Ok(()),
    }
}

/// All entries of a journal; none if it does not exist.
pub fn read(path: &Path) -> Result<Vec<Entry>, JournalError> {
    let error = |source| JournalError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut entries = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(error)?;
        match serde_json::from_slice(&line) {
            Ok(entry) => entries.push(entry),
            Err(reason) => tracing::warn!("journal {}: a line was skipped: {reason}", path.display()),
        }
    }
    Ok(entries)
}

/// Did the conversion reach the point from which its output is the user's?
pub fn succeeded(entries: &[Entry]) -> Option<i32> {
    entries.iter().rev().find_map(|entry| match entry {
        Entry::Succeeded { return_code } => Some(*return_code),
        _ => None,
    })
}

/// Is there a converted guest whose overlays are not all known to be committed, or not yet the user's?
pub fn can_be_committed(entries: &[Entry]) -> bool {
    succeeded(entries).is_none() && entries.iter().any(|entry| matches!(entry, Entry::Converted { .. }))
}

/// Are all disks copied, of a machine that has not run since as far as this journal knows?
pub fn all_copied(entries: &[Entry]) -> bool {
    is_valid(entries, &Entry::Copied)
}

/// Was the cutover of a warm migration begun, and the machine not switched on again since?
pub fn cut_over(entries: &[Entry]) -> bool {
    is_valid(entries, &Entry::Cutover)
}

/// Was this recorded, and the machine not switched on by us since, nor was that begun?
fn is_valid(entries: &[Entry], wanted: &Entry) -> bool {
    let last = entries.iter().rposition(|entry| entry == wanted);
    let on = entries.iter().rposition(|entry| matches!(entry, Entry::SwitchingOn | Entry::SwitchedOn));
    last > on
}

/// Whose what a job made is, when the job is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nobody's: all of it goes.
    Undone,
    /// A later job's that resumes this one: copies and ledgers stay, and overlays that hold a whole conversion.
    Kept,
    /// A later job's that has resumed this one: its journal speaks of it now.
    TakenOver,
    /// The user's: the disks stay, what was only needed on the way goes.
    Delivered,
}

/// Reads it from the journal.
pub fn fate(entries: &[Entry]) -> Fate {
    let has = |wanted: fn(&Entry) -> bool| entries.iter().any(wanted);
    if has(|entry| matches!(entry, Entry::Succeeded { .. })) {
        Fate::Delivered
    } else if has(|entry| matches!(entry, Entry::ResumedBy { .. })) {
        Fate::TakenOver
    } else if has(|entry| matches!(entry, Entry::Cancelled)) {
        Fate::Undone
    } else if has(|entry| matches!(entry, Entry::Resumable | Entry::Converted { .. })) {
        Fate::Kept
    } else {
        Fate::Undone
    }
}

#[cfg(test)]
mod tests;
