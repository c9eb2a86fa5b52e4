//! One round of a warm migration: what changed of each disk, copied from a snapshot, or at the end from the machine
//! itself, which is off.

use super::book::Held;
use super::error::is_recoverable;
use super::off::Off;
use super::{Measured, Warm, WarmError, sight};
use crate::copy::CopyError;
use crate::event::Event;
use crate::export::Export;
use crate::extent::Extents;
use crate::journal::Entry;
use crate::log::chain;
use crate::source::vsphere::machine::{Inventory, PowerState};
use crate::source::vsphere::soap::Fault;
use crate::source::vsphere::tracking::is_same_tracking;
use crate::source::vsphere::{ChangesError, Snapshot};
use crate::source::{Opened, SourceDisk};
use crate::two_phase::copies::{Copies, CopiesError, Round, What, now};

/// What the disks are read from.
struct Seen<'s> {
    machine: Inventory,
    /// For each disk its index in the machine's.
    indices: Vec<usize>,
    snapshot: Option<&'s Snapshot>,
}

impl Seen<'_> {
    /// Change id of the state that is read.
    fn change_id(&self, key: Option<i32>) -> Option<&str> {
        let disks = &self.snapshot?.disks;
        disks.iter().find(|disk| Some(disk.key) == key)?.change_id.as_deref()
    }
}

