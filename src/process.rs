//! Processes: tools in sessions of their own, sealed memfds for what they must read, and nothing left behind.
//!
//! qemu-nbd outlives a killed virt-v2v (virt-v2v-output.md 5): what a tool leaves is found below the subreaper that
//! started it, and, when that was killed too, by the job's tag in every process's environment ([`MARKER`]). Nothing here
//! knows what the tools are for. How they ended is kept in [`children`].
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::unistd::{Pid, getpid, getppid, setsid};

pub mod capture;
pub mod children;
mod command_line;

pub use crate::v2v::failure::Exit;
pub use children::{Reaped, ended, exit_of, reap};

/// Environment variable that names the job in each of its processes.
pub const MARKER: &str = "VIRT_V2V_WRAPPER_JOB";

/// A program to be started.
pub struct Tool {
    command: Command,
    inherited: Vec<OwnedFd>,
    death: Signal,
}

impl Tool {
    /// `program` with the job's marker, no stdin, and nothing written anywhere until told otherwise.
    pub fn new(program: &Path, tag: &str) -> Self {
        let mut command = Command::new(program);
        command.env(MARKER, tag).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { command, inherited: Vec::new(), death: Signal::SIGTERM }
    }

    /// The signal it gets should this process die; SIGTERM otherwise.
    pub fn death_signal(&mut self, signal: Signal) {
        self.death = signal;
    }

    /// The command, for arguments, environment and streams.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Hands a descriptor to the tool and its children and gives the path under which they read it.
    /// A path opens the file afresh, so each reader begins at its start (crates.md 3.3).
    pub fn hand_over(&mut self, fd: OwnedFd) -> OsString {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.inherited.push(fd);
        path.into()
    }

    /// Starts it in a session of its own, with default signals, with no descriptor but 0-2 and those handed over,
    /// and with a signal for it should this process die.
    ///
    /// The death signal follows the *thread* that forked (crates.md 3.4): call this from the main thread only.
    pub fn spawn(mut self) -> std::io::Result<Pid> {
        let keep: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let (parent, death) = (getpid(), self.death);
        // SAFETY: the closure runs between fork and exec; whatever locks other threads hold (the program has none, a
        // test has), it makes only async-signal-safe system calls and touches only memory moved into it.
        unsafe {
            self.command.pre_exec(move || prepare_child(&keep, parent, death));
        }
        // Waited for in `children`; `Child` has no destructor that would.
        children::start(|| Ok(Pid::from_raw(self.command.spawn()?.id() as i32)))
    }
}

fn prepare_child(keep: &[RawFd], parent: Pid, death: Signal) -> std::io::Result<()> {
    setsid()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: restoring a default disposition is async-signal-safe and installs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // Everything from 3 on closes at exec, then the few that the tool may read do not. Not at once: the standard
    // library's own pipe, on which a failed exec is told, is among them.
    // SAFETY: close_range with CLOEXEC only sets a flag on descriptors.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    for fd in keep {
        // SAFETY: plain fcntl on a descriptor that the parent keeps open until spawn returns.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } == -1 {
            return Err(std::io::Error::last_os_error());
        }
    }
    die_with_parent(parent, death)
}

/// Asks for a signal when the parent dies, and notices a parent that died before the request.
fn die_with_parent(parent: Pid, signal: Signal) -> std::io::Result<()> {
    nix::sys::prctl::set_pdeathsig(signal)?;
    if getppid() != parent {
        return Err(std::io::Error::other("the parent process ended"));
    }
    Ok(())
}

/// Makes orphaned descendants this process's children.
pub fn become_subreaper() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// An anonymous file with this content that only its owner may read and nobody may change.
pub fn sealed(name: &str, content: &[u8]) -> std::io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::stat::{Mode, fchmod};
    let name = CString::new(name).map_err(std::io::Error::other)?;
    let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.seek(SeekFrom::Start(0))?;
    let fd = OwnedFd::from(file);
    // Born 0777 (crates.md 3.3): any user could open it through /proc.
    fchmod(&fd, Mode::S_IRUSR)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

/// A process seen in /proc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its pid.
    pub pid: Pid,
    /// Its command name, for the log.
    pub name: String,
}

/// All processes below this one. Worker and supervisor are subreapers, so nothing of the job can get away from below
/// them, sessions of their own and dead parents notwithstanding.
pub fn descendants() -> Vec<Seen> {
    let own = getpid().as_raw();
    let table = process_table();
    let mut descendants = BTreeSet::from([own]);
    let mut grown = true;
    while grown {
        grown = false;
        for entry in &table {
            grown |= descendants.contains(&entry.parent) && descendants.insert(entry.pid);
        }
    }
    let below = table.into_iter().filter(|entry| descendants.contains(&entry.pid));
    below
        .filter(|entry| entry.pid != own && !entry.ended)
        .map(|entry| Seen { pid: Pid::from_raw(entry.pid), name: entry.name })
        .collect()
}

