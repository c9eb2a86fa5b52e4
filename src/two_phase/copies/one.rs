//! One disk of a round, from its map to its checksum, and whether the data of all of them fit where they go.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::path::Path;
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedSender;

use super::{What, now};
use crate::copy::{self, Copied, CopyError};
use crate::domain::Placed;
use crate::event::Event;
use crate::extent::Kind;
use crate::log::chain;
use crate::phase::DiskPhase;

/// Changed areas begin and end at multiples of this, which every server reads.
const BLOCK: NonZeroU64 = match NonZeroU64::new(4096) {
    Some(block) => block,
    None => NonZeroU64::MIN,
};

/// One disk of a round.
pub(super) struct One {
    pub(super) disk: usize,
    /// Its file in this round.
    pub(super) path: String,
    pub(super) last: bool,
    pub(super) job: Rc<copy::Job>,
    pub(super) tell: UnboundedSender<Event>,
    pub(super) room: Rc<Room>,
}

impl One {
    fn say(&self, event: Event) {
        // The other end is only gone when the stage is over.
        drop(self.tell.send(event));
    }

    /// From its map to its checksum.
    pub(super) async fn copy(&self, what: What, since: String) -> Result<u64, CopyError> {
        let disk = self.disk;
        self.say(Event::DiskEntered { disk, phase: DiskPhase::Mapping });
        let path = self.path.clone();
        self.say(Event::RoundBegan { disk, path, change_id: since, at: now() });
        let result = self.copy_what(what).await;
        let told = match &result {
            Ok((_, copied)) => Ok(copied.checksum().to_owned()),
            Err(error) => Err(chain(error)),
        };
        self.say(Event::RoundEnded { disk, at: now(), last: self.last, result: told });
        result.map(|(bytes, _)| bytes)
    }

    async fn copy_what(&self, what: What) -> Result<(u64, Copied), CopyError> {
        let job = &self.job;
        let copying = || self.say(Event::DiskEntered { disk: self.disk, phase: DiskPhase::Copying });
        if let What::Changed(areas) = what {
            copying();
            // Servers read whole blocks.
            let areas = job.and_unfinished(&areas).widen(BLOCK, job.ledger.identity().size);
            let bytes = areas.covered_by(Kind::Data);
            job.delta(areas).await?;
            return Ok((bytes, job.seal().await?));
        }
        if let What::MissingAnd(changed) = &what {
            job.forget(changed).await?;
        }
        let extents = job.reader.extents(job.ledger.identity().size).await?;
        if let Some(text) = self.room.warning(job.target.path(), extents.covered_by(Kind::Data)) {
            self.say(Event::Warning { text });
        }
        copying();
        let bytes = extents.covered_by(Kind::Data);
        if what != What::Differing {
            return Ok((bytes, job.copy(extents).await?));
        }
        let differed = job.refresh(extents).await?;
        tracing::info!("{}: {differed} bytes differed", job.reader.disk());
        Ok((bytes, job.seal().await?))
    }
}

/// Whether the data of all disks fit where they go. A full target pauses the copy; this says so hours before.
pub(super) struct Room {
    needed: Cell<u64>,
    free: Option<u64>,
}

impl Room {
    pub(super) fn new(placed: &[Placed]) -> Self {
        let file = placed.iter().find(|placed| !placed.is_device());
        let directory = file.and_then(|placed| placed.path.parent());
        let free = directory.and_then(|directory| nix::sys::statvfs::statvfs(directory).ok());
        let free = free.map(|system| system.blocks_available() * system.fragment_size());
        Self { needed: Cell::new(0), free }
    }

    fn warning(&self, path: &Path, more: u64) -> Option<String> {
        let needed = self.needed.get() + more;
        self.needed.set(needed);
        let free = self.free.filter(|free| *free < needed)?;
        Some(format!(
            "the file system of {} has {} MiB free, and up to {} MiB are to be copied: when it is full, the copy waits \
             for room",
            path.display(),
            free >> 20,
            needed >> 20
        ))
    }
}
