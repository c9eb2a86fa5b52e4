//! Warm migration: the disks of a machine are copied while it runs, round after round of what changed, until the user (or
//! the clock, or the downtime budget) says cutover; then it is switched off, the last changes follow, and it is converted.
//!
//! ```text
//!            ┌────────────────── next round ───────────────────┐
//!            ▼                                                 │
//! look ─► snapshot ─► what changed ─► copy, flush, compare ─► book ─► remove snapshot ─► wait ─► cutover
//!                                                                                                  │
//!              conversion (crate::in_place) ◄─ copy the last changes ◄─ settle ◄─ switch off ◄─────┘
//! ```
//!
//! Why no change is lost: the [`book`] says as of which snapshot each copy is, and a round copies all that changed since.
//! A change id enters the book only when everything of its round is flushed and compared; whatever fails before leaves the
//! old one, and the next round copies a superset. The last round reads a machine that is off and stays off.
//!
//! Pure parts: [`schedule`]. Edges: [`triggers`], [`book`], [`off`], `rounds`. Called by [`crate::two_phase`]; what was
//! changed on the source is put back by [`crate::source::vsphere::restore`], not here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::domain::Placed;
use crate::event::Event;
use crate::footprint::Footprint;
use crate::job::Job;
use crate::journal::{self, Entry, Journal};
use crate::log::chain;
use crate::plan::{ShutdownMode, TwoPhase};
use crate::source::vsphere::Vsphere;
use crate::source::vsphere::machine::PowerState;
use crate::throttle::bucket::Bucket;
use crate::two_phase::Known;
use crate::two_phase::copies::now;

pub(crate) mod begin;
pub mod book;
mod error;
pub mod off;
mod rounds;
pub mod schedule;
mod sight;
pub(crate) mod snapshots;
pub mod triggers;
pub mod wait;

pub use error::WarmError;

use book::Book;
use schedule::{Measured, Schedule};
use triggers::Triggers;
use wait::Next;

/// How often the session is kept from expiring.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Rounds in a row for which vSphere may be away.
const MOST_LOST: u32 = 10;

/// A warm migration from its first round to the copy of the last change.
pub(crate) struct Warm<'a> {
    pub(crate) job: &'a Job,
    pub(crate) two_phase: &'a TwoPhase,
    pub(crate) terms: &'a crate::plan::Warm,
    pub(crate) private: &'a Path,
    /// Of ledgers and book.
    pub(crate) directory: PathBuf,
    pub(crate) vsphere: &'a Vsphere,
    /// The machine as it was first seen.
    pub(crate) known: &'a Known,
    pub(crate) placed: &'a [Placed],
    pub(crate) tell: UnboundedSender<Event>,
    pub(crate) limit: Bucket,
    pub(crate) journal: Journal,
    pub(crate) book: Book,
    /// This process has not copied all disks yet.
    pub(crate) first: bool,
}

impl Warm<'_> {
    /// All rounds.
    pub(crate) async fn run(mut self) -> Result<(), WarmError> {
        let mut schedule = Schedule::new(self.terms);
        schedule.set_settle(off::settle(&self.two_phase.shutdown, &self.known.guest).as_secs());
        let triggers = Triggers::of(&self.job.files);
        self.remove_snapshots().await?;
        let mut reason = self.begun_cutover().await?;
        if reason.is_none() {
            self.switch_tracking_on().await?;
        }
        let mut lost = 0;
        while reason.is_none() {
            let measured = match self.round().await {
                Err(error) if error.is_passing() && lost < MOST_LOST => {
                    lost += 1;
                    self.warn(format!("round {} waits for vSphere: {}", self.book.round, chain(&error)));
                    None
                }
                round => {
                    lost = 0;
                    round?
                }
            };
            match measured {
                Some(measured) => schedule.round_ended(measured),
                None => schedule.round_failed(now()),
            }
            // What a removal takes must not be downtime: at a cutover it waits until the new machine is there.
            let asked = triggers.asked();
            if schedule.is_due(now()).is_none() && (asked.cutover.is_none() || asked.pause) {
                self.remove_snapshots().await?;
            }
            reason = match self.wait(&triggers, &schedule).await? {
                Next::Round => None,
                Next::Cutover { reason } => Some(reason),
            };
        }
        tracing::info!("cutover: {}", reason.unwrap_or_default());
        self.last_round().await
    }

    /// Was the cutover of an earlier process interrupted? Then it goes on, if the machine is off, or may be switched off and
    /// needs no more than its last changes copied.
    async fn begun_cutover(&mut self) -> Result<Option<String>, WarmError> {
        let entries = journal::read(&self.job.files.journal())?;
        if !journal::cut_over(&entries) {
            return Ok(None);
        }
        let machine = self.vsphere.machine_of(&self.book.machine).await?;
        let may = self.two_phase.shutdown.mode != ShutdownMode::Never && machine.change_tracking;
        Ok((machine.power == PowerState::Off || may)
            .then(|| "the job was interrupted after its cutover had begun".to_owned()))
    }

    /// Changed blocks are tracked from the next snapshot on.
    async fn switch_tracking_on(&mut self) -> Result<(), WarmError> {
        let machine = self.vsphere.machine_of(&self.book.machine).await?;
        if machine.change_tracking {
            return Ok(());
        }
        if !self.two_phase.keep_change_tracking {
            self.journal.record(&Entry::TrackingOn)?;
        }
        Ok(self.vsphere.set_change_tracking(&self.book.machine, true).await?)
    }

    /// The session is kept, and the user's files are looked at, until it is time for something.
    async fn wait(&self, triggers: &Triggers, schedule: &Schedule) -> Result<Next, WarmError> {
        Ok(wait::wait(triggers, schedule, &self.tell, now, async || self.keep_alive().await).await)
    }

    async fn keep_alive(&self) {
        if let Err(error) = self.vsphere.keep_alive().await {
            // The next call that matters logs in again, or fails with a reason.
            tracing::warn!("the session with vSphere: {}", chain(&error));
        }
    }

    /// Runs something long with the session kept.
    async fn attended<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(KEEP_ALIVE) => self.keep_alive().await,
            }
        }
    }

    fn say(&self, event: Event) {
        // The other end is only gone when the stage is over.
        drop(self.tell.send(event));
    }

    fn await_thing(&self, what: Option<String>) {
        self.say(Event::WaitingFor { what });
    }

    /// What this job has left on the machine so far.
    fn footprint(&self) -> Result<Footprint, WarmError> {
        Ok(Footprint::of(&journal::read(&self.job.files.journal())?))
    }
}
