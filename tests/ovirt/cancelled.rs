//! A job that is cancelled at any moment leaves nothing, although the engine may go on with what it was asked for.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::engine::Effect;
use super::faults::{STEPS, at, document};
use super::site::{Lab, message};
use crate::rig::poll;
use crate::two_phase::site::{LIMIT, wait};

/// Longer than the program takes to see that it is cancelled.
const LATE: Duration = Duration::from_millis(600);

fn cancelled_at(line: &str, effect: Effect) {
    let Some(mut lab) = Lab::new("job") else { return };
    // What was begun and not answered is looked for two seconds.
    lab.site.set(json!({"patience_percent": 20}));
    let theirs = lab.engine.world().disk("theirs", "");
    lab.engine.fault(at(&lab, line, effect));
    let mut job = lab.start(&document(&lab));
    poll(LIMIT, || (lab.engine.unmet() == 0).then_some(())).expect("the engine was asked");
    assert!(job.signal(Signal::SIGTERM, "supervisor"));
    let last = lab.end(&mut job);
    assert!(message(&last).starts_with("Exiting on signal number 15"), "{line}: {last:#}");
    assert_eq!(last.get("warnings"), None, "{line}: {last:#}");
    assert!(lab.engine.world().disks.remove(&theirs).is_some(), "{line}: a disk of theirs is gone");
    lab.assert_as_before();
}

/// It was done when the signal came, and nobody had said so.
#[test]
fn a_cancel_while_an_answer_is_waited_for_leaves_nothing() {
    for line in STEPS {
        cancelled_at(line, Effect::SilenceAfter);
    }
}

/// It is done after the signal: what is not there yet must not count as never made.
#[test]
fn a_cancel_while_the_engine_works_leaves_nothing() {
    for line in STEPS.into_iter().filter(|line| !line.starts_with("^GET") && !line.contains("sso")) {
        cancelled_at(line, Effect::Late(LATE));
    }
}

/// Two jobs of one guest beside each other: what one removes is its own.
#[test]
fn a_cancelled_job_removes_nothing_of_the_one_beside_it() {
    let Some(mut lab) = Lab::new("job") else { return };
    lab.site.set(json!({"patience_percent": 50}));
    lab.site.gate();
    let copied = |state: &Value| state["disks"][0]["status"] == "Copied";
    let mut first = lab.start(&json!({}));
    wait(&first, "a copied disk", copied);
    let mut second = lab.start(&json!({}));
    wait(&second, "a copied disk", copied);
    let names: Vec<_> = lab.engine.world().disks.values().map(|disk| disk["name"].to_string()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(first.signal(Signal::SIGTERM, "supervisor"));
    let last = first.wait_finished(LIMIT).expect("the state says finished");
    assert_eq!(last.get("warnings"), None, "{last:#}");
    first.end();
    {
        let world = lab.engine.world();
        assert_eq!((world.disks.len(), world.attachments.len()), (2, 2), "{world:#?}");
    }
    lab.site.go();
    let last = lab.end(&mut second);
    lab.assert_there(&last, "guest");
}
