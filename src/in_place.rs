//! The conversion of copied disks, the second phase of a two-phase job: overlays over all copies, virt-v2v-in-place on
//! the overlays, and, only when that succeeded, their commit into the copies.
//!
//! ```text
//! overlays ─► virt-v2v-in-place ─► on disk ─► journal: converted ─► commit disk 1, 2, ... ─► overlays removed
//!   └────── fails, is killed: overlays thrown away, copies untouched     └── fails, is killed: repeated later
//! ```
//!
//! A copy is therefore never half converted without a way on: before [`Entry::Converted`] nothing was written to it, after
//! it the overlays hold all that is missing (peers.md 6.3, rows 16-18). [`earlier`] reads from the journal of an
//! interrupted job on which side it stopped.
//!
//! Not here: the copies ([`crate::run`] hands them over), their names and what becomes of them (the destination).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::convert::{self, ConvertError, Converted, Converter};
use crate::domain::{self, DomainError, Placed};
use crate::event::Event;
use crate::guest::Guest;
use crate::job::Job;
use crate::journal::{self, Entry, Journal, JournalError};
use crate::overlay::{self, Overlay, OverlayError};
use crate::phase::{DiskPhase, Phase};
use crate::plan::TwoPhasePrograms;
use crate::process::Exit;
use crate::recorder::Recorder;
use crate::signals::Signals;
use crate::throttle::Throttling;
use crate::v2v::args::{self, CommandLine};
use crate::v2v::output::Drivers;

/// What is left of a conversion whose commits were interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Directory of the overlays; gone when all are committed.
    pub overlays: PathBuf,
    /// The converter's exit code.
    pub return_code: i32,
    /// What it told about the guest.
    pub drivers: Drivers,
    /// Disks, from 0, whose overlay needs no commit any more.
    pub committed: BTreeSet<usize>,
}

impl Replay {
    fn entry(&self) -> Entry {
        Entry::Converted {
            overlays: self.overlays.clone(),
            committed: self.committed.clone(),
            return_code: self.return_code,
            drivers: Box::new(self.drivers.clone()),
        }
    }
}

/// Reads it from the interrupted job's journal. `None`: it stopped before its conversion was complete, or it is the
/// user's already.
pub fn earlier(entries: &[Entry]) -> Option<Replay> {
    if !journal::can_be_committed(entries) {
        return None;
    }
    let mut found = None;
    for entry in entries {
        match (entry, &mut found) {
            (Entry::Converted { overlays, committed, return_code, drivers }, _) => {
                found = Some(Replay {
                    overlays: overlays.clone(),
                    return_code: *return_code,
                    drivers: drivers.as_ref().clone(),
                    committed: committed.clone(),
                });
            }
            (Entry::Committed { disk }, Some(replay)) => {
                replay.committed.insert(*disk);
            }
            _ => {}
        }
    }
    found
}

/// The copies are not converted.
#[derive(Debug, thiserror::Error)]
pub enum InPlaceError {
    /// The plan is not for two phases.
    #[error("this job has no programs for a conversion in place")]
    NotPlanned,
    /// Somebody made the directory of the overlays.
    #[error("the overlay directory {path} is there already: somebody else made it")]
    InTheWay {
        /// The directory.
        path: PathBuf,
    },
    /// What is about to happen could not be noted.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The user's libvirt XML.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The libvirt XML for virt-v2v-in-place.
    #[error("cannot write {path}")]
    Xml {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Overlays could not be made, or not be committed.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// virt-v2v-in-place did not run.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// It ran and failed, or was stopped; the copies are untouched. What it means is the conductor's to judge.
    #[error("virt-v2v-in-place failed: {}", .0.evidence.sentence(.0.exit))]
    NotConverted(Box<Converted>),
    /// The job was cancelled by this signal, before the conversion or in the middle of the commits.
    #[error("{}", crate::supervise::cancelled_by(*.0))]
    Cancelled(i32),
}

/// What is converted.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The guest, for a libvirt XML of ours.
    pub guest: &'a Guest,
    /// The libvirt XML that the user gave, if he did: it is used instead.
    pub domain: Option<&'a str>,
    /// All disks of the guest, in its order.
    pub copies: &'a [Placed],
    /// What [`earlier`] found of the job that this one resumes: then only the commits are done.
    pub earlier: Option<&'a Replay>,
}

