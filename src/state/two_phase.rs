//! What a state says of disks that we copy ourselves: rounds, bytes, rate, commit (contract.md 3.4, 3.5). Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::warm::NOT_LAST;
use super::{Disk, MOST_DISKS, State};
use crate::event::{Event, FoundDisk};
use crate::phase::{DiskPhase, Phase};

/// Progress of the whole job when conversion and commit begin and end; copies ([`super::warm`]) take hours, these
/// minutes.
const IN_PLACE: (f64, f64) = (85.0, 95.0);
const COMMIT: (f64, f64) = (95.0, 99.0);
/// Rounds that are shown, of a disk and of the job: the first and the newest.
pub(super) const MOST_ROUNDS: usize = 100;

/// Keys of a disk in a two-phase job; none of them is there in one-phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TwoPhaseDisk {
    /// The source's label.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub label: Option<String>,
    /// Where its host keeps it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub absolute_path: Option<String>,
    /// Bytes of its content.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<String>,
    /// Bytes of data that are on the target for good: flushed, and compared unless that was switched off. Of the round
    /// that runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copied: Option<u64>,
    /// Bytes of data to copy in the round that runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_copy: Option<u64>,
    /// The rounds of copying.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub copies: Vec<Round>,
    /// BLAKE3 over the BLAKE3 digests of the disk's chunks of 4 MiB, as it was read from the source:
    /// `blake3-4MiB:<hex>`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checksum: Option<String>,
    /// 0 to 100: how much of what the conversion changed the disk has got.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub commit_progress: Option<f64>,

    /// Whether it is known how much the round that runs copies.
    #[serde(skip)]
    #[schemars(skip)]
    counted: bool,
    /// Whether the round that runs has ended well.
    #[serde(skip)]
    #[schemars(skip)]
    proven: bool,
}

/// One round of copying a disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Round {
    /// From which change on; `*` is all of the disk.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub change_id: Option<String>,
    /// The disk's path in this round.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
    /// Bytes of data finished.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copied: Option<u64>,
    /// Bytes of data to copy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_copy: Option<u64>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub start_time: Option<f64>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end_time: Option<f64>,
    /// `Connected`, `Copying`, `Copied`, or what went wrong.
    #[serde(default)]
    pub status: String,
    /// Whether it went wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<bool>,
}

impl State {
    pub(super) fn is_two_phase(&self) -> bool {
        self.disks.iter().any(|disk| disk.two_phase.status.is_some())
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        self.status = phase.text();
        match phase {
            Phase::PreCopy { round, last } => self.enter_round(round, last),
            Phase::StartingVirtV2v if self.is_two_phase() => self.raise(IN_PLACE.0),
            Phase::Committing => self.raise(COMMIT.0),
            Phase::Preparing | Phase::Waiting | Phase::Paused | Phase::StartingVirtV2v => {}
        }
        if !matches!(phase, Phase::PreCopy { .. } | Phase::Waiting | Phase::Paused) {
            self.forget_plans();
        }
        if !matches!(phase, Phase::PreCopy { .. }) {
            self.rate = None;
            self.eta_seconds = None;
        }
        // The step's own words follow from virt-v2v; until then those of the step before would be wrong.
        self.stage = None;
    }

    /// `share` is how much of the conversion is done.
    pub(super) fn raise_in_place(&mut self, share: f64) {
        self.raise(IN_PLACE.0 + (IN_PLACE.1 - IN_PLACE.0) * share.min(1.0));
    }

    pub(super) fn apply_two_phase(&mut self, event: Event) {
        match event {
            Event::DisksFound { disks } => self.find_disks(disks),
            Event::DiskSized { disk, size } => self.disk(disk, |disk| disk.two_phase.size = Some(size)),
            Event::DiskEntered { disk, phase } => self.disk(disk, |disk| {
                disk.two_phase.status = Some(phase.text().to_owned());
                match phase {
                    DiskPhase::Committed => disk.two_phase.commit_progress = Some(100.0),
                    DiskPhase::Committing => {
                        disk.two_phase.commit_progress.get_or_insert(0.0);
                    }
                    _ => {}
                }
            }),
            Event::RoundBegan { disk, path, change_id, at } => {
                self.disk(disk, |disk| disk.begin_round(path, change_id, at));
            }
            Event::RoundCounted { disk, to_copy } => {
                self.round(disk, |round| {
                    round.status = "Copying".to_owned();
                    round.to_copy = Some(to_copy);
                    round.copied.get_or_insert(0);
                });
                self.disk(disk, |disk| {
                    disk.two_phase.counted = true;
                    disk.two_phase.to_copy = Some(to_copy);
                    disk.two_phase.copied.get_or_insert(0);
                });
                self.sum_up();
            }
            Event::RoundAdvanced { disk, copied } => {
                self.round(disk, |round| round.copied = Some(copied));
                let most = self.stretch.most_of_a_disk();
                self.disk(disk, |disk| {
                    disk.two_phase.copied = Some(copied);
                    let share = copied as f64 / disk.two_phase.to_copy.unwrap_or(0).max(1) as f64;
                    disk.raise(most * share.min(1.0));
                });
                self.sum_up();
            }
            Event::RoundEnded { disk, at, last, result } => self.end_round(disk, at, last, result),
            Event::Rate { bytes_per_second } => {
                self.rate = Some(bytes_per_second);
                let left = self.bytes_total.unwrap_or(0).saturating_sub(self.bytes_copied.unwrap_or(0));
                self.eta_seconds = left.checked_div(bytes_per_second);
            }
            Event::CommitProgress { disk, percent } => {
                self.disk(disk, |disk| {
                    let before = disk.two_phase.commit_progress.unwrap_or(0.0);
                    disk.two_phase.commit_progress = Some(before.max(percent.clamp(0.0, 100.0)));
                });
                let done: f64 =
                    self.disks.iter().map(|disk| disk.two_phase.commit_progress.unwrap_or(0.0) / 100.0).sum();
                self.raise(COMMIT.0 + (COMMIT.1 - COMMIT.0) * done / self.disks.len().max(1) as f64);
            }
            _ => {}
        }
    }

