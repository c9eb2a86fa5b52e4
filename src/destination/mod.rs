//! Destinations: where a guest goes. A folder (or file) each; [`Selected::of`] is the one place that knows them all.
//!
//! The life of a destination is virt-v2v's own setup / finalize with a carried handle: [`Destination::prepare`] makes
//! one, and exactly one of [`Destination::finalize`] and [`Destination::abandon`] eats it. In a one-phase conversion
//! virt-v2v writes the disks itself, so between the two only [`crate::v2v::args`] speaks for the destination.
//! Read [`local`] first: it is the reference.

use std::path::PathBuf;

use crate::job::Job;
use crate::journal::{Journal, JournalError};
use crate::plan;
use crate::state::State;

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

    /// See [`Destination::abandon`].
    pub async fn abandon(&self, _handle: Handle) {
        match self {
            Self::Local(local) => local.abandon(()).await,
            Self::Ovirt(ovirt) => ovirt.abandon(()).await,
            Self::Openstack(_) | Self::Kubevirt => {}
        }
    }
}
