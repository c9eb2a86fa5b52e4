//! The throttling file: how it comes to be writable, and how a running job notices it (contract.md 8.1, 9.5).
//!
//! Who may write it: clients put it by sftp, to its path, as the user who logged in. That user either is the one the
//! program runs as, whose directory it is, or called the program through sudo. For the latter [`offer`] puts an empty
//! file there that belongs to the user sudo names, mode 0600: an account that may run the program may limit its jobs, no
//! other account may, and the directory stays closed to all, so that nobody can put a link in the file's place.
//!
//! What comes is taken as it is: a file, of any owner, whole or still growing. An empty one is nothing yet. A link, a
//! pipe or a directory is left alone. A file that was read is deleted, as it always was; sudo's user gets a fresh empty
//! one for it.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::{Gid, Uid};
use serde_json::Value;
use tokio::time::Instant;

use super::Asked;

/// How often the file is looked for, as the old program did. Not by inotify: each user has 128 instances by default, and
/// the logs of 200 jobs want them more ([`crate::follow`]).
const POLL: Duration = Duration::from_secs(5);
/// How soon one that cannot be understood yet is looked at again.
const AGAIN: Duration = Duration::from_millis(200);
/// A writer that has not written for this long has finished.
const PATIENCE: Duration = Duration::from_secs(3);
/// Two keys and two numbers; a megabyte of white space is nobody's limits.
const MOST: u64 = 64 << 10;

/// What is in the throttling file cannot be used. The texts begin with the old program's (contract.md 8.1).
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The place for it could not be made ready.
    #[error("clients may not be able to set limits: cannot make the throttling file {path} ready: {source}")]
    Offer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be read or deleted.
    #[error("Failed to read throttling file {path}: {source}; limits stay as they were")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is a link, a pipe, a directory, a device.
    #[error("Failed to read throttling file {path}: it is no plain file, and was left alone")]
    NotPlain {
        /// What is there.
        path: PathBuf,
    },
    /// It is too large.
    #[error(
        "Failed to read throttling file {path}: it has more than {} KiB; limits stay as they were",
        MOST >> 10
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no JSON object, however long one waits.
    #[error(
        "Failed to read throttling file {path}: it holds no JSON object such as {{\"cpu\": \"50%\", \"network\": \
         \"1048576\"}}; limits stay as they were"
    )]
    NoObject {
        /// The file.
        path: PathBuf,
    },
}

/// The user who called the program through sudo, if sudo says so.
pub fn sudo_user(variable: impl Fn(&str) -> Option<String>) -> Option<(Uid, Gid)> {
    let id = |name: &str| variable(name)?.parse::<u32>().ok();
    let (user, group) = (id("SUDO_UID")?, id("SUDO_GID")?);
    (user != 0).then_some((Uid::from_raw(user), Gid::from_raw(group)))
}

/// Makes the place ready at the start of a job: what an earlier job in the same place left is gone, and `writer`, who
/// may not make files there, has one to write into.
pub fn offer(path: &Path, writer: Option<(Uid, Gid)>) -> Result<(), FileError> {
    let error = |source| FileError::Offer { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(missing) if missing.kind() == ErrorKind::NotFound => {}
        other => other.map_err(error)?,
    }
    writer.map_or(Ok(()), |writer| put_empty(path, writer)).map_err(error)
}

/// In one step, so that there is no moment in which the file is somebody else's.
fn put_empty(path: &Path, (user, group): (Uid, Gid)) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let file = tempfile::Builder::new()
        .prefix(".throttling")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    nix::unistd::fchown(file.as_file(), Some(user), Some(group))?;
    file.persist(path).map_err(|persist| persist.error)?;
    Ok(())
}

/// Notices the throttling file of one job.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// When to look next.
    look: Instant,
    /// What could not be understood when it was seen last, and since when it has been like that.
    doubtful: Option<(Stamp, Instant)>,
    /// What was complained about and left where it is.
    left: Option<Stamp>,
}

