//! qemu-img as a tool of the job, with its words.

use std::ffi::OsString;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::{OverlayError, OwnedFd};
use crate::json::one_line;
use crate::process::{self, Exit, Tool};

/// Of stderr, the end: that is where the reason stands.
const MOST_SAID: usize = 4096;
/// Characters of it that a sentence shows.
const MOST_SHOWN: usize = 500;

/// How it ended.
pub(super) struct Ended {
    pub(super) exit: Exit,
    /// Its last line of stderr, or in words how it ended.
    pub(super) said: String,
}

/// A running tool: killed with its group when nobody waits for it any more.
struct Running(Pid);

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: a pid that was waited for may be somebody else's by now.
        if process::exit_of(self.0).is_none() {
            tracing::info!("killing qemu-img, pid {}", self.0);
            process::signal_group(self.0, Signal::SIGKILL);
        }
    }
}

/// Runs it to its end; `stdout` gets what it prints there as it comes. From the main thread only ([`Tool::spawn`]).
pub(super) async fn run(
    program: &Path,
    tag: &str,
    args: Vec<OsString>,
    mut stdout: impl FnMut(&[u8]),
) -> Result<Ended, OverlayError> {
    let error = |source| OverlayError::Start { program: program.to_owned(), source };
    let (mut out, out_end) = pipe().map_err(error)?;
    let (mut err, err_end) = pipe().map_err(error)?;
    tracing::info!("running {} {args:?}", program.display());
    let mut tool = Tool::new(program, tag);
    tool.command().args(args).env("LC_ALL", "C.UTF-8").stdout(out_end).stderr(err_end);
    // Spawning drops our ends of the pipes, so that they end with the tool.
    let running = Running(tool.spawn().map_err(error)?);
    let mut said = Vec::new();
    let read_out = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = out.read(&mut buffer).await {
            stdout(buffer.get(..count).unwrap_or_default());
        }
    };
    let read_err = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = err.read(&mut buffer).await {
            said.extend_from_slice(buffer.get(..count).unwrap_or_default());
            said.drain(..said.len().saturating_sub(MOST_SAID));
        }
    };
    tokio::join!(read_out, read_err);
    let exit = process::ended(running.0).await;
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
    let said = last.map_or_else(|| exit.to_string(), |line| one_line(line, MOST_SHOWN));
    Ok(Ended { exit, said: said.strip_prefix("qemu-img: ").unwrap_or(&said).to_owned() })
}

fn pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = std::io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(reader.into())?, writer.into()))
}
