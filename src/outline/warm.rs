//! The stages of a warm migration in words: rounds, cutover, and what is put back on the source. Pure.

use super::stages::{resumed, stage, switching_off, verify};
use super::{Stage, commands};
use crate::export::Export;
use crate::job::Job;
use crate::look::Seen;
use crate::plan::{Quiesce, ShutdownMode, TwoPhase, Warm};
use crate::two_phase::earlier::Stage as Reached;
use crate::warm::snapshots;

/// Stands where the newest file of a disk will be: a snapshot gives it another.
const NEWEST: &str = "<newest file of the disk>";

/// Up to the last copied byte.
pub(super) fn stages(
    job: &Job,
    two_phase: &TwoPhase,
    terms: &Warm,
    seen: &Seen,
    reached: Option<Reached>,
) -> Vec<Stage> {
    let programs = &two_phase.programs;
    let mut rounds = stage("rounds", rounds(job, terms, seen));
    rounds.does.extend(resumed(two_phase, reached));
    rounds.commands = commands::serve(job, programs, seen, &seen.exports);
    rounds.commands.extend(commands::targets(job, programs, seen, reached.is_some()));
    let mut cutover = stage("cutover", cutover(job, terms));
    cutover.does.extend(switching_off(two_phase, seen));
    let mut last = stage(
        "copy",
        ["the disks of the machine, which is off now, are copied once more: what changed since".to_owned()],
    );
    let exports: Vec<Export> = seen.exports.iter().cloned().map(of_machine_that_is_off).collect();
    last.commands = commands::serve(job, programs, seen, &exports);
    vec![rounds, verify(two_phase), cutover, last]
}

fn of_machine_that_is_off(mut export: Export) -> Export {
    if let Export::Vddk { file, snapshot, .. } = &mut export {
        *snapshot = None;
        NEWEST.clone_into(file);
    }
    export
}

fn rounds(job: &Job, terms: &Warm, seen: &Seen) -> Vec<String> {
    let tracked = seen.machine.as_ref().is_some_and(|machine| machine.inventory.change_tracking);
    let tracking = match tracked {
        true => "the machine tracks its changed blocks already".to_owned(),
        false => "change tracking of the machine is switched on".to_owned(),
    };
    let quiesced = match terms.quiesce {
        Quiesce::Auto => "quiesced if VMware Tools run and can",
        Quiesce::Require => "quiesced, or there is no round",
        Quiesce::Never => "not quiesced",
    };
    let tag = &job.files.tag;
    let snapshot = format!(
        "each round takes a snapshot of the machine, {quiesced}, copies from it and removes it: {:?}, {:?} and so on",
        snapshots::name(tag, 0, ""),
        snapshots::name(tag, 1, "")
    );
    let mut does = vec![
        tracking,
        snapshot,
        "round 0 copies all disks, each later one what changed since the one before".to_owned(),
        format!("{} s after the end of a round the next one begins (delta_interval)", terms.interval),
    ];
    if let Some(at) = terms.finalize_at {
        does.push(format!(
            "from {} on, {} s before finalize_at, it is {} s",
            time(at.saturating_sub_unsigned(terms.finalize_window)),
            terms.finalize_window,
            terms.finalize_interval
        ));
    }
    does.push(format!(
        "{} asks for a round at once, and while {} exists none begins",
        job.files.copy_trigger().display(),
        job.files.pause_operations().display()
    ));
    does
}

fn cutover(job: &Job, terms: &Warm) -> Vec<String> {
    let mut by = vec![format!("as soon as somebody makes {}", job.files.cutover().display())];
    by.extend(terms.finalize_at.map(|at| format!("at {} (finalize_at)", time(at))));
    by.extend(terms.downtime_budget.map(|budget| {
        format!("as soon as the machine would be off for no longer than {budget} s (downtime_budget_seconds)")
    }));
    vec![format!("the last round begins {}", by.join(", or "))]
}

/// What the source looks like afterwards.
pub(super) fn put_back(two_phase: &TwoPhase, seen: &Seen) -> Stage {
    let tracked = seen.machine.as_ref().is_some_and(|machine| machine.inventory.change_tracking);
    let mut does = vec!["snapshots of this job that are left are removed".to_owned()];
    match (tracked, two_phase.keep_change_tracking) {
        (false, false) => does.push("change tracking is switched off again".to_owned()),
        (false, true) => does.push("change tracking stays on (keep_change_tracking)".to_owned()),
        (true, _) => {}
    }
    does.push(match two_phase.shutdown.mode {
        ShutdownMode::Auto | ShutdownMode::Force => {
            "the machine stays off after a success; after a failure it is switched on again, if the job switched it off".to_owned()
        }
        ShutdownMode::Never | ShutdownMode::Manual => "the machine is left as it is".to_owned(),
    });
    stage("put back", does)
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("{seconds} s since 1970"), |time| time.to_string())
}
