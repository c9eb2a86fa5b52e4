//! What belongs to a job in `/proc`: found by the marker in the environment, by the case's directory in the
//! arguments, or by a parent that belongs to it; remembered by pid and start time, so that a process that
//! cleared its environment or lost its parent is not lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::poll;
use super::sandbox::{MARKER, Sandbox};

/// The processes of one case, dead or alive.
#[derive(Clone)]
pub struct Processes {
    marker: Vec<u8>,
    directory: Vec<u8>,
    /// (pid, start time) -> what it was, to say so.
    known: BTreeMap<(i32, u64), String>,
}

/// `/proc/<pid>/stat`, as far as it matters here.
struct Stat {
    parent: i32,
    zombie: bool,
    start: u64,
}

impl Processes {
    /// Of this case; nothing is known yet.
    pub fn of(sandbox: &Sandbox) -> Self {
        Self {
            marker: format!("{MARKER}={}", sandbox.marker).into_bytes(),
            directory: sandbox.dir.to_str().expect("path").as_bytes().to_vec(),
            known: BTreeMap::new(),
        }
    }

    /// Looks once; reports argv and environment of each of ours to `see`.
    pub fn scan(&mut self, mut see: impl FnMut(i32, &[u8], &[u8])) {
        let own = std::process::id().cast_signed();
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let mut pids: Vec<i32> = pids
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != own)
            .collect();
        // Parents before children, most of the time.
        pids.sort_unstable();
        let mut living = BTreeSet::new();
        for pid in pids {
            let Some(stat) = stat(pid).filter(|stat| !stat.zombie) else { continue };
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let (arguments, environment) = (read("cmdline"), read("environ"));
            let ours = self.known.contains_key(&(pid, stat.start))
                || environment.split(|byte| *byte == 0).any(|entry| entry == self.marker)
                || contains(&arguments, &self.directory)
                || living.contains(&stat.parent);
            if ours {
                living.insert(pid);
                let name = String::from_utf8_lossy(&arguments).replace('\0', " ");
                self.known.insert((pid, stat.start), name.trim().chars().take(300).collect());
                see(pid, &arguments, &environment);
            }
        }
    }

    /// Those alive now.
    pub fn alive(&mut self) -> Vec<(i32, String)> {
        self.scan(|_, _, _| ());
        self.known
            .iter()
            .filter(|((pid, start), _)| stat(*pid).is_some_and(|stat| stat.start == *start && !stat.zombie))
            .map(|((pid, _), name)| (*pid, name.clone()))
            .collect()
    }

    /// Waits until none is left; else those that are.
    pub fn gone_within(&mut self, limit: Duration) -> Result<(), Vec<(i32, String)>> {
        match poll(limit, || self.alive().is_empty().then_some(())) {
            Some(()) => Ok(()),
            None => Err(self.alive()),
        }
    }

    /// Kills those that are left: the end of a test, failed or not.
    pub fn kill_all(&mut self) {
        poll(Duration::from_secs(5), || {
            let alive = self.alive();
            for (pid, _) in &alive {
                // Gone in the meantime is as good.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            alive.is_empty().then_some(())
        });
    }
}

/// Parent of a living process.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat(pid).map(|stat| stat.parent)
}

/// Is there such a process (a zombie is none)?
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !stat.zombie)
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name may hold anything, even blanks and parentheses: what counts comes after the last one.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // The first thread of a killed process may be gone while others still hold its files and locks.
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X") && threads() <= 1,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// Does `text` contain `part`?
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
