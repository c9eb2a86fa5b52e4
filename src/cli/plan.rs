//! `virt-v2v-wrapper plan`: what a document would come to on this host, with nothing begun.
//!
//! The way of a job up to the first thing that it changes: the same judgement ([`judged`]), then a look at the source
//! ([`look`]), then the outline on stdout. Where the job would be refused, its sentences are on stderr as the job's would
//! be, and in the JSON.

use std::io::{Read, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::document;
use crate::job::{Job, JobError, JobFiles, Taken};
use crate::look;
use crate::outline::{Outline, TAG, text};
use crate::plan::Plan;
use crate::run::no_private_directory;
use crate::secret::Scrubber;
use crate::site::{Caller, Directories, Site};
use crate::start::judged::{self, Judged, Refused};
use crate::start::{no_place, no_tmp_dir, place_is_taken, read_document};

/// Exit code 0: the job would run; 1: it would be refused.
pub(super) fn run(
    json: bool,
    stdin: &mut dyn Read,
    out: &mut impl Write,
    err: &mut impl Write,
) -> std::io::Result<u8> {
    let (outline, scrubber) = match plan(stdin) {
        Ok(planned) => planned,
        Err(Refused(problems)) => (Outline::refused(problems, Vec::new()), Scrubber::default()),
    };
    for problem in &outline.problems {
        // A closed stderr loses only this.
        let _ = writeln!(err, "{}", scrubber.scrub(problem));
    }
    let shown = match json {
        true => serde_json::to_string_pretty(&outline)? + "\n",
        false => text::render(&outline),
    };
    // The outline has none; should one of the texts that came from elsewhere repeat one, it stops here.
    out.write_all(scrubber.scrub(&shown).as_bytes())?;
    Ok(u8::from(!outline.would_run))
}

fn plan(stdin: &mut dyn Read) -> Result<(Outline, Scrubber), Refused> {
    let site = Site::load(&|name| std::env::var_os(name)).map_err(|error| Refused::because(&error))?;
    let directories =
        site.directories(&Caller::of_this_process()).map_err(|error| Refused::because(&error))?;
    let parsed = document::parse(&read_document(stdin)?);
    let files = directories.job_files(TAG);
    place(&directories, &files)?;
    let judged = judged::judge(&site, &directories, &files, parsed)?;
    let scrubber = Scrubber::new(judged.plan.secrets());
    let unknown = judged.unknown_keys.iter().map(|key| format!("unknown key {key} ignored"));
    let warnings: Vec<String> = judged.plan.warnings.iter().cloned().chain(unknown).collect();
    let outline = match fits(&judged, &files) {
        Ok(capabilities) => {
            let (earlier, stage) = judged.earlier.unzip();
            let job = Job { plan: judged.plan, files, capabilities, earlier };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Refused::because(&error))?;
            let seen = runtime.block_on(look::look(&job, stage));
            Outline::of(&job, stage, &seen, warnings)
        }
        Err(Refused(problems)) => Outline::refused(problems, warnings),
    };
    Ok((outline, scrubber))
}

/// What the job refuses between its document and its source.
fn fits(judged: &Judged, files: &JobFiles) -> Result<crate::v2v::capabilities::Capabilities, Refused> {
    judged.looked.clone()?;
    private_directory(&judged.plan, files)?;
    judged.capabilities()
}

/// Could the job have its files where they belong?
fn place(directories: &Directories, files: &JobFiles) -> Result<(), Refused> {
    for directory in [&files.directory, &files.log_directory] {
        could_be_made(directory)
            .map_err(|source| no_place(&JobError::Directory { path: directory.clone(), source }))?;
    }
    match files.take_lock().map_err(|error| Refused::because(&error))? {
        Taken::Held => Err(place_is_taken(directories, files)),
        // A dead one's is the next job's to close.
        Taken::Free(_) | Taken::Gone => Ok(()),
    }
}

fn private_directory(plan: &Plan, files: &JobFiles) -> Result<(), Refused> {
    let tmp_dir = &plan.tools.tmp_dir;
    could_be_made(tmp_dir).map_err(|error| match tmp_dir.is_dir() {
        true => Refused(vec![no_private_directory(&files.private_directory(tmp_dir), &error)]),
        false => no_tmp_dir(tmp_dir, &error),
    })
}

/// A directory that is there can be written to, one that is not can be made.
fn could_be_made(directory: &Path) -> std::io::Result<()> {
    let there = directory.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    match there.is_dir() {
        true => Ok(access(there, AccessFlags::W_OK | AccessFlags::X_OK)?),
        false => Err(Errno::ENOTDIR.into()),
    }
}
