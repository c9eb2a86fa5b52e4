//! `virt-v2v-wrapper watch`: shows a job until it ends. A reader of the state file like any other.
//!
//! On a terminal a bar for each disk; elsewhere a line whenever something changed by a whole percent, for a journal. What
//! we copy ourselves (two-phase) has bytes and a rate as well, and a line for each disk that is finished.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::phase::Phase;
use crate::state::State;
use crate::state_file;

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Exit code: 0 converted, 2 failed, 1 the job's processes are gone without a final state.
pub(super) fn run(path: &Path, out: &mut impl Write) -> std::io::Result<u8> {
    let mut view = View::new();
    let mut proven = BTreeSet::new();
    loop {
        // Before the state is read: a job that ends between the two has then written its last state.
        let alive = is_alive(path);
        let state = state_file::read(path).map_err(std::io::Error::other)?;
        for disk in &state.disks {
            // A warm job has a checksum after every round; what counts is that of the last.
            if let Some(checksum) = &disk.two_phase.checksum
                && disk.progress >= 100.0
                && proven.insert(disk.path.clone())
            {
                view.say(&format!("{} is copied: {checksum}", disk.path), out)?;
            }
        }
        view.show(&state, out)?;
        if state.is_finished() {
            view.end();
            return conclude(&state, out);
        }
        if !alive {
            view.end();
            writeln!(
                out,
                "The processes of this job are gone; the next start of virt-v2v-wrapper cleans up"
            )?;
            return Ok(1);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn conclude(state: &State, out: &mut impl Write) -> std::io::Result<u8> {
    for warning in &state.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if state.failed == Some(true) {
        let message = state.last_message.as_ref().map_or("no reason was given", |last| &last.message);
        writeln!(out, "failed: {message}")?;
        return Ok(2);
    }
    match &state.vm_id {
        Some(id) => writeln!(out, "converted: machine {id}")?,
        None => writeln!(out, "converted")?,
    }
    Ok(0)
}

/// Does the job's supervisor or worker live? A state file without a lock beside it (a copy) counts as alive.
pub(super) fn is_alive(state: &Path) -> bool {
    let Ok(lock) = std::fs::File::open(state.with_file_name("lock")) else { return true };
    lock.try_lock_shared().is_err()
}

enum View {
    Bars { all: MultiProgress, job: ProgressBar, disks: BTreeMap<String, ProgressBar> },
    Lines { last: String },
}

impl View {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { last: String::new() };
        }
        let all = MultiProgress::new();
        let job = all.add(bar("job"));
        Self::Bars { all, job, disks: BTreeMap::new() }
    }

    fn show(&mut self, state: &State, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            Self::Bars { all, job, disks } => {
                for disk in &state.disks {
                    let bar = disks.entry(disk.path.clone()).or_insert_with(|| all.add(bar(&disk.path)));
                    bar.set_position(disk.progress as u64);
                }
                job.set_position(state.progress as u64);
                job.set_message([stage(state), &copying(state)].join(" ").trim_end().to_owned());
                Ok(())
            }
            Self::Lines { last } => {
                // Bytes and rate alone are no reason for a line: they change all the time.
                let line = line(state, "");
                if line != *last {
                    *last = line;
                    return print(&self::line(state, &copying(state)), out);
                }
                Ok(())
            }
        }
    }

    fn say(&self, text: &str, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            Self::Bars { all, .. } => all.println(text),
            Self::Lines { .. } => print(text, out),
        }
    }

    fn end(&self) {
        if let Self::Bars { job, disks, .. } = self {
            disks.values().chain([job]).for_each(ProgressBar::abandon);
            // The bars end without a line end. A closed stderr has no bars either.
            let _ = writeln!(std::io::stderr());
        }
    }
}

fn bar(name: &str) -> ProgressBar {
    // The template is ours: it has no mistake that could make it fail.
    let style = ProgressStyle::with_template("{prefix:>40!} [{bar:40}] {pos:>3}% {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(100).with_style(style).with_prefix(name.to_owned())
}

fn stage(state: &State) -> &str {
    state.waiting_for.as_deref().or(state.stage.as_deref()).unwrap_or(&state.status)
}

/// What a warm job that waits has before it. `now` in seconds since 1970.
fn planned(state: &State, now: f64) -> String {
    if ![Phase::Waiting, Phase::Paused].map(|phase| phase.text()).contains(&state.status) {
        return String::new();
    }
    let in_words = |seconds: f64| HumanDuration(Duration::from_secs(seconds.clamp(0.0, 1e9) as u64));
    let next = state.next_round_at.map(|at| format!("next copy in {}", in_words(at - now)));
    let downtime = state.predicted_downtime_seconds;
    let downtime = downtime.map(|seconds| format!("off for about {} if cut over now", in_words(seconds)));
    next.into_iter().chain(downtime).collect::<Vec<_>>().join(", ")
}

/// How much is copied, as long as not all is; what is planned while nothing is copied.
fn copying(state: &State) -> String {
    let planned = planned(state, jiff::Timestamp::now().as_millisecond() as f64 / 1000.0);
    if !planned.is_empty() {
        return planned;
    }
    let (Some(copied), Some(total)) = (state.bytes_copied, state.bytes_total) else { return String::new() };
    if copied >= total {
        return String::new();
    }
    let mut text = format!("{} of {}", BinaryBytes(copied), BinaryBytes(total));
    // Writing into a String cannot fail.
    if let Some(rate) = state.rate {
        let _ = write!(text, ", {}/s", BinaryBytes(rate));
    }
    if let Some(seconds) = state.eta_seconds {
        let _ = write!(text, ", {} left", HumanDuration(Duration::from_secs(seconds)));
    }
    text
}

fn line(state: &State, copying: &str) -> String {
    let mut line = format!("{:3.0}% {}", state.progress.floor(), stage(state));
    if !copying.is_empty() {
        let _ = write!(line, " | {copying}");
    }
    for disk in &state.disks {
        let _ = write!(line, " | {} {:.0}%", disk.path, disk.progress.floor());
    }
    line
}

fn print(text: &str, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{text}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_waiting_job_has_before_it() {
        for (status, next, downtime, expected) in [
            ("Waiting", None, None, ""),
            ("Waiting", Some(400.0), None, "next copy in 5 minutes"),
            (
                "Waiting",
                Some(400.0),
                Some(42.4),
                "next copy in 5 minutes, off for about 42 seconds if cut over now",
            ),
            (
                "Waiting",
                Some(-1e300),
                Some(f64::NAN),
                "next copy in 0 seconds, off for about 0 seconds if cut over now",
            ),
            ("Paused", None, Some(42.0), "off for about 42 seconds if cut over now"),
            ("Pre-copy #1", None, Some(42.0), ""),
            ("Starting virt-v2v", Some(400.0), None, ""),
        ] {
            let mut state = State::default();
            state.status = status.to_owned();
            state.next_round_at = next;
            state.predicted_downtime_seconds = downtime;
            assert_eq!(planned(&state, 100.0), expected, "{status}");
        }
    }
}
