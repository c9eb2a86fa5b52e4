//! How the state follows virt-v2v's log: its steps, and which disk it copies (contract.md 5). Pure.
//!
//! Only what virt-v2v itself copies; what we copy is [`super::two_phase`]'s.

use std::collections::BTreeMap;

use super::steps::STEPS;
use super::{Disk, MOST_DISKS, State};

const COPY_BEGINS: f64 = 15.0;
const COPY_ENDS: f64 = 98.0;

/// Bookkeeping of the copies: which disk is current, which paths the servers serve.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Copies {
    pub(super) current: Option<Current>,
    /// 2.x: path of source disk N, told when its server was started.
    served: BTreeMap<usize, String>,
    /// The guest's plain name, told by the log.
    pub(super) display_name: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Current {
    disk: usize,
    /// 1.4x logs name the target; their progress counts only once the source path is known (contract.md 5).
    needs_path: bool,
    path: Option<String>,
}

impl State {
    pub(super) fn enter_step(&mut self, text: String) {
        if let Some((_, percent)) = STEPS.iter().find(|(beginning, _)| text.starts_with(beginning)) {
            match self.is_two_phase() {
                true => self.raise_in_place(*percent / COPY_BEGINS),
                false => self.raise(*percent),
            }
        }
        self.stage = Some(text);
    }

    pub(super) fn start_copy(&mut self, disk: usize, count: usize, needs_path: bool) {
        if disk >= MOST_DISKS || count > MOST_DISKS {
            return;
        }
        if self.copies.current.as_ref().is_some_and(|current| current.disk < disk) {
            self.close_current();
        }
        self.disk_count = Some(count);
        self.copies.current = Some(Current { disk, needs_path, path: None });
        self.raise(COPY_BEGINS);
        if let Some(path) = self.copies.served.get(&disk).cloned() {
            self.locate(path);
        }
    }

    /// A path of the disk being copied. 2.x names it when it starts the server, and that counts more than
    /// the debug lines of a server (which may open parents of a snapshot chain).
    pub(super) fn open_source(&mut self, path: String) {
        let Some(current) = &self.copies.current else { return };
        if !self.copies.served.contains_key(&current.disk) {
            self.locate(path);
        }
    }

    pub(super) fn serve_source(&mut self, disk: usize, path: String) {
        if disk >= MOST_DISKS {
            return;
        }
        if disk == self.disks.len() && !self.disks.iter().any(|known| known.path == path) {
            self.disks.push(Disk::new(&path));
        }
        self.copies.served.insert(disk, path);
    }

    /// Puts the disk of this path at the place of the disk being copied (contract.md 5 "Locate").
    fn locate(&mut self, path: String) {
        let Some(current) = &mut self.copies.current else { return };
        let index = current.disk;
        match self.disks.iter().position(|disk| disk.path == path) {
            // A disk that was copied before keeps its place: a late line of its server is not news.
            Some(found) if found < index => return,
            Some(found) => {
                let disk = self.disks.remove(found);
                self.disks.insert(index, disk);
            }
            None if self.disks.get(index).is_some_and(|disk| disk.path == unknown(index)) => {
                self.disks[index].path.clone_from(&path);
            }
            None if self.disks.len() < MOST_DISKS => {
                self.disks.insert(index.min(self.disks.len()), Disk::new(&path));
            }
            None => return,
        }
        current.path = Some(path);
    }

    /// The entry of the disk being copied.
    fn current_disk(&mut self) -> Option<&mut Disk> {
        let current = self.copies.current.as_ref()?;
        match &current.path {
            Some(path) => self.disks.iter_mut().find(|disk| &disk.path == path),
            None if current.needs_path => None,
            None => {
                if self.disks.len() <= current.disk {
                    self.disks.push(Disk::new(&unknown(current.disk)));
                }
                self.disks.get_mut(current.disk)
            }
        }
    }

    pub(super) fn progress_copy(&mut self, percent: f64) {
        let percent = percent.clamp(0.0, 100.0);
        if let Some(disk) = self.current_disk() {
            disk.progress = disk.progress.max(percent);
        }
        self.raise_to_copies();
    }

    pub(super) fn close_current(&mut self) {
        if let Some(disk) = self.current_disk() {
            disk.progress = 100.0;
        }
        self.raise_to_copies();
    }

    /// Every disk has an equal share: its size is not known to the log.
    fn raise_to_copies(&mut self) {
        let count = self.disk_count.unwrap_or(self.disks.len()).max(self.disks.len()).max(1);
        let done: f64 = self.disks.iter().map(|disk| disk.progress / 100.0).sum();
        self.raise(COPY_BEGINS + (COPY_ENDS - COPY_BEGINS) * done / count as f64);
    }
}

/// The name of a disk that is being copied before any line told its path.
fn unknown(index: usize) -> String {
    format!("disk {}", index + 1)
}
