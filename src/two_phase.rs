//! The stages of a two-phase job, in order: source, copies, conversion in place, destination (contract.md 6).
//!
//! Runs in the worker; called by [`crate::run`]. Every stage may be entered again after everything was killed: a job
//! that resumes an earlier one ([`earlier`]) takes over its copies and begins where that one was.
//! This file only orders the stages; how disks are copied is [`crate::copy`]'s, how they are converted
//! [`crate::in_place`]'s.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use crate::destination::{DestinationError, Handle, Machine, Selected, Work};
use crate::domain::Placed;
use crate::event::{Event, FoundDisk};
use crate::guest::Guest;
use crate::in_place::{InPlaceError, Replay};
use crate::job::Job;
use crate::journal::{Entry, Journal};
use crate::log::chain;
use crate::phase::Phase;
use crate::plan::TwoPhase;
use crate::recorder::Recorder;
use crate::records::Records;
use crate::run::{Failure, judge, private_directory};
use crate::signals::Signals;
use crate::source::{self, Opened};
use crate::throttle::Throttling;
use crate::v2v::output::Drivers;
use crate::{in_place, preflight, process};

pub(crate) mod copies;
pub mod earlier;
pub mod kept_document;
mod machine;
mod rate;
mod running;

use copies::{Copies, Round};
use earlier::Stage;
use rate::Rate;

/// How often the rate is told.
const RATE_EVERY: Duration = Duration::from_secs(1);

/// What is known of the guest when its disks are copied: enough to convert them without the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// What it is.
    pub guest: Guest,
    /// The libvirt XML that the user gave.
    pub domain: Option<String>,
}

/// A destination, and what it has prepared.
type At<'a> = (&'a Selected, &'a Handle);

/// What the stages report to, and what stops them.
pub struct Desk<'a> {
    /// The state.
    pub recorder: &'a mut Recorder,
    /// What was begun and done.
    pub journal: &'a mut Journal,
    /// What cancels the job.
    pub signals: &'a mut Signals,
}

/// All stages.
pub async fn conduct(job: &Job, two_phase: &TwoPhase, desk: &mut Desk<'_>) -> Result<(), Failure> {
    let private = private_directory(job, desk.journal)?;
    let earlier = match &job.earlier {
        Some(files) => {
            Some(earlier::take_over(job, files, desk.journal).map_err(|error| Failure::broken(&error))?)
        }
        None => None,
    };
    let stage = match &earlier {
        Some(earlier) => machine::stage_of_now(job, two_phase, earlier, desk).await?,
        None => Stage::Copying,
    };
    let destination = Selected::of(&job.plan);
    let prepared = desk.at_destination(job, async |work| destination.prepare(work).await).await?;
    let handle = prepared.map_err(|error| Failure::broken(&error))?;
    let made = make(job, two_phase, &private, earlier, stage, (&destination, &handle), desk).await;
    let (known, placed, drivers) = match made {
        Ok(made) => made,
        Err(failure) => {
            destination.abandon(handle).await;
            return Err(failure);
        }
    };
    let machine = Machine { plan: &job.plan, guest: &known.guest, disks: &placed, drivers: &drivers };
    let published =
        desk.at_destination(job, async |work| destination.publish(handle, &machine, work).await).await?;
    match published {
        Ok(Some(id)) => desk.recorder.apply(Event::VmId { id }),
        Ok(None) => {}
        Err(error) => {
            if job.plan.destination.has_api() {
                // Its disks are on their way to another owner by now: nobody could say from where to go on.
                desk.note(&Entry::Cancelled)?;
            }
            return Err(Failure::failed(chain(&error)));
        }
    }
    Ok(())
}

/// The disks of the guest at the destination, converted.
async fn make(
    job: &Job,
    two_phase: &TwoPhase,
    private: &Path,
    earlier: Option<earlier::Earlier>,
    stage: Stage,
    destination: At<'_>,
    desk: &mut Desk<'_>,
) -> Result<(Known, Vec<Placed>, Drivers), Failure> {
    let (mut throttling, limits) = Throttling::start(job);
    limits.into_iter().for_each(|event| desk.recorder.apply(event));
    let (known, placed) = match stage {
        Stage::Copying => match &two_phase.warm {
            Some(terms) => {
                let running = running::Running { job, two_phase, terms, private, destination };
                running.copy(desk, &mut throttling).await?
            }
            None => copy(job, two_phase, private, destination, desk, &mut throttling).await?,
        },
        Stage::Copied | Stage::Converted => recall(job, destination, desk).await?,
    };
    let entries = match stage {
        Stage::Converted => earlier.map(|earlier| earlier.entries).unwrap_or_default(),
        Stage::Copying | Stage::Copied => Vec::new(),
    };
    if !two_phase.convert {
        return Ok((known, placed, Drivers::default()));
    }
    let drivers =
        convert(job, &known, &placed, in_place::earlier(&entries).as_ref(), desk, &mut throttling).await?;
    Ok((known, placed, drivers))
}

