//! oVirt/RHV. virt-v2v's own `rhv-upload` makes disks and machine, and says the machine's id in its log.
//!
//! What needs the engine's API (looking things up first, cancelling transfers and deleting disks of a failed
//! conversion) has its place in [`Destination::prepare`] and [`Destination::abandon`] and is not written yet: after a
//! failure the disks that virt-v2v made stay, as the final state's warning says.

use super::{Destination, DestinationError};
use crate::job::Job;
use crate::journal::Journal;
use crate::state::State;

/// `rhv_url` or `export_domain`.
#[derive(Debug)]
pub struct Ovirt;

impl Destination for Ovirt {
    type Handle = ();

    async fn prepare(&self, _job: &Job, _journal: &mut Journal) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn finalize(&self, (): (), state: &State) -> Result<Option<String>, DestinationError> {
        Ok(state.vm_id.clone())
    }

    async fn abandon(&self, (): ()) {}
}
