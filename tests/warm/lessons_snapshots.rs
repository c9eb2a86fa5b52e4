//! Snapshots that cannot be taken, removed or used (peers.md 6.3, rows 7 to 9, 12 to 14).

use serde_json::{Value, json};

use super::lab::{Lab, MIB, wait, wait_status};
use super::lessons::{changes, cut_over, failed, impatient, steps, two_disks, warned, with};
use super::whole::{found, quick, round};

/// Row 7: tracking that was switched on just now may begin with a second snapshot only.
#[test]
fn a_disk_without_change_id_gets_a_second_snapshot() {
    let machine = json!({"disks": [{"size": 6 * MIB}, {"size": 5 * MIB, "cbt": false}], "tools": "running"});
    let Some(mut lab) = Lab::start("job", &machine) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    round(&lab, &job);
    lab.write_at(1, 4 * MIB, b"written before the last round");
    cut_over(&lab, &mut job, &before);
    lab.rest();
    let names: Vec<_> = lab.events_of("CreateSnapshot_Task", "done");
    let is_again = |event: &Value| event["snapshot_name"].as_str().unwrap().ends_with(" again");
    assert_eq!(names.iter().map(is_again).collect::<Vec<_>>(), [false, true, false], "{names:?}");
    let steps: Vec<_> = steps(&lab).into_iter().filter(|step| step.contains("Snapshot_Task")).collect();
    assert!(
        steps[1].starts_with("CreateSnapshot_Task done") && steps[2].starts_with("RemoveSnapshot_Task begun")
    );
}

/// Row 7: one that is never tracked is no disk without changes.
#[test]
fn a_disk_that_never_has_a_change_id_fails_the_job() {
    let machine =
        json!({"disks": [{"size": 6 * MIB}, {"size": 5 * MIB, "untracked": true}], "tools": "running"});
    let Some(lab) = Lab::start("job", &machine) else { return };
    let before = lab.dump();
    let mut job = lab.job(&quick());
    let message = failed(&lab, &mut job);
    assert!(message.starts_with("Missing changeId for a disk: "), "{message}");
    assert!(message.contains("Hard disk 2 ([LocalDS_0] DC0_H0_VM0/disk2.vmdk)"), "{message}");
    assert_eq!(lab.dump(), before);
    assert_eq!(lab.events_of("CreateSnapshot_Task", "done").len(), 2);
}

/// Rows 8 and 9: what cannot be copied warm is told before anything is changed.
#[test]
fn a_machine_that_cannot_be_copied_warm_is_refused_and_not_touched() {
    let disk =
        |key: &str| json!({"disks": [{"size": 6 * MIB}, {"size": 6 * MIB, key: true}], "tools": "running"});
    let plain = json!({"disks": [{"size": 6 * MIB}], "tools": "running"});
    for (machine, words) in [
        (with(plain.clone(), &json!({"snapshots": ["before upgrade"]})), "\"before upgrade\" (snapshot-"),
        (with(plain, &json!({"hardware": 6})), "Hard disk 1: hardware version vmx-06 has no change tracking"),
        (disk("independent"), "Hard disk 2: its mode is independent_persistent: snapshots leave it out"),
        (disk("rdm"), "Hard disk 2: it is a LUN mapped in physical mode (RDM)"),
        (disk("multiwriter"), "Hard disk 2: it is shared with other machines (multi-writer)"),
        (disk("encrypted"), "Hard disk 2: it is encrypted by vSphere"),
    ] {
        let Some(lab) = Lab::start("job", &machine) else { return };
        let (before, then) = (lab.dump(), changes(&lab));
        let mut job = lab.job(&quick());
        let message = failed(&lab, &mut job);
        let beginning = "warm: VM \"DC0_H0_VM0\" cannot be copied while it runs: Hard disk ";
        assert!(message.starts_with(beginning) && message.contains(words), "{message}");
        assert_eq!((lab.dump(), changes(&lab)), (before, then), "{words}");
        assert!(!lab.target(0).exists(), "{words}");
    }
}

