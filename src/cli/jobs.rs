//! `virt-v2v-wrapper jobs`: the jobs of this host with their outcome, and the removal of finished ones.

use std::io::Write;

use serde::Serialize;

use crate::job::{JobFiles, Taken};
use crate::journal::{Entry, Fate};
use crate::log::chain;
use crate::site::{Caller, Site};
use crate::state::State;
use crate::{journal, put_back, state_file, sweep};

/// One job, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Row {
    tag: String,
    outcome: &'static str,
    progress: f64,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    state_file: std::path::PathBuf,
}

/// Which job's files are removed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal<'a> {
    /// Its tag.
    pub(super) tag: &'a str,
    /// Although they tell what it has left outside this host.
    pub(super) force: bool,
}

/// Lists, or removes one. Dead jobs are closed first, so that no job is shown running that does not.
pub(super) fn run(json: bool, remove: Option<Removal<'_>>, out: &mut impl Write) -> std::io::Result<u8> {
    let directories = Site::load(&|name| std::env::var_os(name))
        .and_then(|site| site.directories(&Caller::of_this_process()));
    let directories = match directories {
        Ok(directories) => directories,
        Err(error) => return Ok(super::complain(&chain(&error))),
    };
    for sentence in sweep::sweep(directories.jobs()) {
        // Beside the list, not in it; a closed stderr loses only this.
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }
    let mut jobs = directories.jobs();
    if let Some(Removal { tag, force }) = remove {
        return match jobs.into_iter().find(|files| files.tag == tag) {
            Some(files) => Ok(self::remove(&files, force)),
            None => Ok(super::complain(&format!("there is no job {tag}"))),
        };
    }
    jobs.sort_by(|one, other| one.tag.cmp(&other.tag));
    let rows: Vec<Row> = jobs.iter().filter_map(row).collect();
    if json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
        return Ok(0);
    }
    for row in rows {
        let message = row.message.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
        writeln!(out, "{:24} {:9} {:3.0}% {}", row.tag, row.outcome, row.progress.floor(), message)?;
    }
    Ok(0)
}

fn row(files: &JobFiles) -> Option<Row> {
    let path = files.state();
    if !path.exists() {
        return None;
    }
    let (outcome, state) = match state_file::read(&path) {
        Ok(state) => (outcome(&state), state),
        Err(error) => {
            tracing::warn!("{}", chain(&error));
            ("unreadable", State::default())
        }
    };
    Some(Row {
        tag: files.tag.clone(),
        outcome,
        progress: state.progress,
        updated_at: state.updated_at,
        message: state.last_message.map(|last| last.message),
        state_file: path,
    })
}

fn outcome(state: &State) -> &'static str {
    match (state.finished, state.failed) {
        (Some(true), Some(false)) => "converted",
        (Some(true), _) => "failed",
        _ => "running",
    }
}

/// Removes the files of a job that is over; a running one is never touched.
fn remove(files: &JobFiles, force: bool) -> u8 {
    let entries = match journal::read(&files.journal()) {
        Ok(entries) => entries,
        Err(error) => return super::complain(&chain(&error)),
    };
    // Nobody could remove it afterwards: who removes the files of a job that can be resumed gives its copies up.
    let as_discarded = match journal::fate(&entries) {
        Fate::Kept => Fate::Undone,
        fate => fate,
    };
    let left = put_back::left_by(&entries, as_discarded);
    let discard = if put_back::left(&entries).is_clean() { " --discard" } else { "" };
    // With layout uci the place of the job does not tell its tag.
    let tag = entries.iter().find_map(|entry| match entry {
        Entry::Job { tag } => Some(tag),
        _ => None,
    });
    match files.take_lock() {
        Ok(Taken::Free(_) | Taken::Gone) if !left.is_clean() && !force => super::complain(&format!(
            "job {tag} has left outside this host: {left}. Put that back first (virt-v2v-wrapper cleanup {tag}{discard}), or remove its \
             files all the same with --force",
            tag = tag.unwrap_or(&files.tag)
        )),
        Ok(Taken::Free(_) | Taken::Gone) => match files.remove() {
            Ok(()) => 0,
            Err(error) => super::complain(&chain(&error)),
        },
        Ok(Taken::Held) => super::complain(&format!(
            "job {} is running: cancel it first (kill the pid in {})",
            files.tag,
            files.state().display()
        )),
        Err(error) => super::complain(&chain(&error)),
    }
}
