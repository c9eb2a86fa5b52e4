//! The part of a job's journal that speaks of a cloud: what is about to be made there, what came of it, what is gone again.
//!
//! Used by destinations and sources that have an API: [`Records::making`] is called before the request, [`Records::made`] as
//! soon as the id is known, [`Records::gone`] when it was seen that the thing is not there any more. What that comes to is
//! [`crate::things`]'.

use std::path::PathBuf;

use crate::job::JobFiles;
use crate::journal::{self, Entry, Journal, JournalError};
use crate::things::{self, Kind, Side, Thing};

/// An open journal, seen so.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    journal: Journal,
}

impl Records {
    /// Of this job.
    pub fn of(files: &JobFiles) -> Result<Self, JournalError> {
        Self::open(files.journal())
    }

    /// Of the job with this journal.
    pub fn open(path: PathBuf) -> Result<Self, JournalError> {
        Ok(Self { journal: Journal::open(&path)?, path })
    }

    /// Everything the journal says.
    pub fn entries(&self) -> Result<Vec<Entry>, JournalError> {
        journal::read(&self.path)
    }

    /// What is there, or may be, at this side.
    pub fn things(&self, side: Side) -> Result<Vec<Thing>, JournalError> {
        let mut things = things::there(&self.entries()?);
        things.retain(|thing| thing.side == side);
        Ok(things)
    }

    /// The thing with this mark, if it was begun.
    pub fn thing(&self, mark: &str) -> Result<Option<Thing>, JournalError> {
        Ok(things::there(&self.entries()?).into_iter().find(|thing| thing.mark == mark))
    }

    /// It is about to be made. Returns when that is on disk.
    pub fn making(&mut self, side: Side, kind: Kind, mark: &str, of: &str) -> Result<(), JournalError> {
        if self.thing(mark)?.is_some() {
            return Ok(());
        }
        self.journal.record(&Entry::Making { side, kind, mark: mark.into(), of: of.into() })
    }

    /// It is there, and this is its id.
    pub fn made(&mut self, mark: &str, id: &str) -> Result<(), JournalError> {
        self.journal.record(&Entry::Made { mark: mark.into(), id: id.into() })
    }

    /// It is not there (any more).
    pub fn gone(&mut self, mark: &str) -> Result<(), JournalError> {
        self.journal.record(&Entry::Gone { mark: mark.into() })
    }

    /// The journal itself, for what is no thing of a cloud.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }
}
