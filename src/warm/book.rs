//! The book of a warm migration: which state of the machine each copy is a copy of. On disk before anything relies on it.
//!
//! It lies beside the ledgers and goes with them. A change id in it advances only when all that a round had to copy of that
//! disk is copied, flushed and compared (design.md, invariant 3); the snapshot of the round before is removed after that.
//! Written and read by [`crate::warm`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE: &str = "rounds.json";

/// It cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}, which says what state of the machine is copied")]
pub struct BookError {
    what: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// How the copy of a disk stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Nothing of it is copied.
    Nothing,
    /// What is finished of it is as in the snapshot with this change id; the rest is missing.
    Some {
        /// Of the snapshot.
        change_id: String,
    },
    /// All of it is at least as new as the snapshot with this change id; a later round may have begun to copy what
    /// changed since.
    All {
        /// Of the snapshot.
        change_id: String,
    },
    /// Nobody can tell as of when what is finished of it is.
    Unknown,
}

/// The whole book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// Id of the machine.
    pub machine: String,
    /// Number of the next round.
    pub round: u32,
    /// For each disk, in the guest's order.
    pub disks: Vec<Held>,
    /// The machine as it was when the last change was copied: it has not run since if it is still like this.
    #[serde(default)]
    pub copied: Option<Vec<Option<String>>>,
}

impl Book {
    /// Of a machine of which nothing is copied.
    pub fn new(machine: String, disks: usize) -> Self {
        Self { machine, round: 0, disks: vec![Held::Nothing; disks], copied: None }
    }

    /// The book in the directory of the copies; `None` if there is none yet.
    pub fn read(directory: &Path) -> Result<Option<Self>, BookError> {
        let path = directory.join(FILE);
        let error = |source| BookError { what: "read", path: path.clone(), source };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(other) => return Err(error(other)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|problem| error(problem.into()))
    }

    /// Makes it durable.
    pub fn write(&self, directory: &Path) -> Result<(), BookError> {
        let path = directory.join(FILE);
        let written = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            serde_json::to_writer(&mut file, self)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            std::fs::File::open(directory)?.sync_all()
        };
        written().map_err(|source| BookError { what: "write", path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_half_a_book_is_never_seen() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Book::read(directory.path()).unwrap(), None);
        let mut book = Book::new("vm-7".into(), 4);
        book.write(directory.path()).unwrap();
        book.round = 3;
        book.disks[1] = Held::Some { change_id: "52 de/7".into() };
        book.disks[2] = Held::All { change_id: "52 de/9".into() };
        book.disks[3] = Held::Unknown;
        book.write(directory.path()).unwrap();
        assert_eq!(Book::read(directory.path()).unwrap(), Some(book));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        std::fs::write(directory.path().join(FILE), "{\"machine\":").unwrap();
        let error = Book::read(directory.path()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read "), "{error}");
    }
}
