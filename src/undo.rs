//! Undo: puts back what a failed job began, from its journal alone.
//!
//! Called by the worker at the end of every job (a successful one only loses its private directory and its cgroup), by the
//! supervisor when the worker is gone, and by the next start of the program when both are gone ([`crate::sweep`]).
//! Nothing that was there before the job, or that somebody else made meanwhile, is touched.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::footprint::Footprint;
use crate::journal::{self, Entry, Fate};
use crate::things;
use crate::throttle::cgroup;
use crate::two_phase::kept_document;

/// Undoes `entries`; gives a sentence for each thing that could not be undone. What `virt-v2v-wrapper cleanup` needs stays
/// as long as something is left on the source or at a cloud.
pub fn undo(entries: &[Entry]) -> Vec<String> {
    let fate = journal::fate(entries);
    let left = Footprint::of(entries).after(fate == Fate::Delivered);
    let is_clean = left.is_clean() && things::to_undo(entries, fate).is_empty();
    undo_all(entries, fate == Fate::Undone, !is_clean)
}

/// Without what was made for the user, or with it; with what tells of the source, or without it.
fn undo_all(entries: &[Entry], output: bool, source_left: bool) -> Vec<String> {
    let mut problems = Vec::new();
    let fate = journal::fate(entries);
    if output {
        for file in output_files(entries, &mut problems) {
            tracing::info!("removing the partial output {}", file.display());
            if let Err(error) = std::fs::remove_file(&file)
                && error.kind() != ErrorKind::NotFound
            {
                problems.push(format!("the partial output {} could not be removed: {error}", file.display()));
            }
        }
    }
    // Copies that may be half committed and the overlays that make them whole belong together.
    let overlays_stay = match fate {
        Fate::Undone | Fate::Delivered => false,
        Fate::TakenOver => true,
        Fate::Kept => journal::can_be_committed(entries),
    };
    for entry in entries {
        match entry {
            Entry::PrivateDirectory { path } | Entry::ToolDirectory { path } => {
                remove_directory(path, &mut problems);
            }
            Entry::OverlayDirectory { path } | Entry::Converted { overlays: path, .. } if !overlays_stay => {
                remove_directory(path, &mut problems);
            }
            Entry::Copies { directory } if matches!(fate, Fate::Undone | Fate::Delivered) => {
                match source_left {
                    true => empty_directory(directory, &mut problems),
                    false => remove_directory(directory, &mut problems),
                }
            }
            Entry::Cgroup { path } => {
                if let Err(error) = cgroup::remove(path) {
                    problems.push(format!("the cgroup {} could not be removed: {error}", path.display()));
                }
            }
            _ => {}
        }
    }
    problems
}

/// Undoes what was kept for a later job that will not come: its files are being removed. What was undone when the job ended
/// is not undone again: another job may have made files of the same names since.
pub fn forget(mut entries: Vec<Entry>) -> Vec<String> {
    let is_kept = journal::fate(&entries) == Fate::Kept;
    entries.push(Entry::Cancelled);
    undo_all(&entries, is_kept, false)
}

/// Removes what was kept to put the source back, which is done: nobody else needs it, unless the job can be resumed.
pub fn remove_kept(entries: &[Entry]) -> Vec<String> {
    let mut problems = Vec::new();
    for entry in entries {
        if let (Entry::Copies { directory }, Fate::Undone | Fate::Delivered) = (entry, journal::fate(entries))
        {
            remove_directory(directory, &mut problems);
        }
    }
    problems
}

/// The directory of copies that are gone, but for what puts the source back: the document, and a journal that was put away.
fn empty_directory(path: &Path, problems: &mut Vec<String>) {
    for file in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if ![kept_document::FILE, journal::PUT_AWAY].iter().any(|kept| file.file_name() == *kept)
            && let Err(error) = std::fs::remove_file(file.path())
        {
            problems.push(format!("{} could not be removed: {error}", file.path().display()));
        }
    }
}

fn remove_directory(path: &Path, problems: &mut Vec<String>) {
    if let Err(error) = std::fs::remove_dir_all(path)
        && error.kind() != ErrorKind::NotFound
    {
        problems.push(format!("the temporary directory {} could not be removed: {error}", path.display()));
    }
}

