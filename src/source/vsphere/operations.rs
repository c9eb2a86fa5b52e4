//! What is done to a machine: the calls of a warm migration, and what can go wrong with them. An edge; called by the
//! stages of a two-phase job.
//!
//! Here is what they have in common, and change tracking switched on and off. `snapshot`, `power` and `tracking` add
//! their methods to [`Vsphere`]. No decision is made here: whether a snapshot is taken again without quiescing, or a
//! guest that does not shut down is switched off, is the caller's policy.

use std::time::Duration;

use super::error::ClientError;
use super::inventory;
use super::machine::Inventory;
use super::properties::{Object, Of};
use super::soap::{Call, Element, Fault, Reference};
use super::task::{self, TaskError, Terms};
use super::{Vsphere, VsphereError};

/// Writing a machine's configuration takes seconds; on a busy vCenter it waits for its turn.
const RECONFIGURATION: Duration = Duration::from_secs(300);

/// An operation on a machine did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The task that was begun.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// What it is about is not there.
    #[error("there is no {what} at {url}: it was removed, or the user may not see it")]
    Gone {
        /// E.g. `VirtualMachine vm-62`.
        what: String,
        /// URL of the SDK.
        url: String,
    },
    /// The server does not tell what must be known.
    #[error("{url} does not tell {lacking} of {what}: {reason}")]
    Untold {
        /// URL of the SDK.
        url: String,
        /// What is not there.
        lacking: &'static str,
        /// Of what.
        what: String,
        /// Why.
        reason: String,
    },
    /// A snapshot that exists now, but is of no use.
    #[error("snapshot {snapshot} was made, but cannot be read: {why}")]
    Unread {
        /// Its id: it is to be removed.
        snapshot: String,
        /// What went wrong.
        why: Box<OperationError>,
    },
}

impl OperationError {
    /// The server's refusal, if it is one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Client(error) => error.fault(),
            Self::Task(error) => error.fault(),
            Self::Unread { why, .. } => why.fault(),
            Self::Gone { .. } | Self::Untold { .. } => None,
        }
    }

    /// What was to be changed is not there, or no more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. }) || self.fault().is_some_and(Fault::is_not_found)
    }

    /// The guest could not be brought to rest for a snapshot; without `quiesce` it may succeed (peers.md 6.3, row 14).
    pub fn is_quiesce(&self) -> bool {
        self.fault().is_some_and(|fault| {
            matches!(fault.kind.as_str(), "ApplicationQuiesceFault" | "FilesystemQuiesceFault")
                // Older hosts wrap it: `msg.snapshot.error-QUIESCINGERROR`, in the words of a general fault.
                || fault.words.to_ascii_lowercase().contains("quiesc")
        })
    }
}

/// A machine by its id.
pub(super) fn machine(moref: &str) -> Reference {
    Reference::new("VirtualMachine", moref)
}

impl Vsphere {
    /// All that is known of the machine with this id, e.g. `vm-62`.
    pub async fn machine_of(&self, moref: &str) -> Result<Inventory, VsphereError> {
        Ok(inventory::by_reference(&self.client, moref).await?)
    }

    /// Switches the tracking of changed blocks on or off for all disks. On a running machine it begins with the next
    /// snapshot.
    pub async fn set_change_tracking(&self, moref: &str, on: bool) -> Result<(), OperationError> {
        let call = Call::new("ReconfigVM_Task", &machine(moref));
        let on = if on { "true" } else { "false" };
        let call = call.nested("spec", |spec| spec.text("changeTrackingEnabled", on));
        self.run(&call, RECONFIGURATION).await?;
        Ok(())
    }

    /// Waits for a task that was begun earlier; `method` is named in errors.
    pub async fn wait_for(
        &self,
        task: &Reference,
        method: &'static str,
        limit: Duration,
    ) -> Result<(), OperationError> {
        task::wait(&self.client, task, method, Terms { limit }).await?;
        Ok(())
    }

    /// Calls a method that begins a task, and waits for its end.
    pub(super) async fn run(&self, call: &Call, limit: Duration) -> Result<Option<Element>, OperationError> {
        Ok(task::run(&self.client, call, Terms { limit }).await?)
    }

    /// Properties of one object that must be there.
    pub(super) async fn told(&self, of: &Reference, wanted: &[&str]) -> Result<Object, OperationError> {
        let gone = || {
            let (what, url) = (format!("{} {}", of.kind, of.value), self.client.url().to_owned());
            OperationError::Gone { what, url }
        };
        let asked = [of.clone()];
        let objects = match self.client.properties(Of::Objects(&asked), &[(&of.kind, wanted)]).await {
            Err(ClientError::Fault { fault, .. }) if fault.is_not_found() => return Err(gone()),
            objects => objects?,
        };
        objects.into_iter().find(|object| object.reference == *of).ok_or_else(gone)
    }

    /// That a property is not there.
    pub(super) fn untold(&self, lacking: &'static str, object: &Object, path: &str) -> OperationError {
        OperationError::Untold {
            url: self.client.url().to_owned(),
            lacking,
            what: format!("{} {}", object.reference.kind, object.reference.value),
            reason: object.why_missing(path).map_or("it is not set".to_owned(), Fault::to_string),
        }
    }
}
