//! A vCenter that is away when a job ends, or processes that all are: what is left on the source is told, and the verb
//! `cleanup` puts it back later, once.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::as_found::{cleanup, message, names, with_password};
use super::lab::{Lab, wait, wait_status};
use super::moments::Moment::Conversion;
use super::moments::{assert_arrived, calm, cut, found, one, quick, resume, tag, three, with};
use crate::rig::job::Job;
use crate::two_phase::site::play_to;

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
