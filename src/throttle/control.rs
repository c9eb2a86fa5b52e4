//! The limits of a running job put into force: what the stages hold.
//!
//! [`Throttling::start`] does what the document asks for, [`Throttling::step`] what a client asks for later. Both give
//! events and fail no job: a limit that cannot be had is a warning, and the state shows those that are in force.
//! Called by [`crate::run`] and the stages.

use std::path::PathBuf;

use super::bucket::Bucket;
use super::cgroup::{self, Cgroup, CgroupError};
use super::file::Watch;
use super::rate_file::{self, NoRateFile, RateFileError};
use super::{Asked, Cpu, Limits, Rate};
use crate::event::Event;
use crate::job::Job;
use crate::journal::{Entry, Journal, JournalError};
use crate::log::chain;
use crate::process;

/// A process may fork while the others are being moved; then they are looked through again.
const PASSES: usize = 5;

/// A limit is not in force. The texts begin with the old program's (contract.md 8.1).
#[derive(Debug, thiserror::Error)]
enum SetError {
    #[error("Failed to set CPU limit to {cpu}: {reason}")]
    Cpu { cpu: Cpu, reason: CpuError },
    #[error("Failed to set network limit to {rate}: {reason}")]
    Network { rate: Rate, reason: NetworkError },
}