/// Every disk on its target, proven.
async fn copy(
    job: &Job,
    two_phase: &TwoPhase,
    private: &Path,
    destination: At<'_>,
    desk: &mut Desk<'_>,
    throttling: &mut Throttling,
) -> Result<(Known, Vec<Placed>), Failure> {
    machine::switch_off(job, two_phase, desk, throttling).await?;
    let opened = open(job, private, desk).await?;
    let directory = job.files.copies();
    let known = Known { guest: opened.guest.clone(), domain: opened.domain.clone() };
    let placed = place(job, destination, &directory, &known, desk).await?;
    let (tell, events) = mpsc::unbounded_channel();
    let round = &Round::only(placed.len());
    let (opened, placed_there, directory) = (&opened, &placed, &directory);
    let copies = Copies { job, two_phase, private, directory, opened, placed: placed_there, tell, round };
    let bucket = throttling.bucket().clone();
    let stage = async {
        let copied = async {
            copies.run(bucket).await?;
            copies.compare_marks().await
        };
        copied.await.map_err(|error| Failure::failed(chain(&error)))
    };
    desk.attend(throttling, events, stage).await?;
    desk.copied()?;
    Ok((known, placed))
}

/// The targets of the disks, and what a later job must know of them.
async fn place(
    job: &Job,
    destination: At<'_>,
    directory: &Path,
    known: &Known,
    desk: &mut Desk<'_>,
) -> Result<Vec<Placed>, Failure> {
    desk.note(&Entry::Copies { directory: directory.to_owned() })?;
    let (selected, handle) = destination;
    let guest = &known.guest;
    let placed = desk.at_destination(job, async |work| selected.place(handle, guest, work).await).await?;
    let placed = placed.map_err(|error| Failure::broken(&error))?;
    for target in &placed {
        desk.note(&Entry::OutputFile { path: target.path.clone() })?;
    }
    earlier::remember(directory, known).map_err(|error| Failure::broken(&error))?;
    Ok(placed)
}

/// The source, opened; where that takes long it can be cancelled.
async fn open(job: &Job, private: &Path, desk: &mut Desk<'_>) -> Result<Opened, Failure> {
    let (tell, events) = mpsc::unbounded_channel();
    let opening =
        async { source::open_disks(job, private, &tell).await.map_err(|error| Failure::broken(&error)) };
    let opened = desk.attend_to(None, events, opening).await?;
    desk.recorder.apply(Event::WaitingFor { what: None });
    let absolute_paths = opened.disks.iter().map(|source| source.absolute_path.clone());
    desk.recorder.apply(found(&opened.guest, absolute_paths.collect()));
    let of_guest = preflight::of_guest(&job.plan, &opened.guest, job.earlier.is_some());
    for text in opened.warnings.iter().chain(&of_guest) {
        desk.recorder.apply(Event::Warning { text: text.clone() });
    }
    Ok(opened)
}

/// The copies converted, by way of overlays.
async fn convert(
    job: &Job,
    known: &Known,
    copies: &[Placed],
    earlier: Option<&Replay>,
    desk: &mut Desk<'_>,
    throttling: &mut Throttling,
) -> Result<Drivers, Failure> {
    if earlier.is_none() {
        desk.recorder.apply_now(Event::Entered(Phase::StartingVirtV2v));
    }
    let task = in_place::Task { guest: &known.guest, domain: known.domain.as_deref(), copies, earlier };
    let Desk { recorder, journal, signals } = desk;
    match in_place::run(job, task, recorder, journal, signals, throttling).await {
        Ok(drivers) => Ok(drivers),
        Err(InPlaceError::Cancelled(signal)) => Err(Failure::cancelled(signal)),
        Err(InPlaceError::NotConverted(converted)) => {
            judge(*converted)?;
            // It ended well, which was ruled out before.
            Err(Failure::failed("virt-v2v-in-place ended unexpectedly".to_owned()))
        }
        Err(error) => Err(Failure::failed(chain(&error))),
    }
}

/// The disks of a guest, with where their host keeps each, as far as that is known.
fn found(guest: &Guest, absolute_paths: Vec<Option<String>>) -> Event {
    let absolute_paths = absolute_paths.into_iter().chain(std::iter::repeat(None));
    let disks = guest.disks.iter().zip(absolute_paths).map(|(disk, absolute_path)| FoundDisk {
        path: disk.path.clone(),
        label: disk.label.clone(),
        absolute_path,
        size: disk.size,
    });
    Event::DisksFound { disks: disks.collect() }
}