/// Converts the copies, or finishes what an earlier job began to commit. Gives what the converted guest has drivers for.
///
/// The job's private directory must be there. After an error the copies are as they were, or the journal says what is
/// missing ([`earlier`]).
pub async fn run(
    job: &Job,
    task: Task<'_>,
    recorder: &mut Recorder,
    journal: &mut Journal,
    signals: &mut Signals,
    throttling: &mut Throttling,
) -> Result<Drivers, InPlaceError> {
    let Some(two_phase) = &job.plan.two_phase else { return Err(InPlaceError::NotPlanned) };
    let mut stage = Stage { job, programs: &two_phase.programs, recorder, journal, signals, throttling };
    let (overlays, replay) = match task.earlier {
        None => stage.convert(task).await?,
        Some(replay) => (stage.take_over(task, replay).await?, replay.clone()),
    };
    stage.recorder.apply_now(Event::Entered(Phase::Committing));
    for overlay in &overlays {
        stage.commit(overlay, replay.committed.contains(&overlay.disk)).await?;
    }
    // All is in the copies: a directory that stays is waste, which undo tries to remove once more.
    if let Err(error) = overlay::remove(&replay.overlays) {
        tracing::warn!("cannot remove {}: {error}", replay.overlays.display());
    }
    Ok(replay.drivers)
}

struct Stage<'a> {
    job: &'a Job,
    programs: &'a TwoPhasePrograms,
    recorder: &'a mut Recorder,
    journal: &'a mut Journal,
    signals: &'a mut Signals,
    throttling: &'a mut Throttling,
}

impl Stage<'_> {
    /// Overlays that hold a conversion, on disk and in the journal.
    async fn convert(&mut self, task: Task<'_>) -> Result<(Vec<Overlay>, Replay), InPlaceError> {
        let directory = self.job.files.overlay_directory(&self.job.plan.tools.tmp_dir);
        if directory.symlink_metadata().is_ok() {
            // Not ours, so it must not get into the journal, whose undo would remove it.
            return Err(InPlaceError::InTheWay { path: directory });
        }
        self.journal.record(&Entry::OverlayDirectory { path: directory.clone() })?;
        let converted = self.convert_under(task, &directory).await;
        if converted.is_err()
            && let Err(error) = overlay::remove(&directory)
        {
            // Undo tries again, and tells the user.
            tracing::warn!("cannot remove {}: {error}", directory.display());
        }
        converted
    }

    async fn convert_under(
        &mut self,
        task: Task<'_>,
        directory: &Path,
    ) -> Result<(Vec<Overlay>, Replay), InPlaceError> {
        let tag = &self.job.files.tag;
        let overlays = tokio::select! {
            overlays = overlay::create(self.programs, tag, task.copies, directory) => overlays?,
            signal = self.signals.cancelled() => return Err(InPlaceError::Cancelled(signal)),
        };
        write_domain(&domain_file(self.job), task, &overlays)?;
        let line = command_line(self.job);
        let converter = Converter::InPlace { program: &self.programs.virt_v2v_in_place, overlays: directory };
        let Stage { job, recorder, journal, signals, throttling, .. } = self;
        let mut converted =
            convert::convert_with(converter, job, line, recorder, journal, signals, throttling).await?;
        // Its pid is nobody's now; killing this one cancels the job (design.md "Processes").
        self.recorder.apply_now(Event::WorkerStarted { pid: nix::unistd::getpid().as_raw() });
        if converted.exit != Exit::Code(0) {
            if overlay::is_full(directory) {
                converted.evidence.no_space();
            }
            return Err(InPlaceError::NotConverted(Box::new(converted)));
        }
        if let Some(convert::Stopped::Cancelled(signal)) = converted.stopped {
            // It was quicker than the signal; nothing is committed all the same.
            return Err(InPlaceError::Cancelled(signal));
        }
        // Before the journal says that they are worth something.
        overlay::sync(&overlays).await?;
        let replay = Replay {
            overlays: directory.to_owned(),
            return_code: converted.exit.return_code(),
            drivers: converted.drivers,
            committed: BTreeSet::new(),
        };
        self.journal.record(&replay.entry())?;
        Ok((overlays, replay))
    }

    /// The overlays of an interrupted job. From here on they are in this job's journal too.
    async fn take_over(&mut self, task: Task<'_>, replay: &Replay) -> Result<Vec<Overlay>, InPlaceError> {
        self.journal.record(&replay.entry())?;
        self.recorder.apply(Event::ToolExited { return_code: replay.return_code });
        let committed = |disk| replay.committed.contains(&disk);
        let tag = &self.job.files.tag;
        tokio::select! {
            adopted = overlay::adopt(self.programs, tag, task.copies, &replay.overlays, committed) => Ok(adopted?),
            signal = self.signals.cancelled() => Err(InPlaceError::Cancelled(signal)),
        }
    }

    async fn commit(&mut self, overlay: &Overlay, already: bool) -> Result<(), InPlaceError> {
        let disk = overlay.disk;
        if !already {
            self.journal.record(&Entry::CommitStarted { disk })?;
            self.recorder.apply_now(Event::DiskEntered { disk, phase: DiskPhase::Committing });
            if let Err(error) = self.commit_now(overlay).await {
                self.recorder.apply(Event::DiskEntered { disk, phase: DiskPhase::CommitFailed });
                return Err(error);
            }
            self.journal.record(&Entry::Committed { disk })?;
        }
        self.recorder.apply(Event::CommitProgress { disk, percent: 100.0 });
        self.recorder.apply_now(Event::DiskEntered { disk, phase: DiskPhase::Committed });
        Ok(())
    }

    async fn commit_now(&mut self, overlay: &Overlay) -> Result<(), InPlaceError> {
        let (tell, mut told) = watch::channel(0.0);
        let progress = |percent| {
            tell.send_replace(percent);
        };
        // Dropped, it takes qemu-img with it.
        let mut commit =
            std::pin::pin!(overlay::commit(self.programs, &self.job.files.tag, overlay, progress));
        loop {
            let due = self.recorder.due();
            let write = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.max(Instant::now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                signal = self.signals.cancelled() => return Err(InPlaceError::Cancelled(signal)),
                committed = &mut commit => return Ok(committed?),
                Ok(()) = told.changed() => {
                    let percent = *told.borrow_and_update();
                    self.recorder.apply(Event::CommitProgress { disk: overlay.disk, percent });
                }
                () = write => {}
            }
            self.recorder.write_if_due();
        }
    }
}

