//! `virt-v2v-wrapper watch`: shows a job until it ends. A reader of the state file like any other.
//!
//! On a terminal a bar for each disk; elsewhere a line whenever something changed by a whole percent, for a journal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::state::State;
use crate::state_file;

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Exit code: 0 converted, 2 failed, 1 the job's processes are gone without a final state.
pub(super) fn run(path: &Path, out: &mut impl Write) -> std::io::Result<u8> {
    let mut view = View::new();
    loop {
        // Before the state is read: a job that ends between the two has then written its last state.
        let alive = is_alive(path);
        let state = state_file::read(path).map_err(std::io::Error::other)?;
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
fn is_alive(state: &Path) -> bool {
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
                job.set_message(stage(state).to_owned());
                Ok(())
            }
            Self::Lines { last } => {
                let line = line(state);
                if line != *last {
                    writeln!(out, "{line}")?;
                    out.flush()?;
                    *last = line;
                }
                Ok(())
            }
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

fn line(state: &State) -> String {
    let mut line = format!("{:3.0}% {}", state.progress.floor(), stage(state));
    for disk in &state.disks {
        // Writing into a String cannot fail.
        let _ = write!(line, " | {} {:.0}%", disk.path, disk.progress.floor());
    }
    line
}