/// All processes that carry a job's tag: for callers above which the job does not run. Reads every process's
/// environment, so not for every day.
pub fn marked(tag: &str) -> Vec<Seen> {
    let marker = format!("{MARKER}={tag}");
    process_table()
        .into_iter()
        .filter(|entry| {
            entry.pid != getpid().as_raw() && !entry.ended && carries(entry.pid, marker.as_bytes())
        })
        .map(|entry| Seen { pid: Pid::from_raw(entry.pid), name: entry.name })
        .collect()
}

fn carries(pid: i32, marker: &[u8]) -> bool {
    // A process that ended meanwhile, or another user's: not ours.
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == marker))
}

struct TableEntry {
    pid: i32,
    parent: i32,
    name: String,
    ended: bool,
}

fn process_table() -> Vec<TableEntry> {
    let Ok(directory) = std::fs::read_dir("/proc") else {
        tracing::error!("/proc cannot be listed: leftover processes will not be found");
        return Vec::new();
    };
    directory
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| parse_stat(pid, &std::fs::read(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// `pid (name) state ppid ...`; the name may hold spaces and parentheses.
fn parse_stat(pid: i32, stat: &[u8]) -> Option<TableEntry> {
    let stat = String::from_utf8_lossy(stat);
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let mut rest = stat.get(close + 1..)?.split_ascii_whitespace();
    let state = rest.next()?;
    let parent = rest.next()?.parse().ok()?;
    Some(TableEntry {
        pid,
        parent,
        name: stat.get(open + 1..close)?.to_owned(),
        ended: matches!(state, "Z" | "X"),
    })
}

/// Files below `directory` that one of these processes has open for writing.
pub fn files_open_below(directory: &Path, processes: &[Seen]) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for process in processes {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{}/fd", process.pid)) else { continue };
        for descriptor in descriptors.flatten() {
            if let Ok(target) = std::fs::read_link(descriptor.path())
                && target.parent() == Some(directory)
                && opened_for_writing(process.pid, &descriptor.file_name())
            {
                found.insert(target);
            }
        }
    }
    found.into_iter().collect()
}

fn opened_for_writing(pid: Pid, descriptor: &std::ffi::OsStr) -> bool {
    let path = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(descriptor);
    std::fs::read_to_string(path).is_ok_and(|info| {
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| {
            let mode = flags & libc::O_ACCMODE;
            mode == libc::O_WRONLY || mode == libc::O_RDWR
        })
    })
}

/// Sends `signal` to the process group that `leader` leads, and to `leader`.
pub fn signal_group(leader: Pid, signal: Signal) {
    // ESRCH: it is over, which is what was wanted.
    if let Err(error) = killpg(leader, signal)
        && error != Errno::ESRCH
    {
        tracing::warn!("cannot send {signal} to process group {leader}: {error}");
    }
}

/// Kills every process that `list` names until it names none, or `limit` has passed. Gives those that ended as
/// children of this process; what cannot be killed (a process stuck in the kernel) is logged.
pub fn kill_all(list: impl Fn() -> Vec<Seen>, limit: Duration) -> Vec<(Pid, Exit)> {
    let deadline = Instant::now() + limit;
    let mut told = BTreeSet::new();
    let mut ended = Vec::new();
    loop {
        ended.extend(reap().ended);
        let left = list();
        if left.is_empty() {
            return ended;
        }
        for process in &left {
            if told.insert(process.pid.as_raw()) {
                tracing::info!("killing leftover process {} ({})", process.pid, process.name);
            }
            if let Err(error) = kill(process.pid, Signal::SIGKILL)
                && error != Errno::ESRCH
            {
                tracing::warn!("cannot kill {} ({}): {error}", process.pid, process.name);
            }
        }
        if Instant::now() >= deadline {
            for process in &left {
                tracing::error!("process {} ({}) does not die", process.pid, process.name);
            }
            return ended;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_may_look_like_anything() {
        let entry = parse_stat(7, b"7 (a) b (c) S 3 7 7 0").unwrap();
        assert_eq!((entry.name.as_str(), entry.parent, entry.ended), ("a) b (c", 3, false));
        assert!(parse_stat(7, b"7 (x) Z 1").unwrap().ended);
        assert!(parse_stat(7, b"garbage").is_none());
    }

    #[test]
    fn a_sealed_file_is_private_and_cannot_change() {
        let fd = sealed("test", b"hunter2").unwrap();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        assert_eq!(std::fs::read(&path).unwrap(), b"hunter2");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
        assert!(File::from(fd).write_all(b"x").is_err());
    }
}
