//! What jobs that are over have left at the destination of this one, because all of them was killed or the destination was
//! away: removed with this job's credentials before it begins.
//!
//! No credentials are kept on this host, so nobody could do it at the time; `virt-v2v-wrapper cleanup <tag>` does it by hand. Only
//! what such a job's own journal lists goes, and only of jobs to the very same destination. A job that can be resumed keeps
//! its disks. Called by [`crate::destination::Selected::prepare`].

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::destination::{self, Work};
use crate::event::Event;
use crate::job::{JobFiles, Taken};
use crate::journal::{self, Entry, PUT_AWAY};
use crate::log::chain;
use crate::plan::{Destination, Plan};
use crate::put_back;
use crate::records::Records;
use crate::things::Side;
use crate::undo;

/// How long the removal of what one job left may take.
const LIMIT: Duration = Duration::from_secs(180);

/// A job that is over, and what its journal says.
struct Orphan {
    tag: String,
    journal: PathBuf,
    /// Held meanwhile: another job may begin at the same time.
    _lock: File,
    vm_name: String,
    guest_id: Option<String>,
}

/// Removes what others left at the same destination; a warning for what stays.
pub async fn clear(work: &mut Work<'_>, cloud: &str) {
    for orphan in journals(&work.job.files).filter_map(|path| orphan(path, &work.job.files.tag, cloud)) {
        let tag = &orphan.tag;
        tracing::info!("removing what job {tag} left at this destination");
        work.waits_for(Some(&format!("the destination, to remove what job {tag} left there")));
        let problems = match Records::open(orphan.journal.clone()) {
            Ok(mut records) => clear_one(&work.job.plan, &orphan, &mut records).await,
            Err(error) => vec![chain(&error)],
        };
        work.waits_for(None);
        for problem in problems {
            let text = format!("of job {tag}, which is over, something is left: {problem}");
            tracing::warn!("{text}");
            work.tell(Event::Warning { text });
        }
    }
}

async fn clear_one(plan: &Plan, orphan: &Orphan, records: &mut Records) -> Vec<String> {
    let entries = match records.entries() {
        Ok(entries) => entries,
        Err(error) => return vec![chain(&error)],
    };
    let mut things = put_back::left(&entries).things;
    things.retain(|thing| thing.side == Side::Destination);
    let limit = plan.tools.patience(LIMIT);
    let plan = as_of(plan, orphan);
    let undone = tokio::time::timeout(limit, destination::undo(&plan, &things, records)).await;
    let mut problems = undone.unwrap_or_else(|_| vec![format!("no end within {} s", limit.as_secs())]);
    match records.entries() {
        Ok(entries) if put_back::left(&entries).is_clean() => problems.extend(undo::remove_kept(&entries)),
        Ok(_) => {}
        Err(error) => problems.push(chain(&error)),
    }
    problems
}

/// This job's credentials, and the other's guest.
fn as_of(plan: &Plan, orphan: &Orphan) -> Plan {
    let mut plan = plan.clone();
    plan.vm_name.clone_from(&orphan.vm_name);
    if let (Destination::Openstack { guest_id, .. }, Some(other)) = (&mut plan.destination, &orphan.guest_id)
    {
        guest_id.clone_from(other);
    }
    plan
}

/// Journals of other jobs: beside this one's, and in layout `uci` those that were put away.
fn journals(files: &JobFiles) -> impl Iterator<Item = PathBuf> {
    let is_job = files.directory.ends_with(&files.tag);
    let (above, name) = match files.directory.parent().filter(|_| is_job) {
        Some(jobs) => (jobs, "journal.jsonl"),
        None => (files.directory.as_path(), PUT_AWAY),
    };
    let own = files.directory.clone();
    let others = std::fs::read_dir(above).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = others
        .filter(|directory| *directory != own && directory.is_dir())
        .filter(|directory| is_free(directory, is_job))
        .map(|directory| directory.join(name))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths.into_iter()
}

/// Is the job with this directory over? In layout `uci` these are directories of jobs that are.
fn is_free(directory: &Path, is_job: bool) -> bool {
    let tag = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let files = JobFiles {
        tag: tag.to_owned(),
        directory: directory.to_owned(),
        log_directory: directory.to_owned(),
    };
    match files.take_lock() {
        _ if !is_job => true,
        // One that is dead, but was not closed yet: the sweep of the next start does that first.
        Ok(Taken::Held | Taken::Free(_)) => false,
        Ok(Taken::Gone) => true,
        Err(error) => {
            tracing::warn!("{}", chain(&error));
            false
        }
    }
}

/// The job of this journal, if it left something at this destination and nobody else sees to that now.
fn orphan(path: PathBuf, own: &str, cloud: &str) -> Option<Orphan> {
    let entries = match journal::read(&path) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!("{}", chain(&error));
            return None;
        }
    };
    let (vm_name, guest_id) = entries.iter().find_map(|entry| match entry {
        Entry::Destination { cloud: other, vm_name, guest_id } if other == cloud => {
            Some((vm_name.clone(), guest_id.clone()))
        }
        _ => None,
    })?;
    let tag = entries.iter().find_map(|entry| match entry {
        Entry::Job { tag } if tag != own => Some(tag.clone()),
        _ => None,
    })?;
    let is_left = put_back::left(&entries).things.iter().any(|thing| thing.side == Side::Destination);
    let lock = File::open(&path).ok().filter(|file| is_left && file.try_lock().is_ok())?;
    Some(Orphan { tag, journal: path, _lock: lock, vm_name, guest_id })
}
