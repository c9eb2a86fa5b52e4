//! What the tests of peers.md 6.3 have in common: where a job is, what happened in which order, what is left.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::lab::{LIMIT, Lab, MIB, compare, hash, wait_status};
use super::whole::found;
use crate::rig::job::Job;
use crate::rig::poll;

/// Two disks, one of them on another controller with the same unit.
pub fn two_disks() -> Value {
    json!({"disks": [6 * MIB + 512, 5 * MIB], "controllers": [0, 1], "tools": "running"})
}

/// A lab in which what fails is given up after so many percent of the usual time.
pub fn impatient(machine: &Value, percent: u32) -> Option<Lab> {
    let mut lab = Lab::start("job", machine)?;
    lab.set(&json!({"patience_percent": percent}));
    Some(lab)
}

/// Another document's keys beside these.
pub fn with(mut keys: Value, more: &Value) -> Value {
    keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    keys
}

/// The end of a job that is to succeed: the targets are what the disks were when the machine went off, converted; of the
/// rest of the machine nothing is changed.
pub fn moved(lab: &Lab, job: &mut Job, before: &Value) -> Value {
    let last = lab.end(job);
    assert_eq!(last["failed"], json!(false), "{last:#}");
    for (disk, raw) in lab.raws.iter().enumerate() {
        compare(raw, &lab.target(disk), "raw", true).unwrap();
        assert_eq!(last["disks"][disk]["checksum"], json!(hash(raw)), "disk {disk}");
    }
    assert_eq!(found(lab), *before);
    assert_eq!(lab.power(), "poweredOff");
    last
}

/// The end of a job that is to fail; gives what it says.
pub fn failed(lab: &Lab, job: &mut Job) -> String {
    let last = lab.end(job);
    assert_eq!(last["failed"], json!(true), "{last:#}");
    last["last_message"]["message"].as_str().unwrap().to_owned()
}

/// Asks for the cutover, and waits for the end.
pub fn cut_over(lab: &Lab, job: &mut Job, before: &Value) -> Value {
    wait_status(job, "Waiting");
    lab.touch(job, "cutover");
    moved(lab, job, before)
}

/// Is there a warning with these words?
pub fn warned(state: &Value, words: &str) -> bool {
    let warnings = state["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    warnings.iter().any(|warning| warning.as_str().unwrap().contains(words))
}

/// Waits for an event.
pub fn wait_event(lab: &Lab, method: &str, phase: &str, count: usize) -> Value {
    let seen = || lab.events_of(method, phase);
    let event = poll(LIMIT, || seen().get(count - 1).cloned());
    event.unwrap_or_else(|| panic!("{method} {phase} was not seen {count} times: {:?}", steps(lab)))
}

/// What happened, in order, each as `method phase`; of a snapshot also its name.
pub fn steps(lab: &Lab) -> Vec<String> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let step = |event: Value| {
        let (method, phase) = (text(&event, "method"), text(&event, "phase"));
        let about = match method.as_str() {
            "vddk: open" | "vddk: close" => text(&event, "snapshot"),
            "sim: power" => text(&event, "power"),
            _ => text(&event, "snapshot_name"),
        };
        format!("{method} {phase} {about}").trim().to_owned()
    };
    lab.events().into_iter().map(step).collect()
}

/// Where the first step that begins so is.
pub fn at(steps: &[String], beginning: &str) -> usize {
    let found = steps.iter().position(|step| step.starts_with(beginning));
    found.unwrap_or_else(|| panic!("no {beginning:?} in {steps:#?}"))
}

/// Calls that change a machine.
pub fn changes(lab: &Lab) -> Vec<String> {
    let mut steps = steps(lab);
    steps.retain(|step| {
        ["_Task", "ShutdownGuest", "sim: power"].iter().any(|word| step.contains(word))
            || ["Revert", "Destroy", "Reset"].iter().any(|word| step.starts_with(word))
    });
    steps
}

/// The tag of a job.
pub fn tag(lab: &Lab, job: &Job) -> String {
    let directory = lab.trigger(job, "cutover");
    directory.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

/// The book of a job's rounds: as of which change id each disk is copied.
pub fn book(lab: &Lab, job: &Job) -> Value {
    let state = lab.trigger(job, "state.json");
    let mut found = None;
    let mut directories: Vec<PathBuf> = vec![state.ancestors().nth(3).unwrap().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.file_name().is_some_and(|name| name == "rounds.json") {
                found = Some(path);
            }
        }
    }
    serde_json::from_slice(&std::fs::read(found.expect("rounds.json")).unwrap()).unwrap()
}

/// The change id of a disk in the book, if all of it is copied.
pub fn held(book: &Value, disk: usize) -> String {
    let id = book["disks"][disk]["all"]["change_id"].as_str();
    id.unwrap_or_else(|| panic!("disk {disk} of {book}")).to_owned()
}

/// All processes of a job are killed at once.
pub fn kill_all(job: &Job) {
    let gone = poll(LIMIT, || {
        let alive = job.alive();
        for (pid, _) in &alive {
            // Gone in the meantime is as good.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        alive.is_empty().then_some(())
    });
    gone.expect("all are killed");
}