    /// Those that the client named keep their progress; the others are gone: the source knows better.
    fn find_disks(&mut self, found: Vec<FoundDisk>) {
        self.disk_count = Some(found.len());
        self.disks = found
            .into_iter()
            .take(MOST_DISKS)
            .map(|found| {
                let mut disk = Disk::new(&found.path);
                disk.two_phase = TwoPhaseDisk {
                    label: Some(found.label),
                    absolute_path: found.absolute_path,
                    size: found.size,
                    status: Some(DiskPhase::Prepared.text().to_owned()),
                    ..TwoPhaseDisk::default()
                };
                disk
            })
            .collect();
    }

    fn disk(&mut self, index: usize, change: impl FnOnce(&mut Disk)) {
        if let Some(disk) = self.disks.get_mut(index) {
            change(disk);
        }
    }

    fn round(&mut self, index: usize, change: impl FnOnce(&mut Round)) {
        self.disk(index, |disk| {
            if let Some(round) = disk.two_phase.copies.last_mut() {
                change(round);
            }
        });
    }

    fn end_round(&mut self, disk: usize, at: f64, last: bool, result: Result<String, String>) {
        self.round(disk, |round| {
            round.end_time = Some(at);
            match &result {
                Ok(_) => round.status = "Copied".to_owned(),
                Err(error) => {
                    let kind = if last { "Unrecoverable" } else { "Recoverable" };
                    round.status = format!("{kind} error during copy: {error}");
                    round.error = Some(true);
                }
            }
        });
        self.disk(disk, |disk| {
            let phase = match result {
                Ok(checksum) => {
                    disk.two_phase.checksum = Some(checksum);
                    disk.two_phase.proven = true;
                    disk.raise(if last { 100.0 } else { NOT_LAST });
                    DiskPhase::Copied
                }
                Err(_) if last => DiskPhase::CopyFailed,
                // What was copied is there, and the next round makes it whole.
                Err(_) => DiskPhase::Created,
            };
            disk.two_phase.status = Some(phase.text().to_owned());
        });
        self.sum_up();
    }

    /// The counters are those of the round that runs.
    pub(super) fn count_anew(&mut self) {
        self.disks.iter_mut().for_each(|disk| disk.two_phase.count_anew());
        self.bytes_copied = self.bytes_copied.map(|_| 0);
        self.bytes_total = self.bytes_total.map(|_| 0);
        self.rate = None;
        self.eta_seconds = None;
    }

    /// The disks' bytes together, and what they mean for the job.
    fn sum_up(&mut self) {
        let sum = |of: fn(&TwoPhaseDisk) -> Option<u64>| -> u64 {
            self.disks.iter().filter_map(|disk| of(&disk.two_phase)).sum()
        };
        let (copied, total) = (sum(|disk| disk.copied), sum(|disk| disk.to_copy));
        self.bytes_copied = Some(copied);
        self.bytes_total = Some(total);
        // Before all disks are counted, the share of the counted ones would be too much.
        if self.disks.iter().all(|disk| disk.two_phase.counted || disk.two_phase.proven) {
            let all_proven = self.disks.iter().all(|disk| disk.two_phase.proven);
            let share = if all_proven { 1.0 } else { copied as f64 / total.max(1) as f64 };
            self.raise_copies(share);
        }
    }
}

impl TwoPhaseDisk {
    fn count_anew(&mut self) {
        // A key that was there stays there.
        self.copied = self.copied.map(|_| 0);
        self.to_copy = self.to_copy.map(|_| 0);
        self.counted = false;
        self.proven = false;
    }
}

impl Disk {
    fn begin_round(&mut self, path: String, change_id: String, at: f64) {
        let disk = &mut self.two_phase;
        disk.count_anew();
        // It was that of what the target held until now.
        disk.checksum = None;
        // Rounds between the first and the newest lose these, as ever (contract.md 3.5).
        if let Some(before) = disk.copies.get_mut(1..).and_then(<[Round]>::last_mut) {
            before.change_id = None;
            before.path = None;
        }
        if disk.copies.len() >= MOST_ROUNDS {
            disk.copies.remove(1);
        }
        disk.copies.push(Round {
            change_id: Some(change_id),
            path: Some(path),
            start_time: Some(at),
            status: "Connected".to_owned(),
            ..Round::default()
        });
    }

    fn raise(&mut self, percent: f64) {
        self.progress = self.progress.max((percent.clamp(0.0, 100.0) * 100.0).round() / 100.0);
    }
}
