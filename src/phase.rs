//! Phases of a job (contract.md 3.4).
//!
//! Pure. What the client sees is [`Phase::text`].

use std::fmt;

/// Where a job, or a disk of it, stands. The texts are those of the old wrapper, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// From the first state file until virt-v2v (or the copy) starts.
    #[default]
    Preparing,
    /// The disks are copied by us, for the `round`th time from 0.
    PreCopy {
        /// Which round.
        round: u32,
        /// After it the machine is converted.
        last: bool,
    },
    /// Between two rounds of a warm migration.
    Waiting,
    /// The same, and a client wants no round to begin.
    Paused,
    /// virt-v2v was asked for; one-phase jobs stay here until their end.
    StartingVirtV2v,
    /// The conversion is done; the disks get what it changed.
    Committing,
}

impl Phase {
    /// The `status` text of the state file.
    pub fn text(&self) -> String {
        match self {
            Phase::Preparing => "Preparing".to_owned(),
            Phase::PreCopy { round, last: false } => format!("Pre-copy #{round}"),
            Phase::PreCopy { round, last: true } => format!("Pre-copy #{round} (last)"),
            Phase::Waiting => "Waiting".to_owned(),
            Phase::Paused => "Paused".to_owned(),
            Phase::StartingVirtV2v => "Starting virt-v2v".to_owned(),
            Phase::Committing => "Finishing (committing overlays)".to_owned(),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// Where a disk stands in a two-phase job (contract.md 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskPhase {
    /// Known.
    Prepared,
    /// Its target is there.
    Created,
    /// The source is asked which parts of it hold data.
    Mapping,
    /// It is being copied.
    Copying,
    /// All of it is on the target.
    Copied,
    /// It gets what the conversion changed.
    Committing,
    /// It is what the new machine runs from.
    Committed,
    /// It did not get all of what the conversion changed.
    CommitFailed,
    /// The copy has failed.
    CopyFailed,
}

impl DiskPhase {
    /// The `status` text of the disk.
    pub fn text(self) -> &'static str {
        match self {
            DiskPhase::Prepared => "Prepared",
            DiskPhase::Created => "Created",
            DiskPhase::Mapping => "Copying (getting block stats)",
            DiskPhase::Copying => "Copying",
            DiskPhase::Copied => "Copied",
            DiskPhase::Committing => "Committing",
            DiskPhase::Committed => "Committed",
            DiskPhase::CommitFailed => "Failed during commit",
            DiskPhase::CopyFailed => "Unrecoverable error during copy",
        }
    }
}
