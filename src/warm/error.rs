//! Why a warm migration ends before its time.

use crate::copy::CopyError;
use crate::journal::JournalError;
use crate::source::vsphere::inventory::InventoryError;
use crate::source::vsphere::task::TaskError;
use crate::source::vsphere::{OperationError, VsphereError};
use crate::two_phase::copies::CopiesError;
use crate::two_phase::earlier::EarlierError;

use super::book::BookError;

/// What the state says of a warm migration that failed. What is copied stays copied.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The machine.
    #[error(transparent)]
    Vsphere(#[from] VsphereError),
    /// Something was to be done with it.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Not all disks can be copied warm.
    #[error(
        "warm: VM \"{name}\" cannot be copied while it runs: {reasons}. Nothing was changed. Remove the reason, or switch the machine off and use two_phase instead of warm"
    )]
    Unfit {
        /// The machine.
        name: String,
        /// `Hard disk 1: ..; Hard disk 2: ..`.
        reasons: String,
    },
    /// `snapshot_quiesce: require`, and it cannot be.
    #[error(
        "snapshot_quiesce: require needs running VMware Tools in VM \"{name}\", and they do not run: start them, or use auto"
    )]
    NoTools {
        /// The machine.
        name: String,
    },
    /// Begins with the contract's words (6.3).
    #[error("Could not create a snapshot of VM \"{name}\" within {seconds} s: {reason}")]
    NoSnapshot {
        /// The machine.
        name: String,
        /// How long it was tried.
        seconds: u64,
        /// Why the last try failed.
        reason: String,
    },
    /// Begins with the contract's words (6.3).
    #[error(
        "Missing changeId for a disk: vSphere tracks no changes of {disk} although it was told to; look for ctkEnabled = false of this disk in the advanced parameters of the machine, or switch it off and use two_phase instead of warm"
    )]
    NoChangeId {
        /// The disk.
        disk: String,
    },
    /// Without size and key nobody can be asked what changed of a disk.
    #[error(
        "vSphere does not tell size or key of {disk} of VM \"{name}\": it cannot be copied while the machine runs; use two_phase"
    )]
    UntoldDisk {
        /// The machine.
        name: String,
        /// The disk.
        disk: String,
    },
    /// Another machine has the name by now.
    #[error("VM \"{name}\" is {found} by now, and {copied} was copied: start without resume")]
    OtherMachine {
        /// The name.
        name: String,
        /// Id of the one that was copied.
        copied: String,
        /// Id of the one that is there.
        found: String,
    },
    /// What an earlier job left.
    #[error(transparent)]
    Earlier(#[from] EarlierError),
    /// Own snapshots that cannot be removed pile up.
    #[error(
        "{count} snapshots of this job cannot be removed from VM \"{name}\" ({reason}): a further one is not taken. Remove them in the client, and resume"
    )]
    TooManySnapshots {
        /// The machine.
        name: String,
        /// How many.
        count: usize,
        /// What vSphere said to the last removal.
        reason: String,
    },
    /// Disks came, went or grew.
    #[error(
        "the disks of VM \"{name}\" changed since the copy began: {changes}. Undo that and resume, or start without resume"
    )]
    OtherDisks {
        /// The machine.
        name: String,
        /// What changed.
        changes: String,
    },
    /// It is not off. Begins with the contract's words (6.3).
    #[error(
        "Cannot perform final copy for running VM \"{name}\" ({moref}): shut it down and resume, or let shutdown_mode (auto, force, manual) see to it"
    )]
    Running {
        /// The machine.
        name: String,
        /// Its id.
        moref: String,
    },
    /// It sleeps.
    #[error(
        "Cannot perform final copy for running VM \"{name}\" ({moref}): it is suspended. Resume it in the client, shut it down and resume the job"
    )]
    Suspended {
        /// The machine.
        name: String,
        /// Its id.
        moref: String,
    },
    /// Somebody switched it on.
    #[error(
        "VM \"{name}\" was switched on or reconfigured while its last changes were copied: the copy is not that of one moment. Shut it down and resume"
    )]
    SwitchedOn {
        /// The machine.
        name: String,
    },
    /// The last round. Begins with the contract's words (6.3).
    #[error("Error during final copy iteration")]
    Last(#[source] Box<WarmError>),
    /// A disk cannot be copied, and another round would not help.
    #[error(transparent)]
    Copies(#[from] CopiesError),
    /// The book.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl WarmError {
    /// May vSphere be back for the next round? It is restarted, or does not keep up; what it refuses it refuses again.
    pub(super) fn is_passing(&self) -> bool {
        let error = match self {
            Self::Vsphere(VsphereError::Client(error)) => error,
            Self::Vsphere(VsphereError::Inventory(InventoryError::Client(error))) => error,
            Self::Operation(OperationError::Client(error)) => error,
            Self::Operation(OperationError::Task(TaskError::Client(error))) => error,
            _ => return false,
        };
        error.may_pass()
    }

    /// Errors that belong to the last round.
    pub(super) fn of_last_round(self) -> Self {
        match self {
            Self::Copies(_) | Self::Operation(_) | Self::Vsphere(_) => Self::Last(Box::new(self)),
            other => other,
        }
    }
}

/// May the next round succeed where this one failed? The source may come back; a target that does not hold what was written
/// to it does not.
pub(super) fn is_recoverable(error: &CopyError) -> bool {
    matches!(error, CopyError::Read(_))
}
