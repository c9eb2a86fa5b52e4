//! The source put back as it was found, over vSphere, by whoever still can: the worker at the end of its job, a process of
//! the supervisor's when the worker is gone, `virt-v2v-wrapper cleanup` when all of them are.
//!
//! What there is to do stands in the journal ([`Footprint`]); how it is done is [`crate::source::vsphere::restore`]'s.

use std::path::Path;
use std::time::Duration;

use crate::footprint::Footprint;
use crate::job::Job;
use crate::journal::{self, Entry, Fate, Journal, JournalError};
use crate::log::chain;
use crate::plan::Plan;
use crate::source::vsphere::Vsphere;
use crate::source::vsphere::restore::restore;

/// How long the removal of a snapshot is waited for; vSphere goes on with it by itself.
const REMOVAL: Duration = Duration::from_secs(600);

/// What the journal of a job says is left on its source, now that it is over. Of two jobs that died while copies changed hands
/// the one that has these has the source; the other one must not touch it.
pub fn left(entries: &[Entry]) -> Footprint {
    let is_shared = entries.iter().any(|entry| matches!(entry, Entry::Resuming { .. }));
    let copies = entries.iter().rev().find_map(|entry| match entry {
        Entry::Copies { directory } => Some(directory),
        _ => None,
    });
    let is_gone = copies.is_some_and(|directory| !directory.exists());
    if is_shared && is_gone && journal::fate(entries) == Fate::Kept {
        return Footprint::default();
    }
    Footprint::of(entries).after(journal::succeeded(entries).is_some())
}

/// The sentence for a user whose source is not as it was found.
pub fn told(left: &Footprint, tag: &str) -> String {
    format!("left on the source: {left}. virt-v2v-wrapper cleanup {tag} puts that back")
}

/// Puts back what is left; a sentence for each thing that could not be.
pub async fn put_back(plan: &Plan, left: &Footprint, journal: &mut Journal) -> Vec<String> {
    if left.is_clean() {
        return Vec::new();
    }
    tracing::info!("putting back on the source: {left}");
    match Vsphere::connect(plan).await {
        Ok(vsphere) => {
            let problems = restore(&vsphere, left, REMOVAL, journal).await;
            vsphere.close().await;
            problems.iter().map(|problem| chain(problem)).collect()
        }
        Err(error) => vec![chain(&error)],
    }
}

/// The same for a job whose worker is gone, from its journal.
pub fn put_back_alone(plan: &Plan, path: &Path) -> Result<Vec<String>, JournalError> {
    let left = left(&journal::read(path)?);
    let mut journal = Journal::open(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(match runtime {
        Ok(runtime) => runtime.block_on(put_back(plan, &left, &mut journal)),
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
