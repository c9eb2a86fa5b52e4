//! Why a disk is not copied.

use std::path::PathBuf;

use super::ledger::LedgerError;
use super::reader::ReadError;
use super::target::TargetError;

/// A disk is not copied. What is in its ledger stays true.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The record of what is finished.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The target does not hold what was written to it.
    #[error(
        "{path} is not what was read from {disk}: read back after a flush, it differs at offset {offset}. Check the \
         storage below {path}"
    )]
    Mismatch {
        /// The disk.
        disk: String,
        /// The target.
        path: PathBuf,
        /// First byte that differs, or the beginning of the chunk in which one does.
        offset: u64,
    },
    /// The source gives different bytes for the same place.
    #[error(
        "{disk} changes while it is copied (seen at offset {offset}): switch the machine off and start the job again"
    )]
    SourceChanges {
        /// The disk.
        disk: String,
        /// First byte seen to change, or the beginning of its chunk.
        offset: u64,
    },
    /// Only a part of a chunk was listed, and the rest of it was never copied.
    #[error(
        "a part of {disk} at offset {offset} was to be copied alone, and the rest never was: please report this"
    )]
    PartOfNothing {
        /// The disk.
        disk: String,
        /// First byte of the chunk.
        offset: u64,
    },
    /// A task ended before its time; the job is being stopped.
    #[error("copying {disk} was stopped")]
    Stopped {
        /// The disk.
        disk: String,
    },
}
