//! Everything is killed after a thing was made and before anybody could write down its id; and jobs that are told to end in the
//! middle of what they do to the cloud.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::json;

use super::fake::{Fault, Harm};
use super::faults::cleanup;
use super::site::{LIMIT, Mode, Site, show};
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

/// The worker is killed, or all are, when virt-v2v has made a volume of which nobody has read in its log yet.
#[test]
fn a_volume_of_which_only_the_log_tells_goes_too() {
    for whole in [false, true] {
        let Some(site) = Site::new(Mode::OnePhase) else { return };
        let go = site.sandbox.path("go");
        let [first, second] = [0, 1].map(|at| site.volumes[at].clone());
        let tell = |id: &String| json!({"text": show(std::slice::from_ref(id))});
        site.play(&[tell(&first), json!({"wait_for": go}), tell(&second), json!({"sleep_ms": 600_000})], 0);
        let mut job = site.start(&json!({}));
        let holds =
            |file: PathBuf, id: &str| std::fs::read_to_string(file).is_ok_and(|text| text.contains(id));
        let beside = |name: &str| {
            let reply = job.reply()?;
            let key = |key: &str| Some(PathBuf::from(reply[key].as_str()?));
            if name == "log" { key("v2v_log") } else { Some(key("state_file")?.with_file_name(name)) }
        };
        let journal = || beside("journal.jsonl").filter(|file| holds(file.clone(), &first));
        let log = || beside("log").filter(|file| holds(file.clone(), &second));
        poll(LIMIT, journal).expect("the first volume is noted");
        assert!(job.signal(Signal::SIGSTOP, "worker"));
        std::fs::write(&go, "").unwrap();
        poll(LIMIT, log).expect("the log tells of the second volume");
        if whole {
            site.cut(&job);
            let tag = site.tag(&job);
            job.end();
            let (code, words) = cleanup(&site, &tag, &json!({}));
            assert_eq!(code, Some(0), "{words}");
        } else {
            assert!(job.signal(Signal::SIGKILL, "worker"));
            let last = site.end(&mut job);
            assert_eq!(last["failed"], true, "{last:#}");
        }
        site.untouched().unwrap_or_else(|why| panic!("all killed: {whole}: {why}"));
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
