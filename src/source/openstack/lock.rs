//! The locks under which volumes are attached to conversion hosts: other programs find a new device by comparing the lists of
//! before and after, so one volume may come at a time (contract.md 7). An edge.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

/// Of the conversion host in the source OpenStack.
pub const SOURCE: &str = "/var/lock/v2v-source-volume-lock";
/// Of the one in the destination OpenStack.
pub const DESTINATION: &str = "/var/lock/v2v-destination-volume-lock";
/// How often it is tried, and how long it is waited between.
const TRIES: u32 = 600;
const AGAIN: Duration = Duration::from_secs(1);

/// There is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("Unable to acquire lock {path}! Another migration has held it for {} s", waited.as_secs())]
    Held {
        /// The file.
        path: PathBuf,
        /// How long.
        waited: Duration,
    },
    /// The file.
    #[error("Unable to acquire lock {path}!")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A lock that is held; it ends with its value, or with the process.
#[derive(Debug)]
pub struct VolumeLock {
    _file: File,
}

impl VolumeLock {
    /// Waits for it; 600 times, or as many as `patience` makes of it.
    pub async fn take(path: &Path, patience: impl Fn(Duration) -> Duration) -> Result<Self, LockError> {
        let error = |source| LockError::File { path: path.to_owned(), source };
        // Not truncated, not removed: another program has the same file open.
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = file.open(path).map_err(error)?;
        let pause = patience(AGAIN);
        for _ in 0..TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => sleep(pause).await,
                Err(TryLockError::Error(source)) => return Err(error(source)),
            }
        }
        Err(LockError::Held { path: path.to_owned(), waited: pause * TRIES })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_has_it_and_the_next_gets_it_when_that_one_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = VolumeLock::take(&path, |usual| usual).await.unwrap();
        let error = VolumeLock::take(&path, |usual| usual).await.unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("Unable to acquire lock {}!", path.display())),
            "{error}"
        );
        assert!(error.to_string().ends_with("for 600 s"), "{error}");
        drop(first);
        VolumeLock::take(&path, |usual| usual).await.unwrap();
        let error = VolumeLock::take(&directory.path().join("no/lock"), |usual| usual).await.unwrap_err();
        assert!(matches!(error, LockError::File { .. }), "{error}");
    }
}
