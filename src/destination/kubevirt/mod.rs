//! The conversion pod of KubeVirt: virt-v2v writes into the pod's own volumes, and whoever made the pod reads how far it is
//! from the pod's annotations (contract.md 8.3).
//!
//! `v2vConversionProgress` is the mean of the disks' percentages while the job runs, `v2vConversionMetadata` at the end the
//! file that describes the new machine. Nothing of this can fail a conversion: a server that is away is told later. A task
//! beside virt-v2v does it, which looks at the state file like any other client.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Destination, DestinationError, Work};
use crate::event::Event;
use crate::job::Job;
use crate::log::chain;
use crate::state::State;
use crate::state_file;

mod pod;

use pod::{Pod, PodError};

/// Percentage of all disks.
const PROGRESS: &str = "v2vConversionProgress";
/// Path of what describes the machine.
const METADATA: &str = "v2vConversionMetadata";
/// The progress is told this often at most: each time is a write of the cluster's database.
const EVERY: Duration = Duration::from_secs(3);
/// How long a finished job tries to say so, and how often.
const LAST_WORD: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);

/// What went wrong with the pod: nothing that ends a job.
#[derive(Debug, thiserror::Error)]
pub enum KubevirtError {}

/// `data/vm` of the working directory.
#[derive(Debug)]
pub struct Kubevirt {
    /// Absolute path.
    pub directory: PathBuf,
}

/// Whoever tells the pod how far the job is, while it runs.
#[derive(Debug)]
pub struct Reporter {
    /// `None` outside a cluster.
    pod: Option<Pod>,
    /// Ends with this value.
    task: JoinSet<()>,
    told: Rc<RefCell<Told>>,
}

/// What the pod was told.
#[derive(Debug, Default)]
struct Told {
    /// The last progress that arrived.
    progress: Option<String>,
    /// The first thing that went wrong.
    trouble: Option<String>,
}

impl Destination for Kubevirt {
    type Handle = Reporter;

    async fn prepare(&self, work: &mut Work<'_>) -> Result<Reporter, DestinationError> {
        let told = Rc::<RefCell<Told>>::default();
        let mut task = JoinSet::new();
        let pod = match Pod::of(&|name| std::env::var_os(name)) {
            Ok(pod) => Some(pod),
            Err(missing) => {
                let text = format!(
                    "{missing} is not set: this is no pod of a cluster, so nobody is told the progress by annotations"
                );
                work.tell(Event::Warning { text });
                None
            }
        };
        if let Some(pod) = pod.clone() {
            task.spawn_local(report(pod, work.job.files.state(), Rc::clone(&told)));
        }
        Ok(Reporter { pod, task, told })
    }

    async fn finalize(
        &self,
        reporter: Reporter,
        state: &State,
        work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        let Some((pod, told)) = reporter.stop().await else { return Ok(None) };
        let mut last = annotation(PROGRESS, "100");
        let (path, is_there) = self.metadata(work.job, state);
        if !is_there {
            let text = format!("virt-v2v did not leave {}, which {METADATA} names", path.display());
            work.tell(Event::Warning { text });
        }
        last.extend(annotation(METADATA, &path.to_string_lossy()));
        let until = Instant::now() + work.job.plan.tools.patience(LAST_WORD);
        work.waits_for(Some("the API server of the cluster, to write the annotations of this pod"));
        let said = loop {
            match pod.annotate(&last).await {
                Err(error) if Instant::now() + AGAIN < until => {
                    note_trouble(&told, &error);
                    sleep(AGAIN).await;
                }
                said => break said,
            }
        };
        match (said, told.borrow_mut().trouble.take()) {
            (Err(error), _) => work.tell(Event::Warning {
                text: format!(
                    "the annotations of this pod do not say that the job is done: {}",
                    chain(&error)
                ),
            }),
            (Ok(()), Some(trouble)) => work
                .tell(Event::Warning { text: format!("the annotations of this pod were late: {trouble}") }),
            (Ok(()), None) => {}
        }
        Ok(None)
    }

