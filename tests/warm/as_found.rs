//! Nothing of the source is left changed, however a warm migration ends: cancelled, failed, killed, done, or with a vCenter
//! that is away. What cannot be put back is told, and the verb `cleanup` does it later.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use virt_v2v_wrapper::footprint::Footprint;
use virt_v2v_wrapper::journal::{self, Entry, Journal};
use virt_v2v_wrapper::source::vsphere::restore;
use virt_v2v_wrapper::source::vsphere::soap::{Call, Reference};
use virt_v2v_wrapper::source::vsphere::{NewSnapshot, Vsphere};

use super::killed::Moment::{self, Base, Conversion, Delta, LastRound, Removal, Snapshot, Waiting};
use super::killed::{assert_arrived, calm, cut, found, quick, resume, tag, three, with};
use super::lab::{LIMIT, Lab, MIB, NAME, wait, wait_status};
use crate::rig::job::Job;
use crate::rig::poll;
use crate::two_phase::site::play_to;
use crate::vsphere::simulator::PASSWORD;

fn one() -> Value {
    json!({"disks": [13 * MIB + 512], "tools": "running"})
}

fn message(last: &Value) -> &str {
    last["last_message"]["message"].as_str().unwrap()
}

/// Names in a directory of the sandbox.
fn names(lab: &Lab, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(lab.sandbox.path(directory)).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What the journal of a job says is left on the source.
fn left(lab: &Lab, tag: &str) -> Footprint {
    let journal = lab.sandbox.path("state/jobs").join(tag).join("journal.jsonl");
    Footprint::of(&journal::read(&journal).unwrap())
}

fn cleanup(lab: &Lab, tag: &str, stdin: &str) -> (bool, String) {
    let Output { status, stdout, stderr } =
        lab.sandbox.child(&["cleanup", tag], stdin).wait_with_output().unwrap();
    (status.success(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

fn with_password() -> String {
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
        assert_eq!(cleanup(&lab, &tag, "").0, true, "{moment:?}");
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
    let Some(mut lab) = Lab::start("job", &three()) else { return };
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
        assert_eq!((lab.power().as_str(), &super::killed::found(&lab)), ("poweredOff", &found), "{last:#}");
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

/// What stands between a job and its vCenter, and can be cut.
struct Line {
    address: String,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    fn to(vcenter: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (is_cut, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (vcenter, cut, streams) = (vcenter.to_owned(), Arc::clone(&is_cut), Arc::clone(&open));
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&vcenter) else { continue };
                let mut open = streams.lock().unwrap();
                if cut.load(Ordering::SeqCst) {
                    continue;
                }
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        // Either end may go at any time.
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                open.extend([client, server]);
            }
        });
        Self { address, is_cut, open }
    }

    fn cut(&self) {
        let mut open = self.open.lock().unwrap();
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in open.drain(..) {
            // Closed already is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }

    /// More keys of a document: the vCenter at the end of this line.
    fn keys(&self) -> Value {
        with(&json!({"vmware_uri": format!("vpx://{}/DC0/DC0_H0?no_verify=1", self.address)}))
    }
}

/// A job that converts, with a snapshot of its last round still there.
fn converting(lab: &Lab, keys: &Value) -> Job {
    lab.play(&[json!({"wait_for": lab.sandbox.path("go")})]);
    let job = lab.job(keys);
    wait_status(&job, "Waiting");
    lab.vddk("hold");
    lab.touch(&job, "copy_trigger");
    wait(&job, "a round", |state| state["status"] == "Pre-copy #1");
    lab.touch(&job, "cutover");
    lab.vddk("");
    wait(&job, "virt-v2v-in-place", |state| state["started"] == true);
    job
}

/// Removal of what tells it is refused until the source is put back; that needs the password, is done once, and leaves what
/// is copied.
fn put_back_later(lab: &Lab, line: Option<&Line>, tag: &str, last: &Value, parts: &[&str]) {
    let warnings = last["warnings"].to_string();
    for words in parts.iter().copied().chain([format!("virt-v2v-wrapper cleanup {tag}").as_str()]) {
        assert!(warnings.contains(words), "{words}: {last:#}");
    }
    let remove = |tag: &str| {
        let Output { status, stderr, .. } =
            lab.sandbox.child(&["jobs", "--remove", tag], "").wait_with_output().unwrap();
        (status.success(), String::from_utf8(stderr).unwrap())
    };
    let (removed, said) = remove(tag);
    assert!(!removed && said.contains(&format!("cleanup {tag}")), "{said}");
    if let Some(line) = line {
        let (done, said) = cleanup(lab, tag, &with_password());
        assert!(!done && said.contains(&line.address), "{said}");
        line.mend();
    }
    let (done, said) = cleanup(lab, tag, "");
    assert!(!done && said.contains("vmware_password"), "{said}");
    let (done, said) = cleanup(lab, tag, &with_password());
    assert!(done && said.contains("put back"), "{said}");
    for words in parts {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (done, said) = cleanup(lab, tag, "");
    assert!(done && said.contains("nothing of job"), "{said}");
}

fn remove(lab: &Lab, tag: &str) {
    let output = lab.sandbox.child(&["jobs", "--remove", tag], "").wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!lab.sandbox.path("state/jobs").join(tag).exists());
}

/// vSphere is away when the job ends well: what is left is told, and put back later.
#[test]
fn after_a_success_without_vcenter_the_source_is_put_back_later() {
    let Some(mut lab) = Lab::start("job", &one()) else { return };
    let line = Line::to(&lab.vcenter.address);
    lab.write(&[]);
    let found = found(&lab);
    let mut job = converting(&lab, &line.keys());
    line.cut();
    std::fs::write(lab.sandbox.path("go"), "").unwrap();
    let last = lab.end(&mut job);
    let tag = tag(&lab, &job);
    put_back_later(&lab, Some(&line), &tag, &last, &["the snapshot", "changed block tracking"]);
    assert_arrived(&mut lab, &last, &found);
    remove(&lab, &tag);
}

/// The same after a cancel, which leaves nothing to resume, and after a failure, which does.
#[test]
fn after_a_cancel_or_a_failure_without_vcenter_the_source_is_put_back_later() {
    let Some(mut lab) = Lab::start("job", &one()) else { return };
    lab.write(&[]);
    let (before, found) = (lab.dump(), found(&lab));
    let parts = ["the snapshot", "changed block tracking", "the machine switched off"];
    let line = Line::to(&lab.vcenter.address);
    let mut job = converting(&lab, &line.keys());
    line.cut();
    assert!(job.signal(Signal::SIGTERM, "supervisor"));
    let last = lab.end(&mut job);
    let cancelled = tag(&lab, &job);
    assert_eq!(names(&lab, "out"), Vec::<String>::new());
    put_back_later(&lab, Some(&line), &cancelled, &last, &parts);
    assert_eq!(lab.dump(), before);
    remove(&lab, &cancelled);

    let mut job = converting(&lab, &line.keys());
    play_to(&lab.sandbox, &[], 1);
    line.cut();
    assert!(job.signal(Signal::SIGKILL, "pid"));
    let last = lab.end(&mut job);
    let failed = tag(&lab, &job);
    assert!(message(&last).contains(&format!("\"resume\": \"{failed}\"")), "{last:#}");
    put_back_later(&lab, Some(&line), &failed, &last, &parts);
    assert_eq!(lab.dump(), before);

    lab.wait_written(5);
    calm(&lab);
    let mut job = resume(&lab, &failed, &line.keys(), true);
    wait_status(&job, "Waiting");
    lab.touch(&job, "cutover");
    let last = lab.end(&mut job);
    assert_arrived(&mut lab, &last, &found);
    // What was gone on with has nothing to put back any more.
    remove(&lab, &failed);
}

/// Everything was killed, and nobody goes on for now.
#[test]
fn after_a_kill_the_source_is_put_back_and_the_copies_stay() {
    let Some(mut lab) = Lab::start("job", &three()) else { return };
    lab.write(&[]);
    let (before, found) = (lab.dump(), found(&lab));
    Conversion.prepare(&lab);
    let mut job = lab.job(&quick());
    Conversion.reach(&lab, &job, false);
    let tag = tag(&lab, &job);
    cut(&mut job);
    calm(&lab);
    let jobs = lab.sandbox.child(&["jobs"], "").wait_with_output().unwrap();
    assert!(jobs.status.success());
    let last = crate::rig::json_file(lab.sandbox.path("state/jobs").join(&tag).join("state.json"));
    put_back_later(&lab, None, &tag, &last, &["changed block tracking", "the machine switched off"]);
    assert_eq!(lab.dump(), before);
    lab.wait_written(5);
    let mut next = resume(&lab, &tag, &quick(), true);
    wait_status(&next, "Waiting");
    let said = cleanup(&lab, &tag, &with_password()).1;
    assert!(said.contains("was resumed by job"), "{said}");
    lab.touch(&next, "cutover");
    let last = lab.end(&mut next);
    assert_arrived(&mut lab, &last, &found);
}

/// In layout uci the next job has the place of the one before; what that one has left on its source is not forgotten.
#[test]
fn in_layout_uci_what_an_earlier_job_left_is_not_forgotten() {
    let Some(mut lab) = Lab::start("uci", &one()) else { return };
    lab.write(&[]);
    let before = lab.dump();
    let line = Line::to(&lab.vcenter.address);
    let mut job = converting(&lab, &line.keys());
    let tag = tag(&lab, &job);
    line.cut();
    assert!(job.signal(Signal::SIGTERM, "supervisor"));
    lab.end(&mut job);
    // Another job, of a machine that is not there.
    let mut other = lab.job(&with(&json!({"vm_name": "nobody"})));
    lab.end(&mut other);
    line.mend();
    let (done, said) = cleanup(&lab, "20200101T000000-1", &with_password());
    assert!(!done && said.contains("there is no job"), "{said}");
    let (done, said) = cleanup(&lab, &tag, &with_password());
    assert!(done && said.contains("put back"), "{said}");
    assert_eq!(lab.dump(), before);
    let (_, said) = cleanup(&lab, &tag, &with_password());
    assert!(said.contains("nothing of job") || said.contains("there is no job"), "{said}");
    let left = names(&lab, "state");
    assert!(!left.iter().any(|name| name.starts_with("copies-")), "{left:?}");
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
    lab.control("slow-snapshots?seconds=4");
    let new = NewSnapshot { name: names[0].clone(), description: String::new(), quiesce: false };
    let create = Call::new("CreateSnapshot_Task", &Reference::new("VirtualMachine", lab.moref()))
        .text("name", &new.name)
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