/// The files this job made in the user's directories: not there before, and named after the guest or told by the
/// tool.
fn output_files(entries: &[Entry], problems: &mut Vec<String>) -> BTreeSet<PathBuf> {
    let mut told = BTreeSet::new();
    let mut names = BTreeSet::new();
    for entry in entries {
        match entry {
            Entry::OutputFile { path } => {
                told.insert(path.as_path());
            }
            Entry::GuestName { name } => {
                names.insert(name.as_str());
            }
            Entry::OutputDirectory { guest_names, .. } => {
                names.extend(guest_names.iter().map(String::as_str))
            }
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    for entry in entries {
        let Entry::OutputDirectory { path: directory, existing, .. } = entry else { continue };
        let listing = match std::fs::read_dir(directory) {
            Ok(listing) => listing,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                problems
                    .push(format!("partial output in {} was not looked for: {error}", directory.display()));
                continue;
            }
        };
        for file in listing.flatten() {
            let name = file.file_name();
            let was_there = existing.iter().any(|known| OsStr::new(known) == name);
            let path = directory.join(&name);
            let ours = told.contains(path.as_path()) || is_output_of(&name, &names);
            if !was_there && ours && file.file_type().is_ok_and(|kind| kind.is_file()) {
                found.insert(path);
            }
        }
    }
    found
}

/// Is `file` a name that virt-v2v gives to what it makes for one of these guests: `<name>-sda`, `<name>.xml`?
pub fn is_output_of(file: &OsStr, guests: &BTreeSet<&str>) -> bool {
    let Some(file) = file.to_str() else { return false };
    guests.iter().any(|guest| {
        file.strip_prefix(guest).is_some_and(|rest| {
            rest == ".xml"
                || rest.strip_prefix("-sd").is_some_and(|letters| {
                    !letters.is_empty() && letters.bytes().all(|letter| letter.is_ascii_lowercase())
                })
        })
    })
}

/// What is in `directory` now: the `existing` of [`Entry::OutputDirectory`].
pub fn listing(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        std::fs::write(path, b"x").unwrap();
    }

    /// Killed between conversion and the last commit: what is missing can be repeated only while both are there.
    #[test]
    fn a_converted_guest_keeps_its_copies_and_overlays_until_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (overlays, copy) = (directory.path().join("overlays"), directory.path().join("guest-sda"));
        let begun = [
            Entry::OverlayDirectory { path: overlays.clone() },
            Entry::OutputDirectory {
                path: directory.path().to_owned(),
                guest_names: vec!["guest".into()],
                existing: Vec::new(),
            },
        ];
        let converted = Entry::Converted {
            overlays: overlays.clone(),
            committed: BTreeSet::new(),
            return_code: 0,
            drivers: Box::default(),
        };
        let committed = Entry::Committed { disk: 0 };
        let succeeded = Entry::Succeeded { return_code: 0 };
        for (more, overlays_stay, copy_stays) in [
            (Vec::new(), false, false),
            (vec![converted.clone()], true, true),
            (vec![converted.clone(), Entry::CommitStarted { disk: 0 }, committed.clone()], true, true),
            (vec![converted, committed, succeeded], false, true),
        ] {
            std::fs::create_dir_all(&overlays).unwrap();
            touch(&overlays.join("disk-1.qcow2"));
            touch(&copy);
            let entries: Vec<Entry> = begun.iter().cloned().chain(more).collect();
            assert_eq!(undo(&entries), Vec::<String>::new());
            assert_eq!((overlays.exists(), copy.exists()), (overlays_stay, copy_stays), "{entries:?}");
            // Nobody will go on with it: only what is the user's stays.
            let delivered = entries.iter().any(|entry| matches!(entry, Entry::Succeeded { .. }));
            assert_eq!(forget(entries.clone()), Vec::<String>::new());
            assert_eq!((overlays.exists(), copy.exists()), (false, delivered), "{entries:?}");
        }
    }

    /// Invariant 5: a job that was undone long ago is removed, and a later one has made a guest of the same name.
    #[test]
    fn forgetting_a_job_that_was_undone_removes_nobodys_guest() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("guest-sda");
        let entries = vec![
            Entry::OutputDirectory {
                path: directory.path().to_owned(),
                guest_names: vec!["guest".into()],
                existing: Vec::new(),
            },
            Entry::OutputFile { path: copy.clone() },
            Entry::Resumable,
        ];
        touch(&copy);
        let mut cancelled = entries.clone();
        cancelled.push(Entry::Cancelled);
        assert_eq!(forget(cancelled), Vec::<String>::new());
        assert!(copy.exists());
        assert_eq!(forget(entries), Vec::<String>::new());
        assert!(!copy.exists(), "of a job that could have been resumed");
    }

    /// What `cleanup` reads stays until the source is as it was, whatever became of the job.
    #[test]
    fn what_puts_the_source_back_stays_as_long_as_it_is_needed() {
        for end in [Entry::Cancelled, Entry::Succeeded { return_code: 0 }] {
            let directory = tempfile::tempdir().unwrap();
            let copies = directory.path().join("copies");
            std::fs::create_dir(&copies).unwrap();
            let files =
                [kept_document::FILE, journal::PUT_AWAY, "disk-0.ledger"].map(|name| copies.join(name));
            files.iter().for_each(|file| touch(file));
            let mut entries = vec![Entry::Copies { directory: copies.clone() }, Entry::TrackingOn, end];
            assert_eq!(undo(&entries), Vec::<String>::new());
            assert_eq!(files.map(|file| file.exists()), [true, true, false], "{entries:?}");
            entries.push(Entry::TrackingOff);
            assert_eq!(remove_kept(&entries), Vec::<String>::new());
            assert!(!copies.exists());
        }
    }

    #[test]
    fn only_what_this_job_made_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let private = path("private");
        touch(&path("guest-sdz"));
        let mut entries = vec![
            Entry::PrivateDirectory { path: private.clone() },
            Entry::Cgroup { path: path("virt-v2v-t") },
            Entry::OutputDirectory {
                path: directory.path().to_owned(),
                guest_names: vec!["guest".into()],
                existing: listing(directory.path()).unwrap(),
            },
            Entry::OutputFile { path: path("told.img") },
        ];
        let ours = ["guest-sda", "guest-sdab", "guest.xml", "told.img"];
        let theirs = ["guest-sdz", "guest-sd", "guest-sda.bak", "guest2-sda", "other-sda"];
        std::fs::create_dir(&private).unwrap();
        std::fs::create_dir(path("virt-v2v-t")).unwrap();
        ours.iter().chain(&theirs).for_each(|name| touch(&path(name)));

        assert_eq!(undo(&entries), Vec::<String>::new());
        assert!(!private.exists() && !path("virt-v2v-t").exists());
        for name in ours {
            assert!(!path(name).exists(), "{name} is ours");
        }
        for name in theirs {
            assert!(path(name).exists(), "{name} is not ours");
        }

        touch(&path("guest-sda"));
        entries.push(Entry::Succeeded { return_code: 0 });
        assert_eq!(undo(&entries), Vec::<String>::new());
        assert!(path("guest-sda").exists(), "the output of a success is the user's");
    }
}
