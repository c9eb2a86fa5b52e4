//! OpenStack. virt-v2v makes volumes; a server must then be made from them through the API.
//!
//! That is not written yet, and volumes without a server are no converted machine, so the job is refused in
//! [`Destination::prepare`], before anything is copied or created.

use std::convert::Infallible;

use super::{Destination, DestinationError};
use crate::job::Job;
use crate::journal::Journal;
use crate::state::State;

/// What is said to every such job.
pub(super) const NOT_YET: DestinationError = DestinationError::NotYet(
    "OpenStack: this version cannot create the server from the converted volumes yet, so nothing was begun; use \
     output_directory and upload the result, or another destination",
);

/// `osp_environment`.
#[derive(Debug)]
pub struct Openstack;

impl Destination for Openstack {
    type Handle = Infallible;

    async fn prepare(&self, _job: &Job, _journal: &mut Journal) -> Result<Infallible, DestinationError> {
        Err(NOT_YET)
    }

    async fn finalize(&self, handle: Infallible, _state: &State) -> Result<Option<String>, DestinationError> {
        match handle {}
    }

    async fn abandon(&self, handle: Infallible) {
        match handle {}
    }
}
