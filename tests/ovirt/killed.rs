//! Everything of the job dies between a creation and its record: the next one finds what is there, and cleanup removes it.

use serde_json::json;

use super::engine::{Effect, Fault};
use super::site::Lab;
use crate::rig::poll;
use crate::two_phase::site::LIMIT;

/// Starts a job, waits until the engine has done this and says nothing, and kills all of the job's processes.
fn killed_at(lab: &Lab, line: &str) -> String {
    let host = lab.engine.world().host.clone();
    lab.engine.fault(Fault::at(&line.replace("HOST", &host), Effect::SilenceAfter));
    let job = lab.start(&json!({}));
    poll(LIMIT, || (lab.engine.unmet() == 0).then_some(())).expect("the engine was asked");
    let tag = lab.site.tag(&job);
    lab.site.cut(&job);
    lab.engine.no_more_faults();
    tag
}

const MOMENTS: [&str; 3] = ["^POST disks$", "^POST vms/HOST/diskattachments$", "^POST vms$"];

#[test]
fn what_a_killed_job_made_is_removed_by_cleanup() {
    for line in MOMENTS {
        let Some(lab) = Lab::new("job") else { return };
        let tag = killed_at(&lab, line);
        // A job that has copied could be resumed, and keeps its disks until its user says otherwise.
        let discard = line == "^POST vms$";
        let (done, said) = if discard { lab.discard(&tag) } else { lab.cleanup(&tag) };
        assert!(done, "{line}: {said}");
        lab.assert_as_before();
    }
}

/// A second job of the same guest is not stopped by what the first one left.
#[test]
fn what_a_killed_job_left_is_not_in_the_way_of_the_next() {
    for line in ["^POST disks$", "^POST vms/HOST/diskattachments$"] {
        let Some(lab) = Lab::new("job") else { return };
        killed_at(&lab, line);
        let last = lab.run(&json!({}));
        lab.assert_there(&last, "guest");
    }
}

/// Killed when the machine was just made: the job that goes on makes it anew, once, around the same disks.
#[test]
fn a_job_that_goes_on_makes_nothing_twice() {
    let Some(lab) = Lab::new("job") else { return };
    let tag = killed_at(&lab, "^POST vms$");
    assert!(lab.engine.world().named("guest").is_some(), "the machine is there");
    let last = lab.run(&json!({"resume": tag}));
    lab.assert_there(&last, "guest");
    assert_eq!(lab.engine.count("^POST disks$"), 2);
}
