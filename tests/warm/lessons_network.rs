//! Connections that end, hang or are refused (peers.md 6.3, rows 19, 22 to 24, 26).

use std::fs;

use serde_json::{Value, json};

use super::lab::{Lab, MIB, wait, wait_status};
use super::lessons::{cut_over, failed, impatient, moved, two_disks, wait_event, warned, with};
use super::whole::{found, quick, round};
use crate::rig::job::Job;

fn log(job: &Job) -> String {
    fs::read_to_string(job.reply().unwrap()["wrapper_log"].as_str().unwrap()).unwrap()
}

/// Row 19: wherever a session ends, another is begun.
#[test]
fn a_session_that_expires_anywhere_is_begun_again() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.control("guest?shutdownAfter=3");
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.expire_sessions();
    round(&lab, &job);
    // In a round: after the snapshot, before its removal.
    lab.vddk("hold");
    lab.wait_written(5);
    lab.touch(&job, "copy_trigger");
    wait_event(&lab, "CreateSnapshot_Task", "done", 3);
    wait_status(&job, "Pre-copy #2");
    lab.expire_sessions();
    lab.vddk("");
    wait_event(&lab, "RemoveSnapshot_Task", "done", 3);
    wait_status(&job, "Waiting");
    lab.touch(&job, "cutover");
    wait_event(&lab, "ShutdownGuest", "done", 1);
    lab.expire_sessions();
    moved(&lab, &mut job, &before);
    lab.rest();
    let logins = lab.events_of("Login", "done").len();
    assert!(logins >= 4, "{logins}");
}

/// Row 22: a vCenter that says nothing for a while is asked again; nothing is lost, and nobody hangs.
#[test]
fn a_vcenter_that_hangs_is_waited_for_and_asked_again() {
    let Some(mut lab) = impatient(&two_disks(), 5) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    // Longer than an answer is waited for (6 s).
    lab.freeze(9.0);
    lab.touch(&job, "copy_trigger");
    let state = wait(&job, "a warning", |state| warned(state, "waits for vSphere: "));
    assert!(warned(&state, "did not answer"), "{state:#}");
    // The next round is made when the user wants one, or by time.
    round(&lab, &job);
    // Shorter than that, while a round runs.
    lab.wait_written(3);
    lab.touch(&job, "copy_trigger");
    lab.freeze(3.0);
    wait_status(&job, "Pre-copy #2");
    cut_over(&lab, &mut job, &before);
    lab.rest();
}

/// Row 22: reads that nobody answers are asked for again, of a new server.
#[test]
fn a_connection_to_a_disk_that_hangs_is_begun_anew() {
    let Some(mut lab) = impatient(&two_disks(), 3) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.wait_written(5);
    lab.vddk("only disk1\nhold");
    lab.touch(&job, "copy_trigger");
    wait_status(&job, "Pre-copy #1");
    // 3 % of 120 s.
    crate::rig::poll(super::lab::LIMIT, || log(&job).contains("no answer for 3 s").then_some(()))
        .expect("given up");
    lab.vddk("");
    let state = wait_status(&job, "Waiting");
    let copies = state["disks"][0]["copies"].as_array().unwrap();
    assert_eq!(copies[1]["status"], "Copied", "{state:#}");
    cut_over(&lab, &mut job, &before);
    lab.rest();
}

/// Row 23: reads that a host has no memory for are made smaller, for all its disks.
#[test]
fn reads_that_fail_to_allocate_are_halved() {
    let Some(lab) = impatient(&json!({"disks": [9 * MIB], "tools": "running"}), 10) else { return };
    lab.vddk("fail-larger 300000");
    let before = found(&lab);
    let mut job = lab.job(&quick());
    let state = wait_status(&job, "Waiting");
    assert_eq!(state["disks"][0]["copies"][0]["status"], "Copied", "{state:#}");
    let said = log(&job);
    assert!(said.contains("fail for want of memory: 262144 from now on"), "{said}");
    assert!(!said.contains(": 131072 from now on"), "{said}");
    cut_over(&lab, &mut job, &before);
}

/// Row 24: a host that has no connection left is waited for, and that is said.
#[test]
fn a_disk_that_gets_no_connection_waits_for_one() {
    let machine = json!({"disks": [6 * MIB, 4 * MIB, 5 * MIB], "tools": "running"});
    let Some(mut lab) = impatient(&machine, 100) else { return };
    lab.write(&["--rate", "65536"]);
    let before = found(&lab);
    // The first disk has the only one; what is more, it takes longer than the others are patient by themselves.
    lab.set(&json!({"patience_percent": 2}));
    lab.vddk("connections 1\ndelay-us 1500000");
    let mut job = lab.job(&quick());
    let state = wait(&job, "waiting for a connection", |state| {
        state["waiting_for"].as_str().is_some_and(|what| what.contains("the source, to open "))
    });
    assert!(state["waiting_for"].as_str().unwrap().contains("Failed to create a connection"), "{state:#}");
    let state = wait_status(&job, "Waiting");
    for disk in 0..3 {
        assert_eq!(state["disks"][disk]["copies"][0]["status"], "Copied", "{state:#}");
    }
    assert_eq!(state.get("waiting_for"), None, "{state:#}");
    lab.vddk("connections 1");
    cut_over(&lab, &mut job, &before);
    lab.rest();
}

/// Row 24: and when there never is one, that is what the job says.
#[test]
fn a_host_that_never_has_a_connection_fails_the_last_copy_with_its_words() {
    let Some(mut lab) = impatient(&two_disks(), 2) else { return };
    lab.write(&[]);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.vddk("only disk2\nrefuse Failed to create a connection with server");
    lab.touch(&job, "cutover");
    let message = failed(&lab, &mut job);
    lab.rest();
    assert!(message.starts_with("Error during final copy iteration: "), "{message}");
    assert!(message.contains("disk2.vmdk") && message.contains("Failed to create a connection"), "{message}");
    assert_eq!(lab.power(), "poweredOn", "put back");
    assert_eq!(lab.dump()["snapshots"], json!([]));
}

/// Row 26: whoever opens a disk of a machine that runs says which snapshot and which transports.
#[test]
fn every_disk_of_a_running_machine_is_opened_with_snapshot_and_transports() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&with(quick(), &json!({})));
    round(&lab, &job);
    cut_over(&lab, &mut job, &before);
    lab.rest();
    let opened = fs::read_to_string(lab.vcenter.directory.path().join("vddk.log")).unwrap();
    assert!(opened.lines().count() >= 6, "{opened}");
    assert!(opened.lines().all(|line| line.contains(" transports=nbdssl:nbd ")), "{opened}");
    let without = opened.lines().filter(|line| line.contains(" snapshot= ")).count();
    assert_eq!(without, 2, "only when it is off: {opened}");
    let is_off = |event: &Value| event["method"] == "sim: power" && event["power"] == "poweredOff";
    let events = lab.events();
    let off = events.iter().position(is_off).unwrap();
    let opens = events[..off].iter().filter(|event| event["method"] == "vddk: open");
    let opens: Vec<_> = opens.collect();
    assert!(opens.iter().all(|event| event["snapshot"] != "" && event["phase"] == "done"), "{opens:#?}");
}
