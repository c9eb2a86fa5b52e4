//! A job: the paths of its files, the lock that says it lives, and what its worker is told.
//!
//! The files are written by [`crate::state_file`], [`crate::journal`] and [`crate::log`].

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::v2v::capabilities::Capabilities;

/// Everything the worker is told, through a sealed memfd: the plan holds secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What to do.
    pub plan: Plan,
    /// Where its files are.
    pub files: JobFiles,
    /// What virt-v2v can do, asked before the fork.
    pub capabilities: Capabilities,
}

/// Names of all files of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFiles {
    /// `YYYYMMDDTHHMMSS-<pid>` (contract.md 2.4).
    pub tag: String,
    /// Directory of state, journal and triggers.
    pub directory: PathBuf,
    /// Directory of the three logs.
    pub log_directory: PathBuf,
}

impl JobFiles {
    /// The state file clients poll.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// What was begun and done outside the process, for undo.
    pub fn journal(&self) -> PathBuf {
        self.directory.join("journal.jsonl")
    }

    /// Held (flock) for as long as the supervisor or the worker lives, and removed by the last act of the job: a
    /// lock file that nobody holds is a job whose processes were all killed ([`crate::sweep`]).
    pub fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// virt-v2v's stdout and stderr.
    pub fn v2v_log(&self) -> PathBuf {
        self.log_directory.join("virt-v2v.log")
    }

    /// virt-v2v's machine-readable log.
    pub fn machine_readable_log(&self) -> PathBuf {
        self.log_directory.join("virt-v2v-mr.log")
    }

    /// Our own log.
    pub fn wrapper_log(&self) -> PathBuf {
        self.log_directory.join("virt-v2v-wrapper.log")
    }

    /// Limits a client may write while the job runs (contract.md 8.1).
    pub fn throttling(&self) -> PathBuf {
        self.directory.join("throttling.json")
    }

    /// Touched by a client to end a warm migration.
    pub fn cutover(&self) -> PathBuf {
        self.directory.join("cutover")
    }

    /// The job's private directory below `tmp_dir`: `TMPDIR` of every tool, removed at the end.
    pub fn private_directory(&self, tmp_dir: &Path) -> PathBuf {
        tmp_dir.join(format!("v2v-{}", self.tag))
    }
}

/// A directory or lock of a job could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A directory.
    #[error("cannot create {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is left of a finished job.
    #[error("cannot remove {path}")]
    Remove {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The lock file.
    #[error("cannot lock {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl JobFiles {
    /// Makes the two directories, traversable for every user whatever the umask (clients fetch state and logs as
    /// an unprivileged login user, contract.md 9.3).
    pub fn create_directories(&self) -> Result<(), JobError> {
        for directory in [&self.directory, &self.log_directory] {
            create_traversable(directory)
                .map_err(|source| JobError::Directory { path: directory.clone(), source })?;
        }
        Ok(())
    }

    /// Takes the lock; `None` if a living job has it. It belongs to the open file: processes that inherit the
    /// descriptor hold it too, and it is free when the last of them is gone.
    pub fn take_lock(&self) -> Result<Option<File>, JobError> {
        let error = |source| JobError::Lock { path: self.lock(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        loop {
            let file = options.open(self.lock()).map_err(error)?;
            match file.try_lock() {
                // A job that ended between the two calls has removed the file that was opened.
                Ok(()) if !is_at(&file, &self.lock()).map_err(error)? => {}
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(source)) => return Err(error(source)),
            }
        }
    }

    /// Writes the tag into the lock file: in layout `uci` all jobs share one place, and a later start must know whose
    /// processes to look for.
    pub fn sign_lock(&self, mut lock: &File) -> Result<(), JobError> {
        let error = |source| JobError::Lock { path: self.lock(), source };
        lock.set_len(0).and_then(|()| lock.write_all(self.tag.as_bytes())).map_err(error)
    }

    /// Removes the files of a job that is over. Only files of ours go: in layout `uci` the directories are shared with
    /// the container's own.
    pub fn remove(&self) -> Result<(), JobError> {
        let files = [
            self.state(),
            self.journal(),
            self.throttling(),
            self.cutover(),
            self.directory.join("copy_trigger"),
            self.directory.join("pause_operations"),
            self.v2v_log(),
            self.machine_readable_log(),
            self.wrapper_log(),
            self.lock(),
        ];
        for path in files {
            ignore_missing(std::fs::remove_file(&path))
                .map_err(|source| JobError::Remove { path, source })?;
        }
        for path in [&self.directory, &self.log_directory] {
            // What else lies there is not ours, and then the directory stays.
            if path.ends_with(&self.tag)
                && let Err(error) = ignore_missing(std::fs::remove_dir(path))
            {
                tracing::warn!("{} stays: {error}", path.display());
            }
        }
        Ok(())
    }

    /// The last act of a job: from here on it is over for good.
    pub fn remove_lock(&self) {
        if let Err(error) = std::fs::remove_file(self.lock())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("the lock {} could not be removed: {error}", self.lock().display());
        }
    }
}

/// Is `path` still this file?
fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(other) => Ok((own.dev(), own.ino()) == (other.dev(), other.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn create_traversable(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create_traversable(parent)?;
    }
    match DirBuilder::new().mode(0o755).create(directory) {
        // Somebody else's job made it meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    std::fs::set_permissions(directory, Permissions::from_mode(0o755))
}

/// The tag of a job started now by this process, `YYYYMMDDTHHMMSS-<pid>`, local time (contract.md 2.4).
pub fn new_tag() -> String {
    format!("{}-{}", jiff::Zoned::now().strftime("%Y%m%dT%H%M%S"), std::process::id())
}
