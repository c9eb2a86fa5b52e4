//! Slots of a source host: how many disks all jobs of this program read from it at a time.
//!
//! A hypervisor has memory for few readers, and fails new ones, or the running ones, when there are more (peers.md 6.3,
//! row 24). So jobs on the same conversion host share a number of lock files for each source host: a job waits until
//! there are as many free as it has disks. A slot belongs to an open file, so a killed job's are free at once. An edge;
//! called by the copies stage.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::export::Export;
use crate::job;

/// Disks read from one host at a time. VMware's own limits are some dozens of connections, and others use them too.
const SLOTS: usize = 12;
/// How long until it is looked again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The slots cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot lock {path}, which counts the disks that are read from a host")]
pub struct SlotError {
    /// The lock file.
    path: PathBuf,
    /// Why.
    source: std::io::Error,
}

/// Slots that are held until this is dropped.
#[derive(Debug)]
pub struct Slots {
    _held: Vec<File>,
}

/// The host whose slots the export needs; none for files of this host.
pub fn host(export: &Export) -> Option<&str> {
    match export {
        Export::Vddk { server, .. } => Some(server),
        Export::Ssh { host, .. } => Some(host),
        Export::File { .. } | Export::Image { .. } | Export::Tunnel { .. } => None,
    }
}

/// Waits for as many slots of `host` as it has disks to read, all at once: jobs that held some while they wait for more
/// could wait for each other. `waiting` is called before each wait.
pub async fn take(
    directory: &Path,
    host: &str,
    disks: usize,
    waiting: impl Fn(),
) -> Result<Slots, SlotError> {
    take_of(SLOTS, directory, host, disks, waiting).await
}

async fn take_of(
    slots: usize,
    directory: &Path,
    host: &str,
    disks: usize,
    waiting: impl Fn(),
) -> Result<Slots, SlotError> {
    // A guest with more disks than slots has the host for itself.
    let wanted = disks.min(slots);
    let above = directory.join(file_name(host));
    job::create_traversable(&above).map_err(|source| SlotError { path: above.clone(), source })?;
    loop {
        let mut held = Vec::new();
        for slot in 0..slots {
            if held.len() == wanted {
                break;
            }
            held.extend(try_slot(&above.join(format!("slot-{slot}")))?);
        }
        if held.len() == wanted {
            return Ok(Slots { _held: held });
        }
        drop(held);
        waiting();
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn try_slot(path: &Path) -> Result<Option<File>, SlotError> {
    let error = |source| SlotError { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

/// Names of hosts are given by users: nothing but what a host name may have goes into a path.
fn file_name(host: &str) -> String {
    let name = host.chars().map(|character| match character {
        'a'..='z' | '0'..='9' | '-' | '.' => character,
        'A'..='Z' => character.to_ascii_lowercase(),
        _ => '_',
    });
    format!("host-{}", name.take(200).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_until_another_has_read_and_nobody_holds_some_while_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let first = take_of(5, path, "ESX-1", 3, || panic!("nobody is there")).await.unwrap();
        let waits = Cell::new(0);
        let second = take_of(5, path, "esx-1", 3, || waits.set(waits.get() + 1));
        tokio::pin!(second);
        let late = tokio::time::timeout(Duration::from_secs(7), &mut second).await;
        assert!(late.is_err() && waits.get() >= 3, "{} waits", waits.get());
        // It holds none meanwhile: a small one passes, and another host is nobody's business.
        let small = take_of(5, path, "esx-1", 2, || panic!("two are free")).await.unwrap();
        take_of(5, path, "esx-2", 5, || panic!("another host")).await.unwrap();
        drop((first, small));
        second.await.unwrap();
        take_of(5, path, "esx-1", 9, || panic!("more than there are")).await.unwrap();
    }

    #[test]
    fn a_host_name_is_one_part_of_a_path() {
        assert_eq!(file_name("../etc/Passwd"), "host-.._etc_passwd");
    }
}
