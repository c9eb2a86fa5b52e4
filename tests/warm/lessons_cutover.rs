//! The way from the last round to the machine that is off (peers.md 6.3, rows 11, 15, 48 to 50), and who may begin it.

use std::fs;

use serde_json::{Value, json};

use super::lab::{Lab, MIB, compare, wait, wait_status};
use super::lessons::{
    at, changes, cut_over, failed, impatient, kill_all, moved, steps, tag, two_disks, wait_event, warned,
    with,
};
use super::whole::{found, quick, round};
use crate::rig::job::Job;

fn wait_for(job: &Job, words: &str) {
    wait(job, words, |state| state["waiting_for"].as_str().is_some_and(|what| what.contains(words)));
}

/// Rows 11 and 15: a snapshot of a round in which the cutover is asked for goes when the new machine is there, not while
/// people wait for it; and the last copy is of a machine that is known to be off.
#[test]
fn the_last_copy_waits_for_the_power_and_not_for_the_removal_of_a_snapshot() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.control("guest?shutdownAfter=2");
    lab.write(&["--rate", "8388608"]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    let rounds = lab.events_of("RemoveSnapshot_Task", "done").len();
    lab.vddk("hold");
    lab.wait_written(3);
    lab.touch(&job, "copy_trigger");
    wait_status(&job, "Pre-copy #1");
    wait_event(&lab, "vddk: open", "done", 1);
    lab.touch(&job, "cutover");
    lab.slow_removal(2.0);
    lab.vddk("");
    wait_event(&lab, "RemoveSnapshot_Task", "begun", rounds + 1);
    for (disk, raw) in lab.raws.iter().enumerate() {
        compare(raw, &lab.target(disk), "raw", true).unwrap();
    }
    assert_eq!(lab.events_of("RemoveSnapshot_Task", "done").len(), rounds, "looked at too late");
    moved(&lab, &mut job, &before);
    lab.rest();
    let steps = steps(&lab);
    let (asked, off) = (at(&steps, "ShutdownGuest"), at(&steps, "sim: power done poweredOff"));
    let last = steps.iter().rposition(|step| step.starts_with("RemoveSnapshot_Task begun")).unwrap();
    assert!(asked < off && off < last, "{steps:#?}");
    assert!(!steps[asked..off].iter().any(|step| step.starts_with("vddk: open")), "{steps:#?}");
    let copied = &steps[off..last];
    assert!(copied.iter().any(|step| step == "vddk: open done"), "{copied:#?}");
    assert!(!copied.iter().any(|step| step.starts_with("vddk: open done snapshot")), "{copied:#?}");
    assert!(!steps[..off].iter().any(|step| step == "vddk: open done"), "{steps:#?}");
}

/// Row 48: a guest that does not shut down is switched off after a while, and it is told.
#[test]
fn a_guest_that_never_shuts_down_is_switched_off_after_the_patience() {
    let Some(mut lab) = impatient(&two_disks(), 1) else { return };
    lab.control("guest?shutdownAfter=-1");
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.touch(&job, "cutover");
    wait_for(&job, "VM \"DC0_H0_VM0\" to shut down");
    let last = moved(&lab, &mut job, &before);
    lab.rest();
    assert!(warned(&last, "did not shut down within 3 s and was switched off"), "{last:#}");
    let steps = steps(&lab);
    assert!(at(&steps, "ShutdownGuest done") < at(&steps, "PowerOffVM_Task"));
}

/// Row 48: whoever is waited for is told; people may take their time.
#[test]
fn a_machine_that_somebody_must_shut_down_is_waited_for_and_it_is_said_for_whom() {
    for (mode, tools, words) in [
        ("auto", "notRunning", "to be shut down by somebody, because its VMware Tools do not run"),
        ("manual", "running", "VM \"DC0_H0_VM0\" to be shut down"),
    ] {
        let machine = json!({"disks": [5 * MIB], "tools": tools});
        // No wait for people is a matter of patience: 1 % of 300 s would be over.
        let Some(mut lab) = impatient(&machine, 1) else { return };
        lab.write(&[]);
        let before = found(&lab);
        let mut job = lab.job(&with(quick(), &json!({"shutdown_mode": mode})));
        wait_status(&job, "Waiting");
        let then = changes(&lab).len();
        lab.touch(&job, "cutover");
        wait_for(&job, words);
        // Both a session that expires and four seconds are nothing to that.
        lab.expire_sessions();
        std::thread::sleep(std::time::Duration::from_secs(4));
        assert_eq!(lab.power(), "poweredOn", "{mode}");
        lab.switch("off");
        moved(&lab, &mut job, &before);
        lab.rest();
        let since: Vec<_> = changes(&lab)[then..].to_vec();
        assert!(
            !since.iter().any(|step| step.starts_with("PowerOffVM") || step.starts_with("Shutdown")),
            "{since:?}"
        );
    }
}

