//! The state file: written whole or not at all, read by anybody at any moment.
//!
//! The only place that writes state. Temp file in the same directory, mode 0644 whatever the umask (clients fetch
//! it as an unprivileged user, contract.md 9.3), write, fsync, rename, fsync of the directory. How often is decided
//! by [`crate::run`]; what is in it by [`crate::state`].

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::state::State;

/// What can go wrong with a state file.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// It could not be stored.
    #[error("cannot write the state file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be read.
    #[error("cannot read the state file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a state.
    #[error("{path} is not a state file")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Prefix of the temporary files.
const TEMPORARY_PREFIX: &str = ".state.";

/// Stores `state` at `path`, with the next sequence number and the time.
pub fn write(path: &Path, state: &mut State) -> Result<(), StateFileError> {
    store(path, state, true)
}

/// The same without waiting for the disk: for the states before the reply, which another one follows at once.
pub fn write_first(path: &Path, state: &mut State) -> Result<(), StateFileError> {
    store(path, state, false)
}

fn store(path: &Path, state: &mut State, durable: bool) -> Result<(), StateFileError> {
    state.sequence += 1;
    state.updated_at = jiff::Timestamp::now().to_string();
    let error = |source| StateFileError::Write { path: path.to_owned(), source };
    let mut json = serde_json::to_vec(state).map_err(|source| error(source.into()))?;
    json.push(b'\n');
    replace(path, &json, durable).map_err(error)
}

fn replace(path: &Path, content: &[u8], durable: bool) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(directory)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(content)?;
    if durable {
        file.as_file().sync_data()?;
    }
    file.persist(path)?;
    if durable { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// Removes what a writer left that was killed between write and rename. Only for whoever holds the job's lock.
pub fn remove_temporary(directory: &Path) {
    let Ok(listing) = std::fs::read_dir(directory) else { return };
    for entry in listing.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY_PREFIX))
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!("{} could not be removed: {error}", entry.path().display());
        }
    }
}

/// Reads a state file.
pub fn read(path: &Path) -> Result<State, StateFileError> {
    let bytes =
        std::fs::read(path).map_err(|source| StateFileError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| StateFileError::Parse { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_world_readable_and_numbered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let mut state = State::with_disks(&["a".into()], true);
        write(&path, &mut state).unwrap();
        write(&path, &mut state).unwrap();
        assert_eq!(read(&path).unwrap(), state);
        assert_eq!(state.sequence, 2);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
