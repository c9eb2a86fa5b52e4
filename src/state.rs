//! The state a client polls, and how events change it. Pure: no clock, no file.
//!
//! Contract keys have the meaning and shape of contract.md 3 (the `failed` rule is v2's: absent until the end).
//! The keys below [`State::version`] are ours, on top; every client may ignore them. [`crate::state_file`]
//! stamps `sequence` and `updated_at` when it writes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::phase::Phase;

mod one_phase;
mod steps;
mod two_phase;
mod warm;

use one_phase::Copies;
pub use two_phase::{Round, TwoPhaseDisk};
pub use warm::JobRound;
use warm::Stretch;

/// Version of the state's schema.
pub const VERSION: u32 = 1;

/// The state file's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// Disks of the guest, in the order in which virt-v2v copies them as soon as that is known.
    pub disks: Vec<Disk>,
    /// Number of disks: from `source_disks`, or as virt-v2v says it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disk_count: Option<usize>,
    /// Where the job stands (contract.md 3.4).
    #[serde(default)]
    pub status: String,
    /// True once virt-v2v was spawned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started: Option<bool>,
    /// The process whose killing cancels the job: virt-v2v while it runs, the worker otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
    /// virt-v2v's exit code, or the negative number of the signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub return_code: Option<i32>,
    /// Absent until the end, then whether the job failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed: Option<bool>,
    /// True in the last write and only there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finished: Option<bool>,
    /// The user-visible error: what happened, to what, what to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_message: Option<LastMessage>,
    /// Id of the new virtual machine, where the destination has such a thing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vm_id: Option<String>,
    /// Limits in force, once any were asked for (contract.md 8.1).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub throttling: Option<Throttling>,

    /// Version of this schema.
    #[serde(default)]
    pub version: u32,
    /// Grows by one with every write.
    #[serde(default)]
    pub sequence: u64,
    /// Time of the write, RFC 3339, UTC.
    #[serde(default)]
    pub updated_at: String,
    /// What is being done, in virt-v2v's own words while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stage: Option<String>,
    /// The whole job, 0 to 100. Never falls.
    #[serde(default)]
    pub progress: f64,
    /// Pid of the supervisor; killing it cancels the job too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wrapper_pid: Option<i32>,
    /// What the job waits for outside itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waiting_for: Option<String>,
    /// Things worth knowing although the job went on.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub warnings: Vec<String>,

    /// Bytes of data that are on the targets for good, over all disks, in the round that runs (two-phase).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_copied: Option<u64>,
    /// Bytes of data to copy, over all disks, in the round that runs (two-phase).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_total: Option<u64>,
    /// Bytes per second at the moment (two-phase, while copying).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate: Option<u64>,
    /// Seconds until all is copied, at this rate (two-phase, while copying).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eta_seconds: Option<u64>,
    /// True: the machine runs while it is copied, and the trigger files count (warm).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warm: Option<bool>,
    /// When the next round begins, seconds since 1970; absent when none is planned (warm).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_round_at: Option<f64>,
    /// How long the machine would be off, from its shutdown to the end of its last copy, if that began now (warm, from
    /// the second round on). The conversion comes on top.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub predicted_downtime_seconds: Option<f64>,
    /// The rounds, of all disks together: the first and the newest (warm).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rounds: Vec<JobRound>,

    /// What the log told about the copies, for placing the next line.
    #[serde(skip)]
    #[schemars(skip)]
    copies: Copies,
    /// The part of the job that the round that runs is.
    #[serde(skip)]
    #[schemars(skip)]
    stretch: Stretch,
}

/// Limits in force. Both keys are always there; `null` is a limit that nobody asked for, or that could not be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Throttling {
    /// Percentage of one processor with its sign, or `unlimited`.
    pub cpu: Option<String>,
    /// Bytes per second, or `unlimited`.
    pub network: Option<String>,
}

/// One disk of the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Disk {
    /// Path on the source, as the client gave it or as virt-v2v opened it.
    pub path: String,
    /// 0 to 100. Never falls; 100 at the end of a successful job.
    pub progress: f64,
    /// What we copy ourselves has more to tell.
    #[serde(flatten)]
    pub two_phase: TwoPhaseDisk,
}

/// The user-visible error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastMessage {
    /// The text.
    pub message: String,
    /// Always `error`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A server or log that lies about its disks must not grow the state without bound.
const MOST_DISKS: usize = 1024;
const MOST_WARNINGS: usize = 100;