#[test]
fn force_switches_the_machine_off_without_asking_its_guest() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&with(quick(), &json!({"shutdown_mode": "force"})));
    cut_over(&lab, &mut job, &before);
    lab.rest();
    let changes = changes(&lab);
    assert!(!changes.iter().any(|step| step.starts_with("ShutdownGuest")), "{changes:?}");
    assert!(changes.iter().any(|step| step.starts_with("PowerOffVM_Task")), "{changes:?}");
}

/// Row 49: killed while it waits, a job goes on where it was.
#[test]
fn a_job_that_was_killed_in_a_pause_or_before_the_machine_was_off_goes_on() {
    let machine = json!({"disks": [5 * MIB], "tools": "notRunning"});
    let Some(mut lab) = Lab::start("job", &machine) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.touch(&job, "pause_operations");
    wait_status(&job, "Paused");
    let first = tag(&lab, &job);
    kill_all(&job);
    drop(job);

    let mut job = lab.job(&with(quick(), &json!({"resume": first})));
    let state = wait_status(&job, "Waiting");
    assert_eq!(state["disks"][0]["copies"][0]["error"], Value::Null, "{state:#}");
    lab.touch(&job, "cutover");
    wait_for(&job, "to be shut down by somebody");
    let second = tag(&lab, &job);
    kill_all(&job);
    drop(job);

    // The cutover that had begun needs not to be asked for again.
    job = lab.job(&with(quick(), &json!({"resume": second})));
    wait_for(&job, "to be shut down by somebody");
    lab.switch("off");
    moved(&lab, &mut job, &before);
    lab.rest();
}

/// Row 50: what an earlier job was asked for by files of the same names is not asked of this one, and a request counts once.
#[test]
fn files_of_an_earlier_job_ask_for_nothing_and_a_cutover_counts_once() {
    let Some(mut lab) = Lab::start("uci", &two_disks()) else { return };
    lab.write(&[]);
    let before = found(&lab);
    for (name, text) in [("cutover", "now"), ("copy_trigger", ""), ("pause_operations", "")] {
        fs::create_dir_all(lab.sandbox.path("state")).unwrap();
        fs::write(lab.sandbox.path("state").join(name), text).unwrap();
    }
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    for name in ["cutover", "copy_trigger", "pause_operations"] {
        assert!(!lab.trigger(&job, name).exists(), "{name}");
    }
    round(&lab, &job);
    lab.touch(&job, "cutover");
    moved(&lab, &mut job, &before);
    lab.rest();
    assert!(!lab.trigger(&job, "cutover").exists());
}

/// A time, and a window before it in which rounds follow each other quickly.
#[test]
fn finalize_at_begins_the_cutover_by_itself_after_more_rounds_in_its_window() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let at = jiff::Timestamp::now() + jiff::Span::new().seconds(12);
    let keys = json!({"finalize_at": at.to_string(), "finalize_window": 3600, "finalize_delta_interval": 2});
    let mut job = lab.job(&with(quick(), &keys));
    let state = wait(&job, "the time of the next round", |state| state["next_round_at"].is_number());
    assert!(state["next_round_at"].as_f64().unwrap() < at.as_second() as f64, "{state:#}");
    let last = moved(&lab, &mut job, &before);
    lab.rest();
    let rounds = last["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 3, "{rounds:?}");
    let begun = rounds.last().unwrap()["started_at"].as_f64().unwrap();
    assert!(begun >= at.as_second() as f64, "{begun} {at}");
}

/// The downtime that is predicted is shown, and small enough it begins the cutover.
#[test]
fn a_downtime_within_the_budget_begins_the_cutover_by_itself() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&["--rate", "65536", "--largest", "65536"]);
    let before = found(&lab);
    let keys = json!({"delta_interval": 2, "downtime_budget_seconds": 60});
    let mut job = lab.job(&with(quick(), &keys));
    let last = moved(&lab, &mut job, &before);
    lab.rest();
    let rounds = last["rounds"].as_array().unwrap();
    assert!((3..6).contains(&rounds.len()), "not before a delta was measured: {rounds:?}");
    let log = fs::read_to_string(job.reply().unwrap()["wrapper_log"].as_str().unwrap()).unwrap();
    assert!(log.contains("cutover: the virtual machine would be off for about"), "{log}");
}

/// A budget that is never met: the prediction is in the state all the time between rounds.
#[test]
fn a_predicted_downtime_is_shown_while_it_is_over_the_budget() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&["--rate", "8388608"]);
    let keys = json!({"finalize_settle_seconds": 30, "downtime_budget_seconds": 31, "delta_interval": 3600});
    let mut job = lab.job(&with(quick(), &keys));
    wait_status(&job, "Waiting");
    lab.vddk("delay-us 1500000");
    round(&lab, &job);
    let state = wait(&job, "a prediction", |state| state["predicted_downtime_seconds"].is_number());
    assert!(state["predicted_downtime_seconds"].as_f64().unwrap() > 31.0, "{state:#}");
    job.signal(nix::sys::signal::Signal::SIGTERM, "pid");
    let message = failed(&lab, &mut job);
    assert!(message.contains("signal number 15"), "{message}");
    lab.rest();
    assert_eq!(lab.power(), "poweredOn");
}
