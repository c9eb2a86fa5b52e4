//! Clients of the old program (contract.md 6.3, 9.5): `warm` and `iteration_seconds`, files beside the state file, and a
//! machine that the client shuts down.

use std::fs;

use serde_json::{Value, json};

use super::lab::{Lab, MIB, compare, wait, wait_status};
use super::lessons::{failed, moved, two_disks};
use super::whole::found;

fn statuses(states: &[Value]) -> Vec<String> {
    let mut statuses: Vec<_> =
        states.iter().map(|state| state["status"].as_str().unwrap().to_owned()).collect();
    statuses.dedup();
    statuses
}

/// Rounds by time, a pause, the machine shut down by the client, `touch` of the reply's file: all statuses of the old
/// program and no other, and the shapes of `copies`.
#[test]
fn an_old_client_sees_what_it_saw() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&[]);
    let before = found(&lab);
    let mut job = lab.job(&json!({"iteration_seconds": 2}));
    wait_status(&job, "Pre-copy #1");
    wait_status(&job, "Waiting");
    lab.touch(&job, "pause_operations");
    let paused = wait_status(&job, "Paused");
    // Longer than the time between two rounds.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let still = job.last_state().unwrap();
    assert_eq!((&still["status"], &still["rounds"]), (&json!("Paused"), &paused["rounds"]));
    lab.switch("off");
    let cutover = job.reply().unwrap()["cutover_file"].as_str().unwrap().to_owned();
    fs::write(&cutover, "").unwrap();
    fs::remove_file(lab.trigger(&job, "pause_operations")).unwrap();
    let states = lab.states(&mut job);
    lab.rest();
    let last = states.last().unwrap();
    assert_eq!(last["failed"], json!(false), "{last:#}");
    for (disk, raw) in lab.raws.iter().enumerate() {
        compare(raw, &lab.target(disk), "raw", true).unwrap();
    }
    assert_eq!(found(&lab), before);
    let statuses = statuses(&states);
    let number = last["rounds"].as_array().unwrap().len() - 1;
    let mut wanted = vec!["Preparing".to_owned()];
    for round in 0..number {
        wanted.extend([format!("Pre-copy #{round}"), "Waiting".to_owned()]);
    }
    wanted.extend(["Paused".to_owned(), format!("Pre-copy #{number} (last)")]);
    wanted.extend(["Starting virt-v2v", "Finishing (committing overlays)"].map(str::to_owned));
    let told: Vec<_> = statuses.iter().filter(|status| wanted.contains(status)).cloned().collect();
    assert_eq!(told, statuses, "no other status");
    // After a pause `Waiting` may be there for a moment.
    let paused = statuses.iter().position(|status| status == "Paused").unwrap();
    let mut seen = statuses.clone();
    if seen[paused + 1] == "Waiting" {
        seen.remove(paused + 1);
    }
    assert_eq!(seen, wanted);

    let id = |text: &Value| text.as_str().unwrap().contains('/');
    for (number, disk) in last["disks"].as_array().unwrap().iter().enumerate() {
        let copies = disk["copies"].as_array().unwrap();
        assert_eq!(copies.len(), last["rounds"].as_array().unwrap().len());
        let path = format!("[LocalDS_0] DC0_H0_VM0/disk{}.vmdk", number + 1);
        assert_eq!((&copies[0]["change_id"], &copies[0]["path"]), (&json!("*"), &json!(path)));
        let newest = copies.last().unwrap();
        assert!(id(&newest["change_id"]), "{newest}");
        assert!(newest["path"].as_str().unwrap().starts_with("[LocalDS_0] DC0_H0_VM0/disk"), "{newest}");
        // Of those between the first and the newest these are dropped.
        for between in &copies[1..copies.len() - 1] {
            assert_eq!((between.get("change_id"), between.get("path")), (None, None), "{between}");
        }
        let mut ended = 0.0;
        for copy in copies {
            let number = |key: &str| copy[key].as_f64().unwrap_or_else(|| panic!("{key}: {copy}"));
            assert!(
                number("start_time") >= ended && number("end_time") >= number("start_time"),
                "{copies:#?}"
            );
            ended = number("end_time");
            assert_eq!(
                (&copy["status"], &copy["copied"], copy.get("error")),
                (&json!("Copied"), &copy["to_copy"], None)
            );
        }
    }
}

/// The default is the old program's: nobody's machine is switched off, and a cutover while it runs is an error.
#[test]
fn a_machine_that_runs_at_the_cutover_is_refused_in_the_old_words_and_left_alone() {
    let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
    lab.write(&[]);
    let before = lab.dump();
    let mut job = lab.job(&json!({}));
    wait_status(&job, "Waiting");
    lab.touch(&job, "cutover");
    let message = failed(&lab, &mut job);
    assert!(message.starts_with("Cannot perform final copy for running VM"), "{message}");
    assert_eq!(lab.dump(), before, "it runs, without snapshot and tracking");
    // Shut down, and begun again, the copy goes on.
    lab.switch("off");
    lab.rest();
    let before = found(&lab);
    let mut job = lab.job(&json!({"resume": super::lessons::tag(&lab, &job)}));
    moved(&lab, &mut job, &before);
}

/// Rounds follow each other by time, as text too, and each copies what changed since the one before.
#[test]
fn iteration_seconds_are_what_lies_between_two_rounds() {
    let Some(lab) = Lab::start("job", &json!({"disks": [40 * MIB]})) else { return };
    let mut job = lab.job(&json!({"iteration_seconds": "1"}));
    let state = wait(&job, "the fourth round", |state| {
        state["rounds"].as_array().is_some_and(|rounds| rounds.len() > 3 && rounds[3]["seconds"].is_number())
    });
    let rounds = state["rounds"].as_array().unwrap();
    for pair in rounds.windows(2) {
        let end = pair[0]["started_at"].as_f64().unwrap() + pair[0]["seconds"].as_f64().unwrap();
        assert!(pair[1]["started_at"].as_f64().unwrap() - end >= 0.99, "{rounds:#?}");
    }
    let bytes: Vec<_> = rounds.iter().map(|round| round["bytes"].as_u64().unwrap()).collect();
    assert!(bytes[0] > 3 * MIB && bytes[1..4] == [0, 0, 0], "{bytes:?}");
    job.signal(nix::sys::signal::Signal::SIGTERM, "pid");
    failed(&lab, &mut job);
}
