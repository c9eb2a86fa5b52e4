//! Going into the background: the fork, what the background process inherits, and the pipe on which it says that it
//! is ready.
//!
//! Called once, by [`crate::start`], while the process has one thread: nothing with a thread (runtime, log writer,
//! resolver) may exist before (crates.md 3.1). What the background process then does is [`crate::supervise`]'s.
//! Of the `daemonize` package only `execute()` is used: its user, group and pid-file code is not sound.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use daemonize::{Daemonize, Outcome};
use nix::fcntl::OFlag;

/// Which of the two processes this is, after the fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process the client spawned: waits for readiness, replies, exits.
    Client,
    /// The background process.
    Background,
}

/// The fork failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot go into the background: {0}")]
pub struct ForkError(String);

/// Forks twice, in `/`, with 0-2 on /dev/null in the background process, so that the client's channel closes as soon
/// as the client's side exits.
pub fn detach() -> Result<Side, ForkError> {
    match Daemonize::new().working_directory("/").umask(0o022).execute() {
        Outcome::Parent(Ok(_)) => Ok(Side::Client),
        Outcome::Child(Ok(_)) => {
            // Not a group leader after the second fork, so this cannot fail; and if it did, the job would only share
            // a session nobody else is in.
            if let Err(error) = nix::unistd::setsid() {
                tracing::warn!("the supervisor leads no session: {error}");
            }
            Ok(Side::Background)
        }
        Outcome::Parent(Err(error)) | Outcome::Child(Err(error)) => Err(ForkError(error.to_string())),
    }
}

/// Closes what the caller left open by mistake beyond 0-2: a pipe of its own that the background process kept would
/// hold the client's channel open for hours.
pub fn close_inherited() {
    // SAFETY: called first of all, when this process has opened no descriptor that anything could still use.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// A pipe: the reading end stays with whoever replies, the writing end goes to the worker.
pub fn readiness() -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC)
}

/// Says "ready".
pub fn say_ready(pipe: OwnedFd) -> std::io::Result<()> {
    File::from(pipe).write_all(b"ok\n")
}

/// Waits until "ready" is said; false if everybody who could say it is gone.
pub fn wait_until_ready(pipe: OwnedFd) -> std::io::Result<bool> {
    let mut answer = [0; 3];
    match File::from(pipe).read_exact(&mut answer) {
        Ok(()) => Ok(&answer == b"ok\n"),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets go of stdout, so that a client that reads to its end has the reply although the process stays in the
/// foreground.
pub fn release_stdout() {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
    let released = null.and_then(|null| Ok(nix::unistd::dup2_stdout(null)?));
    if let Err(error) = released {
        tracing::warn!("stdout stays open: {error}");
    }
}
