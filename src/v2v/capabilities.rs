//! What this virt-v2v can do: the words of the lone `--machine-readable` (virt-v2v-output.md 9).

use serde::{Deserialize, Serialize};

/// One word a line, kept as printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    words: Vec<String>,
}

impl Capabilities {
    /// From the program's stdout.
    pub fn parse(stdout: &str) -> Self {
        Self {
            words: stdout.lines().map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        }
    }

    /// Is this word among them?
    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|have| have == word)
    }

    /// virt-v2v 2.0 or later: nbdkit and nbdcopy instead of overlays and qemu-img.
    pub fn is_v2(&self) -> bool {
        self.has("virt-v2v-2.0")
    }
}
