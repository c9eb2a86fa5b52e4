//! What a job has left outside this host, put back or removed by whoever still can: the worker at the end of its job, a
//! process of the supervisor's when the worker is gone, `virt-v2v-wrapper cleanup` when all of them are.
//!
//! What there is to do stands in the journal: [`Footprint`] on a machine of vSphere, [`Thing`]s at clouds. How it is done is
//! [`crate::source::vsphere::restore`]'s, [`crate::source::undo`]'s and [`crate::destination::undo`]'s.

use std::path::Path;
use std::time::Duration;

use crate::event::Event;
use crate::footprint::Footprint;
use crate::job::Job;
use crate::journal::{self, Entry, Fate, JournalError};
use crate::log::chain;
use crate::plan::Plan;
use crate::recorder::Recorder;
use crate::records::Records;
use crate::source::vsphere::Vsphere;
use crate::source::vsphere::restore::restore;
use crate::things::{self, Side, Thing};
use crate::{destination, source};

/// How long the removal of a snapshot is waited for; vSphere goes on with it by itself. And how long a cloud has for all it
/// must remove.
const REMOVAL: Duration = Duration::from_secs(600);

/// What is left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// On a machine of vSphere.
    pub machine: Footprint,
    /// At clouds, the last one first.
    pub things: Vec<Thing>,
}

impl Left {
    /// Is everything as it should be?
    pub fn is_clean(&self) -> bool {
        self.machine.is_clean() && self.things.is_empty()
    }

    fn at(&self, side: Side) -> Vec<Thing> {
        self.things.iter().filter(|thing| thing.side == side).cloned().collect()
    }

    /// What it says of one side; empty if nothing is left there.
    fn list(&self, side: Side) -> String {
        let machine = (side == Side::Source && !self.machine.is_clean()).then(|| self.machine.to_string());
        let things = self.things.iter().filter(|thing| thing.side == side).map(Thing::to_string);
        machine.into_iter().chain(things).collect::<Vec<_>>().join(", ")
    }
}

/// As a part of a sentence.
impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists = [self.list(Side::Source), self.list(Side::Destination)];
        let lists: Vec<String> = lists.into_iter().filter(|list| !list.is_empty()).collect();
        f.write_str(if lists.is_empty() { "nothing" } else { "" })?;
        f.write_str(&lists.join(", "))
    }
}

/// What the journal of a job says is left, now that it is over. Of two jobs that died while copies changed hands the one that
/// has these has the source and what is at the destination; the other one must not touch it.
pub fn left(entries: &[Entry]) -> Left {
    left_by(entries, journal::fate(entries))
}

/// The same for a job that came to this end, whether its journal could say so or not.
pub fn left_by(entries: &[Entry], fate: Fate) -> Left {
    let is_shared = entries.iter().any(|entry| matches!(entry, Entry::Resuming { .. }));
    let copies = entries.iter().rev().find_map(|entry| match entry {
        Entry::Copies { directory } => Some(directory),
        _ => None,
    });
    let is_gone = copies.is_some_and(|directory| !directory.exists());
    if is_shared && is_gone && fate == Fate::Kept {
        return Left::default();
    }
    let machine = Footprint::of(entries).after(fate == Fate::Delivered);
    Left { machine, things: things::to_undo(entries, fate) }
}

/// The sentence for a user whose clouds are not as they should be.
pub fn told(left: &Left, tag: &str) -> String {
    let source = left.list(Side::Source);
    let destination = left.list(Side::Destination);
    let mut parts = Vec::new();
    if !source.is_empty() {
        parts.push(format!("left on the source: {source}"));
    }
    if !destination.is_empty() {
        parts.push(format!("left at the destination: {destination}"));
    }
    let verb = if destination.is_empty() { "puts" } else { "removes or puts" };
    format!("{}. virt-v2v-wrapper cleanup {tag} {verb} that back", parts.join("; "))
}

