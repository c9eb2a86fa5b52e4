//! Everything is killed after a thing was made and before anybody could write down its id; and jobs that are told to end in the
//! middle of what they do to the cloud.

use nix::sys::signal::Signal;
use serde_json::json;

use super::fake::{Fault, Harm};
use super::faults::cleanup;
use super::site::{LIMIT, Mode, Site};
use crate::rig::poll;

/// What is made, in its order.
const ONE_PHASE: [(&str, &str, usize); 5] = [
    ("POST", "(os-volume-transfer|volume-transfers)$", 2),
    ("POST", "/accept$", 1),
    ("POST", "/ports$", 1),
    ("POST", "/ports$", 2),
    ("POST", "/servers$", 1),
];
const TWO_PHASE: [(&str, &str, usize); 4] = [
    ("POST", "/volumes$", 1),
    ("POST", "/os-volume_attachments$", 2),
    ("DELETE", "/os-volume_attachments/", 1),
    ("POST", "/servers$", 1),
];

/// A request that is done and never answered.
fn wait_for(site: &Site, method: &'static str, path: &str, nth: usize) -> crate::rig::job::Job {
    site.fake.fail(Fault::once(method, path, Harm::Silence).nth(nth));
    let job = site.start(&json!({}));
    let struck = poll(LIMIT, || (site.fake.struck() > 0).then_some(()));
    assert!(struck.is_some(), "{method} {path}: {:?}\n{}", job.last_state(), site.fake.story());
    job
}

#[test]
fn what_a_killed_job_made_is_found_by_cleanup() {
    for (mode, moments) in [(Mode::OnePhase, &ONE_PHASE[..]), (Mode::TwoPhase, &TWO_PHASE[..])] {
        for (method, path, nth) in moments.iter().copied() {
            let Some(mut site) = Site::new(mode) else { return };
            // Nobody gives up before the kill.
            site.set(json!({"patience_percent": 100}));
            let mut job = wait_for(&site, method, path, nth);
            site.cut(&job);
            site.set(json!({}));
            site.fake.heal();
            let tag = site.tag(&job);
            job.end();
            let (code, words) = cleanup(&site, &tag, &json!({}));
            assert_eq!(code, Some(0), "{mode:?} {method} {path} {nth}: {words}\n{}", site.fake.story());
            site.untouched().unwrap_or_else(|why| panic!("{mode:?} {method} {path} {nth}: {words}: {why}"));
        }
    }
}

#[test]
fn a_killed_two_phase_job_is_gone_on_with_and_makes_nothing_twice() {
    // Later steps than the copy: what is copied is there.
    for (method, path, nth) in [
        ("DELETE", "/os-volume_attachments/", 1),
        ("POST", "(os-volume-transfer|volume-transfers)$", 1),
        ("POST", "/accept$", 2),
        ("POST", "/ports$", 2),
        ("POST", "/servers$", 1),
    ] {
        let Some(mut site) = Site::new(Mode::TwoPhase) else { return };
        site.set(json!({"patience_percent": 100}));
        let mut job = wait_for(&site, method, path, nth);
        site.cut(&job);
        site.set(json!({}));
        site.fake.heal();
        let tag = site.tag(&job);
        job.end();
        let last = site.run(&json!({"resume": tag}));
        site.arrived(&last).unwrap_or_else(|why| panic!("{method} {path} {nth}: {why}"));
    }
}

/// Told to end at any step of a two-phase job: nothing is kept for a resume of what somebody has called off.
#[test]
fn a_two_phase_job_that_is_told_to_end_leaves_nothing() {
    for (method, path, nth) in [
        ("GET", "/servers$", 1),
        ("POST", "/volumes$", 2),
        ("GET", "/volume/v3/p/volumes/", 1),
        ("POST", "/os-volume_attachments$", 1),
        ("POST", "/os-volume_attachments$", 2),
        ("DELETE", "/os-volume_attachments/", 2),
        ("POST", "/action$", 2),
        ("POST", "(os-volume-transfer|volume-transfers)$", 1),
        ("POST", "/accept$", 2),
        ("POST", "/ports$", 2),
        ("POST", "/servers$", 1),
    ] {
        let Some(mut site) = Site::new(Mode::TwoPhase) else { return };
        site.set(json!({"patience_percent": 100}));
        let mut job = wait_for(&site, method, path, nth);
        assert!(job.signal(Signal::SIGTERM, "supervisor"), "{method} {path}");
        let last = job.wait_finished(LIMIT).unwrap_or_else(|| panic!("{method} {path}: no last state"));
        let left = job.gone_within(LIMIT);
        assert!(left.is_ok(), "{method} {path}: processes left: {left:?}");
        job.end();
        assert_eq!(last["failed"], true, "{path}: {last:#}");
        site.untouched().unwrap_or_else(|why| panic!("{method} {path} {nth}: {why}\n{last:#}"));
    }
}

/// Told to end while a request of the finish is under way: what is made goes again, and the state says why.
#[test]
fn a_job_that_is_told_to_end_in_its_finish_leaves_nothing() {
    for (method, path, nth) in ONE_PHASE {
        for harm in [Harm::Silence, Harm::CutBefore] {
            let Some(mut site) = Site::new(Mode::OnePhase) else { return };
            site.set(json!({"patience_percent": 100}));
            site.fake.fail(Fault::always(method, path, harm.clone()).nth(nth));
            let mut job = site.start(&json!({}));
            poll(LIMIT, || (site.fake.struck() > 0).then_some(())).expect("the fault strikes");
            assert!(job.signal(Signal::SIGTERM, "supervisor"));
            let last = job.wait_finished(LIMIT).expect("a last state");
            let left = job.gone_within(LIMIT);
            assert!(left.is_ok(), "processes left: {left:?}");
            job.end();
            assert_eq!(last["failed"], true, "{path} {harm:?}: {last:#}");
            site.untouched().unwrap_or_else(|why| panic!("{method} {path} {nth} {harm:?}: {why}\n{last:#}"));
        }
    }
}
