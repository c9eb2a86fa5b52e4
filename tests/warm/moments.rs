//! Moments of a warm migration at which a test kills or cancels it, and what tests of that share.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::lab::{LIMIT, Lab, MIB, compare, hash, wait, wait_status};
use crate::rig::job::Job;
use crate::rig::poll;
use crate::rig::processes::is_alive;
use crate::vsphere::simulator::PASSWORD;

/// Where a job is when it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Some of the first copy is there.
    Base,
    /// A snapshot is being taken.
    Snapshot,
    /// A later round copies.
    Delta,
    /// Between two rounds.
    Waiting,
    /// The snapshot of a round is being removed.
    Removal,
    /// The guest was asked to shut down.
    Shutdown,
    /// The machine is off, and its last changes are copied.
    LastRound,
    /// virt-v2v-in-place runs.
    Conversion,
    /// All is done but for a snapshot that is still there.
    PutBack,
}

/// How long a guest takes to shut down where that matters, and a snapshot to come or go: longer than [`Moment::within`].
const SLOW: f64 = 1.2;

impl Moment {
    /// From the beginning of the moment on it is hit within so many milliseconds.
    pub fn within(self) -> u64 {
        match self {
            Self::Base | Self::Delta | Self::LastRound => 400,
            Self::Waiting => 200,
            Self::Snapshot | Self::Removal | Self::Shutdown | Self::PutBack => 900,
            Self::Conversion => 300,
        }
    }

    /// What must be so before the job starts that is to die here.
    pub fn prepare(self, lab: &Lab) {
        match self {
            Self::Base | Self::LastRound => lab.vddk("delay-us 100000"),
            Self::Conversion => lab.play(&[json!({"wait_for": lab.sandbox.path("never")})]),
            _ => {}
        }
    }

    /// Waits until the job is there. `is_cut_over`: an earlier one was on its way to the end, and this one goes on with it.
    pub fn reach(self, lab: &Lab, job: &Job, is_cut_over: bool) {
        let seen = |method: &str| lab.events_of(method, "begun").len();
        let again = |method: &str, before: usize| {
            poll(LIMIT, || (seen(method) > before).then_some(())).unwrap_or_else(|| panic!("no {method}"));
        };
        let cutover = || {
            if !is_cut_over {
                wait_status(job, "Waiting");
                lab.touch(job, "cutover");
            }
        };
        match self {
            Self::Base => {
                wait(job, "some of it", |state| state["bytes_copied"].as_u64() > Some(0));
            }
            Self::Waiting => drop(wait_status(job, "Waiting")),
            Self::Snapshot => {
                wait_status(job, "Waiting");
                lab.control(&format!("slow-snapshots?seconds={SLOW}"));
                let before = seen("CreateSnapshot_Task");
                lab.touch(job, "copy_trigger");
                again("CreateSnapshot_Task", before);
            }
            Self::Delta => {
                wait_status(job, "Waiting");
                lab.wait_written(3);
                lab.vddk("delay-us 100000");
                lab.touch(job, "copy_trigger");
                wait(job, "a round", |state| state["status"].as_str().unwrap().starts_with("Pre-copy"));
            }
            Self::Removal => {
                wait_status(job, "Waiting");
                lab.slow_removal(SLOW);
                let before = seen("RemoveSnapshot_Task");
                lab.touch(job, "copy_trigger");
                again("RemoveSnapshot_Task", before);
            }
            Self::Shutdown => {
                lab.control(&format!("guest?shutdownAfter={SLOW}"));
                let asked = || lab.events_of("ShutdownGuest", "done").len();
                let before = asked();
                cutover();
                poll(LIMIT, || (asked() > before).then_some(())).expect("the guest is asked");
            }
            Self::LastRound => {
                cutover();
                wait(job, "the last round", |state| state["status"].as_str().unwrap().ends_with("(last)"));
            }
            Self::Conversion => {
                cutover();
                wait(job, "virt-v2v-in-place", |state| state["started"] == true);
            }
            Self::PutBack => {
                wait_status(job, "Waiting");
                lab.wait_written(3);
                lab.vddk("hold");
                lab.touch(job, "copy_trigger");
                wait(job, "a round", |state| state["status"].as_str().unwrap().starts_with("Pre-copy"));
                // A snapshot that is there when the cutover is asked for is removed at the end.
                lab.slow_removal(SLOW);
                let before = seen("RemoveSnapshot_Task");
                lab.touch(job, "cutover");
                lab.vddk("");
                again("RemoveSnapshot_Task", before);
            }
        }
    }

