//! Asking virt-v2v what it can do. The one part of [`crate::v2v`] that runs something.
//!
//! Called before the fork; a tenth of a second with the real virt-v2v.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::capabilities::Capabilities;

/// virt-v2v did not say what it can do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It did not run. The text is the old program's for this (contract.md 4).
    #[error("Could not get virt-v2v capabilities. {program} does not start")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It failed.
    #[error("Could not get virt-v2v capabilities.")]
    Failed,
}

/// More than any virt-v2v says.
const MOST: u64 = 64 << 10;

/// The words of the lone `--machine-readable`.
pub fn capabilities(program: &Path) -> Result<Capabilities, ProbeError> {
    let start = |source| ProbeError::Start { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.arg("--machine-readable").env("LC_ALL", "C.UTF-8");
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(start)?;
    let mut words = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MOST).read_to_end(&mut words).map_err(start)?;
    }
    if !child.wait().map_err(start)?.success() {
        return Err(ProbeError::Failed);
    }
    Ok(Capabilities::parse(&String::from_utf8_lossy(&words)))
}