impl Default for State {
    fn default() -> Self {
        Self {
            disks: Vec::new(),
            disk_count: None,
            status: Phase::default().text(),
            started: None,
            pid: None,
            return_code: None,
            failed: None,
            finished: None,
            last_message: None,
            vm_id: None,
            throttling: None,
            version: VERSION,
            sequence: 0,
            updated_at: String::new(),
            stage: None,
            progress: 0.0,
            wrapper_pid: None,
            waiting_for: None,
            warnings: Vec::new(),
            bytes_copied: None,
            bytes_total: None,
            rate: None,
            eta_seconds: None,
            warm: None,
            next_round_at: None,
            predicted_downtime_seconds: None,
            rounds: Vec::new(),
            copies: Copies::default(),
            stretch: Stretch::default(),
        }
    }
}

impl State {
    /// The state of a job whose disks the client named (or whose files we were given). `count_known` says
    /// whether `disk_count` may be shown already (contract.md 3.1: when `source_disks` was given).
    pub fn with_disks(paths: &[String], count_known: bool) -> Self {
        Self {
            disks: paths.iter().map(|path| Disk::new(path)).collect(),
            disk_count: count_known.then_some(paths.len()),
            ..Self::default()
        }
    }

    /// Is this the last state of its job?
    pub fn is_finished(&self) -> bool {
        self.finished == Some(true)
    }

    /// The guest's plain name as the log told it.
    pub fn display_name(&self) -> Option<&str> {
        self.copies.display_name.as_deref()
    }

    /// Folds one event. Nothing changes after [`Event::Finished`].
    pub fn apply(&mut self, event: Event) {
        if self.is_finished() {
            return;
        }
        match event {
            Event::Supervised { pid } => self.wrapper_pid = Some(pid),
            Event::WorkerStarted { pid } => self.pid = Some(pid),
            Event::Entered(phase) => self.enter(phase),
            Event::ToolStarted { pid } => {
                self.pid = Some(pid);
                self.started = Some(true);
            }
            Event::ToolExited { return_code } => self.return_code = Some(return_code),
            Event::Message { text } => self.enter_step(text),
            Event::CopyStarted { disk, count, target } => self.start_copy(disk, count, target.is_some()),
            Event::SourceOpened { path } => self.open_source(path),
            Event::SourceServed { disk, path } => self.serve_source(disk, path),
            Event::CopyProgress { percent } => self.progress_copy(percent),
            Event::CopyEnded => {
                self.close_current();
                self.copies.current = None;
            }
            Event::DisplayName { name } => self.copies.display_name = Some(name),
            Event::VmId { id } => self.vm_id = Some(id),
            Event::Warning { text } => self.warn(text),
            Event::Throttled { cpu, network } => self.throttling = Some(Throttling { cpu, network }),
            Event::WaitingFor { what } => self.waiting_for = what,
            Event::Failed { message } => {
                self.last_message = Some(LastMessage { message, kind: "error".to_owned() });
            }
            Event::Finished { failed } => self.finish(failed),
            Event::RoundStarted { .. }
            | Event::RoundFinished { .. }
            | Event::NextRound { .. }
            | Event::PredictedDowntime { .. } => self.apply_warm(event),
            Event::DisksFound { .. }
            | Event::DiskSized { .. }
            | Event::DiskEntered { .. }
            | Event::RoundBegan { .. }
            | Event::RoundCounted { .. }
            | Event::RoundAdvanced { .. }
            | Event::RoundEnded { .. }
            | Event::Rate { .. }
            | Event::CommitProgress { .. } => self.apply_two_phase(event),
            // Facts that the destination keeps for undo and finish; clients have no key for them.
            Event::TargetServed { .. } | Event::OvirtDisk { .. } | Event::CinderVolume { .. } => {}
        }
    }

    fn warn(&mut self, text: String) {
        if self.warnings.len() < MOST_WARNINGS && !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    fn raise(&mut self, percent: f64) {
        if percent > self.progress {
            self.progress = (percent * 100.0).round() / 100.0;
        }
    }

    fn finish(&mut self, failed: bool) {
        if !failed {
            self.disks.iter_mut().for_each(|disk| disk.progress = 100.0);
            self.progress = 100.0;
        }
        self.waiting_for = None;
        self.rate = None;
        self.eta_seconds = None;
        self.forget_plans();
        self.failed = Some(failed);
        self.finished = Some(true);
    }
}

impl Disk {
    fn new(path: &str) -> Self {
        Self { path: path.to_owned(), progress: 0.0, two_phase: TwoPhaseDisk::default() }
    }
}

#[cfg(test)]
mod tests;
