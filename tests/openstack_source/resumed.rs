//! Jobs that were cut while they copied, and those that go on with them. What is finished is not copied again, unless the guest
//! ran meanwhile: then none of it is believed.

use serde_json::{Value, json};

use super::site::{Boot, GUEST, LIMIT, Site};
use crate::rig::job::Job;
use crate::rig::poll;

/// Bytes per second: the three disks take some seconds.
const SLOW: u64 = 2 << 20;

/// A job that has finished a disk, and not all.
fn begun(site: &Site) -> Job {
    let job = site.start(&json!({"throttling": {"network": SLOW.to_string()}}));
    let is_there = || {
        let state = job.last_state()?;
        let disks = state["disks"].as_array()?;
        let finished = disks.iter().filter(|disk| disk["status"] == "Copied").count();
        (finished > 0 && finished < disks.len()).then_some(())
    };
    poll(LIMIT, is_there).unwrap_or_else(|| panic!("{:?}\n{}", job.last_state(), site.source.story()));
    job
}

/// Somebody starts the guest, and shuts it down again.
fn run_guest(site: &Site) {
    site.source.world(|world| {
        let guest = world.servers.iter_mut().find(|server| server.id == GUEST).unwrap();
        guest.actions.extend(["start", "stop"]);
    });
}

fn message(last: &Value) -> &str {
    last["last_message"]["message"].as_str().unwrap_or_default()
}

#[test]
fn a_job_that_was_cut_while_it_copied_is_gone_on_with() {
    let Some(site) = Site::new("osp-resumed", Boot::Volume) else { return };
    let mut job = begun(&site);
    site.cut(&job);
    let tag = site.tag(&job);
    job.end();
    let mut next = site.start(&json!({"resume": tag}));
    let last = site.end(&mut next);
    let volumes = site.arrived(&last);
    for (volume, origin) in volumes.iter().zip(&site.volumes) {
        assert!(site.is_copy(volume, origin), "{volume:?} is not {origin}");
    }
    assert_eq!(volumes.len(), 3);
    assert_eq!(site.destination.count("POST", "/volumes$"), 3, "{}", site.destination.story());
    assert!(last.get("warnings").is_none(), "{last:#}");
    site.source_untouched().unwrap();
}

#[test]
fn copies_of_a_guest_that_ran_meanwhile_are_not_believed() {
    let Some(site) = Site::new("osp-ran", Boot::Volume) else { return };
    let mut job = begun(&site);
    site.cut(&job);
    let tag = site.tag(&job);
    job.end();
    run_guest(&site);
    let mut next = site.start(&json!({"resume": tag}));
    let last = site.end(&mut next);
    assert!(last["failed"] == true && message(&last).contains("start req-"), "{last:#}");
    site.source_untouched().unwrap_or_else(|why| panic!("{why}\n{last:#}"));
    let tag = site.tag(&next);
    let document = String::from_utf8(site.document(&json!({}))).unwrap();
    let cleanup = site.sandbox.child(&["cleanup", "--discard", &tag], &document).wait_with_output().unwrap();
    assert!(cleanup.status.success(), "{cleanup:?}");
    site.destination_untouched().unwrap();
    let last = site.run(&json!({}));
    assert_eq!(site.arrived(&last).len(), 3);
    site.source_untouched().unwrap();
}

#[test]
fn a_guest_that_runs_while_it_is_copied_fails_the_job() {
    let Some(site) = Site::new("osp-runs", Boot::Volume) else { return };
    let mut job = begun(&site);
    run_guest(&site);
    let last = site.end(&mut job);
    let expected = "changed while it was copied (before: create req-0, now: start req-";
    assert!(last["failed"] == true && message(&last).contains(expected), "{last:#}");
    site.source_untouched().unwrap_or_else(|why| panic!("{why}\n{last:#}"));
}
