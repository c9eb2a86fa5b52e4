//! The process behind an export: started, watched, stopped. An edge; called by the copy engine, once per disk and round.
//!
//! A server is ready when it has opened the disk (`greeting`). One that ends before is noticed at its end, not
//! after a time-out (contract.md 10, bug 24), and its last `error:` line is the reason that is told. It holds nothing
//! that must be kept, so it may be killed at any time: dropping it does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::Files;
use super::greeting::{self, Answer};
use crate::json::one_line;
use crate::process::{self, Exit, Tool};
use crate::secret::Scrubber;
use crate::v2v::args::CommandLine;

/// How long a server may take until it serves. A vCenter that is asked for a disk takes seconds.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end by SIGTERM (contract.md 6.3), and by SIGKILL.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Both programs bind their socket within milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// `sun_path` has 108 bytes with its final NUL.
const LONGEST_SOCKET: usize = 107;
/// The end of a log in which the reason of a failure is looked for: with `-v` other requests talk on behind it.
const LOG_END: u64 = 1 << 20;
/// Characters of a server's line that are repeated in a sentence.
const MOST_SAID: usize = 500;

/// A disk is not served.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The kernel takes no such path.
    #[error(
        "the socket for {disk} cannot be made: {socket} has {} bytes, more than {LONGEST_SOCKET}; set tmp_dir in the \
         site configuration to a shorter path",
        socket.as_os_str().len()
    )]
    LongPath {
        /// The disk.
        disk: String,
        /// The path.
        socket: PathBuf,
    },
    /// The server's log cannot be made.
    #[error("cannot create the log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What an earlier server left cannot be removed.
    #[error("cannot remove {path}, left by an earlier server")]
    Left {
        /// The socket or pid file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The server's program does not start.
    #[error("cannot start {program} for {disk}")]
    Start {
        /// The program.
        program: PathBuf,
        /// The disk.
        disk: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server ended.
    #[error("{program} cannot serve {disk}: {said}")]
    Ended {
        /// The program.
        program: PathBuf,
        /// The disk.
        disk: String,
        /// How.
        exit: Exit,
        /// Its last error, without secrets; how it ended, if it said none.
        said: String,
    },
    /// The server runs, but cannot open the disk.
    #[error("{program} cannot open {disk}: {said}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// The disk.
        disk: String,
        /// Its last error, without secrets.
        said: String,
    },
    /// The server does nothing.
    #[error("{program} did not serve {disk} within {} s: {said}", patience.as_secs())]
    Silent {
        /// The program.
        program: PathBuf,
        /// The disk.
        disk: String,
        /// How long it was waited for.
        patience: Duration,
        /// Its last error, without secrets.
        said: String,
    },
}

/// A running server.
pub struct Server {
    pid: Pid,
    program: PathBuf,
    disk: String,
    files: Files,
    scrubber: Scrubber,
    /// Where in the log the words of this server begin: one that is restarted appends.
    log_start: u64,
}

impl Server {
    /// Starts `program` as a tool of the job `tag` and waits until it serves `disk`. `command_line` is the one made for
    /// these `files`.
    ///
    /// From the main thread only ([`Tool::spawn`]), in a runtime with I/O and time.
    pub async fn start(
        program: &Path,
        tag: &str,
        disk: String,
        command_line: CommandLine,
        files: Files,
    ) -> Result<Self, ExportError> {
        Self::start_within(START_PATIENCE, program, tag, disk, command_line, files).await
    }

    async fn start_within(
        patience: Duration,
        program: &Path,
        tag: &str,
        disk: String,
        command_line: CommandLine,
        files: Files,
    ) -> Result<Self, ExportError> {
        if files.socket.as_os_str().as_bytes().len() > LONGEST_SOCKET {
            return Err(ExportError::LongPath { disk, socket: files.socket });
        }
        // nbdkit refuses to listen where a socket is, and a killed one left both.
        for path in [&files.socket, &files.pid] {
            remove(path).map_err(|source| ExportError::Left { path: path.clone(), source })?;
        }
        let scrubber = Scrubber::new(command_line.secrets());
        let (log, second, log_start) =
            open_log(&files.log).map_err(|source| ExportError::Log { path: files.log.clone(), source })?;
        let spawned = Tool::with(program, tag, command_line).and_then(|mut tool| {
            tool.command().stdout(log).stderr(second);
            tool.spawn()
        });
        let pid = match spawned {
            Ok(pid) => pid,
            Err(source) => return Err(ExportError::Start { program: program.to_owned(), disk, source }),
        };
        tracing::info!("{} for {disk} started with pid {pid}", program.display());
        let server = Self { pid, program: program.to_owned(), disk, files, scrubber, log_start };
        let answer = tokio::select! {
            biased;
            exit = server.ended() => return Err(server.error_of(exit)),
            answer = tokio::time::timeout(patience, server.answer()) => answer,
        };
        let (program, disk) = (server.program.clone(), server.disk.clone());
        let said = server.last_error();
        let error = match answer {
            Ok(Answer::Yes) => return Ok(server),
            Ok(Answer::No(text)) => {
                let said = said.unwrap_or_else(|| server.shown(&text));
                ExportError::Refused { program, disk, said }
            }
            Err(_) => {
                let said = said.unwrap_or_else(|| "it said nothing".to_owned());
                ExportError::Silent { program, disk, patience, said }
            }
        };
        // Not by SIGKILL: a vCenter counts the sessions that were not closed.
        server.stop().await;
        Err(error)
    }

