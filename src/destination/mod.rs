//! Destinations: where a guest goes. A folder (or file) each; [`Selected::of`] is the one place that knows them all.
//!
//! The life of a destination is virt-v2v's own setup / finalize with a carried handle: [`Destination::prepare`] makes
//! one, and exactly one of [`Destination::finalize`], [`Destination::publish`] and [`Destination::abandon`] eats it. In a
//! one-phase conversion virt-v2v writes the disks itself, so between the two only [`crate::v2v::args`] speaks for the
//! destination; in a two-phase one [`Destination::place`] says where we write them. What is left when a job fails is undone
//! from its journal alone, by [`undo`], whoever does it.
//! Read [`local`] first: it is the reference.

use std::path::PathBuf;

use tokio::sync::mpsc::UnboundedSender;

use crate::domain::Placed;
use crate::event::Event;
use crate::guest::Guest;
use crate::job::Job;
use crate::journal::{Entry, JournalError};
use crate::orphans;
use crate::plan::{self, Plan};
use crate::records::Records;
use crate::state::State;
use crate::things::Thing;
use crate::v2v::output::Drivers;

pub mod kubevirt;
pub mod local;
pub mod openstack;
pub mod ovirt;

use kubevirt::Kubevirt;
use local::Local;
use openstack::Openstack;
use ovirt::Ovirt;

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
    /// oVirt.
    #[error(transparent)]
    Ovirt(#[from] ovirt::OvirtError),
    /// OpenStack.
    #[error(transparent)]
    Openstack(#[from] openstack::OpenstackError),
    /// A pod.
    #[error(transparent)]
    Kubevirt(#[from] kubevirt::KubevirtError),
    /// The plan refuses such a document; this is for a program that changes.
    #[error("two_phase: this program cannot copy disks to this destination; use output_directory")]
    NoTwoPhase,
}

/// What a destination works with.
#[derive(Debug)]
pub struct Work<'a> {
    /// The job.
    pub job: &'a Job,
    /// Its journal.
    pub records: &'a mut Records,
    /// Where it tells what it does and waits for.
    pub tell: UnboundedSender<Event>,
}

impl Work<'_> {
    /// Tells something; nobody listens any more when the job is over.
    pub fn tell(&self, event: Event) {
        let _ = self.tell.send(event);
    }

    /// Tells what is waited for, `None` when it goes on.
    pub fn waits_for(&self, what: Option<&str>) {
        self.tell(Event::WaitingFor { what: what.map(str::to_owned) });
    }
}

/// A guest whose disks are copied and converted.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// What was asked for.
    pub plan: &'a Plan,
    /// What it was at the source.
    pub guest: &'a Guest,
    /// Its disks, in order.
    pub disks: &'a [Placed],
    /// What it has drivers for.
    pub drivers: &'a Drivers,
}

/// What a destination does around the conversion.
pub trait Destination {
    /// What `prepare` made: a session, and what was looked up.
    type Handle;

    /// Looks whether the guest can go there, before anything is copied, and makes the destination ready. Every side effect
    /// is in the journal before it happens.
    fn prepare(&self, work: &mut Work<'_>) -> impl Future<Output = Result<Self::Handle, DestinationError>>;

    /// Turns what virt-v2v made (one-phase) into the guest: the id of the new machine, where there is such a thing.
    fn finalize(
        &self,
        handle: Self::Handle,
        state: &State,
        work: &mut Work<'_>,
    ) -> impl Future<Output = Result<Option<String>, DestinationError>>;

    /// Where the copies of a two-phase job go, one for each disk of the guest, in order: made, and reachable from this host.
    /// A job that goes on with an earlier one finds that one's.
    fn place(
        &self,
        handle: &Self::Handle,
        guest: &Guest,
        work: &mut Work<'_>,
    ) -> impl Future<Output = Result<Vec<Placed>, DestinationError>> {
        let _ = (handle, guest, work);
        std::future::ready(Err(DestinationError::NoTwoPhase))
    }

    /// Makes the guest of disks that we copied and converted: the id of the new machine, where there is such a thing.
    fn publish(
        &self,
        handle: Self::Handle,
        machine: &Machine<'_>,
        work: &mut Work<'_>,
    ) -> impl Future<Output = Result<Option<String>, DestinationError>> {
        let _ = (handle, machine, work);
        std::future::ready(Err(DestinationError::NoTwoPhase))
    }

    /// Ends what the handle holds (a session); it cannot fail. Nothing is undone here: see [`undo`].
    fn abandon(&self, handle: Self::Handle) -> impl Future<Output = ()>;
}

/// The destination of a plan: a closed list.
#[derive(Debug)]
pub enum Selected {
    /// A directory of this host.
    Local(Local),
    /// oVirt, through its API or an export domain.
    Ovirt(Ovirt),
    /// OpenStack.
    Openstack(Openstack),
    /// The conversion pod's own volumes.
    Kubevirt(Kubevirt),
}

/// A [`Destination::Handle`] of whichever destination it is.
#[derive(Debug)]
#[must_use = "a prepared destination is finalized, published or abandoned"]
pub enum Handle {
    /// Nothing is held.
    Local,
    /// See [`ovirt`].
    Ovirt(<Ovirt as Destination>::Handle),
    /// See [`openstack`].
    Openstack(<Openstack as Destination>::Handle),
    /// See [`kubevirt`].
    Kubevirt(<Kubevirt as Destination>::Handle),
}

impl Handle {
    /// `-oa` that the destination wants where the document does not say it.
    pub fn allocation(&self) -> Option<&str> {
        match self {
            Self::Ovirt(session) => session.allocation(),
            Self::Local | Self::Openstack(_) | Self::Kubevirt(_) => None,
        }
    }
}

/// A handle of another destination is a mistake of this program: its one caller keeps them together.
macro_rules! each {
    ($self:ident, $handle:expr, $destination:ident, $inner:ident => $call:expr) => {
        match ($self, $handle) {
            (Selected::Local($destination), Handle::Local) => {
                let $inner = ();
                $call
            }
            (Selected::Ovirt($destination), Handle::Ovirt($inner)) => $call,
            (Selected::Openstack($destination), Handle::Openstack($inner)) => $call,
            (Selected::Kubevirt($destination), Handle::Kubevirt($inner)) => $call,
            _ => unreachable!("a handle is used with the destination that made it"),
        }
    };
}

impl Selected {
    /// The destination that this plan names.
    pub fn of(plan: &Plan) -> Self {
        match &plan.destination {
            plan::Destination::Local { directory } => Self::Local(Local { directory: directory.clone() }),
            plan::Destination::Ovirt { .. } | plan::Destination::ExportDomain { .. } => Self::Ovirt(Ovirt),
            plan::Destination::Openstack { .. } => Self::Openstack(Openstack),
            plan::Destination::Kubevirt { directory } => {
                Self::Kubevirt(Kubevirt { directory: directory.clone() })
            }
        }
    }

