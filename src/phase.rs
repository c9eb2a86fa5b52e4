//! Phases of a job and the questions one may ask about them (contract.md 3.4).
//!
//! Pure. What the client sees is [`Phase::text`]; what the program asks are the `can_*` questions.

use std::fmt;

/// Where a job stands. The texts are those of the old wrapper, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// From the first state file until virt-v2v (or the copy) starts.
    #[default]
    Preparing,
    /// virt-v2v was asked for; one-phase jobs stay here until their end.
    StartingVirtV2v,
}

impl Phase {
    /// The `status` text of the state file.
    pub fn text(&self) -> &'static str {
        match self {
            Phase::Preparing => "Preparing",
            Phase::StartingVirtV2v => "Starting virt-v2v",
        }
    }

    /// May virt-v2v be started from here?
    pub fn can_convert(&self) -> bool {
        matches!(self, Phase::Preparing)
    }

    /// The phase whose text this is, when a state file is read back.
    pub fn from_text(text: &str) -> Option<Phase> {
        [Phase::Preparing, Phase::StartingVirtV2v].into_iter().find(|phase| phase.text() == text)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
