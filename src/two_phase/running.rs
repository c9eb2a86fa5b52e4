//! The copies stage of a machine that runs: everything around the rounds of [`crate::warm`].

use std::path::Path;

use tokio::sync::mpsc;

use super::machine::connect;
use super::{At, Desk, Known, found, place};
use crate::domain::Placed;
use crate::event::Event;
use crate::footprint::Footprint;
use crate::job::Job;
use crate::journal::{self, Entry, Journal};
use crate::log::chain;
use crate::plan::{self, TwoPhase};
use crate::preflight;
use crate::run::Failure;
use crate::source::vsphere::Vsphere;
use crate::throttle::Throttling;
use crate::warm::begin::{Begun, begin};
use crate::warm::{Warm, WarmError};

fn failed(error: WarmError) -> Failure {
    Failure::failed(chain(&error))
}

/// A machine that is to be copied while it runs.
pub(super) struct Running<'a> {
    pub(super) job: &'a Job,
    pub(super) two_phase: &'a TwoPhase,
    pub(super) terms: &'a plan::Warm,
    pub(super) private: &'a Path,
    pub(super) destination: At<'a>,
}

impl Running<'_> {
    /// Every disk on its target, as the machine left it when it went off.
    pub(super) async fn copy(
        &self,
        desk: &mut Desk<'_>,
        throttling: &mut Throttling,
    ) -> Result<(Known, Vec<Placed>), Failure> {
        let vsphere = connect(self.job, desk).await?;
        let copied = self.rounds(desk, throttling, &vsphere).await;
        vsphere.close().await;
        copied
    }

    async fn rounds(
        &self,
        desk: &mut Desk<'_>,
        throttling: &mut Throttling,
        vsphere: &Vsphere,
    ) -> Result<(Known, Vec<Placed>), Failure> {
        let Self { job, two_phase, terms, private, destination } = *self;
        let directory = job.files.copies();
        let entries = journal::read(&job.files.journal()).map_err(|error| Failure::broken(&error))?;
        let own = Footprint::of(&entries).snapshots;
        let Begun { known, book, notes, absolute_paths } = tokio::select! {
            biased;
            signal = desk.signals.cancelled() => return Err(Failure::cancelled(signal)),
            begun = begin(job, two_phase, vsphere, &directory, &own) => begun.map_err(failed)?,
        };
        desk.recorder.apply(found(&known.guest, absolute_paths));
        for text in preflight::of_guest(&job.plan, &known.guest, job.earlier.is_some()) {
            desk.recorder.apply(Event::Warning { text });
        }
        notes.into_iter().for_each(|text| desk.recorder.apply(Event::Warning { text }));
        let placed = place(job, destination, &directory, &known, desk).await?;
        desk.note(&Entry::Machine { moref: book.machine.clone() })?;
        book.write(&directory).map_err(|error| failed(error.into()))?;
        let (tell, events) = mpsc::unbounded_channel();
        let journal = Journal::open(&job.files.journal()).map_err(|error| Failure::broken(&error))?;
        let warm = Warm {
            job,
            two_phase,
            terms,
            private,
            directory,
            vsphere,
            known: &known,
            placed: &placed,
            tell,
            limit: throttling.bucket().clone(),
            journal,
            book,
            first: true,
        };
        let stage = async { warm.run().await.map_err(failed) };
        desk.attend(throttling, events, stage).await?;
        desk.copied()?;
        Ok((known, placed))
    }
}