#[derive(Debug, thiserror::Error)]
enum CpuError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot read /proc/self/cgroup: {0}")]
    Membership(std::io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error(transparent)]
    Impossible(#[from] NoRateFile),
    #[error(transparent)]
    Write(#[from] RateFileError),
}

/// The limits of one job, and what puts them into force.
pub struct Throttling {
    watch: Watch,
    /// In force.
    limits: Limits,
    network: Network,
    processors: Processors,
}

impl Throttling {
    /// Puts the document's limits into force, before any tool is started. The job's private directory must exist.
    pub fn start(job: &Job) -> (Self, Vec<Event>) {
        let private = job.files.private_directory(&job.plan.tools.tmp_dir);
        let copier = match job.plan.two_phase {
            Some(_) => Copier::Own,
            None => rate_file::path(&job.plan, &job.capabilities, &private)
                .map_or_else(Copier::Unlimited, Copier::VirtV2v),
        };
        let mut throttling = Self {
            watch: Watch::new(job.files.throttling()),
            limits: Limits::default(),
            network: Network { bucket: Bucket::default(), copier },
            processors: Processors {
                root: cgroup::ROOT.into(),
                membership: None,
                tag: job.files.tag.clone(),
                journal: job.files.journal(),
                cgroup: None,
            },
        };
        let events = throttling.apply(&Asked { limits: job.plan.limits, problems: Vec::new() });
        (throttling, events)
    }

    /// What limits the bytes that the program copies itself.
    pub fn bucket(&self) -> &Bucket {
        &self.network.bucket
    }

    /// Waits until a client asks for other limits, puts them into force, and gives what is to be recorded. Never returns
    /// if none does. Safe to drop and call again.
    pub async fn step(&mut self) -> Vec<Event> {
        match self.watch.changed().await {
            Ok(asked) => self.apply(&asked),
            Err(error) => vec![warning(&error)],
        }
    }

    /// Key by key: what nobody speaks of, and what cannot be, stays as it was.
    fn apply(&mut self, asked: &Asked) -> Vec<Event> {
        let mut events: Vec<Event> = asked.problems.iter().map(|problem| warning(problem)).collect();
        if let Some(cpu) = asked.limits.cpu.filter(|cpu| self.limits.cpu != Some(*cpu)) {
            match self.processors.limit(cpu) {
                Ok(()) => self.limits.cpu = Some(cpu),
                Err(reason) => events.push(warning(&SetError::Cpu { cpu, reason })),
            }
        }
        if let Some(rate) = asked.limits.network.filter(|rate| self.limits.network != Some(*rate)) {
            match self.network.limit(rate) {
                Ok(()) => self.limits.network = Some(rate),
                Err(reason) => events.push(warning(&SetError::Network { rate, reason })),
            }
        }
        if asked.limits != Limits::default() {
            let cpu = self.limits.cpu.map(|cpu| cpu.to_string());
            let network = self.limits.network.map(|rate| rate.to_string());
            tracing::info!("limits in force: cpu {cpu:?}, network {network:?} (bytes per second)");
            events.push(Event::Throttled { cpu, network });
        }
        events
    }
}

/// For the log too: who looks into a finished job finds it there with its time.
fn warning(error: &dyn std::error::Error) -> Event {
    let text = chain(error);
    tracing::warn!("{text}");
    Event::Warning { text }
}

/// Who copies.
enum Copier {
    /// This program, as far as the bucket lets it.
    Own,
    /// virt-v2v, which looks into this file.
    VirtV2v(PathBuf),
    /// virt-v2v, as fast as it can.
    Unlimited(NoRateFile),
}

struct Network {
    bucket: Bucket,
    copier: Copier,
}

impl Network {
    fn limit(&mut self, rate: Rate) -> Result<(), NetworkError> {
        match &self.copier {
            Copier::Own => self.bucket.set(rate.bytes_per_second()),
            Copier::VirtV2v(file) => rate_file::write(file, rate)?,
            // No limit is what there is.
            Copier::Unlimited(_) if rate == Rate::Unlimited => {}
            Copier::Unlimited(reason) => return Err((*reason).into()),
        }
        Ok(())
    }
}

struct Processors {
    /// Where the tree of cgroups is mounted.
    root: PathBuf,
    /// Instead of what `/proc/self/cgroup` says.
    membership: Option<String>,
    tag: String,
    journal: PathBuf,
    /// Made for the first limit.
    cgroup: Option<Cgroup>,
}

impl Processors {
    fn limit(&mut self, cpu: Cpu) -> Result<(), CpuError> {
        match (&self.cgroup, cpu) {
            (Some(cgroup), cpu) => Ok(cgroup.limit(cpu)?),
            (None, Cpu::Unlimited) => Ok(()),
            (None, Cpu::Percent(_)) => {
                self.cgroup = Some(self.make(cpu)?);
                Ok(())
            }
        }
    }

    fn make(&self, cpu: Cpu) -> Result<Cgroup, CpuError> {
        let membership = match &self.membership {
            Some(membership) => membership.clone(),
            None => cgroup::membership().map_err(CpuError::Membership)?,
        };
        let cgroup = Cgroup::new(&self.root, &membership, &self.tag)?;
        Journal::open(&self.journal)?.record(&Entry::Cgroup { path: cgroup.path().to_owned() })?;
        cgroup.create()?;
        match cgroup.limit(cpu).and_then(|()| enter(&cgroup)) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                if let Err(left) = cgroup::remove(cgroup.path()) {
                    tracing::warn!("{} stays for now: {left}", cgroup.path().display());
                }
                Err(error.into())
            }
        }
    }
}

