//! Everything dies at any moment of a warm migration, and who goes on with it brings the machine to its end: every byte as it
//! was when the machine went off.
//!
//! The moments are random within what they are named after; the seed is printed, and `V2V_TEST_SEED` repeats it.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::lab::{LIMIT, Lab, MIB, compare, hash, wait, wait_status};
use crate::rig::job::Job;
use crate::rig::processes::{is_alive, parent_of};
use crate::rig::{always, json_file, poll};
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
    fn within(self) -> u64 {
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
    fn is_cut_over(self) -> bool {
        matches!(self, Self::Shutdown | Self::LastRound | Self::Conversion | Self::PutBack)
    }
}

/// Nothing is slow any more.
pub fn calm(lab: &Lab) {
    lab.vddk("");
    lab.slow_removal(0.0);
    lab.control("slow-snapshots?seconds=0");
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

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % limit
    }
}

/// A new one each time, unless the environment repeats one.
fn seed() -> Random {
    let given = std::env::var("V2V_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed: u64 = given.unwrap_or(u64::try_from(now.as_nanos() & 0xffff_ffff_ffff).unwrap());
    println!("V2V_TEST_SEED={seed}");
    Random(seed | 1)
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

/// A migration that dies at each of these moments, one after the other, and is gone on with.
fn survive(layout: &'static str, machine: &Value, moments: &[Moment]) {
    let Some(mut lab) = Lab::start(layout, machine) else { return };
    let mut random = seed();
    lab.write(&["--rate", "8388608"]);
    let before = found(&lab);
    moments[0].prepare(&lab);
    let mut job = lab.job(&quick());
    let mut is_cut_over = false;
    let mut seen = 0;
    for (number, moment) in moments.iter().enumerate() {
        moment.reach(&lab, &job, is_cut_over);
        let pause = random.below(moment.within());
        println!("{moment:?} + {pause} ms");
        std::thread::sleep(Duration::from_millis(pause));
        cut(&mut job);
        is_cut_over |= moment.is_cut_over();
        let tag = tag(&lab, &job);
        let states = job.end();
        if layout == "job" {
            let broken = always::states(&states);
            assert!(broken.is_empty(), "{}", broken.join("\n"));
        }
        seen += states.states.len();
        calm(&lab);
        if *moment == Moment::PutBack {
            assert_eq!(number, moments.len() - 1);
            return put_back_by_hand(&mut lab, &tag, &before);
        }
        if let Some(next) = moments.get(number + 1) {
            next.prepare(&lab);
        }
        job = resume(&lab, &tag, &quick(), random.below(2) == 0);
    }
    assert!(seen > 0);
    if !is_cut_over {
        wait_status(&job, "Waiting");
        lab.wait_written(3);
        lab.touch(&job, "cutover");
    }
    let last = lab.end(&mut job);
    assert_arrived(&mut lab, &last, &before);
}

/// The machine had arrived when everything died: that is what whoever looks next says, and how the source is put back.
fn put_back_by_hand(lab: &mut Lab, tag: &str, before: &Value) {
    let jobs = lab.sandbox.child(&["jobs"], "").wait_with_output().unwrap();
    assert!(jobs.status.success(), "{jobs:?}");
    let last = json_file(lab.sandbox.path("state/jobs").join(tag).join("state.json"));
    assert_eq!((&last["finished"], &last["failed"]), (&json!(true), &json!(false)), "{last:#}");
    let warnings = last["warnings"].to_string();
    assert!(warnings.contains(&format!("virt-v2v-wrapper cleanup {tag}")), "{warnings}");
    let password = json!({"vmware_password": PASSWORD}).to_string();
    let output = lab.sandbox.child(&["cleanup", tag], &password).wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_arrived(lab, &last, before);
}

fn one() -> Value {
    json!({"disks": [13 * MIB + 512], "tools": "running"})
}

/// Sizes that are no multiples of 64 KiB or 4 KiB; two disks with equal unit numbers.
pub fn three() -> Value {
    json!({
        "disks": [9 * MIB + 512, 5 * MIB + 1536, 7 * MIB], "controllers": [0, 0, 1], "tools": "running",
    })
}

use Moment::{Base, Conversion, Delta, LastRound, PutBack, Removal, Shutdown, Snapshot, Waiting};

#[test]
fn killed_in_its_first_copy_and_in_its_last() {
    survive("job", &one(), &[Base, Base, LastRound, Conversion]);
    survive("job", &three(), &[Base, Base, LastRound, LastRound]);
}

#[test]
fn killed_while_snapshots_come_and_go() {
    survive("job", &one(), &[Snapshot, Removal, Removal, Snapshot, PutBack]);
    survive("job", &three(), &[Removal, Snapshot, Delta, Shutdown, LastRound]);
}

#[test]
fn killed_between_and_in_later_rounds() {
    survive("job", &one(), &[Waiting, Delta, Delta, Shutdown, Conversion]);
    survive("job", &three(), &[Delta, Waiting, Delta, Removal, PutBack]);
}

/// In layout uci all jobs are in the same place.
#[test]
fn killed_where_all_jobs_have_one_place() {
    survive("uci", &three(), &[Base, Delta, Shutdown, Conversion]);
}

/// One worker or one supervisor.
fn die(job: &mut Job, who: &str) {
    let state = job.last_state().unwrap();
    let number = |key: &str| i32::try_from(state[key].as_i64().unwrap()).unwrap();
    let (supervisor, pid) = (number("wrapper_pid"), number("pid"));
    let worker = if parent_of(pid) == Some(supervisor) { pid } else { parent_of(pid).unwrap() };
    assert_eq!(parent_of(worker), Some(supervisor));
    let dies = if who == "worker" { worker } else { supervisor };
    kill(Pid::from_raw(dies), Signal::SIGKILL).unwrap();
}

/// Whoever is left puts the source back by itself, and what is copied is gone on with.
fn survive_half(who: &str, moments: &[Moment]) {
    let Some(mut lab) = Lab::start("job", &three()) else { return };
    lab.write(&["--rate", "8388608"]);
    let before = lab.dump();
    moments[0].prepare(&lab);
    let mut job = lab.job(&quick());
    for (number, moment) in moments.iter().enumerate() {
        moment.reach(&lab, &job, false);
        die(&mut job, who);
        let last = lab.end(&mut job);
        let message = last["last_message"]["message"].as_str().unwrap();
        assert_eq!(
            (&last["failed"], &last["finished"]),
            (&json!(true), &json!(true)),
            "{moment:?}: {last:#}"
        );
        let tag = tag(&lab, &job);
        assert!(message.contains(&format!("\"resume\": \"{tag}\"")), "{moment:?}: {message}");
        assert_eq!(lab.dump(), before, "{who} {moment:?}: {last:#}");
        assert!(!last["warnings"].to_string().contains("cleanup"), "{moment:?}: {last:#}");
        calm(&lab);
        if let Some(next) = moments.get(number + 1) {
            next.prepare(&lab);
        }
        job = resume(&lab, &tag, &quick(), false);
    }
    wait_status(&job, "Waiting");
    lab.wait_written(3);
    lab.touch(&job, "cutover");
    let last = lab.end(&mut job);
    assert_arrived(
        &mut lab,
        &last,
        &json!([before["snapshots"], before["change_tracking"], before["disks"]]),
    );
}

#[test]
fn a_supervisor_whose_worker_dies_puts_the_source_back() {
    survive_half("worker", &[Base, Waiting, Shutdown, LastRound, Conversion]);
}

#[test]
fn a_worker_whose_supervisor_dies_puts_the_source_back() {
    survive_half("supervisor", &[Base, Delta, Removal, LastRound, Conversion]);
}

/// Hours of copying are not done again: after the first copy only what changed is read.
#[test]
fn a_resumed_job_reads_only_what_changed() {
    let Some(mut lab) = Lab::start("job", &json!({"disks": [40 * MIB], "tools": "running"})) else { return };
    let mut noise = vec![0; usize::try_from(24 * MIB).unwrap()];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
    lab.write_at(0, 4 * MIB, &noise);
    lab.write(&["--rate", "1"]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    let tag = tag(&lab, &job);
    cut(&mut job);
    lab.write_at(0, 5 * MIB, b"changed while nobody looked");
    let reads = lab.vcenter.directory.path().join("vddk.control.reads");
    std::fs::write(&reads, "").unwrap();
    lab.vddk("");
    let mut job = resume(&lab, &tag, &quick(), true);
    let waiting = wait_status(&job, "Waiting");
    let read: u64 = std::fs::read_to_string(&reads)
        .unwrap()
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    // What changed is told in blocks of 64 KiB; the guest has written a batch or none.
    assert!((1..=8 * MIB).contains(&read), "{read} bytes were read: {waiting:#}");
    assert!(waiting["rounds"][0]["bytes"].as_u64() <= Some(8 * MIB), "{waiting:#}");
    lab.touch(&job, "cutover");
    let last = lab.end(&mut job);
    assert_arrived(&mut lab, &last, &before);
    // The source was the second job's from then on: the first one has nothing to put back any more.
    let removed = lab.sandbox.child(&["jobs", "--remove", &tag], "").wait_with_output().unwrap();
    assert!(removed.status.success(), "{removed:?}");
}