    /// Is the machine on its way to its end from here on?
    pub fn is_cut_over(self) -> bool {
        matches!(self, Self::Shutdown | Self::LastRound | Self::Conversion | Self::PutBack)
    }
}

/// Nothing is slow any more.
pub fn calm(lab: &Lab) {
    lab.vddk("");
    lab.slow_removal(0.0);
    lab.slow_snapshot(0.0);
    lab.control("guest?shutdownAfter=0");
    lab.play(&[]);
}

/// Allowed to switch the machine off, and no round by the clock.
pub fn quick() -> Value {
    json!({"delta_interval": 3600, "shutdown_mode": "auto", "finalize_settle_seconds": 1})
}

/// [`quick`] with more keys.
pub fn with(more: &Value) -> Value {
    let mut keys = quick();
    keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    keys
}

/// What of the machine is not a migration's to change: snapshots, change tracking, disks and their files.
pub fn found(lab: &Lab) -> Value {
    let dump = lab.dump();
    json!([dump["snapshots"], dump["change_tracking"], dump["disks"]])
}

/// Kills all processes of the job as a power cut would.
pub fn cut(job: &mut Job) {
    let killed = || {
        let alive = job.alive();
        for (pid, _) in &alive {
            // Gone in the meantime is as good.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        alive.is_empty().then_some(())
    };
    poll(LIMIT, killed).expect("all are killed");
}

/// The tag of a job: in its reply, or, where places are always the same, of the only copies that are there.
pub fn tag(lab: &Lab, job: &Job) -> String {
    let state = PathBuf::from(job.reply().unwrap()["state_file"].as_str().unwrap());
    let directory = state.parent().unwrap();
    if lab.sandbox.layout == "job" {
        return directory.file_name().unwrap().to_string_lossy().into_owned();
    }
    let names = std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.file_name());
    let mut tags = names.filter_map(|name| name.to_str()?.strip_prefix("copies-").map(str::to_owned));
    let tag = tags.next().expect("copies");
    assert_eq!(tags.next(), None);
    tag
}

/// Goes on with a job, by the document or by the verb.
pub fn resume(lab: &Lab, tag: &str, keys: &Value, by_verb: bool) -> Job {
    let mut job = if by_verb {
        let password = json!({"vmware_password": PASSWORD}).to_string().into_bytes();
        let mut job = lab.sandbox.spawn_with(&["resume", tag], password);
        if job.wait_reply(LIMIT).is_none() {
            job.wait_exit(LIMIT);
            panic!("no reply: {}", String::from_utf8_lossy(&job.stderr().bytes));
        }
        job
    } else {
        let mut keys = keys.clone();
        keys["resume"] = json!(tag);
        lab.job(&keys)
    };
    own(&mut job);
    job
}

/// With layout uci the first states that are seen may be those of the job before.
fn own(job: &mut Job) {
    wait(job, "a state of its own", |state| {
        state["finished"] == true
            || state["wrapper_pid"].as_i64().is_some_and(|pid| is_alive(i32::try_from(pid).unwrap()))
    });
}

/// The end of every migration: all bytes, their checksums, and a machine that is off and otherwise as it was.
pub fn assert_arrived(lab: &mut Lab, last: &Value, before: &Value) {
    assert_eq!(last["failed"], json!(false), "{last:#}");
    lab.rest();
    for (disk, raw) in lab.raws.iter().enumerate() {
        compare(raw, &lab.target(disk), "raw", true).unwrap();
        assert_eq!(last["disks"][disk]["checksum"], json!(hash(raw)), "disk {disk}");
    }
    assert_eq!(found(lab), *before);
    assert_eq!(lab.power(), "poweredOff");
}

/// One disk.
pub fn one() -> Value {
    json!({"disks": [13 * MIB + 512], "tools": "running"})
}

/// Sizes that are no multiples of 64 KiB or 4 KiB; two disks with equal unit numbers.
pub fn three() -> Value {
    json!({
        "disks": [9 * MIB + 512, 5 * MIB + 1536, 7 * MIB], "controllers": [0, 0, 1], "tools": "running",
    })
}
