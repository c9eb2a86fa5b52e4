//! Signals: who cancels a job wants nothing of it to stay; who kills the conversion may want to go on.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::json;

use super::site::{Site, wait};

#[test]
fn a_job_that_is_cancelled_while_it_copies_leaves_nothing() {
    for (layout, to) in [("job", "pid"), ("job", "supervisor"), ("uci", "pid")] {
        let Some(mut site) = Site::new(layout) else { return };
        site.gate();
        let mut job = site.start(&json!({}));
        wait(&job, "something finished", |state| state["bytes_copied"].as_u64() > Some(0));
        let tag = site.tag(&job);
        assert!(job.signal(Signal::SIGTERM, to));
        let last = site.end(&mut job);
        assert_eq!(last["failed"], true, "{layout} {to}");
        let message = last["last_message"]["message"].as_str().unwrap();
        assert!(!message.contains("resume"), "{message}");
        assert_eq!((site.names("out"), site.names("tmp")), (vec![], vec![]), "{layout} {to}");
        assert_eq!(site.kept(), Vec::<PathBuf>::new());
        let said = site.refused(&json!({"resume": tag}));
        assert!(said.contains(&tag) && said.contains("resume"), "{said}");
    }
}

#[test]
fn a_job_that_is_cancelled_while_it_converts_leaves_nothing() {
    let Some(site) = Site::new("job") else { return };
    let never = site.sandbox.path("never");
    site.play(&[json!({"wait_for": never})]);
    let mut job = site.start(&json!({}));
    wait(&job, "virt-v2v-in-place", |state| state["started"] == true);
    assert!(job.signal(Signal::SIGTERM, "supervisor"));
    assert_eq!(site.end(&mut job)["failed"], true);
    assert_eq!((site.names("out"), site.names("tmp"), site.kept()), (vec![], vec![], vec![]));
}

/// Its pid is the one in the state file, and all that a client of the old program has: SIGTERM to it is a cancel, as
/// in one phase, and nothing is kept.
#[test]
fn sigterm_to_the_conversion_cancels_the_job() {
    let Some(site) = Site::new("job") else { return };
    let never = site.sandbox.path("never");
    site.play(&[json!({"wait_for": never})]);
    let mut job = site.start(&json!({}));
    wait(&job, "virt-v2v-in-place", |state| state["started"] == true);
    assert!(job.signal(Signal::SIGTERM, "pid"));
    let last = site.end(&mut job);
    let message = last["last_message"]["message"].as_str().unwrap();
    assert!(message.contains("signal 15") && !message.contains("resume"), "{message}");
    assert_eq!((site.names("out"), site.names("tmp"), site.kept()), (vec![], vec![], vec![]));
}

/// Nobody asked for it: the copies are as they were, and the conversion can be repeated.
#[test]
fn a_conversion_that_is_killed_leaves_the_copies() {
    let Some(site) = Site::new("job") else { return };
    let never = site.sandbox.path("never");
    site.play(&[json!({"wait_for": never})]);
    let mut job = site.start(&json!({}));
    wait(&job, "virt-v2v-in-place", |state| state["started"] == true);
    assert!(job.signal(Signal::SIGKILL, "pid"));
    let last = site.end(&mut job);
    let tag = site.tag(&job);
    let message = last["last_message"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("\"resume\": \"{tag}\"")), "{message}");
    site.assert_kept();
    site.play(&[]);
    let mut next = site.start(&json!({"resume": tag}));
    let last = site.end(&mut next);
    site.assert_moved(&last, "raw");
}
