//! A job: the paths of its files, the lock that says it lives, and what its worker is told.
//!
//! The files are written by [`crate::state_file`], [`crate::journal`] and [`crate::log`].

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::log::chain;
use crate::plan::Plan;
use crate::v2v::capabilities::Capabilities;
use crate::{journal, undo};

/// Everything the worker is told, through a sealed memfd: the plan holds secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What to do.
    pub plan: Plan,
    /// Where its files are.
    pub files: JobFiles,
    /// What virt-v2v can do, asked before the fork.
    pub capabilities: Capabilities,
    /// Files of the interrupted job whose copies are taken over (`resume`).
    pub earlier: Option<JobFiles>,
}

/// Names of all files of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFiles {
    /// `YYYYMMDDTHHMMSS-<pid>` (contract.md 2.4).
    pub tag: String,
    /// Directory of state, journal and triggers.
    pub directory: PathBuf,
    /// Directory of the three logs.
    pub log_directory: PathBuf,
}

impl JobFiles {
    /// The state file clients poll.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// What was begun and done outside the process, for undo.
    pub fn journal(&self) -> PathBuf {
        self.directory.join("journal.jsonl")
    }

    /// Held (flock) for as long as the supervisor or the worker lives, and removed by the last act of the job: a
    /// lock file that nobody holds is a job whose processes were all killed ([`crate::sweep`]).
    pub fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// virt-v2v's stdout and stderr.
    pub fn v2v_log(&self) -> PathBuf {
        self.log_directory.join("virt-v2v.log")
    }

    /// virt-v2v's machine-readable log.
    pub fn machine_readable_log(&self) -> PathBuf {
        self.log_directory.join("virt-v2v-mr.log")
    }

    /// Our own log.
    pub fn wrapper_log(&self) -> PathBuf {
        self.log_directory.join("virt-v2v-wrapper.log")
    }

    /// Limits a client may write while the job runs (contract.md 8.1).
    pub fn throttling(&self) -> PathBuf {
        self.directory.join("throttling.json")
    }

    /// Touched by a client to end a warm migration.
    pub fn cutover(&self) -> PathBuf {
        self.directory.join("cutover")
    }

    /// Touched by a client to have a round of a warm migration now.
    pub fn copy_trigger(&self) -> PathBuf {
        self.directory.join("copy_trigger")
    }

    /// As long as it exists no round of a warm migration begins.
    pub fn pause_operations(&self) -> PathBuf {
        self.directory.join("pause_operations")
    }

    /// Directory with the slots of source hosts, shared by all jobs ([`crate::source::slots`]).
    pub fn hosts(&self) -> PathBuf {
        let jobs = self.directory.parent().filter(|_| self.directory.ends_with(&self.tag));
        jobs.and_then(Path::parent).unwrap_or(&self.directory).join("hosts")
    }

    /// Directory with the ledgers of a two-phase job and what a later one must know to go on with it.
    pub fn copies(&self) -> PathBuf {
        self.directory.join(format!("copies-{}", self.tag))
    }

    /// The job's private directory below `tmp_dir`: `TMPDIR` of every tool, removed at the end.
    pub fn private_directory(&self, tmp_dir: &Path) -> PathBuf {
        tmp_dir.join(format!("v2v-{}", self.tag))
    }

    /// The directory of a two-phase job's overlays, beside the private one: it may have to outlive the job.
    pub fn overlay_directory(&self, tmp_dir: &Path) -> PathBuf {
        tmp_dir.join(format!("v2v-{}-overlays", self.tag))
    }
}

/// Is this the shape of a tag? Then it is no path either.
pub fn is_tag(text: &str) -> bool {
    let Some((time, pid)) = text.split_once('-') else { return false };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let time = time.split_once('T');
    digits(pid)
        && time.is_some_and(|(day, hour)| day.len() == 8 && hour.len() == 6 && digits(day) && digits(hour))
}

/// What became of the attempt to take a lock.
#[derive(Debug)]
pub enum Taken {
    /// It is ours; nobody held it, so its job is dead.
    Free(File),
    /// A living job has it.
    Held,
    /// There is none: the job is over.
    Gone,
}