/// The libvirt XML for virt-v2v-in-place.
fn domain_file(job: &Job) -> PathBuf {
    job.files.private_directory(&job.plan.tools.tmp_dir).join("in-place.xml")
}

/// How virt-v2v-in-place is run.
pub fn command_line(job: &Job) -> CommandLine {
    let paths = args::Paths {
        machine_readable_log: &job.files.machine_readable_log(),
        libvirt_xml: &domain_file(job),
        private_directory: &job.files.private_directory(&job.plan.tools.tmp_dir),
        bandwidth_file: None,
        ssh_auth_sock: None,
    };
    args::in_place(&job.plan, paths)
}

fn write_domain(path: &Path, task: Task<'_>, overlays: &[Overlay]) -> Result<(), InPlaceError> {
    let placed: Vec<Placed> = overlays.iter().map(Overlay::placed).collect();
    let xml = match task.domain {
        Some(xml) => domain::patched(xml, &placed)?,
        None => domain::for_conversion(task.guest, &placed),
    };
    std::fs::write(path, xml).map_err(|source| InPlaceError::Xml { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kill between any two lines of the journal.
    #[test]
    fn an_interrupted_job_is_read_from_its_journal_wherever_it_ends() {
        let drivers = Drivers { arch: Some("x86_64".into()), ..Drivers::default() };
        let replay = |committed: BTreeSet<usize>| Replay {
            overlays: "/o".into(),
            return_code: 0,
            drivers: drivers.clone(),
            committed,
        };
        let whole = [
            Entry::OverlayDirectory { path: "/o".into() },
            replay(BTreeSet::new()).entry(),
            Entry::CommitStarted { disk: 0 },
            Entry::Committed { disk: 0 },
            Entry::CommitStarted { disk: 1 },
            Entry::Committed { disk: 1 },
            Entry::Succeeded { return_code: 0 },
        ];
        let committed = [None, None, Some(0), Some(0), Some(1), Some(1), Some(2), None];
        for (length, committed) in committed.into_iter().enumerate() {
            let expected = committed.map(|disks| replay((0..disks).collect()));
            assert_eq!(earlier(&whole[..length]), expected, "{length} lines");
        }
        // One that took it over and was killed at once knows as much.
        assert_eq!(earlier(&[replay(BTreeSet::from([1])).entry()]), Some(replay(BTreeSet::from([1]))));
    }
}
