//! Phases of a job (contract.md 3.4).
//!
//! Pure. What the client sees is [`Phase::text`].

use std::fmt;

/// Where a job stands. The texts are those of the old wrapper, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// From the first state file until virt-v2v (or the copy) starts.
    #[default]
    Preparing,
    /// virt-v2v was asked for; one-phase jobs stay here until their end.
    StartingVirtV2v,
    /// The overlays that virt-v2v-in-place wrote are committed into the copies.
    Committing,
}

impl Phase {
    /// The `status` text of the state file.
    pub fn text(&self) -> &'static str {
        match self {
            Phase::Preparing => "Preparing",
            Phase::StartingVirtV2v => "Starting virt-v2v",
            Phase::Committing => "Finishing (committing overlays)",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
