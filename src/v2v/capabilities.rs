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

    /// The word after `-o` and the prefix of its `-oo` options for upload to oVirt. 2.7.15 renamed them and 2.7.16
    /// lists only the new names (virt-v2v-output.md 9).
    pub fn ovirt_upload(&self) -> (&'static str, &'static str) {
        match self.has("output:ovirt-upload") && !self.has("output:rhv-upload") {
            true => ("ovirt-upload", "ovirt"),
            false => ("rhv-upload", "rhv"),
        }
    }

    /// The word after `-o` for an export domain; renamed likewise.
    pub fn export_domain(&self) -> &'static str {
        if self.has("output:ovirt") && !self.has("output:rhv") { "ovirt" } else { "rhv" }
    }

    /// The word after `-o` for a directory of this host; renamed likewise.
    pub fn local(&self) -> &'static str {
        if self.has("output:disk") && !self.has("output:local") { "disk" } else { "local" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_the_program_lists() {
        for (words, upload, domain, local, v2) in [
            ("virt-v2v\noutput:local\noutput:rhv\noutput:rhv-upload\n", "rhv-upload", "rhv", "local", false),
            (
                "virt-v2v-2.0\noutput:local\noutput:rhv\noutput:rhv-upload\n",
                "rhv-upload",
                "rhv",
                "local",
                true,
            ),
            (
                "virt-v2v-2.0\r\noutput:disk\r\noutput:ovirt\noutput:ovirt-upload",
                "ovirt-upload",
                "ovirt",
                "disk",
                true,
            ),
            ("", "rhv-upload", "rhv", "local", false),
        ] {
            let have = Capabilities::parse(words);
            assert_eq!((have.ovirt_upload().0, have.export_domain(), have.local()), (upload, domain, local));
            assert_eq!(have.is_v2(), v2);
        }
    }
}
