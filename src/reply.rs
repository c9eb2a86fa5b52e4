//! The reply: the one JSON object on stdout, printed before the program goes to the background (contract.md 2.2).

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use crate::job::JobFiles;

/// Where a client finds everything of its job. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reply {
    /// What virt-v2v prints.
    pub v2v_log: PathBuf,
    /// What this program logs.
    pub wrapper_log: PathBuf,
    /// The state of the job, whole JSON at any moment.
    pub state_file: PathBuf,
    /// Written by the client to change limits while the job runs.
    pub throttling_file: PathBuf,
    /// Touched by the client to end a warm migration.
    pub cutover_file: PathBuf,
}

impl Reply {
    /// The reply for a job.
    pub fn new(files: &JobFiles) -> Self {
        Self {
            v2v_log: files.v2v_log(),
            wrapper_log: files.wrapper_log(),
            state_file: files.state(),
            throttling_file: files.throttling(),
            cutover_file: files.cutover(),
        }
    }
}
