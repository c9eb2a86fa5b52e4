//! `virt-v2v-wrapper cleanup`: puts the source back for a job that cannot any more.

use std::io::{Read, Write};

use crate::job::{JobFiles, Taken};
use crate::log::chain;
use crate::site::{Caller, Site};
use crate::two_phase::earlier;
use crate::{journal, put_back, start, sweep, undo};

/// Exit code 0: the source is as it was found.
pub(super) fn run(tag: &str, given: Option<&mut dyn Read>, out: &mut impl Write) -> std::io::Result<u8> {
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
    match clean(&site, &files, given) {
        Ok(done) => writeln!(out, "{done}").map(|()| 0),
        Err(problems) => {
            for problem in &problems {
                super::complain(problem);
            }
            Ok(1)
        }
    }
}

fn clean(site: &Site, files: &JobFiles, given: Option<&mut dyn Read>) -> Result<String, Vec<String>> {
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
    if !entries.iter().any(|entry| matches!(entry, journal::Entry::Job { tag: own } if own == tag)) {
        return Err(vec![format!("there is no job {tag}; virt-v2v-wrapper jobs lists them")]);
    }
    if let Some(by) = entries.iter().find_map(|entry| match entry {
        journal::Entry::ResumedBy { tag } => Some(tag),
        _ => None,
    }) {
        return Err(vec![format!(
            "job {tag} was resumed by job {by}, whose source it is now: virt-v2v-wrapper cleanup {by}"
        )]);
    }
    let left = put_back::left(&entries);
    if left.is_clean() {
        return Ok(format!("nothing of job {tag} is left"));
    }
    let plan = start::plan_again(site, files, given)?;
    let problems = put_back::put_back_alone(&plan, &path).map_err(|error| one(&error))?;
    if !problems.is_empty() {
        return Err(problems);
    }
    for problem in undo::remove_kept(&entries) {
        super::complain(&problem);
    }
    Ok(format!("put back: {left}"))
}
