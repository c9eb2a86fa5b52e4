//! Whether the data of a round fit where they go.

use std::cell::Cell;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::domain::Placed;

/// Whether the data of all disks fit where they go. A full target pauses the copy; this says so hours before.
pub(super) struct Room {
    needed: Cell<u64>,
    free: Option<u64>,
}

impl Room {
    pub(super) fn new(placed: &[Placed]) -> Self {
        let is_device = |path: &Path| path.metadata().is_ok_and(|data| data.file_type().is_block_device());
        let file = placed.iter().find(|placed| !is_device(&placed.path));
        let directory = file.and_then(|placed| placed.path.parent());
        let free = directory.and_then(|directory| nix::sys::statvfs::statvfs(directory).ok());
        let free = free.map(|system| system.blocks_available() * system.fragment_size());
        Self { needed: Cell::new(0), free }
    }

    pub(super) fn warning(&self, path: &Path, more: u64) -> Option<String> {
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
