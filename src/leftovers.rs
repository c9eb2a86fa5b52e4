//! What the job's processes hold right now and would leave behind when killed: journalled before they die.
//!
//! After their death nobody can tell whose a file was. Called before every kill, by worker and supervisor; the removal
//! itself is [`crate::undo`]'s.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::job::Job;
use crate::journal::{Entry, Journal, JournalError};
use crate::log::chain;
use crate::plan;
use crate::process::{self, Seen};

/// libguestfs makes its sockets here for root, whatever TMPDIR says, so that a qemu of another user could reach them;
/// a killed virt-v2v leaves them.
const SOCKETS_ABOVE: &str = "/tmp";
const SOCKETS_PREFIX: &str = "libguestfs";

/// Journals them.
pub fn note(job: &Job) {
    let processes = process::processes_of(&job.files.tag);
    let mut entries: Vec<Entry> =
        socket_directories(&processes).into_iter().map(|path| Entry::ToolDirectory { path }).collect();
    // A tool may name its output otherwise than expected.
    if let plan::Destination::Local { directory } = &job.plan.destination {
        let files = process::files_open_below(directory, &processes);
        entries.extend(files.into_iter().map(|path| Entry::OutputFile { path }));
    }
    if let Err(error) = record(&job.files.journal(), &entries) {
        tracing::error!("{}", chain(&error));
    }
}

fn record(journal: &Path, entries: &[Entry]) -> Result<(), JournalError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut journal = Journal::open(journal)?;
    entries.iter().try_for_each(|entry| journal.record(entry))
}

/// Directories that stand in the appliance's own command line (`-chardev socket,path=...`).
fn socket_directories(processes: &[Seen]) -> BTreeSet<PathBuf> {
    processes
        .iter()
        .filter_map(|process| std::fs::read(format!("/proc/{}/cmdline", process.pid)).ok())
        .flat_map(|arguments| named_in(&String::from_utf8_lossy(&arguments)))
        .collect()
}

fn named_in(arguments: &str) -> Vec<PathBuf> {
    let beginning = format!("{SOCKETS_ABOVE}/{SOCKETS_PREFIX}");
    arguments
        .match_indices(&beginning)
        .filter_map(|(at, _)| arguments.get(at..)?.split('/').nth(2))
        .filter(|name| is_socket_directory(name))
        .map(|name| Path::new(SOCKETS_ABOVE).join(name))
        .collect()
}

/// `libguestfs` and the six letters of mkdtemp.
fn is_socket_directory(name: &str) -> bool {
    name.strip_prefix(SOCKETS_PREFIX)
        .is_some_and(|random| random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directories_of_mkdtemp_are_taken_from_a_command_line() {
        let arguments = "qemu\0-chardev\0socket,path=/tmp/libguestfsuKAZcX/console.sock,id=c\0-x\0/tmp/libguestfs/a\0\
                         /tmp/libguestfs-123/a\0/tmp/libguestfs../../etc\0";
        assert_eq!(named_in(arguments), [Path::new("/tmp/libguestfsuKAZcX")]);
    }
}
