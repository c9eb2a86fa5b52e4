//! A directory of this host: `<name>-sda`, ... and `<name>.xml` are written there, by virt-v2v in one phase, by us in
//! two.
//!
//! The reference destination. Its whole undo is in the journal: what was in the directory before, and which names the
//! guest may have.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::{Destination, DestinationError, Machine, Work};
use crate::domain::{self, Placed};
use crate::guest::Guest;
use crate::job::Job;
use crate::journal::Entry;
use crate::plan::Plan;
use crate::source::local::device_name;
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

    async fn prepare(&self, work: &mut Work<'_>) -> Result<(), DestinationError> {
        let mut existing = undo::listing(&self.directory).map_err(|source| self.error(source))?;
        // Copies that this job took over from another are its own.
        let taken_over = work.records.entries()?;
        let is_ours = |name: &String| {
            let path = self.directory.join(name);
            taken_over.iter().any(|entry| matches!(entry, Entry::OutputFile { path: ours } if *ours == path))
        };
        existing.retain(|name| !is_ours(name));
        work.records.journal().record(&Entry::OutputDirectory {
            path: self.directory.clone(),
            guest_names: vec![work.job.plan.vm_name.clone()],
            existing,
        })?;
        Ok(())
    }

    async fn finalize(
        &self,
        (): (),
        _state: &State,
        _work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        Ok(None)
    }

    async fn place(
        &self,
        (): &(),
        guest: &Guest,
        work: &mut Work<'_>,
    ) -> Result<Vec<Placed>, DestinationError> {
        Ok(self.placed(work.job, guest.disks.len()))
    }

    async fn publish(
        &self,
        (): (),
        machine: &Machine<'_>,
        _work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        let Machine { plan, guest, disks, drivers } = machine;
        let xml = domain::final_domain(guest, disks, &plan.network_mappings, drivers);
        // Whole or not at all: whoever defines the machine from it reads it as soon as it is there.
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".v2v-")
                .permissions(Permissions::from_mode(0o644))
                .tempfile_in(&self.directory)?;
            file.write_all(xml.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(self.directory.join(format!("{}.xml", plan.vm_name)))?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| self.error(source))?;
        Ok(None)
    }

    async fn abandon(&self, (): ()) {}
}

impl Local {
    /// Where the copies go: known before anything is made.
    pub fn placed(&self, job: &Job, disks: usize) -> Vec<Placed> {
        let Plan { vm_name, output_format: format, .. } = &job.plan;
        let name = |disk| format!("{vm_name}-{}", device_name("sd", disk));
        (0..disks).map(|disk| Placed { path: self.directory.join(name(disk)), format: *format }).collect()
    }

    fn error(&self, source: std::io::Error) -> DestinationError {
        DestinationError::Directory { path: self.directory.clone(), source }
    }
}
