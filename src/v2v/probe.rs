//! Asking virt-v2v what it can do. The one part of [`crate::v2v`] that runs something.
//!
//! Called before the fork; a tenth of a second with the real virt-v2v.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::capabilities::Capabilities;

/// virt-v2v did not say what it can do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It did not run. The text begins with the old program's (contract.md 4).
    #[error("Could not get virt-v2v capabilities. {program} does not start")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It hangs.
    #[error("Could not get virt-v2v capabilities. {program} did not answer within {} s", PATIENCE.as_secs())]
    Silent {
        /// The program.
        program: PathBuf,
    },
    /// It failed. The text is the old program's.
    #[error("Could not get virt-v2v capabilities.")]
    Failed,
}

/// More than any virt-v2v says.
const MOST: usize = 64 << 10;
/// The real one takes 0.1 s (virt-v2v-output.md 9); on a host that swaps, more.
const PATIENCE: Duration = Duration::from_secs(60);

/// The words of the lone `--machine-readable`.
pub fn capabilities(program: &Path) -> Result<Capabilities, ProbeError> {
    let start = |source| ProbeError::Start { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.arg("--machine-readable").env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(start)?;
    let deadline = Instant::now() + PATIENCE;
    let mut words = Vec::new();
    let answered = match child.stdout.take() {
        Some(stdout) => read_until(stdout, deadline, &mut words).map_err(start)?,
        None => false,
    };
    if !answered {
        // Its end is not waited for: it may be stuck in the kernel.
        child.kill().map_err(start)?;
        return Err(ProbeError::Silent { program: program.to_owned() });
    }
    if !child.wait().map_err(start)?.success() {
        return Err(ProbeError::Failed);
    }
    Ok(Capabilities::parse(&String::from_utf8_lossy(&words)))
}

/// Reads to the end of the stream; false if that does not come in time.
fn read_until(mut stream: ChildStdout, deadline: Instant, bytes: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match stream.read(&mut piece)? {
            0 => return Ok(true),
            count if bytes.len() < MOST => bytes.extend_from_slice(piece.get(..count).unwrap_or_default()),
            _ => {}
        }
    }
}