    async fn abandon(&self, reporter: Reporter) {
        // It was told how far the job came; that it failed is the pod's end to say.
        reporter.stop().await;
    }
}

impl Kubevirt {
    /// What virt-v2v wrote beside the disks: `-o json` a JSON file, `-o kubevirt` (2.1.12 and later) a YAML one. Its name is
    /// the guest's, and whose word that was the source's matter.
    fn metadata(&self, job: &Job, state: &State) -> (PathBuf, bool) {
        let extension = if job.capabilities.has("output:kubevirt") { "yaml" } else { "json" };
        let named = |name: &str| self.directory.join(format!("{name}.{extension}"));
        let usual = named(&job.plan.vm_name);
        let known = [Some(usual.clone()), state.display_name().map(named)];
        let found = known.into_iter().flatten().find(|path| path.is_file());
        match found.or_else(|| only(&self.directory, extension)) {
            Some(path) => (path, true),
            None => (usual, false),
        }
    }
}

/// The one file with this extension.
fn only(directory: &Path, extension: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    let mut files = files.filter(|path| path.extension().is_some_and(|has| has == extension));
    files.next().filter(|_| files.next().is_none())
}

impl Reporter {
    /// Ends the task; what remains to be told, and to whom.
    async fn stop(mut self) -> Option<(Pod, Rc<RefCell<Told>>)> {
        self.task.shutdown().await;
        Some((self.pod?, self.told))
    }
}

/// Tells the pod the progress until it is stopped.
async fn report(pod: Pod, state_file: PathBuf, told: Rc<RefCell<Told>>) {
    loop {
        // A state that cannot be read now is read the next time.
        let now = state_file::read(&state_file).ok().map(|state| progress(&state));
        if let Some(now) = now.filter(|now| told.borrow().progress.as_ref() != Some(now)) {
            match pod.annotate(&annotation(PROGRESS, &now)).await {
                Ok(()) => told.borrow_mut().progress = Some(now),
                Err(error) => note_trouble(&told, &error),
            }
        }
        sleep(EVERY).await;
    }
}

/// Said once: it is tried on.
fn note_trouble(told: &RefCell<Told>, error: &PodError) {
    let mut told = told.borrow_mut();
    if told.trouble.is_none() {
        let text = chain(error);
        tracing::warn!("the annotations of this pod cannot be written now, which is tried on: {text}");
        told.trouble = Some(text);
    }
}

fn annotation(name: &str, value: &str) -> Map<String, Value> {
    Map::from_iter([(name.to_owned(), Value::from(value))])
}

/// The mean of the disks' percentages, as a text: annotations have no other type.
fn progress(state: &State) -> String {
    let disks = state.disks.iter().map(|disk| disk.progress);
    // The sum of nothing is -0.
    let mean = (disks.sum::<f64>() + 0.0) / state.disks.len().max(1) as f64;
    format!("{}", (mean * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_is_the_mean_of_the_disks() {
        for (disks, expected) in [
            (&[][..], "0"),
            (&[0.0, 0.0], "0"),
            (&[100.0, 0.0, 0.0], "33.33"),
            (&[25.5, 75.5], "50.5"),
            (&[100.0, 100.0], "100"),
        ] {
            let mut state = State::with_disks(&vec![String::new(); disks.len()], true);
            state.disks.iter_mut().zip(disks).for_each(|(disk, progress)| disk.progress = *progress);
            assert_eq!(progress(&state), expected, "{disks:?}");
        }
    }

    #[test]
    fn the_machine_is_described_by_the_only_file_if_none_has_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        assert_eq!(only(directory.path(), "yaml"), None);
        std::fs::write(file("a.yaml"), "").unwrap();
        std::fs::write(file("a.json"), "").unwrap();
        assert_eq!(only(directory.path(), "yaml"), Some(file("a.yaml")));
        std::fs::write(file("b.yaml"), "").unwrap();
        assert_eq!(only(directory.path(), "yaml"), None);
    }
}
