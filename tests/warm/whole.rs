//! Whole migrations of a machine that is written to all the time.

use serde_json::{Value, json};

use super::lab::{Lab, MIB, compare, hash, wait, wait_status};
use crate::rig::job::Job;

/// Quick, and allowed to switch the machine off.
pub fn quick() -> Value {
    json!({"delta_interval": 3600, "shutdown_mode": "auto", "finalize_settle_seconds": 1})
}

/// Rounds that are over.
pub fn rounds(state: &Value) -> usize {
    let rounds = state["rounds"].as_array().map(Vec::as_slice).unwrap_or_default();
    rounds.iter().filter(|round| round["seconds"].is_number()).count()
}

/// Another round is asked for and over.
pub fn round(lab: &Lab, job: &Job) {
    lab.wait_written(5);
    let before = rounds(&wait_status(job, "Waiting"));
    lab.touch(job, "copy_trigger");
    wait(job, "one more round", |state| rounds(state) > before && state["status"] == "Waiting");
}

/// What is not the machine's to keep: snapshots, tracking.
pub fn found(lab: &Lab) -> Value {
    let dump = lab.dump();
    json!([dump["snapshots"], dump["change_tracking"], dump["disks"]])
}

fn migrate(machine: &Value, keys: &Value) {
    let Some(mut lab) = Lab::start("job", machine) else { return };
    lab.write(&["--rate", "8388608"]);
    let before = found(&lab);
    let mut job = lab.job(keys);
    for _ in 0..2 {
        round(&lab, &job);
    }
    lab.wait_written(5);
    lab.touch(&job, "cutover");
    let last = lab.end(&mut job);
    assert_eq!(last["failed"], json!(false), "{last:#}");
    lab.rest();
    for (disk, raw) in lab.raws.iter().enumerate() {
        let format = keys["output_format"].as_str().unwrap_or("raw");
        compare(raw, &lab.target(disk), format, true).unwrap();
        assert_eq!(last["disks"][disk]["checksum"], json!(hash(raw)), "disk {disk}");
        assert!(last["disks"][disk]["absolute_path"].as_str().unwrap().ends_with(".vmdk"), "{last:#}");
    }
    assert_eq!(found(&lab), before);
    assert_eq!(lab.power(), "poweredOff");
}

#[test]
fn one_disk_arrives_as_it_was_when_the_machine_went_off() {
    migrate(&json!({"disks": [13 * MIB + 512], "tools": "running"}), &quick());
}

/// Sizes that are no multiples of 64 KiB or 4 KiB; two disks with equal unit numbers.
#[test]
fn three_disks_on_two_controllers_arrive_as_they_were_when_the_machine_went_off() {
    let machine = json!({
        "disks": [9 * MIB + 512, 5 * MIB + 1536, 7 * MIB], "controllers": [0, 0, 1], "tools": "running",
    });
    let mut keys = quick();
    keys["output_format"] = json!("qcow2");
    migrate(&machine, &keys);
}