/// The copies of an earlier job, all of them finished: the source is not needed any more.
async fn recall(
    job: &Job,
    (selected, handle): At<'_>,
    desk: &mut Desk<'_>,
) -> Result<(Known, Vec<Placed>), Failure> {
    let (known, disks) = earlier::recall(&job.files.copies()).map_err(|error| Failure::broken(&error))?;
    desk.recorder.apply(found(&known.guest, Vec::new()));
    let mut placed = Vec::new();
    for (disk, (target, checksum)) in disks.into_iter().enumerate() {
        desk.recorder.apply(Event::RoundEnded { disk, at: copies::now(), last: true, result: Ok(checksum) });
        placed.push(target);
    }
    if job.plan.destination.has_api() {
        // What an interrupted job left may not be reachable from here any more.
        let guest = &known.guest;
        let there = desk.at_destination(job, async |work| selected.place(handle, guest, work).await).await?;
        placed = there.map_err(|error| Failure::broken(&error))?;
    }
    Ok((known, placed))
}

impl Desk<'_> {
    /// Journals what was not journalled before.
    pub fn note(&mut self, entry: &Entry) -> Result<(), Failure> {
        self.journal.record_once(entry).map_err(|error| Failure::broken(&error))
    }

    /// All disks are copied, of a machine that has not run since. Said again after each time that it had.
    pub fn copied(&mut self) -> Result<(), Failure> {
        self.journal.record(&Entry::Copied).map_err(|error| Failure::broken(&error))
    }

    /// Lets the destination do something: its error, or the cancel that came meanwhile.
    pub async fn at_destination<T>(
        &mut self,
        job: &Job,
        step: impl AsyncFnOnce(&mut Work<'_>) -> Result<T, DestinationError>,
    ) -> Result<Result<T, DestinationError>, Failure> {
        let mut records = Records::of(&job.files).map_err(|error| Failure::broken(&error))?;
        let (tell, events) = mpsc::unbounded_channel();
        let mut work = Work { job, records: &mut records, tell };
        let stage = async { Ok(step(&mut work).await) };
        let ended = self.attend_to(None, events, stage).await;
        self.recorder.apply(Event::WaitingFor { what: None });
        ended
    }

    /// Runs a stage to its end while its events are recorded, the limits are followed and signals are obeyed.
    async fn attend<T>(
        &mut self,
        throttling: &mut Throttling,
        events: mpsc::UnboundedReceiver<Event>,
        stage: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.attend_to(Some(throttling), events, stage).await
    }

    async fn attend_to<T>(
        &mut self,
        mut throttling: Option<&mut Throttling>,
        mut events: mpsc::UnboundedReceiver<Event>,
        stage: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::pin!(stage);
        let mut rate = Rate::default();
        let mut tick = tokio::time::interval(RATE_EVERY);
        let mut resumable = false;
        let ended = loop {
            let due = self.recorder.due().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                signal = self.signals.next() => match signal {
                    Some(signal) => return Err(Failure::cancelled(signal)),
                    // Orphans of tools; the tools themselves are waited for by who started them.
                    None => drop(process::reap()),
                },
                Some(event) = events.recv() => {
                    if matches!(event, Event::RoundStarted { .. }) {
                        rate = Rate::default();
                    }
                    self.take(event, &mut resumable)?;
                }
                ended = &mut stage => break ended,
                changes = step(throttling.as_deref_mut()) => {
                    changes.into_iter().for_each(|event| self.recorder.apply(event));
                }
                _ = tick.tick(), if throttling.is_some() => {
                    let copied = self.recorder.state().bytes_copied.unwrap_or(0);
                    if let Some(bytes_per_second) = rate.after(copied) {
                        self.recorder.apply(Event::Rate { bytes_per_second });
                    }
                }
                () = tokio::time::sleep_until(due) => {}
            }
            self.recorder.write_if_due();
        };
        while let Ok(event) = events.try_recv() {
            self.take(event, &mut resumable)?;
        }
        ended
    }

    /// From the first finished bytes on a failure leaves something worth keeping.
    fn take(&mut self, event: Event, resumable: &mut bool) -> Result<(), Failure> {
        if !*resumable
            && matches!(
                event,
                Event::RoundAdvanced { copied: 1.., .. } | Event::RoundEnded { result: Ok(_), .. }
            )
        {
            self.note(&Entry::Resumable)?;
            *resumable = true;
        }
        match event {
            // A phase may be over sooner than the file would be written by itself, and clients wait for each of them.
            Event::Entered(_) => self.recorder.apply_now(event),
            _ => self.recorder.apply(event),
        }
        Ok(())
    }
}

/// The next change of the limits; none ever where they are not followed.
async fn step(throttling: Option<&mut Throttling>) -> Vec<Event> {
    match throttling {
        Some(throttling) => throttling.step().await,
        None => std::future::pending().await,
    }
}