    /// See [`Destination::prepare`]. What dead jobs left at the same cloud is removed first: it would be in the way.
    pub async fn prepare(&self, work: &mut Work<'_>) -> Result<Handle, DestinationError> {
        let plan = &work.job.plan;
        if let Some(cloud) = plan.destination.cloud() {
            let guest_id = match &plan.destination {
                plan::Destination::Openstack { guest_id, .. } => Some(guest_id.clone()),
                _ => None,
            };
            let vm_name = plan.vm_name.clone();
            let entry = Entry::Destination { cloud: cloud.clone(), vm_name, guest_id };
            work.records.journal().record_once(&entry)?;
            orphans::clear(work, &cloud).await;
        }
        self.look(work).await
    }

    /// The same without the removal of anything, for a cloud: what the job would say of it before it begins.
    pub async fn look(&self, work: &mut Work<'_>) -> Result<Handle, DestinationError> {
        Ok(match self {
            Self::Local(local) => {
                local.prepare(work).await?;
                Handle::Local
            }
            Self::Ovirt(ovirt) => Handle::Ovirt(ovirt.prepare(work).await?),
            Self::Openstack(openstack) => Handle::Openstack(openstack.prepare(work).await?),
            Self::Kubevirt(kubevirt) => Handle::Kubevirt(kubevirt.prepare(work).await?),
        })
    }

    /// See [`Destination::finalize`].
    pub async fn finalize(
        &self,
        handle: Handle,
        state: &State,
        work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        each!(self, handle, destination, inner => destination.finalize(inner, state, work).await)
    }

    /// See [`Destination::place`].
    pub async fn place(
        &self,
        handle: &Handle,
        guest: &Guest,
        work: &mut Work<'_>,
    ) -> Result<Vec<Placed>, DestinationError> {
        match (self, handle) {
            (Self::Local(local), Handle::Local) => local.place(&(), guest, work).await,
            (Self::Ovirt(ovirt), Handle::Ovirt(handle)) => ovirt.place(handle, guest, work).await,
            (Self::Openstack(openstack), Handle::Openstack(handle)) => {
                openstack.place(handle, guest, work).await
            }
            _ => Err(DestinationError::NoTwoPhase),
        }
    }

    /// See [`Destination::publish`].
    pub async fn publish(
        &self,
        handle: Handle,
        machine: &Machine<'_>,
        work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        each!(self, handle, destination, inner => destination.publish(inner, machine, work).await)
    }

    /// See [`Destination::abandon`].
    pub async fn abandon(&self, handle: Handle) {
        each!(self, handle, destination, inner => destination.abandon(inner).await)
    }
}

/// Removes `things` of a job that is over, in their order, and detaches what must be detached; each that is gone is recorded
/// as such. Needs nothing but the plan and the journal. Gives a sentence for each that is left. What is not there any more,
/// or is somebody else's, is no problem.
pub async fn undo(plan: &Plan, things: &[Thing], records: &mut Records) -> Vec<String> {
    match &plan.destination {
        plan::Destination::Ovirt { .. } => ovirt::undo(plan, things, records).await,
        plan::Destination::Openstack { .. } => openstack::undo(plan, things, records).await,
        plan::Destination::Local { .. }
        | plan::Destination::ExportDomain { .. }
        | plan::Destination::Kubevirt { .. } => Vec::new(),
    }
}