/// The worker first, so that what it starts from here on is born inside; then what runs already.
fn enter(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let mut inside = vec![nix::unistd::getpid()];
    cgroup.enter(nix::unistd::getpid().as_raw())?;
    for _ in 0..PASSES {
        let mut outside = process::descendants();
        outside.retain(|process| !inside.contains(&process.pid));
        if outside.is_empty() {
            break;
        }
        for process in outside {
            cgroup.enter(process.pid.as_raw())?;
            inside.push(process.pid);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal;

    /// A job in a directory of its own. The tree of cgroups is a directory too ([`cgroup`]'s tests say what that shows).
    struct Rig {
        directory: tempfile::TempDir,
        throttling: Throttling,
    }

    impl Rig {
        fn new(copier: impl FnOnce(PathBuf) -> Copier, controllers: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            std::fs::create_dir(path("tree")).unwrap();
            std::fs::write(path("tree/cgroup.controllers"), controllers).unwrap();
            let throttling = Throttling {
                watch: Watch::new(path("throttling.json")),
                limits: Limits::default(),
                network: Network { bucket: Bucket::default(), copier: copier(path("bandwidth")) },
                processors: Processors {
                    root: path("tree"),
                    membership: Some("0::/\n".to_owned()),
                    tag: "t".to_owned(),
                    journal: path("journal.jsonl"),
                    cgroup: None,
                },
            };
            Self { directory, throttling }
        }

        async fn put(&mut self, text: &str) -> Vec<Event> {
            std::fs::write(self.directory.path().join("throttling.json"), text).unwrap();
            tokio::time::timeout(std::time::Duration::from_secs(60), self.throttling.step()).await.unwrap()
        }

        fn content(&self, name: &str) -> Option<String> {
            std::fs::read_to_string(self.directory.path().join(name)).ok()
        }
    }

    fn throttled(cpu: Option<&str>, network: Option<&str>) -> Event {
        Event::Throttled { cpu: cpu.map(str::to_owned), network: network.map(str::to_owned) }
    }

    fn texts(events: &[Event]) -> Vec<&str> {
        let warnings = events.iter().filter_map(|event| match event {
            Event::Warning { text } => Some(text.as_str()),
            _ => None,
        });
        warnings.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn limits_are_merged_key_by_key_and_the_same_again_is_no_error() {
        let mut rig = Rig::new(Copier::VirtV2v, "cpu\n");
        assert_eq!(rig.put(r#"{"network": "1000"}"#).await, [throttled(None, Some("1000"))]);
        assert_eq!(rig.content("bandwidth").as_deref(), Some("8000\n"));
        assert_eq!(
            rig.content("journal.jsonl"),
            None,
            "nothing is begun before a processor limit is asked for"
        );
        assert_eq!(
            rig.put(r#"{"cpu": "50", "network": null}"#).await,
            [throttled(Some("50%"), Some("1000"))]
        );
        for _ in 0..2 {
            assert_eq!(
                rig.put(r#"{"cpu": "unlimited"}"#).await,
                [throttled(Some("unlimited"), Some("1000"))]
            );
        }
        assert_eq!(
            rig.content("tree/virt-v2v-t/cpu.max").as_deref(),
            Some("50000 100000\nmax 100000\n"),
            "a limit that holds is not set again"
        );
        let inside = rig.content("tree/virt-v2v-t/cgroup.procs").unwrap();
        assert!(inside.starts_with(&format!("{}\n", std::process::id())), "the worker goes first: {inside}");
        let entries = journal::read(&rig.directory.path().join("journal.jsonl")).unwrap();
        assert_eq!(entries, [Entry::Cgroup { path: rig.directory.path().join("tree/virt-v2v-t") }]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_is_a_warning_and_the_state_shows_what_is() {
        let mut rig = Rig::new(|_| Copier::Unlimited(NoRateFile::LocalSource), "memory\n");
        let events = rig.put(r#"{"cpu": "50%", "network": "7"}"#).await;
        assert_eq!(events.last(), Some(&throttled(None, None)));
        let warnings = texts(&events);
        assert!(warnings[0].starts_with("Failed to set CPU limit to 50%: ") && warnings.len() == 2);
        assert!(warnings[1].starts_with("Failed to set network limit to 7: "), "{warnings:?}");
        // Without a limit it is as it was asked.
        let events = rig.put(r#"{"cpu": "unlimited", "network": "unlimited"}"#).await;
        assert_eq!(events, [throttled(Some("unlimited"), Some("unlimited"))]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_understood_is_a_warning_and_the_limits_hold() {
        let mut rig = Rig::new(|_| Copier::Own, "");
        let bucket = rig.throttling.bucket().clone();
        rig.put(r#"{"network": 1000}"#).await;
        assert_eq!(bucket.rate().map(|rate| rate.get()), Some(1000));
        let events = rig.put(r#"{"network": "fast", "cpu": "faster"}"#).await;
        assert_eq!((events.len(), texts(&events).len()), (2, 2), "{events:?}");
        assert_eq!(bucket.rate().map(|rate| rate.get()), Some(1000));
        let events = rig.put("[]").await;
        assert!(texts(&events)[0].starts_with("Failed to read throttling file"), "{events:?}");
        rig.put(r#"{"network": "unlimited"}"#).await;
        assert_eq!(bucket.rate(), None);
    }
}
