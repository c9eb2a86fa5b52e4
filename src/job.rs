//! A job on disk: its tag and the paths of its files (design.md "Jobs, files, configuration").
//!
//! Only names. The files are written by [`crate::state_file`], [`crate::journal`] and [`crate::log`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

    /// Held (flock) by the supervisor and the worker for as long as either lives.
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
