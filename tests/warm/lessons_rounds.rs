//! Rounds that go wrong (peers.md 6.3, rows 1, 5, 6, 10, 28, 30): no change is lost, and what cannot go on says why.

use serde_json::{Value, json};

use super::lab::{Lab, MIB, wait, wait_status};
use super::lessons::{
    at, book, cut_over, failed, held, impatient, moved, steps, tag, two_disks, wait_event, warned, with,
};
use super::whole::{found, quick, round, rounds};
use crate::rig::job::Job;
use crate::vsphere::certificates::self_signed;

/// A round is asked for, and waited for, whatever comes of it.
fn any_round(lab: &Lab, job: &Job) -> Value {
    let before = rounds(&wait_status(job, "Waiting"));
    lab.touch(job, "copy_trigger");
    wait(job, "another round", |state| state["status"] == "Waiting" && rounds(state) > before)
}

fn copy(state: &Value, disk: usize) -> &Value {
    state["disks"][disk]["copies"].as_array().unwrap().last().unwrap()
}

/// Row 1: what one disk fails at is that disk's alone, and only that disk keeps its change id.
#[test]
fn a_disk_that_fails_keeps_its_change_id_and_the_others_advance() {
    let machine = json!({
        "disks": [6 * MIB + 512, 5 * MIB, 4 * MIB], "controllers": [0, 0, 1], "tools": "running",
    });
    let Some(mut lab) = impatient(&machine, 1) else { return };
    lab.write(&["--rate", "8388608"]);
    let before = found(&lab);
    let mut job = lab.job(&quick());
    for wrong in ["fail-at 0", "refuse You do not have access rights to this file"] {
        wait_status(&job, "Waiting");
        lab.wait_written(5);
        let then = book(&lab, &job);
        lab.vddk(&format!("only disk2\n{wrong}"));
        let state = any_round(&lab, &job);
        let now = book(&lab, &job);
        assert_eq!(held(&now, 1), held(&then, 1), "{wrong}");
        for disk in [0, 2] {
            assert_ne!(held(&now, disk), held(&then, disk), "{wrong}");
            assert_eq!(
                (copy(&state, disk)["status"].as_str(), copy(&state, disk).get("error")),
                (Some("Copied"), None)
            );
        }
        let status = copy(&state, 1)["status"].as_str().unwrap();
        assert!(status.starts_with("Recoverable error during copy: "), "{status}");
        assert_eq!(
            (&copy(&state, 1)["error"], &copy(&state, 1)["change_id"]),
            (&json!(true), &json!(held(&then, 1)))
        );
        assert!(warned(&state, "failed for 1 of 3 disks"), "{state:#}");
        // The next one repairs it: all that changed since the last one that succeeded.
        lab.vddk("");
        let state = any_round(&lab, &job);
        assert_eq!(copy(&state, 1)["change_id"], json!(held(&then, 1)), "{wrong}");
        assert_eq!(copy(&state, 0)["change_id"], json!(held(&now, 0)), "{wrong}");
    }
    cut_over(&lab, &mut job, &before);
    lab.rest();
}

/// Rows 5 and 6: without a valid change id all of a disk is compared, of which only what is allocated is read, and only what
/// differs is written.
#[test]
fn after_tracking_began_anew_what_is_allocated_is_compared_and_what_differs_is_written() {
    let Some(lab) = Lab::start("job", &json!({"disks": [96 * MIB], "tools": "running"})) else { return };
    let before = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.write_at(0, 31 * MIB, b"written between the rounds");
    lab.reset_cbt();
    let then = lab.events_of("vddk: close", "done").len();
    let state = any_round(&lab, &job);
    assert!(
        warned(&state, "the whole disk is read and compared, and only what differs is written"),
        "{state:#}"
    );
    assert_eq!(copy(&state, 0)["change_id"], "*");
    let read: u64 =
        lab.events_of("vddk: close", "done")[then..].iter().filter_map(|event| event["bytes"].as_u64()).sum();
    // Three megabytes and a bit are data; what differs is read again.
    assert!((3 * MIB..16 * MIB).contains(&read), "{read}");
    let log = std::fs::read_to_string(job.reply().unwrap()["wrapper_log"].as_str().unwrap()).unwrap();
    assert!(log.contains(&format!("{} bytes differed", 4 * MIB)), "{log}");
    // From now on changes are known again.
    lab.write_at(0, 64 * MIB, b"more");
    let state = any_round(&lab, &job);
    assert_eq!(copy(&state, 0)["to_copy"], json!(65_536), "{state:#}");
    cut_over(&lab, &mut job, &before);
}