/// Puts back what is left; a sentence for each thing that could not be.
pub async fn put_back(plan: &Plan, left: &Left, records: &mut Records) -> Vec<String> {
    let mut problems = Vec::new();
    if !left.is_clean() {
        tracing::info!("putting back: {left}");
    }
    if !left.machine.is_clean() {
        match Vsphere::connect(plan).await {
            Ok(vsphere) => {
                let left = restore(&vsphere, &left.machine, REMOVAL, records.journal()).await;
                vsphere.close().await;
                problems.extend(left.iter().map(|problem| chain(problem)));
            }
            Err(error) => problems.push(chain(&error)),
        }
    }
    // The new machine and its volumes first: a source that goes on must not meet its copy.
    let limit = plan.tools.patience(REMOVAL);
    let (destination, source) = (left.at(Side::Destination), left.at(Side::Source));
    if !destination.is_empty() {
        let undone = tokio::time::timeout(limit, destination::undo(plan, &destination, records)).await;
        problems.extend(undone.unwrap_or_else(|_| vec![too_slow("destination", limit)]));
    }
    if !source.is_empty() {
        let undone = tokio::time::timeout(limit, source::undo(plan, &source, records)).await;
        problems.extend(undone.unwrap_or_else(|_| vec![too_slow("source", limit)]));
    }
    problems
}

fn too_slow(side: &str, limit: Duration) -> String {
    format!("the {side} did not answer or finish within {} s", limit.as_secs())
}

/// At the end of a job, whatever came of it: what it changed is put back, and what cannot be is told.
pub async fn after(job: &Job, recorder: &mut Recorder, succeeded: bool) {
    let mut records = match Records::of(&job.files) {
        Ok(records) => records,
        Err(error) => return tracing::error!("{}", chain(&error)),
    };
    let left = |records: &Records| match records.entries() {
        Ok(entries) => {
            let fate = if succeeded { Fate::Delivered } else { journal::fate(&entries) };
            left_by(&entries, fate)
        }
        Err(error) => {
            tracing::error!("{}", chain(&error));
            Left::default()
        }
    };
    let before = left(&records);
    if before.is_clean() {
        return;
    }
    recorder.apply_now(Event::WaitingFor { what: Some(waited_for(&before)) });
    for problem in put_back(&job.plan, &before, &mut records).await {
        let text = match before.machine.is_clean() {
            true => format!("not all is removed or put back: {problem}"),
            false => format!("the source is not as it was found: {problem}"),
        };
        tracing::error!("{text}");
        recorder.apply(Event::Warning { text });
    }
    let after = left(&records);
    if !after.is_clean() {
        recorder.apply(Event::Warning { text: told(&after, &job.files.tag) });
    }
    recorder.apply(Event::WaitingFor { what: None });
}

/// What a job waits for that puts this back.
pub fn waited_for(left: &Left) -> String {
    match left.things.is_empty() {
        true => format!("vSphere, to put back what the job changed on the source: {left}"),
        false => format!("the clouds, to remove or put back what the job left there: {left}"),
    }
}

/// The same for a job whose worker is gone, from its journal.
pub fn put_back_alone(plan: &Plan, path: &Path) -> Result<Vec<String>, JournalError> {
    let mut records = Records::open(path.to_owned())?;
    let left = left(&records.entries()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(match runtime {
        Ok(runtime) => runtime.block_on(put_back(plan, &left, &mut records)),
        Err(error) => vec![format!("no runtime: {error}")],
    })
}

/// The whole process that the supervisor starts when the worker is gone. `sealed` is the job.
pub fn process(sealed: &[u8]) -> Result<u8, Box<dyn std::error::Error>> {
    let job: Job = serde_json::from_slice(sealed)?;
    crate::log::start(&job.files.wrapper_log(), crate::secret::Scrubber::new(job.plan.secrets()))?;
    let problems = put_back_alone(&job.plan, &job.files.journal())?;
    problems.iter().for_each(|problem| tracing::error!("{problem}"));
    Ok(u8::from(!problems.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kill anywhere in a take-over, and a second one that comes too late: one job has the source, never two or none.
    #[test]
    fn who_has_the_copies_has_the_source() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let changed = [Entry::Machine { moref: "vm-1".into() }, Entry::TrackingOn, Entry::SwitchedOff];
        let job = |copies: &str, other: &str| {
            let mut entries = vec![Entry::Copies { directory: at(copies) }, Entry::Resumable];
            entries.extend(changed.clone());
            entries.push(Entry::Resuming { tag: other.to_owned() });
            entries
        };
        let (old, new) = (job("old", "new"), job("new", "old"));
        for (has, old_has, new_has) in [("old", true, false), ("new", false, true)] {
            std::fs::create_dir(at(has)).unwrap();
            assert_eq!((!left(&old).is_clean(), !left(&new).is_clean()), (old_has, new_has), "{has}");
            std::fs::remove_dir(at(has)).unwrap();
        }
        // Nobody took anything from a job whose copies its user has deleted.
        let alone: Vec<Entry> =
            old.into_iter().filter(|entry| !matches!(entry, Entry::Resuming { .. })).collect();
        assert!(!left(&alone).is_clean());
    }
}