    /// Asks until somebody answers.
    async fn answer(&self) -> Answer {
        loop {
            match greeting::ask(&self.files.socket).await {
                Ok(answer) => return answer,
                Err(error) => tracing::trace!("{} is not ready: {error}", self.files.socket.display()),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The socket, for the NBD client. The export is the default one, the empty name.
    pub fn socket(&self) -> &Path {
        &self.files.socket
    }

    /// The server's pid.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the server's end, which nobody asked for: a client's reads fail then. Safe to drop and call again.
    pub async fn ended(&self) -> Exit {
        process::ended(self.pid).await
    }

    /// The error that its end is, with the reason it gave.
    pub fn error_of(&self, exit: Exit) -> ExportError {
        ExportError::Ended {
            program: self.program.clone(),
            disk: self.disk.clone(),
            exit,
            said: self.last_error().unwrap_or_else(|| exit.to_string()),
        }
    }

    /// The last error in its log, without secrets: why a read failed, too.
    pub fn last_error(&self) -> Option<String> {
        let end = log_end(&self.files.log, self.log_start)
            .inspect_err(|error| tracing::warn!("cannot read {}: {error}", self.files.log.display()))
            .ok()?;
        let name = self.program.file_name()?.to_string_lossy().into_owned();
        last_error(&end, &name).map(|line| self.shown(&line))
    }

    fn shown(&self, line: &str) -> String {
        // Scrubbed whole: half a secret would not be known.
        one_line(&self.scrubber.scrub(line), MOST_SAID)
    }

    /// Stops it: SIGTERM, 10 s, SIGKILL. Its socket and pid file are gone afterwards (contract.md 10, bug 23).
    ///
    /// Hang up first: nbdkit 1.32 more often than not waits for a client that is connected, so that stopping takes the
    /// whole ten seconds. qemu-nbd does not wait.
    pub async fn stop(self) {
        self.stop_within(STOP_PATIENCE).await;
    }

    async fn stop_within(self, patience: Duration) {
        if process::exit_of(self.pid).is_none() {
            process::signal_group(self.pid, Signal::SIGTERM);
            if tokio::time::timeout(patience, self.ended()).await.is_err() {
                tracing::warn!("{} does not end: killing its group", self.program.display());
                process::signal_group(self.pid, Signal::SIGKILL);
                if tokio::time::timeout(STOP_PATIENCE, self.ended()).await.is_err() {
                    tracing::error!("{} (pid {}) does not die", self.program.display(), self.pid);
                }
            }
        }
        tracing::debug!("{} for {} stopped", self.program.display(), self.disk);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first: a pid that was waited for may be somebody else's by now.
        if process::exit_of(self.pid).is_none() {
            process::signal_group(self.pid, Signal::SIGKILL);
        }
        for path in [&self.files.socket, &self.files.pid] {
            if let Err(error) = remove(path) {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The log twice, and its length so far. Appending, because several write into it.
fn open_log(path: &Path) -> std::io::Result<(File, File, u64)> {
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let (second, length) = (log.try_clone()?, log.metadata()?.len());
    Ok((log, second, length))
}

/// The whole lines in the end of a log, from `start` on.
fn log_end(path: &Path, start: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let begin = start.max(length.saturating_sub(LOG_END));
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(LOG_END).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A line cut in two may begin in the middle of a secret.
    let whole = if begin > start { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Ok(whole.to_owned())
}

/// The last error among the lines of a server. nbdkit: `nbdkit: file[1]: error: words`; qemu-nbd and the loader:
/// `qemu-nbd: words`.
pub(crate) fn last_error(log: &str, program: &str) -> Option<String> {
    let lines = || log.split(['\n', '\r']).rev().map(str::trim).filter(|line| !line.is_empty());
    let marked = lines().find_map(|line| line.split_once(": error: ").map(|(_, words)| words));
    let told = || lines().filter(|line| !line.contains(": debug: "));
    let own = || told().find_map(|line| line.strip_prefix(program)?.strip_prefix(": "));
    let last = || told().next();
    marked.or_else(own).or_else(last).map(str::to_owned)
}

#[cfg(test)]
mod tests;
