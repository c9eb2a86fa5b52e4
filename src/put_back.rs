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

/// What the journal of a job says is left on its source, now that it is over. A job that died while it took over the copies
/// of another, or while these were taken from it, has nothing there: who has the copies has the source.
pub fn left(entries: &[Entry]) -> Footprint {
    let copies = entries.iter().rev().find_map(|entry| match entry {
        Entry::Copies { directory } => Some(directory),
        _ => None,
    });
    if journal::fate(entries) == Fate::Kept && copies.is_some_and(|directory| !directory.exists()) {
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