/// Tells one content from another.
type Stamp = (u64, u64, u64, Option<SystemTime>);

/// What a look found.
enum Found {
    Nothing,
    /// Perhaps it is still being written.
    Doubtful,
    Asked(Asked),
}

impl Watch {
    /// Watches this path; a file that is already there is noticed.
    pub fn new(path: PathBuf) -> Self {
        Self { path, look: Instant::now(), doubtful: None, left: None }
    }

    /// Waits until a client asks for limits, or for something that is none. Safe to drop and call again.
    pub async fn changed(&mut self) -> Result<Asked, FileError> {
        loop {
            tokio::time::sleep_until(self.look).await;
            self.look = Instant::now() + POLL;
            match self.look_at()? {
                Found::Asked(asked) => return Ok(asked),
                Found::Nothing => {}
                Found::Doubtful => self.look = Instant::now() + AGAIN,
            }
        }
    }

    fn look_at(&mut self) -> Result<Found, FileError> {
        let path = self.path.clone();
        let error = |source| FileError::Io { path: path.clone(), source };
        let there = match path.symlink_metadata() {
            Ok(there) => there,
            Err(missing) if missing.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(other) => return self.once((0, 0, 0, None), error(other)),
        };
        // Asked before it is opened: opening a device may do things.
        if !there.is_file() {
            return self.once(stamp(&there), FileError::NotPlain { path });
        }
        if there.len() == 0 {
            return Ok(Found::Nothing);
        }
        let (bytes, seen) = match read(&path) {
            Ok(read) => read,
            // Deleted or replaced between the two calls: the next look sees which.
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(other) => return self.once(stamp(&there), error(other)),
        };
        let result = match serde_json::from_slice(&bytes) {
            _ if bytes.len() as u64 > MOST => Err(FileError::TooLarge { path: path.clone() }),
            Ok(Value::Object(object)) => Ok(Found::Asked(Asked::from_object(&object))),
            _ if !self.is_final(seen) => return Ok(Found::Doubtful),
            _ => Err(FileError::NoObject { path: path.clone() }),
        };
        self.doubtful = None;
        match delete(&path, &there) {
            Ok(()) => result,
            // It is read again and again, and counts once.
            Err(_) if self.left == Some(seen) => Ok(Found::Nothing),
            Err(other) => {
                tracing::warn!("{} was read and could not be deleted: {other}", path.display());
                self.left = Some(seen);
                result
            }
        }
    }

    /// Has this content, which cannot be understood, stayed the same for long enough?
    fn is_final(&mut self, seen: Stamp) -> bool {
        match self.doubtful {
            Some((before, since)) if before == seen => since.elapsed() >= PATIENCE,
            _ => {
                self.doubtful = Some((seen, Instant::now()));
                false
            }
        }
    }

    /// Complains about the same thing only once.
    fn once(&mut self, seen: Stamp, error: FileError) -> Result<Found, FileError> {
        if self.left.replace(seen) == Some(seen) { Ok(Found::Nothing) } else { Err(error) }
    }
}

fn stamp(meta: &Metadata) -> Stamp {
    (meta.dev(), meta.ino(), meta.len(), meta.modified().ok())
}

/// At most one byte more than [`MOST`], so that the caller sees that it is too much.
fn read(path: &Path) -> std::io::Result<(Vec<u8>, Stamp)> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(std::io::Error::other("it changed while it was opened"));
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    Ok((bytes, stamp(&meta)))
}

/// Deletes the file; one that another user wrote into is replaced by an empty one of that user, who may not be able to
/// make a new one.
fn delete(path: &Path, meta: &Metadata) -> std::io::Result<()> {
    if meta.uid() != nix::unistd::geteuid().as_raw() && nix::unistd::geteuid().is_root() {
        return put_empty(path, (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid())));
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests;
