//! Everything dies at any moment of a warm migration, and who goes on with it brings the machine to its end: every byte as it
//! was when the machine went off.
//!
//! The moments are random within what they are named after; the seed is printed, and `V2V_TEST_SEED` repeats it.
#![allow(clippy::print_stdout, reason = "who sees it fail needs the seed and the moments")]

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::lab::{Lab, MIB, wait_status};
use super::moments::Moment::{
    self, Base, Conversion, Delta, LastRound, PutBack, Removal, Shutdown, Snapshot, Waiting,
};
use super::moments::{assert_arrived, calm, cut, found, one, quick, resume, tag, three};
use crate::rig::job::Job;
use crate::rig::processes::parent_of;
use crate::rig::{always, json_file};
use crate::vsphere::simulator::PASSWORD;

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