impl Warm<'_> {
    /// A round of a machine that may run. `None`: no disk got further.
    pub(super) async fn round(&mut self) -> Result<Option<Measured>, WarmError> {
        let number = self.book.round;
        let began = now();
        self.look().await?;
        let snapshot = self.take_snapshot(number).await?;
        let snapshot_at = now();
        let (machine, indices) = self.look().await?;
        let seen = Seen { machine, indices, snapshot: Some(&snapshot) };
        let first = self.book.disks.iter().any(|held| !matches!(held, Held::All { .. }));
        let round = self.round_of(&seen, false).await?;
        // From here on copies may hold what is newer than the book says; it must not say that they hold nothing.
        for (disk, (what, _)) in round.disks.iter().enumerate() {
            let change_id = seen.change_id(self.known.guest.disks[disk].key).map(str::to_owned);
            let held = &mut self.book.disks[disk];
            match (what, change_id) {
                (What::Missing, Some(change_id)) => *held = Held::Some { change_id },
                // Without an id nobody could tell later of when it is; a snapshot has one for each disk.
                (What::Missing, None) | (What::Differing, _) => *held = Held::Unknown,
                _ => {}
            }
        }
        self.book.round += 1;
        self.book.write(&self.directory)?;
        self.say(Event::RoundStarted { round: number, last: false, at: now() });
        let results = self.copy(&seen, &round).await;
        let ended = now();
        let bytes = results.as_ref().map_or(0, |results| results.iter().flatten().sum());
        self.say(Event::RoundFinished { round: number, last: false, at: ended, bytes });
        // What an earlier process finished is read back by the first round that comes to its end.
        self.first &= !results.as_ref().is_ok_and(|results| results.iter().all(Result::is_ok));
        let results = match results {
            Ok(results) => results,
            Err(CopiesError::Copy(error)) if is_recoverable(&error) => {
                self.warn(format!(
                    "round {number} copied nothing, the next one tries again: {}",
                    chain(&error)
                ));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let mut failed = 0;
        for (disk, result) in results.into_iter().enumerate() {
            let change_id = seen.change_id(self.known.guest.disks[disk].key).map(str::to_owned);
            match (result, change_id) {
                (Ok(_), Some(change_id)) => self.book.disks[disk] = Held::All { change_id },
                (Ok(_), None) => failed += 1,
                (Err(error), _) if is_recoverable(&error) => failed += 1,
                (Err(error), _) => return Err(CopiesError::Copy(error).into()),
            }
        }
        self.book.write(&self.directory)?;
        if failed > 0 {
            let disks = self.book.disks.len();
            self.warn(format!(
                "round {number} failed for {failed} of {disks} disks; the next one tries again"
            ));
            return Ok(None);
        }
        Ok(Some(Measured { snapshot_at, began, ended, bytes, first }))
    }

    /// The machine goes off, and what changed last is copied.
    pub(super) async fn last_round(&mut self) -> Result<(), WarmError> {
        self.journal.record(&Entry::Cutover)?;
        let off = Off {
            vsphere: self.vsphere,
            machine: &self.book.machine,
            guest: &self.known.guest,
            shutdown: &self.two_phase.shutdown,
            tools: &self.job.plan.tools,
            tell: &self.tell,
        };
        off.reach(&mut self.journal).await?;
        self.copy_last().await.map_err(WarmError::of_last_round)
    }

    async fn copy_last(&mut self) -> Result<(), WarmError> {
        let number = self.book.round;
        let (machine, indices) = self.look().await?;
        if machine.power != PowerState::Off {
            return Err(WarmError::SwitchedOn { name: self.known.guest.name.clone() });
        }
        let seen = Seen { machine, indices, snapshot: None };
        let round = self.round_of(&seen, true).await?;
        for (held, (what, _)) in self.book.disks.iter_mut().zip(&round.disks) {
            // There is no change id of a machine that is off: interrupted, its copy is to be compared.
            if matches!(what, What::Missing | What::Differing) {
                *held = Held::Unknown;
            }
        }
        self.book.write(&self.directory)?;
        let began = now();
        self.say(Event::RoundStarted { round: number, last: true, at: began });
        let copied = self.copy(&seen, &round).await?;
        let copied = copied.into_iter().collect::<Result<Vec<u64>, CopyError>>();
        let bytes = copied.map_err(CopiesError::Copy)?.iter().sum();
        self.say(Event::RoundFinished { round: number, last: true, at: now(), bytes });
        let (after, _) = self.look().await?;
        if after.power != PowerState::Off || after.marks() != seen.machine.marks() {
            return Err(WarmError::SwitchedOn { name: self.known.guest.name.clone() });
        }
        self.book.copied = Some(after.marks());
        Ok(self.book.write(&self.directory)?)
    }

    /// The machine now; the same disks as at first, or an error that says what to do.
    async fn look(&self) -> Result<(Inventory, Vec<usize>), WarmError> {
        let machine = self.vsphere.machine_of(&self.book.machine).await?;
        match sight::matched(&self.known.guest.disks, &machine.guest.disks) {
            Ok(indices) => Ok((machine, indices)),
            Err(changes) => Err(WarmError::OtherDisks { name: self.known.guest.name.clone(), changes }),
        }
    }

    /// What is to be copied of each disk.
    async fn round_of(&self, seen: &Seen<'_>, last: bool) -> Result<Round, WarmError> {
        let mut disks = Vec::new();
        for disk in 0..self.known.guest.disks.len() {
            disks.push(self.what(seen, disk).await?);
        }
        Ok(Round { number: self.book.round, last, follows: !self.first, warm: true, disks })
    }

    async fn what(&self, seen: &Seen<'_>, disk: usize) -> Result<(What, String), WarmError> {
        let all = || "*".to_owned();
        let (change_id, complete) = match &self.book.disks[disk] {
            Held::Nothing => return Ok((What::Missing, all())),
            Held::Unknown => return Ok((What::Differing, all())),
            Held::Some { change_id } => (change_id, false),
            Held::All { change_id } => (change_id, true),
        };
        match self.changed(seen, disk, change_id).await {
            Ok(areas) if complete => Ok((What::Changed(areas), change_id.clone())),
            Ok(areas) => Ok((What::MissingAnd(areas), change_id.clone())),
            Err(ChangesError::Client(error)) => Err(crate::source::vsphere::VsphereError::from(error).into()),
            Err(error) => {
                self.warn(format!(
                    "{}: vSphere does not tell what changed ({}): the whole disk is read and compared, and only what \
                     differs is written",
                    self.known.guest.disks[disk].label,
                    chain(&error)
                ));
                Ok((What::Differing, all()))
            }
        }
    }

    async fn changed(&self, seen: &Seen<'_>, disk: usize, since: &str) -> Result<Extents, ChangesError> {
        let known = &self.known.guest.disks[disk];
        if let Some(now) = seen.change_id(known.key)
            && !is_same_tracking(since, now)
        {
            let words = format!("change tracking began anew, its ids are like {now} by now");
            let (disk_key, since) = (known.key.unwrap_or_default(), since.to_owned());
            return Err(ChangesError::ChangeId {
                disk_key,
                since,
                fault: Fault { words, ..Fault::default() },
            });
        }
        let snapshot = seen.snapshot.map(|snapshot| snapshot.moref.as_str());
        let (key, size) = (known.key.unwrap_or_default(), known.size.unwrap_or_default());
        let asked = self.vsphere.changed_areas(&self.book.machine, snapshot, key, since, size);
        self.attended(asked).await
    }

    async fn copy(&self, seen: &Seen<'_>, round: &Round) -> Result<Vec<Result<u64, CopyError>>, CopiesError> {
        let opened = &self.opened(seen);
        let Self { job, two_phase, private, directory, placed, .. } = self;
        let tell = self.tell.clone();
        let copies = Copies { job, two_phase, private, directory, opened, placed, tell, round };
        self.attended(copies.run(self.limit.clone())).await
    }

    /// The disks in the state that is read.
    fn opened(&self, seen: &Seen<'_>) -> Opened {
        let disks = seen.indices.iter().zip(&self.known.guest.disks).map(|(index, known)| {
            let of_snapshot = seen.snapshot.and_then(|snapshot| {
                let disk = snapshot.disks.iter().find(|disk| Some(disk.key) == known.key)?;
                Some((disk.file.as_str(), snapshot.moref.as_str()))
            });
            let backing = &seen.machine.backings[*index];
            let (file, snapshot) =
                of_snapshot.map_or((backing.file.as_str(), None), |(file, moref)| (file, Some(moref)));
            let export: Export = self.vsphere.export(&seen.machine.moref, file, snapshot);
            // Not the mark of a machine that runs: it changes all the time.
            SourceDisk { mark: None, ..self.vsphere.served(export, backing.absolute_path.clone()) }
        });
        let disks = disks.collect();
        Opened { guest: self.known.guest.clone(), disks, domain: None, warnings: Vec::new() }
    }

    pub(super) fn warn(&self, text: String) {
        tracing::warn!("{text}");
        self.say(Event::Warning { text });
    }

    /// A second handle on the journal, for what needs one to itself.
    pub(super) fn journal_handle(&self) -> Result<crate::journal::Journal, WarmError> {
        Ok(crate::journal::Journal::open(&self.job.files.journal())?)
    }
}
