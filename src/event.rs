//! Events: everything a stage can say about the job, one value each.
//!
//! Stages emit them, [`crate::state::State::apply`] folds them, nothing else changes the state.
//! This is not a log: an event carries a fact the state needs, in the state's own terms.

use crate::phase::{DiskPhase, Phase};

/// A fact about the running job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The supervisor is up; its pid is shown as `wrapper_pid`.
    Supervised {
        /// Pid of the supervisor.
        pid: i32,
    },
    /// The worker is up; its pid is what cancels the job until virt-v2v runs.
    WorkerStarted {
        /// Pid of the worker.
        pid: i32,
    },
    /// The job entered a phase (contract.md 3.4).
    Entered(Phase),
    /// virt-v2v (or virt-v2v-in-place) was spawned.
    ToolStarted {
        /// Pid of the tool, a process-group and session leader.
        pid: i32,
    },
    /// The tool ended: exit code, or the negative signal number (contract.md 3.1).
    ToolExited {
        /// `0..=255`, or `-15` for SIGTERM and so on.
        return_code: i32,
    },
    /// virt-v2v printed one of its own messages, `[  12.3] TEXT` (virt-v2v-output.md 2).
    Message {
        /// The text without its time stamp.
        text: String,
    },
    /// `Copying disk N/M`.
    CopyStarted {
        /// N - 1.
        disk: usize,
        /// M.
        count: usize,
        /// What stands after ` to ` in 1.4x logs; `None` in 2.x, which ends after `N/M`.
        target: Option<String>,
    },
    /// A source path was opened; it belongs to the disk being copied (contract.md 5, lines 2, 4, 5).
    /// Already rewritten to the datastore form `[store] vm/disk.vmdk` where that applies.
    SourceOpened {
        /// Path of the source disk.
        path: String,
    },
    /// 2.x started the server of source disk `disk` (`.../inN`): its path is known before the copy.
    SourceServed {
        /// 0-based index of the disk in virt-v2v's own order.
        disk: usize,
        /// Path of the source disk, rewritten as above.
        path: String,
    },
    /// 2.x started the server of destination disk `disk`, or named the file: a file of ours.
    TargetServed {
        /// 0-based index of the disk.
        disk: usize,
        /// Path of the file that virt-v2v writes.
        path: String,
    },
    /// A percentage of the disk being copied.
    CopyProgress {
        /// `0.0..=100.0`.
        percent: f64,
    },
    /// All copies are over (`Creating output metadata`).
    CopyEnded,
    /// `displayName` of a vmx file: the guest's plain name (contract.md 5, line 3).
    DisplayName {
        /// The name.
        name: String,
    },
    /// `disk.id = 'UUID'`: a disk that virt-v2v made in oVirt.
    OvirtDisk {
        /// Its id.
        id: String,
    },
    /// A Cinder volume that virt-v2v made: `volume show` / `volume set` lines.
    CinderVolume {
        /// Its id.
        id: String,
        /// Position of the disk when the line says it (`virt_v2v_disk_index=I/N`, 0-based here).
        index: Option<usize>,
    },
    /// The id of the new virtual machine.
    VmId {
        /// The id.
        id: String,
    },
    /// The disks of a guest that we copy ourselves, in order.
    DisksFound {
        /// All of them.
        disks: Vec<FoundDisk>,
    },
    /// The size of a disk, as its server tells it.
    DiskSized {
        /// Index.
        disk: usize,
        /// Bytes.
        size: u64,
    },
    /// A disk of ours entered a phase.
    DiskEntered {
        /// Index.
        disk: usize,
        /// The phase.
        phase: DiskPhase,
    },
    /// A round of copies began, of all disks.
    RoundStarted {
        /// Which one, from 0.
        round: u32,
        /// After it the machine is converted.
        last: bool,
        /// Seconds since 1970.
        at: f64,
    },
    /// A round is over for all disks, also when copies of it failed that are tried again.
    RoundFinished {
        /// Which one, from 0.
        round: u32,
        /// After it the machine is converted.
        last: bool,
        /// Seconds since 1970.
        at: f64,
        /// Bytes of data copied.
        bytes: u64,
    },
    /// When the next round begins; `None`: that is not known, or none follows.
    NextRound {
        /// Seconds since 1970.
        at: Option<f64>,
    },
    /// How long the machine would be off if its last round began now.
    PredictedDowntime {
        /// Seconds; `None`: nobody can tell.
        seconds: Option<f64>,
    },
    /// A round began to copy a disk.
    RoundBegan {
        /// Index.
        disk: usize,
        /// The disk's file in this round: with snapshots it is another one each time.
        path: String,
        /// Change id from which on changes are copied; `*` is all of the disk.
        change_id: String,
        /// Seconds since 1970.
        at: f64,
    },
    /// It is known how much a round copies.
    RoundCounted {
        /// Index of the disk.
        disk: usize,
        /// Bytes of data, those that an earlier job finished included.
        to_copy: u64,
    },
    /// Bytes are on the target for good: flushed, compared, recorded.
    RoundAdvanced {
        /// Index of the disk.
        disk: usize,
        /// Bytes of data finished in this round.
        copied: u64,
    },
    /// A round is over for a disk.
    RoundEnded {
        /// Index.
        disk: usize,
        /// Seconds since 1970.
        at: f64,
        /// Whether it was the last one: in another one an error is made good by the next.
        last: bool,
        /// Checksum of the whole disk, or what went wrong.
        result: Result<String, String>,
    },
    /// How fast data comes at the moment.
    Rate {
        /// Bytes per second.
        bytes_per_second: u64,
    },
    /// How much of what the conversion changed a disk has got.
    CommitProgress {
        /// Index.
        disk: usize,
        /// `0.0..=100.0`.
        percent: f64,
    },
    /// Something a client should know although the job goes on.
    Warning {
        /// A sentence.
        text: String,
    },
    /// Limits were asked for; those that are in force now, as the state shows them.
    Throttled {
        /// `50%`, `unlimited`, or `None`: nobody spoke of it.
        cpu: Option<String>,
        /// Bytes per second, `unlimited`, or `None`.
        network: Option<String>,
    },
    /// The job waits for something outside itself; `None` when it goes on.
    WaitingFor {
        /// What for.
        what: Option<String>,
    },
    /// The user-visible error. The last one wins (contract.md 3.1).
    Failed {
        /// One sentence a person can act on.
        message: String,
    },
    /// The last event of a job.
    Finished {
        /// Whether the job failed.
        failed: bool,
    },
}

/// A disk that we copy ourselves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FoundDisk {
    /// The path its owner knows.
    pub path: String,
    /// The source's label.
    pub label: String,
    /// Where its host keeps it.
    pub absolute_path: Option<String>,
    /// Bytes of its content.
    pub size: Option<u64>,
}

impl Event {
    /// The event with its free text, the one a tool or a server worded, changed by `change`.
    pub fn map_text(self, change: impl Fn(String) -> String) -> Self {
        match self {
            Event::Message { text } => Event::Message { text: change(text) },
            Event::Warning { text } => Event::Warning { text: change(text) },
            Event::Failed { message } => Event::Failed { message: change(message) },
            Event::WaitingFor { what } => Event::WaitingFor { what: what.map(change) },
            Event::RoundEnded { disk, at, last, result } => {
                Event::RoundEnded { disk, at, last, result: result.map_err(change) }
            }
            other => other,
        }
    }
}
