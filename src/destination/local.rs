//! A directory of this host: virt-v2v writes `<name>-sda`, ... and `<name>.xml` there.
//!
//! The reference destination. Its whole undo is in the journal: what was in the directory before, and which names the
//! guest may have.

use std::path::PathBuf;

use super::{Destination, DestinationError};
use crate::job::Job;
use crate::journal::{Entry, Journal};
use crate::state::State;
use crate::undo;

/// `output_directory`.
#[derive(Debug)]
pub struct Local {
    /// Absolute path.
    pub directory: PathBuf,
}

impl Destination for Local {
    type Handle = ();

    async fn prepare(&self, job: &Job, journal: &mut Journal) -> Result<(), DestinationError> {
        let existing = undo::listing(&self.directory)
            .map_err(|source| DestinationError::Directory { path: self.directory.clone(), source })?;
        journal.record(&Entry::OutputDirectory {
            path: self.directory.clone(),
            guest_names: vec![job.plan.vm_name.clone()],
            existing,
        })?;
        Ok(())
    }

    async fn finalize(&self, (): (), _state: &State) -> Result<Option<String>, DestinationError> {
        Ok(None)
    }

    async fn abandon(&self, (): ()) {}
}