/// Row 10: the change ids of a round are in the book, on disk, before its snapshot is removed, and only then the next one is
/// taken; of each snapshot all disks are closed before it goes.
#[test]
fn change_ids_are_booked_then_the_snapshot_is_removed_then_the_next_is_taken() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&["--rate", "4194304"]);
    let before = found(&lab);
    lab.slow_removal(0.7);
    let mut job = lab.job(&quick());
    let mut booked = Vec::new();
    for number in 1..=3 {
        if number > 1 {
            lab.wait_written(3);
            wait_status(&job, "Waiting");
            lab.touch(&job, "copy_trigger");
        }
        wait_event(&lab, "RemoveSnapshot_Task", "begun", number);
        let book = book(&lab, &job);
        assert_eq!(lab.events_of("RemoveSnapshot_Task", "done").len(), number - 1, "looked at too late");
        booked.push([held(&book, 0), held(&book, 1)]);
    }
    lab.slow_removal(0.0);
    lab.wait_written(3);
    cut_over(&lab, &mut job, &before);
    lab.rest();
    let keys = lab.keys();
    let asked: Vec<_> = lab.events_of("QueryChangedDiskAreas", "done");
    for (round, ids) in booked.iter().enumerate() {
        for (id, key) in ids.iter().zip(&keys) {
            let of_round =
                |event: &&Value| event["change_id"] == json!(id) && event["device_key"] == json!(key);
            // Asked for by the round after the one that booked it, and by no other.
            assert_eq!(asked.iter().filter(of_round).count(), 1, "round {round}: {asked:#?}");
        }
    }
    // All that was done with snapshots is this, again and again.
    let mut open = 0;
    let mut there: Option<String> = None;
    for event in lab.events() {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        match (text("method"), text("phase")) {
            ("CreateSnapshot_Task", "begun") => assert_eq!((there.as_ref(), open), (None, 0), "{event}"),
            ("CreateSnapshot_Task", "done") => there = Some(text("snapshot").to_owned()),
            ("vddk: open", "done") => {
                assert_eq!(text("snapshot"), there.as_deref().unwrap_or_default(), "{event}");
                open += 1;
            }
            ("vddk: close", _) => open -= 1,
            ("RemoveSnapshot_Task", "begun") => {
                assert_eq!((text("snapshot"), open), (there.as_deref().unwrap(), 0), "{event}");
            }
            ("RemoveSnapshot_Task", "done") => there = None,
            _ => {}
        }
    }
    assert_eq!((there, open), (None, 0));
    let steps = steps(&lab);
    assert!(
        at(&steps, "CreateSnapshot_Task begun v2v_cbt") < at(&steps, "RemoveSnapshot_Task begun v2v_cbt")
    );
    assert_eq!(lab.events_of("CreateSnapshot_Task", "done").len(), 3);
}

/// Row 28: who shows another certificate is not asked for anything, and both fingerprints are told.
#[test]
fn a_certificate_that_changed_between_rounds_is_refused_with_both_fingerprints() {
    let Some(lab) = Lab::start("job", &two_disks()) else { return };
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    let other = self_signed(lab.vcenter.directory.path(), "other");
    lab.control(&format!("certificate?cert={}&key={}", other.file.display(), other.key.display()));
    lab.touch(&job, "copy_trigger");
    let message = failed(&lab, &mut job);
    for part in [lab.vcenter.certificate.fingerprint("sha1"), other.fingerprint("sha1")] {
        assert!(message.contains(&part), "{part}: {message}");
    }
    assert!(message.contains("vmware_fingerprint"), "{message}");
    assert_eq!(lab.power(), "poweredOn");
}

/// Row 30: a disk that comes, goes or grows stops the job with what to do; once that is undone it goes on from where it was.
#[test]
fn a_disk_that_comes_goes_or_grows_stops_the_job_until_that_is_undone() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    let (keys, raw) = (lab.keys(), lab.raws[1].clone());
    lab.write(&["--rate", "1048576"]);
    let before = found(&lab);
    let mut document = quick();
    let mut job = lab.job(&document);
    let mut added = 0;
    for (what, words) in [
        ("add", "Hard disk 3 ([LocalDS_0] DC0_H0_VM0/disk3.vmdk) is new"),
        ("remove", "Hard disk 2 ([LocalDS_0] DC0_H0_VM0/disk2.vmdk) is not there any more"),
        ("grow", "Hard disk 2 ([LocalDS_0] DC0_H0_VM0/disk2.vmdk) had 5242880 bytes and has 6291456"),
    ] {
        round(&lab, &job);
        match what {
            "add" => added = lab.add_disk(MIB, 0),
            "remove" => lab.remove_disk(keys[1]),
            _ => lab.grow_disk(keys[1], 6 * MIB),
        }
        lab.touch(&job, "copy_trigger");
        let earlier = tag(&lab, &job);
        let message = failed(&lab, &mut job);
        assert!(message.contains(words), "{message}");
        assert!(message.contains("Undo that and resume, or start without resume"), "{message}");
        assert_eq!(lab.dump()["snapshots"], json!([]));
        match what {
            "add" => {
                lab.remove_disk(added);
                lab.raws.pop();
            }
            "remove" => drop(lab.control(&format!("add-disk?file={}&controller=1", raw.display()))),
            _ => lab.grow_disk(keys[1], 5 * MIB),
        }
        assert_eq!(found(&lab), before, "undone");
        document = with(quick(), &json!({"resume": earlier}));
        lab.write_at(1, MIB, what.as_bytes());
        job = lab.job(&document);
        wait_status(&job, "Waiting");
    }
    lab.touch(&job, "cutover");
    moved(&lab, &mut job, &before);
    lab.rest();
}
