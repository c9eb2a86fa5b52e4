//! Nothing of the source is left changed, however a warm migration ends: cancelled, failed, killed, or done.

use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use virt_v2v_wrapper::footprint::Footprint;
use virt_v2v_wrapper::journal::{self, Entry, Journal};
use virt_v2v_wrapper::source::vsphere::Vsphere;
use virt_v2v_wrapper::source::vsphere::restore;
use virt_v2v_wrapper::source::vsphere::soap::{Call, Reference};

use super::lab::{LIMIT, Lab, NAME, wait, wait_status};
use super::moments::Moment::{self, Base, Conversion, Delta, LastRound, Removal, Snapshot, Waiting};
use super::moments::{assert_arrived, calm, cut, found, one, quick, resume, tag, three, with};
use crate::rig::poll;
use crate::two_phase::site::play_to;
use crate::vsphere::simulator::PASSWORD;

/// Of the last state.
pub fn message(last: &Value) -> &str {
    last["last_message"]["message"].as_str().unwrap()
}

/// Names in a directory of the sandbox.
pub fn names(lab: &Lab, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(lab.sandbox.path(directory)).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What the journal of a job says is left on the source.
fn left(lab: &Lab, tag: &str) -> Footprint {
    let journal = lab.sandbox.path("state/jobs").join(tag).join("journal.jsonl");
    Footprint::of(&journal::read(&journal).unwrap())
}

/// The verb: whether it was well, and what it said.
pub fn cleanup(lab: &Lab, tag: &str, stdin: &str) -> (bool, String) {
    let Output { status, stdout, stderr } =
        lab.sandbox.child(&["cleanup", tag], stdin).wait_with_output().unwrap();
    (status.success(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

/// On stdin of the verbs.
pub fn with_password() -> String {
    json!({"vmware_password": PASSWORD}).to_string()
}

/// A cancel at any moment: the source is as it was, nothing of the copy stays, and nobody is told to go on with it.
fn cancel(moments: &[(Moment, &str)]) {
    let Some(mut lab) = Lab::start("job", &three()) else { return };
    lab.write(&["--rate", "8388608"]);
    let before = lab.dump();
    for (moment, to) in moments {
        moment.prepare(&lab);
        let mut job = lab.job(&quick());
        moment.reach(&lab, &job, false);
        assert!(job.signal(Signal::SIGTERM, to), "{moment:?}");
        if *moment == Removal {
            // Who is impatient makes it neither worse nor quicker.
            assert!(job.signal(Signal::SIGTERM, to));
        }
        let last = lab.end(&mut job);
        if *moment == Moment::Shutdown {
            // Its guest obeyed all the same.
            let off = |event: &Value| event["power"] == "poweredOff";
            poll(LIMIT, || lab.events_of("sim: power", "done").iter().any(off).then_some(())).expect("off");
        }
        assert_eq!(lab.dump(), before, "{moment:?}: {last:#}");
        assert_eq!((&last["failed"], &last["finished"]), (&json!(true), &json!(true)), "{moment:?}");
        assert!(message(&last).contains("signal") && !message(&last).contains("resume"), "{last:#}");
        assert_eq!((names(&lab, "out"), names(&lab, "tmp")), (vec![], vec![]), "{moment:?}");
        let tag = tag(&lab, &job);
        assert!(left(&lab, &tag).is_clean(), "{moment:?}: {}", left(&lab, &tag));
        assert!(cleanup(&lab, &tag, "").0, "{moment:?}");
        calm(&lab);
    }
}

#[test]
fn a_cancel_before_the_cutover_leaves_the_source_as_it_was() {
    cancel(&[
        (Base, "pid"),
        (Waiting, "supervisor"),
        (Snapshot, "supervisor"),
        (Delta, "pid"),
        (Removal, "supervisor"),
    ]);
}

#[test]
fn a_cancel_after_the_cutover_leaves_the_source_as_it_was() {
    cancel(&[
        (Moment::Shutdown, "supervisor"),
        (LastRound, "pid"),
        (Conversion, "supervisor"),
        (Conversion, "pid"),
    ]);
}

/// Killed before anything was copied there is nothing to go on with, but something to put back; then it begins anew.
#[test]
fn a_job_that_died_before_it_copied_anything_is_cleaned_up() {
    let Some(mut lab) = Lab::start("job", &one()) else { return };
    lab.write(&[]);
    let before = lab.dump();
    lab.vddk("hold");
    let mut job = lab.job(&quick());
    wait(&job, "the first round", |state| state["status"] == "Pre-copy #0");
    let tag = tag(&lab, &job);
    cut(&mut job);
    assert_ne!(lab.dump(), before);
    lab.vddk("");
    let (done, said) = cleanup(&lab, &tag, &with_password());
    assert!(done && said.contains("put back"), "{said}");
    assert_eq!(lab.dump(), before);
    let found = found(&lab);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.touch(&job, "cutover");
    let last = lab.end(&mut job);
    assert_arrived(&mut lab, &last, &found);
}

/// Change tracking stays on where it was on, or where the user wants it.
#[test]
fn change_tracking_is_afterwards_as_it_was_or_as_it_is_wanted() {
    for (was, keep) in [(true, false), (false, true)] {
        let mut machine = one();
        machine["cbt"] = json!(was);
        let Some(mut lab) = Lab::start("job", &machine) else { return };
        lab.write(&[]);
        let mut wanted = found(&lab);
        wanted[1] = json!(true);
        let mut job = lab.job(&with(&json!({"keep_change_tracking": keep})));
        wait_status(&job, "Waiting");
        lab.touch(&job, "cutover");
        let last = lab.end(&mut job);
        assert_arrived(&mut lab, &last, &wanted);
    }
}

/// A snapshot of somebody else's: the job is refused, and nothing is changed.
#[test]
fn a_machine_with_a_snapshot_of_somebody_else_is_refused_and_not_touched() {
    let mut machine = one();
    machine["snapshots"] = json!(["before upgrade"]);
    let Some(lab) = Lab::start("job", &machine) else { return };
    let before = lab.dump();
    let mut job = lab.job(&quick());
    let last = lab.end(&mut job);
    assert_eq!(last["failed"], json!(true));
    assert!(message(&last).contains("Nothing was changed"), "{last:#}");
    assert_eq!(lab.dump(), before);
    for method in ["ReconfigVM_Task", "RemoveSnapshot_Task", "PowerOffVM_Task"] {
        assert_eq!(lab.events_of(method, "done"), Vec::<Value>::new());
    }
    assert_eq!(names(&lab, "out"), Vec::<String>::new());
}

/// The conversion fails after we switched the machine off: it runs again and writes on, so its copies are old. Who resumes
/// gets the machine as it was when it went off for the second time.
#[test]
fn a_failed_conversion_lets_the_machine_run_and_what_it_writes_is_copied() {
    // Where tracking is ours its change ids are void afterwards, and the disks are compared.
    for is_tracked in [false, true] {
        fail_and_go_on(is_tracked);
    }
}

fn fail_and_go_on(is_tracked: bool) {
    let mut machine = three();
    machine["cbt"] = json!(is_tracked);
    let Some(mut lab) = Lab::start("job", &machine) else { return };
    lab.write(&["--rate", "8388608"]);
    let before = lab.dump();
    let found = found(&lab);
    play_to(&lab.sandbox, &[], 1);
    let mut job = lab.job(&quick());
    wait_status(&job, "Waiting");
    lab.touch(&job, "cutover");
    let last = lab.end(&mut job);
    assert_eq!(last["failed"], json!(true));
    assert_eq!(lab.dump(), before, "{last:#}");
    let tag = tag(&lab, &job);
    for words in ["no root device found", "What is copied was kept", &format!("\"resume\": \"{tag}\"")] {
        assert!(message(&last).contains(words), "{words}: {last:#}");
    }
    lab.wait_written(10);
    calm(&lab);
    let mut job = resume(&lab, &tag, &quick(), true);
    // The cutover of before is void: the machine runs, and its user says when.
    wait_status(&job, "Waiting");
    assert_eq!(lab.power(), "poweredOn");
    lab.wait_written(5);
    lab.touch(&job, "cutover");
    let last = lab.end(&mut job);
    assert_arrived(&mut lab, &last, &found);
}

/// The same where the machine is its user's to switch: he switches it on after the failure, or he does not.
#[test]
fn what_a_machine_wrote_that_somebody_switched_on_after_a_failure_is_copied() {
    for (mode, ran) in [("manual", true), ("never", true), ("manual", false)] {
        let Some(mut lab) = Lab::start("job", &one()) else { return };
        lab.write(&["--rate", "8388608"]);
        let found = found(&lab);
        let keys = with(&json!({"shutdown_mode": mode}));
        play_to(&lab.sandbox, &[], 1);
        let mut job = lab.job(&keys);
        wait_status(&job, "Waiting");
        lab.switch("off");
        lab.touch(&job, "cutover");
        let last = lab.end(&mut job);
        assert_eq!(last["failed"], json!(true));
        assert_eq!((lab.power().as_str(), &super::moments::found(&lab)), ("poweredOff", &found), "{last:#}");
        let tag = tag(&lab, &job);
        if ran {
            lab.switch("on");
            lab.wait_written(10);
        }
        calm(&lab);
        let mut job = resume(&lab, &tag, &keys, false);
        if ran {
            wait_status(&job, "Waiting");
            lab.wait_written(5);
            lab.switch("off");
            lab.touch(&job, "cutover");
        }
        // A machine that stayed off waits for nobody.
        let last = lab.end(&mut job);
        assert_arrived(&mut lab, &last, &found);
        assert_eq!(names(&lab, "tmp"), Vec::<String>::new());
    }
}

/// A snapshot that is still being taken when patience ends is not taken for one that never was.
#[tokio::test]
async fn a_snapshot_that_comes_late_is_not_forgotten() {
    let Some(lab) = Lab::start("job", &one()) else { return };
    let before = lab.dump();
    let session = Vsphere::connect(&lab.vcenter.job(NAME, PASSWORD).plan).await.unwrap();
    let path = lab.sandbox.path("journal.jsonl");
    let mut journal = Journal::create(&path).unwrap();
    let names = ["v2v_cbt late".to_owned()];
    journal.record(&Entry::Machine { moref: lab.moref() }).unwrap();
    journal.record(&Entry::Snapshot { name: names[0].clone() }).unwrap();
    lab.slow_snapshot(4.0);
    let create = Call::new("CreateSnapshot_Task", &Reference::new("VirtualMachine", lab.moref()))
        .text("name", &names[0])
        .text("description", "")
        .text("memory", "false")
        .text("quiesce", "false");
    // Nobody waits for it.
    session.client().value(&create).await.unwrap();
    let patience = Duration::from_secs(1);
    let early = restore::remove_snapshots(&session, &lab.moref(), &names, patience, &mut journal).await;
    assert!(early.is_err());
    assert_eq!(Footprint::of(&journal::read(&path).unwrap()).snapshots, names);
    restore::remove_snapshots(&session, &lab.moref(), &names, Duration::from_secs(60), &mut journal)
        .await
        .unwrap();
    assert!(Footprint::of(&journal::read(&path).unwrap()).is_clean());
    session.close().await;
    assert_eq!(lab.dump(), before);
}
