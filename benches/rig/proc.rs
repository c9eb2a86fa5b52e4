//! What `/proc` says of a process: memory, CPU time, context switches, family.

use std::fs;

/// Bytes a process holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Resident, shared pages counted whole.
    pub rss: f64,
    /// Resident, shared pages divided by their users.
    pub pss: f64,
    /// Written to by this process alone: what one more job costs.
    pub private_dirty: f64,
}

/// CPU time and switches of processes since they began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Seconds on a CPU, user and system.
    pub cpu: f64,
    /// Context switches, voluntary or not: how often it woke, about.
    pub switches: f64,
}

/// Memory of these processes together; those that are gone count nothing.
pub fn memory(pids: &[i32]) -> Memory {
    let mut sum = Memory::default();
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let field = |name| number(&rollup, name) * 1024.0;
        sum.rss += field("Rss:");
        sum.pss += field("Pss:");
        sum.private_dirty += field("Private_Dirty:");
    }
    sum
}

/// The most these processes ever had resident, together.
pub fn peak(pids: &[i32]) -> f64 {
    let status = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    pids.iter().map(|pid| number(&status(pid), "VmHWM:") * 1024.0).sum()
}

/// Work of these processes together. From `schedstat`, which counts nanoseconds: the ticks of `stat` are 10 ms,
/// more than some of these processes use in a minute.
pub fn work(pids: &[i32]) -> Work {
    let mut sum = Work::default();
    for pid in pids {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let (times, status) = (read("schedstat"), read("status"));
            let nanoseconds = times.split(' ').next().and_then(|word| word.parse::<f64>().ok());
            sum.cpu += nanoseconds.unwrap_or_default() / 1e9;
            sum.switches += number(&status, "voluntary_ctxt_switches:");
            sum.switches += number(&status, "nonvoluntary_ctxt_switches:");
        }
    }
    sum
}

/// Its parent.
pub fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(number(&status, "PPid:") as i32).filter(|parent| *parent > 0)
}

/// Pids of the processes whose environment has this variable.
pub fn carrying(variable: &str) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == variable.as_bytes()))
    })
    .collect()
}

/// The number on the line that begins with `name`.
fn number(text: &str, name: &str) -> f64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    rest.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}
