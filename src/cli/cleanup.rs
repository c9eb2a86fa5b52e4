//! `virt-v2v-wrapper cleanup`: puts back what a job has left that cannot do so any more, on its source and at its destination.

use std::io::{Read, Write};

use crate::job::{JobFiles, Taken};
use crate::journal::{self, Entry, Fate, Journal};
use crate::log::chain;
use crate::site::{Caller, Site};
use crate::two_phase::earlier;
use crate::{convert, put_back, start, sweep, undo};

/// Which job is cleaned up after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'a> {
    /// Its tag.
    pub(super) tag: &'a str,
    /// Although it could be resumed.
    pub(super) discard: bool,
}

/// Exit code 0: nothing is left of the job outside this host, but for copies that can be resumed.
pub(super) fn run(of: Of<'_>, given: Option<&mut dyn Read>, out: &mut impl Write) -> std::io::Result<u8> {
    let Of { tag, discard } = of;
    let directories = Site::load(&|name| std::env::var_os(name))
        .and_then(|site| Ok((site.directories(&Caller::of_this_process())?, site)));
    let (directories, site) = match directories {
        Ok((directories, site)) => (directories, site),
        Err(error) => return Ok(super::complain(&chain(&error))),
    };
    // A job whose processes were all killed is over from here on.
    for sentence in sweep::sweep(directories.jobs()) {
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }
    if !crate::job::is_tag(tag) {
        return Ok(super::complain(&format!("{tag} is no tag of a job, like 20260131T235959-4711")));
    }
    let files = directories.job_files(tag);
    match clean(&site, &files, discard, given) {
        Ok(done) => writeln!(out, "{done}").map(|()| 0),
        Err(problems) => {
            for problem in &problems {
                super::complain(problem);
            }
            Ok(1)
        }
    }
}

fn clean(
    site: &Site,
    files: &JobFiles,
    discard: bool,
    given: Option<&mut dyn Read>,
) -> Result<String, Vec<String>> {
    let tag = &files.tag;
    let one = |error: &dyn std::error::Error| vec![chain(error)];
    // In layout uci the place may be another job's by now.
    let _lock = match files.take_lock().map_err(|error| one(&error))? {
        Taken::Held => {
            return Err(vec![format!("job {tag} is running: cancel it first, that puts the source back")]);
        }
        Taken::Free(lock) => Some(lock),
        Taken::Gone => None,
    };
    let path = earlier::journal_of(files);
    let entries = journal::read(&path).map_err(|error| one(&error))?;
    // In layout uci it may be that of another job.
    if !entries.iter().any(|entry| matches!(entry, Entry::Job { tag: own } if own == tag)) {
        return Err(vec![format!("there is no job {tag}; virt-v2v-wrapper jobs lists them")]);
    }
    if let Some(by) = entries.iter().find_map(|entry| match entry {
        Entry::ResumedBy { tag } => Some(tag),
        _ => None,
    }) {
        return Err(vec![format!(
            "job {tag} was resumed by job {by}, whose source it is now: virt-v2v-wrapper cleanup {by}"
        )]);
    }
    let is_kept = journal::fate(&entries) == Fate::Kept;
    let as_discarded = put_back::left_by(&entries, Fate::Undone);
    let left = if discard && is_kept { as_discarded } else { put_back::left(&entries) };
    if left.is_clean() && !(discard && is_kept) {
        return Ok(match is_kept && !put_back::left_by(&entries, Fate::Undone).is_clean() {
            true => {
                format!("nothing of job {tag} is left but what can be resumed; --discard removes that too")
            }
            false => format!("nothing of job {tag} is left"),
        });
    }
    let plan = match left.is_clean() {
        true => None,
        // Before anything is given up: without its secrets nothing can be removed.
        false => Some(start::plan_again(site, files, given)?),
    };
    if discard && is_kept {
        let cancelled = Journal::open(&path).and_then(|mut journal| journal.record(&Entry::Cancelled));
        cancelled.map_err(|error| one(&error))?;
    }
    if let Some(plan) = plan {
        convert::note_unread(files, &plan);
        let problems = put_back::put_back_alone(&plan, &path).map_err(|error| one(&error))?;
        if !problems.is_empty() {
            return Err(problems);
        }
    }
    let entries = journal::read(&path).map_err(|error| one(&error))?;
    let problems = if discard && is_kept { undo::undo(&entries) } else { undo::remove_kept(&entries) };
    for problem in problems {
        super::complain(&problem);
    }
    Ok(format!("put back: {left}"))
}
