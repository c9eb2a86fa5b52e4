//! The machine of the source before its copy: switched off where that was asked for, looked at whether it has run since. Only
//! VMware's over vSphere: nothing else is switched by us. [`crate::put_back`] puts it back.

use tokio::sync::mpsc;

use super::Desk;
use super::earlier::{self, Earlier, Stage};
use crate::copy::ledger::Ledger;
use crate::event::Event;
use crate::job::Job;
use crate::journal::{Entry, Journal};
use crate::log::chain;
use crate::plan::{ShutdownMode, Source, TwoPhase};
use crate::run::Failure;
use crate::source::vsphere::Vsphere;
use crate::source::vsphere::machine::PowerState;
use crate::throttle::Throttling;
use crate::warm::WarmError;
use crate::warm::book::Book;
use crate::warm::off::Off;

/// A session, unless the user cancels meanwhile.
pub(super) async fn connect(job: &Job, desk: &mut Desk<'_>) -> Result<Vsphere, Failure> {
    tokio::select! {
        biased;
        signal = desk.signals.cancelled() => Err(Failure::cancelled(signal)),
        vsphere = Vsphere::connect(&job.plan) => vsphere.map_err(|error| Failure::broken(&error)),
    }
}

/// Before a cold copy: the machine goes off, if the user wants that. What runs all the same is refused later.
pub(super) async fn switch_off(
    job: &Job,
    two_phase: &TwoPhase,
    desk: &mut Desk<'_>,
    throttling: &mut Throttling,
) -> Result<(), Failure> {
    let is_vsphere = matches!(job.plan.source, Source::Vddk { .. });
    if !is_vsphere || two_phase.shutdown.mode == ShutdownMode::Never {
        return Ok(());
    }
    let vsphere = connect(job, desk).await?;
    let (tell, events) = mpsc::unbounded_channel();
    let failed = |error: WarmError| Failure::failed(chain(&error));
    let stage = async {
        let machine = vsphere.planned(&job.plan.vm_name).await.map_err(|error| failed(error.into()))?;
        let mut journal = Journal::open(&job.files.journal()).map_err(|error| Failure::broken(&error))?;
        let entry = Entry::Machine { moref: machine.moref.clone() };
        journal.record_once(&entry).map_err(|error| Failure::broken(&error))?;
        let shutdown = &two_phase.shutdown;
        let (moref, guest, tools) = (&machine.moref, &machine.guest, &job.plan.tools);
        let off = Off { vsphere: &vsphere, machine: moref, guest, shutdown, tools, tell: &tell };
        off.reach(&mut journal).await.map_err(failed)
    };
    let off = desk.attend(throttling, events, stage).await;
    vsphere.close().await;
    off
}

/// How far an interrupted job is now: copies that were finished are not any more if the machine has run since.
pub(super) async fn stage_of_now(
    job: &Job,
    two_phase: &TwoPhase,
    earlier: &Earlier,
    desk: &mut Desk<'_>,
) -> Result<Stage, Failure> {
    if earlier.stage == Stage::Copying || !matches!(job.plan.source, Source::Vddk { .. }) {
        return Ok(earlier.stage);
    }
    let vsphere = connect(job, desk).await?;
    let now = vsphere.planned(&job.plan.vm_name).await;
    vsphere.close().await;
    let now = now.map_err(|error| Failure::broken(&error))?;
    let then = marks_then(job).map_err(Failure::failed)?;
    if now.power == PowerState::Off && now.marks() == then {
        return Ok(earlier.stage);
    }
    let changed = earlier.entries.iter().any(|entry| matches!(entry, Entry::CommitStarted { .. }));
    if two_phase.warm.is_none() || changed {
        return Err(Failure::failed(format!(
            "resume: VM \"{}\" was switched on or reconfigured since it was copied: the copies are older than the machine. \
             Start without resume",
            now.guest.name
        )));
    }
    let text =
        "the machine was switched on or reconfigured since its last change was copied: copying goes on"
            .to_owned();
    desk.recorder.apply(Event::Warning { text });
    if now.power == PowerState::Off {
        // Nobody has to ask for the cutover of a machine that is down for it already.
        desk.note(&Entry::Cutover)?;
    }
    for entry in &earlier.entries {
        if let Entry::Converted { overlays, .. } = entry {
            // Of a conversion that does not count any more: they go with this job.
            desk.note(&Entry::OverlayDirectory { path: overlays.clone() })?;
        }
    }
    Ok(Stage::Copying)
}

/// The marks of the disks when they were copied.
fn marks_then(job: &Job) -> Result<Vec<Option<String>>, String> {
    let directory = job.files.copies();
    let book = Book::read(&directory).map_err(|error| chain(&error))?;
    if let Some(book) = book {
        return Ok(book.copied.unwrap_or_default());
    }
    let known = earlier::known(&directory).map_err(|error| chain(&error))?;
    let disks = known.map_or(0, |known| known.guest.disks.len());
    let ledgers = (0..disks).map(|disk| Ledger::open(&earlier::ledger(&directory, disk)));
    let marks = ledgers.map(|ledger| Ok(ledger.map_err(|error| chain(&error))?.identity().mark.clone()));
    marks.collect()
}
