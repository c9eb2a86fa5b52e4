//! An earlier job that was interrupted, and whose copies a new job takes over (`"resume": "<tag>"`).
//!
//! What a job leaves for this: its journal, and a directory of its own ([`crate::job::JobFiles::copies`]) with a ledger
//! for each disk and [`Known`]. [`find`] is asked before the fork, so that a tag that cannot be resumed is refused at
//! once; the rest runs in the worker.

use std::path::{Path, PathBuf};

use super::Known;
use crate::copy::ledger::{Ledger, LedgerError, Standing};
use crate::domain::Placed;
use crate::footprint::Footprint;
use crate::job::{Job, JobError, JobFiles, Taken};
use crate::journal::{self, Entry, Fate, Journal, JournalError};
use crate::things::{self, Thing};

/// File with [`Known`] in the directory of the copies.
const KNOWN: &str = "guest.json";

/// Why a job cannot be resumed.
#[derive(Debug, thiserror::Error)]
pub enum EarlierError {
    /// Nobody knows it.
    #[error("resume: there is no job {tag} in {directory}; virt-v2v-wrapper jobs lists them")]
    Unknown {
        /// The tag.
        tag: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// It runs.
    #[error("resume: job {tag} is running; wait for it, or cancel it")]
    Running {
        /// The tag.
        tag: String,
    },
    /// It is done.
    #[error("resume: job {tag} succeeded: there is nothing to resume")]
    Succeeded {
        /// The tag.
        tag: String,
    },
    /// Its copies are gone.
    #[error(
        "resume: job {tag} left nothing to resume: it was cancelled, or failed before anything was copied; start the \
         job without resume"
    )]
    Nothing {
        /// The tag.
        tag: String,
    },
    /// Another job went on with it.
    #[error("resume: job {tag} was resumed by job {by} already: resume that one")]
    Resumed {
        /// The tag.
        tag: String,
        /// The other job.
        by: String,
    },
    /// Its copies are neither those of the machine nor those of the conversion.
    #[error(
        "resume: the machine of job {tag} was switched on again when the job had begun to change its copies: they are of \
         no use any more. Remove the job (virt-v2v-wrapper jobs --remove {tag}) and start without resume"
    )]
    RanSince {
        /// The tag.
        tag: String,
    },
    /// A file of it.
    #[error("resume: cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The lock.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// How far a job came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Some disks, or parts of them, are copied.
    Copying,
    /// All disks are copied.
    Copied,
    /// They are converted on overlays, which are not all committed.
    Converted,
}

impl Stage {
    fn of(entries: &[Entry]) -> Self {
        match (journal::all_copied(entries), journal::can_be_committed(entries)) {
            (true, true) => Self::Converted,
            (true, false) => Self::Copied,
            // What was converted is older than the machine, which ran since.
            (false, _) => Self::Copying,
        }
    }
}

/// An earlier job whose copies are this job's now.
#[derive(Debug)]
pub struct Earlier {
    /// How far it came.
    pub stage: Stage,
    /// Its journal.
    pub entries: Vec<Entry>,
}

/// The journal of a job, which may have been put away by a later job in the same place ([`journal::put_away`]).
pub fn journal_of(files: &JobFiles) -> PathBuf {
    let put_away = files.copies().join(journal::PUT_AWAY);
    if put_away.exists() { put_away } else { files.journal() }
}

/// Can this job be resumed? Then how far it came.
pub fn find(files: &JobFiles) -> Result<Stage, EarlierError> {
    let tag = || files.tag.clone();
    let entries = journal::read(&journal_of(files))?;
    let resumed = entries.iter().find_map(|entry| match entry {
        Entry::ResumedBy { tag } => Some(tag.clone()),
        _ => None,
    });
    if let Some(by) = resumed {
        return Err(EarlierError::Resumed { tag: tag(), by });
    }
    if journal::succeeded(&entries).is_some() {
        return Err(EarlierError::Succeeded { tag: tag() });
    }
    if journal::fate(&entries) == Fate::Kept && files.copies().is_dir() {
        let stage = Stage::of(&entries);
        let changed = entries.iter().any(|entry| matches!(entry, Entry::CommitStarted { .. }));
        return match stage == Stage::Copying && changed {
            true => Err(EarlierError::RanSince { tag: tag() }),
            false => Ok(stage),
        };
    }
    match entries.is_empty() && !files.copies().exists() {
        true => Err(EarlierError::Unknown { tag: tag(), directory: files.directory.clone() }),
        false => Err(EarlierError::Nothing { tag: tag() }),
    }
}

