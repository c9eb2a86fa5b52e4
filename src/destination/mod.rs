//! Destinations: where a guest goes. A folder (or file) each; [`Selected::of`] is the one place that knows them all.
//!
//! The life of a destination is virt-v2v's own setup / finalize with a carried handle: [`Destination::prepare`] makes
//! one, and exactly one of [`Destination::finalize`] and [`Destination::abandon`] eats it. In a one-phase conversion
//! virt-v2v writes the disks itself, so between the two only [`crate::v2v::args`] speaks for the destination.
//! Read [`local`] first: it is the reference.

use std::path::PathBuf;

use crate::domain::Placed;
use crate::guest::Guest;
use crate::job::Job;
use crate::journal::{Journal, JournalError};
use crate::plan;
use crate::state::State;
use crate::v2v::output::Drivers;

pub mod local;
pub mod openstack;
pub mod ovirt;

/// What went wrong at a destination.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// The journal must know before the destination changes.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A directory of this host.
    #[error("output_directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// This version cannot do it; nothing was begun.
    #[error("{0}")]
    NotYet(&'static str),
}

/// The plan refuses such a document; this is for a program that changes.
const NO_TWO_PHASE: DestinationError = DestinationError::NotYet(
    "two_phase: this version cannot copy disks to this destination; use output_directory",
);

/// A guest whose disks are copied and converted.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// What was asked for.
    pub plan: &'a plan::Plan,
    /// What it was at the source.
    pub guest: &'a Guest,
    /// Its disks, in order.
    pub disks: &'a [Placed],
    /// What it has drivers for.
    pub drivers: &'a Drivers,
}

/// What a destination does around the conversion.
pub trait Destination {
    /// What `prepare` made.
    type Handle;

    /// Makes the destination ready; every side effect is in the journal before it happens.
    fn prepare(
        &self,
        job: &Job,
        journal: &mut Journal,
    ) -> impl Future<Output = Result<Self::Handle, DestinationError>>;

    /// Turns what virt-v2v made into the guest: the id of the new machine, where there is such a thing.
    fn finalize(
        &self,
        handle: Self::Handle,
        state: &State,
    ) -> impl Future<Output = Result<Option<String>, DestinationError>>;

    /// Where the copies of a two-phase job go: one for each disk, in order.
    fn place(&self, job: &Job, disks: usize) -> impl Future<Output = Result<Vec<Placed>, DestinationError>> {
        let _ = (job, disks);
        std::future::ready(Err(NO_TWO_PHASE))
    }

    /// Makes the guest of disks that we copied and converted: the id of the new machine, where there is such a thing.
    fn publish(
        &self,
        handle: Self::Handle,
        machine: &Machine<'_>,
    ) -> impl Future<Output = Result<Option<String>, DestinationError>> {
        let _ = (handle, machine);
        std::future::ready(Err(NO_TWO_PHASE))
    }

    /// Puts the destination back; it logs what it cannot do, it cannot fail. Files are undone from the journal.
    fn abandon(&self, handle: Self::Handle) -> impl Future<Output = ()>;
}

/// The destination of a plan: a closed list.
#[derive(Debug)]
pub enum Selected {
    /// A directory of this host.
    Local(local::Local),
    /// oVirt, through its API or an export domain.
    Ovirt(ovirt::Ovirt),
    /// OpenStack.
    Openstack(openstack::Openstack),
    /// The conversion pod's own volumes: virt-v2v does all of it.
    Kubevirt,
}

/// A [`Destination::Handle`] of whichever destination it is.
#[derive(Debug)]
#[must_use = "a prepared destination is finalized or abandoned"]
pub struct Handle(());

impl Selected {
    /// The destination that this plan names.
    pub fn of(plan: &plan::Plan) -> Self {
        match &plan.destination {
            plan::Destination::Local { directory } => {
                Self::Local(local::Local { directory: directory.clone() })
            }
            plan::Destination::Ovirt { .. } | plan::Destination::ExportDomain { .. } => {
                Self::Ovirt(ovirt::Ovirt)
            }
            plan::Destination::Openstack { .. } => Self::Openstack(openstack::Openstack),
            plan::Destination::Kubevirt { .. } => Self::Kubevirt,
        }
    }

    /// What [`Selected::prepare`] will refuse, whatever the job.
    pub fn refusal(&self) -> Option<DestinationError> {
        match self {
            Self::Openstack(_) => Some(openstack::NOT_YET),
            Self::Local(_) | Self::Ovirt(_) | Self::Kubevirt => None,
        }
    }

    /// See [`Destination::prepare`].
    pub async fn prepare(&self, job: &Job, journal: &mut Journal) -> Result<Handle, DestinationError> {
        match self {
            Self::Local(local) => local.prepare(job, journal).await?,
            Self::Ovirt(ovirt) => ovirt.prepare(job, journal).await?,
            Self::Openstack(openstack) => match openstack.prepare(job, journal).await? {},
            Self::Kubevirt => {}
        }
        Ok(Handle(()))
    }

    /// See [`Destination::finalize`].
    pub async fn finalize(&self, _handle: Handle, state: &State) -> Result<Option<String>, DestinationError> {
        match self {
            Self::Local(local) => local.finalize((), state).await,
            Self::Ovirt(ovirt) => ovirt.finalize((), state).await,
            Self::Openstack(_) | Self::Kubevirt => Ok(None),
        }
    }

    /// See [`Destination::place`].
    pub async fn place(&self, job: &Job, disks: usize) -> Result<Vec<Placed>, DestinationError> {
        match self {
            Self::Local(local) => local.place(job, disks).await,
            Self::Ovirt(ovirt) => ovirt.place(job, disks).await,
            Self::Openstack(openstack) => openstack.place(job, disks).await,
            Self::Kubevirt => Err(NO_TWO_PHASE),
        }
    }

    /// See [`Destination::publish`].
    pub async fn publish(
        &self,
        _handle: Handle,
        machine: &Machine<'_>,
    ) -> Result<Option<String>, DestinationError> {
        match self {
            Self::Local(local) => local.publish((), machine).await,
            Self::Ovirt(ovirt) => ovirt.publish((), machine).await,
            Self::Openstack(_) | Self::Kubevirt => Err(NO_TWO_PHASE),
        }
    }

    /// See [`Destination::abandon`].
    pub async fn abandon(&self, _handle: Handle) {
        match self {
            Self::Local(local) => local.abandon(()).await,
            Self::Ovirt(ovirt) => ovirt.abandon(()).await,
            Self::Openstack(_) | Self::Kubevirt => {}
        }
    }
}
