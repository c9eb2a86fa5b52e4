//! qemu-img as a tool of the job, with its words. An edge; called by what makes, checks and commits images.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::json::one_line;
use crate::plan::DiskFormat;
use crate::process::{self, Exit, Tool};

/// Of stderr, the end: that is where the reason stands.
const MOST_SAID: usize = 4096;
/// Characters of it that a sentence shows.
const MOST_SHOWN: usize = 500;

/// How it ended.
pub struct Ended {
    /// Code or signal.
    pub exit: Exit,
    /// Its last line of stderr, or in words how it ended.
    pub said: String,
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
pub async fn run(
    program: &Path,
    tag: &str,
    args: Vec<OsString>,
    mut stdout: impl FnMut(&[u8]),
) -> std::io::Result<Ended> {
    let (mut out, out_end) = pipe()?;
    let (mut err, err_end) = pipe()?;
    tracing::info!("running {} {args:?}", program.display());
    let mut tool = Tool::new(program, tag);
    tool.command().args(args).env("LC_ALL", "C.UTF-8").stdout(out_end).stderr(err_end);
    // Spawning drops our ends of the pipes, so that they end with the tool.
    let running = Running(tool.spawn()?);
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

/// What a check of an image found.
pub enum Health {
    /// It can be used.
    Sound,
    /// It cannot be trusted any more; qemu-img's words.
    Damaged(String),
    /// It could not be checked.
    Unknown(Ended),
}

/// Checks an image whose writer may have been killed. That leaves clusters without an owner, which is only waste and
/// repaired here; more than that is no disk any more. Raw files have no format to damage.
pub async fn check(program: &Path, tag: &str, path: &Path, format: DiskFormat) -> std::io::Result<Health> {
    if format == DiskFormat::Raw {
        return Ok(Health::Sound);
    }
    let check = async |repair: &[&str]| {
        let mut args: Vec<OsString> = ["check", "-q", "-f", format.as_str()].iter().map(Into::into).collect();
        args.extend(repair.iter().map(Into::into));
        args.push(path.into());
        run(program, tag, args, |_| ()).await
    };
    let mut ended = check(&[]).await?;
    if ended.exit == Exit::Code(3) {
        // Only now: of an image with more than leaks it cannot repair them, and does not say what it found.
        ended = check(&["-r", "leaks"]).await?;
    }
    Ok(match ended.exit {
        Exit::Code(0) => Health::Sound,
        Exit::Code(2) => Health::Damaged(ended.said),
        _ => Health::Unknown(ended),
    })
}

fn pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = std::io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(reader.into())?, writer.into()))
}