/// Row 12: a snapshot that fails is tried again, said meanwhile; and for so long only.
#[test]
fn a_snapshot_that_fails_is_tried_again_and_at_last_told() {
    let Some(lab) = impatient(&two_disks(), 5) else { return };
    let before = lab.dump();
    lab.fail_snapshots(4);
    let never = with(quick(), &json!({"snapshot_quiesce": "never"}));
    let mut job = lab.job(&never);
    wait(&job, "waiting for a snapshot", |state| {
        state["waiting_for"]
            .as_str()
            .is_some_and(|what| what.starts_with("a snapshot, which vSphere refuses: "))
    });
    wait_status(&job, "Waiting");
    assert_eq!(lab.events_of("CreateSnapshot_Task", "failed").len(), 4);
    lab.fail_snapshots(1000);
    lab.touch(&job, "copy_trigger");
    let message = failed(&lab, &mut job);
    let beginning = "Could not create a snapshot of VM \"DC0_H0_VM0\" within 3 s: ";
    assert!(message.starts_with(beginning) && message.contains("msg.snapshot.error-FAILED"), "{message}");
    assert_eq!(lab.dump(), before, "and nothing is left");
    // Contract: every 5 s for 60 s.
    let failures = lab.events_of("CreateSnapshot_Task", "failed").len() - 4;
    assert!((8..=12).contains(&failures), "{failures}");
}

/// Rows 12 and 13: of our own snapshots that cannot be removed there are never more than two.
#[test]
fn no_third_snapshot_is_taken_while_two_cannot_be_removed() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&["--rate", "1048576"]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    // One that failed once is removed with the next.
    wait_status(&job, "Waiting");
    lab.fail_removals(1);
    round(&lab, &job);
    round(&lab, &job);
    assert_eq!(lab.dump()["snapshots"], json!([]));
    lab.fail_removals(1000);
    round(&lab, &job);
    round(&lab, &job);
    let tree = lab.dump()["snapshots"].clone();
    assert_eq!(
        (tree[0]["children"].as_array().unwrap().len(), &tree[0]["children"][0]["children"]),
        (1, &json!([]))
    );
    lab.touch(&job, "copy_trigger");
    let last = lab.end(&mut job);
    let message = last["last_message"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("2 snapshots of this job cannot be removed from VM \"DC0_H0_VM0\" ("),
        "{message}"
    );
    assert!(message.contains("consolidat"), "the reason: {message}");
    assert!(
        warned(&last, "the source is not as it was found: cannot remove the snapshot \"v2v_cbt "),
        "{last:#}"
    );
    lab.fail_removals(0);
    let earlier = super::lessons::tag(&lab, &job);
    let mut job = lab.job(&with(quick(), &json!({"resume": earlier})));
    wait_status(&job, "Waiting");
    assert_eq!(lab.dump()["snapshots"], json!([]), "an own one is no reason to refuse, and goes");
    cut_over(&lab, &mut job, &before);
    lab.rest();
}

/// Row 14: what quiescing is to the user is obeyed, and what a snapshot is not is told.
#[test]
fn a_snapshot_is_quiesced_as_the_user_wants_and_it_is_told_if_it_is_not() {
    let fails = "the snapshot could not be quiesced (";
    for (mode, tools, failures, asked, ends) in [
        ("auto", "running", 0, vec![true], Ok(None)),
        ("auto", "running", 1, vec![true, false], Ok(Some(fails))),
        ("auto", "notRunning", 0, vec![false], Ok(Some("VMware Tools do not run"))),
        ("never", "running", 1, vec![false], Ok(None)),
        ("require", "running", 1, vec![true, true], Ok(None)),
        ("require", "running", 1000, vec![], Err("Could not create a snapshot of VM")),
        ("require", "notRunning", 0, vec![], Err("snapshot_quiesce: require needs running VMware Tools")),
    ] {
        let machine = json!({"disks": [5 * MIB], "tools": tools});
        let Some(lab) = impatient(&machine, 1) else { return };
        let before = lab.dump();
        lab.fail_quiesced(failures);
        let mut job = lab.job(&with(quick(), &json!({"snapshot_quiesce": mode})));
        let told = format!("{mode}, {tools}, {failures}");
        match ends {
            Ok(words) => {
                let state = wait_status(&job, "Waiting");
                let begun = lab.events_of("CreateSnapshot_Task", "begun");
                let quiesced: Vec<_> =
                    begun.iter().map(|event| event["quiesce"].as_bool().unwrap()).collect();
                assert_eq!(quiesced, asked, "{told}");
                assert!(words.is_none_or(|words| warned(&state, words)), "{told}: {state:#}");
                assert_eq!(warned(&state, "crash-consistent"), words == Some(fails), "{told}: {state:#}");
                job.signal(nix::sys::signal::Signal::SIGTERM, "pid");
                failed(&lab, &mut job);
            }
            Err(words) => {
                let message = failed(&lab, &mut job);
                assert!(message.starts_with(words), "{told}: {message}");
                let begun = lab.events_of("CreateSnapshot_Task", "begun");
                assert!(begun.iter().all(|event| event["quiesce"] == true), "{told}: {begun:?}");
            }
        }
        assert_eq!(lab.dump(), before, "{told}");
    }
}