/// A directory or lock of a job could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A directory.
    #[error("cannot create {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is left of a finished job.
    #[error("cannot remove {path}")]
    Remove {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The lock file.
    #[error("cannot lock {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl JobFiles {
    /// Makes the two directories, traversable for every user whatever the umask (clients fetch state and logs as
    /// an unprivileged login user, contract.md 9.3).
    pub fn create_directories(&self) -> Result<(), JobError> {
        for directory in [&self.directory, &self.log_directory] {
            create_traversable(directory)
                .map_err(|source| JobError::Directory { path: directory.clone(), source })?;
        }
        Ok(())
    }

    /// Takes this place for a new job; `None` if a living job has it. The lock belongs to the open file: processes that
    /// inherit the descriptor hold it too, and it is free when the last of them is gone.
    ///
    /// It becomes visible only when it is held and signed: a lock file that nobody holds is a dead job to every other
    /// start ([`crate::sweep`]), also for the moment between two system calls.
    pub fn claim(&self) -> Result<Option<File>, JobError> {
        let error = |source| JobError::Lock { path: self.lock(), source };
        let hidden = self.directory.join(format!(".lock.{}", std::process::id()));
        loop {
            if self.lock().exists() {
                match self.take_lock()? {
                    Taken::Held => return Ok(None),
                    Taken::Gone => continue,
                    Taken::Free(mut lock) => {
                        self.sign(&mut lock).map_err(error)?;
                        return Ok(Some(lock));
                    }
                }
            }
            let mut lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&hidden)
                .map_err(error)?;
            lock.lock().and_then(|()| self.sign(&mut lock)).map_err(error)?;
            let linked = std::fs::hard_link(&hidden, self.lock());
            ignore_missing(std::fs::remove_file(&hidden)).map_err(error)?;
            match linked {
                Ok(()) => return Ok(Some(lock)),
                // Another start was quicker: look again.
                Err(exists) if exists.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(other) => return Err(error(other)),
            }
        }
    }

    /// The tag is the lock's content: in layout `uci` all jobs share one place, and a later start must know whose
    /// processes to look for.
    fn sign(&self, lock: &mut File) -> std::io::Result<()> {
        lock.set_len(0).and_then(|()| lock.write_all(self.tag.as_bytes()))
    }

    /// Takes the lock of a job that may be over, to close it or to remove its files.
    pub fn take_lock(&self) -> Result<Taken, JobError> {
        let error = |source| JobError::Lock { path: self.lock(), source };
        let file = match OpenOptions::new().read(true).write(true).open(self.lock()) {
            Ok(file) => file,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(Taken::Gone),
            Err(other) => return Err(error(other)),
        };
        match file.try_lock() {
            // A job that ended between the two calls has removed the file that was opened.
            Ok(()) if is_at(&file, &self.lock()).map_err(error)? => Ok(Taken::Free(file)),
            Ok(()) => Ok(Taken::Gone),
            Err(TryLockError::WouldBlock) => Ok(Taken::Held),
            Err(TryLockError::Error(source)) => Err(error(source)),
        }
    }

    /// Removes the files of a job that is over. Only files of ours go: in layout `uci` the directories are shared with
    /// the container's own.
    pub fn remove(&self) -> Result<(), JobError> {
        match journal::read(&self.journal()) {
            Ok(entries) => undo::forget(entries).iter().for_each(|problem| tracing::warn!("{problem}")),
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
        let files = [
            self.state(),
            self.journal(),
            self.throttling(),
            self.cutover(),
            self.copy_trigger(),
            self.pause_operations(),
            self.v2v_log(),
            self.machine_readable_log(),
            self.wrapper_log(),
            self.lock(),
        ];
        for path in files {
            match ignore_missing(std::fs::remove_file(&path)) {
                // Not made by us, whatever its name.
                Err(_) if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) => {
                    tracing::warn!("{} stays: it is a directory", path.display());
                }
                removed => removed.map_err(|source| JobError::Remove { path, source })?,
            }
        }
        for path in [&self.directory, &self.log_directory] {
            // What else lies there is not ours, and then the directory stays.
            if path.ends_with(&self.tag)
                && let Err(error) = ignore_missing(std::fs::remove_dir(path))
            {
                tracing::warn!("{} stays: {error}", path.display());
            }
        }
        Ok(())
    }

    /// The last act of a job: from here on it is over for good.
    pub fn remove_lock(&self) {
        if let Err(error) = std::fs::remove_file(self.lock())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("the lock {} could not be removed: {error}", self.lock().display());
        }
    }
}

/// Is `path` still this file?
fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(other) => Ok((own.dev(), own.ino()) == (other.dev(), other.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a directory and those above it, 0755 whatever the umask; those that exist stay as they are.
pub fn create_traversable(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create_traversable(parent)?;
    }
    match DirBuilder::new().mode(0o755).create(directory) {
        // Somebody else's job made it meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    std::fs::set_permissions(directory, Permissions::from_mode(0o755))
}

/// The tag of a job started now by this process, `YYYYMMDDTHHMMSS-<pid>`, local time (contract.md 2.4).
pub fn new_tag() -> String {
    format!("{}-{}", jiff::Zoned::now().strftime("%Y%m%dT%H%M%S"), std::process::id())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn files(directory: &Path) -> JobFiles {
        JobFiles { tag: "t".into(), directory: directory.to_owned(), log_directory: directory.to_owned() }
    }

    /// A sweep at any moment of a start, of a life and of an end sees a held lock or none.
    #[test]
    fn the_lock_of_a_living_job_is_never_seen_free() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sweeper = scope.spawn(|| {
                let mut seen = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    match files.take_lock().unwrap() {
                        Taken::Free(_) => return Err("a living job was taken for a dead one"),
                        Taken::Held => seen.0 += 1,
                        Taken::Gone => seen.1 += 1,
                    }
                }
                Ok(seen)
            });
            for _ in 0..3000 {
                let lock = files.claim().unwrap().expect("nobody else claims");
                files.remove_lock();
                drop(lock);
            }
            over.store(true, Ordering::Relaxed);
            sweeper.join().unwrap().unwrap();
        });
    }

    /// Overlays that wait for a resume lie outside the job's directory, and nobody else knows of them.
    #[test]
    fn a_job_that_is_removed_takes_its_overlays_along() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let overlays = files.overlay_directory(directory.path());
        std::fs::create_dir(&overlays).unwrap();
        let mut journal = journal::Journal::create(&files.journal()).unwrap();
        journal.record(&journal::Entry::OverlayDirectory { path: overlays.clone() }).unwrap();
        files.remove().unwrap();
        assert!(!overlays.exists() && !files.journal().exists());
    }

    #[test]
    fn a_place_is_claimed_once_and_again_after_a_death() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let lock = files.claim().unwrap().unwrap();
        assert!(files.claim().unwrap().is_none());
        assert!(matches!(files.take_lock().unwrap(), Taken::Held));
        drop(lock);
        assert!(matches!(files.take_lock().unwrap(), Taken::Free(_)));
        let again = files.claim().unwrap();
        assert!(again.is_some());
        assert_eq!(std::fs::read_to_string(files.lock()).unwrap(), "t");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no hidden file stays");
    }
}
