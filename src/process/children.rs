//! How children ended, kept until somebody asks.
//!
//! A subreaper must wait for all its children, and whoever does so also gets those that others wait for: several
//! servers, an agent and virt-v2v run at a time. So the end of every [`Tool`](super::Tool) is noted here by whoever
//! comes by it, and each waiter asks for its own. The table is the process's, as the children are.
//!
//! [`exit_of`] and [`ended`] wait for one pid and take nothing from anybody: safe where other code has children of its
//! own. [`reap`] waits for all: for the worker and the supervisor, whose descendants may be anyone's orphans.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::Exit;
use crate::trace;

/// SIGCHLD tells of an end at once; this is for a kernel or a caller that loses one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

struct Table {
    running: BTreeSet<Pid>,
    ended: BTreeMap<Pid, Exit>,
    signalled: Vec<(Pid, Signal)>,
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { running: BTreeSet::new(), ended: BTreeMap::new(), signalled: Vec::new() });

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    /// Notes what `waitpid` reported. Gives the end, if it was one.
    fn note(&mut self, status: WaitStatus) -> Option<(Pid, Exit)> {
        let (pid, exit) = match status {
            WaitStatus::Exited(pid, code) => (pid, Exit::Code(code)),
            WaitStatus::Signaled(pid, signal, _) => (pid, Exit::Signal(signal as i32)),
            status => {
                self.signalled.extend(trace::resume(status));
                return None;
            }
        };
        // Orphans that nobody started as a tool are nobody's to ask for.
        if self.running.remove(&pid) {
            self.ended.insert(pid, exit);
        }
        Some((pid, exit))
    }
}

/// Starts a child under the table's lock, so that its end cannot be taken before it is known.
pub(super) fn start(spawn: impl FnOnce() -> std::io::Result<Pid>) -> std::io::Result<Pid> {
    let mut table = table();
    let pid = spawn()?;
    // Pids come again.
    table.ended.remove(&pid);
    table.running.insert(pid);
    Ok(pid)
}

/// How this tool ended, if it did. The same answer however often it is asked.
pub fn exit_of(pid: Pid) -> Option<Exit> {
    let mut table = table();
    loop {
        if let Some(exit) = table.ended.get(&pid) {
            return Some(*exit);
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return None,
            Ok(status) => drop(table.note(status)),
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!("cannot wait for process {pid}: {error}; it is taken as ended");
                return Some(Exit::Code(255));
            }
        }
    }
}

/// Waits for the end of this tool. Safe to drop and call again; needs a runtime with I/O.
pub async fn ended(pid: Pid) -> Exit {
    // Before the first look: an end between the two would be missed.
    let mut told =
        signal(SignalKind::child()).inspect_err(|error| tracing::warn!("no SIGCHLD: {error}")).ok();
    loop {
        if let Some(exit) = exit_of(pid) {
            return exit;
        }
        let told = async {
            match &mut told {
                Some(told) => told.recv().await,
                None => std::future::pending().await,
            }
        };
        // Over or not, the next look tells.
        let _ = tokio::time::timeout(LOOK_AGAIN, told).await;
    }
}

/// What happened to children since the last look.
#[derive(Debug, Default)]
pub struct Reaped {
    /// Those that ended, adopted ones included, those that [`exit_of`] saw first excluded.
    pub ended: Vec<(Pid, Exit)>,
    /// Signals that were delivered to traced ones ([`crate::trace`]).
    pub signalled: Vec<(Pid, Signal)>,
}

/// Waits, without blocking, for all children.
pub fn reap() -> Reaped {
    let mut table = table();
    let mut ended = Vec::new();
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
            Ok(status) => ended.extend(table.note(status)),
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!("cannot wait for children: {error}");
                break;
            }
        }
    }
    Reaped { ended, signalled: std::mem::take(&mut table.signalled) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Tool;
    use super::*;

    fn shell(script: &str) -> Pid {
        let mut tool = Tool::new(Path::new("/bin/sh"), "test");
        tool.command().arg("-c").arg(script);
        tool.spawn().unwrap()
    }

    #[tokio::test]
    async fn several_tools_are_waited_for_independently() {
        let (slow, failed, killed) = (shell("sleep 60"), shell("exit 3"), shell("kill -9 $$"));
        // The last one first, and twice.
        assert_eq!(ended(killed).await, Exit::Signal(9));
        assert_eq!(ended(failed).await, Exit::Code(3));
        assert_eq!(exit_of(failed), Some(Exit::Code(3)));
        assert_eq!(exit_of(slow), None);
        super::super::signal_group(slow, Signal::SIGTERM);
        assert_eq!(ended(slow).await, Exit::Signal(15));
    }

    #[test]
    fn an_end_that_another_waiter_came_by_is_not_lost() {
        let pid = shell("exit 4");
        // As `reap` does, without taking the children of tests beside this one.
        let status = waitpid(pid, None).unwrap();
        assert_eq!(table().note(status), Some((pid, Exit::Code(4))));
        assert_eq!(exit_of(pid), Some(Exit::Code(4)));
    }
}