/// Is a job with files of its own over?
pub fn is_over(files: &JobFiles) -> Result<(), EarlierError> {
    match files.take_lock()? {
        Taken::Held => Err(EarlierError::Running { tag: files.tag.clone() }),
        Taken::Free(_) | Taken::Gone => Ok(()),
    }
}

/// Makes the copies of the earlier job this one's. Killed at any moment, one of the two can be resumed.
pub fn take_over(job: &Job, files: &JobFiles, journal: &mut Journal) -> Result<Earlier, EarlierError> {
    let stage = find(files)?;
    let entries = journal::read(&journal_of(files))?;
    let (from, to) = (files.copies(), job.files.copies());
    journal.record_once(&Entry::Copies { directory: to.clone() })?;
    for entry in &entries {
        match entry {
            Entry::OutputFile { .. } | Entry::Resumable => journal.record_once(entry)?,
            Entry::Copied if stage != Stage::Copying => journal.record_once(entry)?,
            // Nobody asks for it again.
            Entry::Cutover if journal::cut_over(&entries) => journal.record_once(entry)?,
            // Of a conversion that does not count any more: they go with this job.
            Entry::Converted { overlays, .. } if stage == Stage::Copying => {
                journal.record_once(&Entry::OverlayDirectory { path: overlays.clone() })?;
            }
            // What is converted is journalled again by the conversion stage, which knows what of it is committed.
            _ => {}
        }
    }
    if stage == Stage::Copying && journal::cut_over(&entries) {
        // The machine may be off already.
        journal.record_once(&Entry::Cutover)?;
    }
    let own = journal_of(files);
    // From here until one of the two has them, the directory of the copies tells whose the source is.
    journal.record(&Entry::Resuming { tag: files.tag.clone() })?;
    Journal::open(&own)?.record(&Entry::Resuming { tag: job.files.tag.clone() })?;
    let things = things::there(&entries);
    for entry in Footprint::of(&entries).entries().into_iter().chain(things.iter().flat_map(Thing::entries)) {
        journal.record(&entry)?;
    }
    std::fs::rename(&from, &to).map_err(|source| EarlierError::File {
        what: "take over",
        path: from.clone(),
        source,
    })?;
    // A journal that was put away moved with the copies.
    let moved = own.strip_prefix(&from).map_or(own.clone(), |name| to.join(name));
    Journal::open(&moved)?.record(&Entry::ResumedBy { tag: job.files.tag.clone() })?;
    tracing::info!("resuming job {}: {stage:?}", files.tag);
    Ok(Earlier { stage, entries })
}

/// Where the ledger of a disk is.
pub fn ledger(directory: &Path, disk: usize) -> PathBuf {
    directory.join(format!("disk-{disk}.ledger"))
}

/// Keeps what a later job must know.
pub fn remember(directory: &Path, known: &Known) -> Result<(), EarlierError> {
    let path = directory.join(KNOWN);
    let write = || -> std::io::Result<()> {
        match std::fs::create_dir(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer(&mut file, known)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(directory)?.sync_all()?;
        directory.parent().map_or(Ok(()), |above| std::fs::File::open(above)?.sync_all())
    };
    write().map_err(|source| EarlierError::File { what: "write", path: path.clone(), source })
}

/// What an earlier job kept of the guest, if it came so far.
pub fn known(directory: &Path) -> Result<Option<Known>, EarlierError> {
    let path = directory.join(KNOWN);
    let error = |source| EarlierError::File { what: "read", path: path.clone(), source };
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| error(source.into())),
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(error(other)),
    }
}

/// What is known of finished copies: the guest, and each disk's target and checksum.
pub fn recall(directory: &Path) -> Result<(Known, Vec<(Placed, String)>), EarlierError> {
    let missing = || EarlierError::File {
        what: "read",
        path: directory.join(KNOWN),
        source: std::io::ErrorKind::NotFound.into(),
    };
    let known = known(directory)?.ok_or_else(missing)?;
    let disks = (0..known.guest.disks.len()).map(|disk| {
        let ledger = Ledger::open(&ledger(directory, disk))?;
        let identity = ledger.identity();
        let placed = Placed { path: identity.target.clone(), format: identity.format };
        Ok((placed, ledger.checksum()?))
    });
    let disks = disks.collect::<Result<_, LedgerError>>()?;
    Ok((known, disks))
}

/// Whether a ledger says of any chunk that it is finished, or was before parts of it were written again.
pub fn has_finished(ledger: &Ledger) -> bool {
    ledger.count(Standing::Stale) > 0
}
