//! Whatever ends a job, and wherever: the source is as it was found, and nothing of the job is at the destination.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::site::{Boot, GUEST, LIMIT, Site};
use crate::openstack::fake::{Fault, Harm};
use crate::rig::job::Job;
use crate::rig::poll;

/// The job failed with this sentence, and both clouds are as they were.
#[track_caller]
fn failed(site: &Site, last: &Value, what: &str, expected: &str) {
    let said = last["last_message"]["message"].as_str().unwrap_or_default();
    assert!(
        last["failed"] == true && said.contains(expected),
        "{what}: {expected}: {last:#}\n{}",
        site.source.story()
    );
    site.source_untouched().unwrap_or_else(|why| panic!("{what}: {why}\n{last:#}"));
    site.destination_untouched().unwrap_or_else(|why| panic!("{what}: {why}\n{last:#}"));
}

/// A wrong document, or a cloud that is not as it says: nothing is changed anywhere.
#[test]
fn what_cannot_be_moved_is_refused_before_anything_is_changed() {
    let Some(site) = Site::new("osp-refused", Boot::Volume) else { return };
    for (more, expected) in [
        (json!({"osp_source_conversion_vm_id": "nobody"}), "Cannot find source instance nobody"),
        (json!({"osp_source_vm_id": "nobody"}), "Cannot find source VM nobody"),
        (json!({"osp_server_id": "nobody"}), "Cannot find destination instance nobody"),
        (json!({"osp_source_vm_id": "bystander"}), "Source VM is not shut down!"),
        (json!({"source_disks": [site.volumes[1]]}), "No known boot device found for this instance!"),
        (json!({"source_disks": ["v-nobody"]}), "has no volume v-nobody"),
    ] {
        let last = site.run(&more);
        failed(&site, &last, &more.to_string(), expected);
        assert_eq!(site.source.count("POST", "snapshots|attachments|action"), 0, "{}", site.source.story());
    }
    site.converter.lock_out();
    let last = site.run(&json!({}));
    failed(&site, &last, "no key", "Unable to SSH to source conversion host!");
    assert_eq!(site.source.count("POST", "snapshots|attachments|action"), 0, "{}", site.source.story());
}

/// Each step fails once.
#[test]
fn a_failure_at_any_step_puts_the_source_back() {
    let of_source = [
        ("POST", "/snapshots$", 1, "cannot take a snapshot of the boot volume"),
        ("POST", "/volumes$", 1, "cannot make a volume with a copy of the boot disk"),
        ("DELETE", "/servers/source-guest/os-volume_attachments/", 2, "cannot detach volume"),
        ("POST", "/servers/converter/os-volume_attachments", 1, "cannot attach volume"),
        ("POST", "/servers/converter/os-volume_attachments", 3, "cannot attach volume"),
    ];
    let of_destination =
        [("POST", "/volumes$", 2, "Error creating volume"), ("POST", "/servers$", 1, "Create VM failed")];
    for (at_source, steps) in [(true, &of_source[..]), (false, &of_destination)] {
        for (method, path, nth, expected) in steps.iter().copied() {
            let Some(site) = Site::new("osp-step", Boot::Volume) else { return };
            let cloud = if at_source { &site.source } else { &site.destination };
            cloud.fail(Fault::once(method, path, Harm::Refuse(403, "not today")).nth(nth));
            let last = site.run(&json!({}));
            failed(&site, &last, &format!("{method} {path} {nth}"), expected);
            let said = last["last_message"]["message"].as_str().unwrap();
            assert!(said.contains("not today"), "{said}");
        }
    }
}

/// An answer that is lost is no reason to make a thing twice, or to leave it.
#[test]
fn what_was_made_without_an_answer_is_found() {
    for (method, path, nth) in
        [("POST", "/snapshots$", 1), ("POST", "/volumes$", 1), ("POST", "os-volume_attachments$", 2)]
    {
        let Some(site) = Site::new("osp-lost", Boot::Volume) else { return };
        site.source.fail(Fault::once(method, path, Harm::CutAfter).nth(nth));
        let last = site.run(&json!({}));
        assert_eq!(site.arrived(&last).len(), 3, "{method} {path}");
        site.source_untouched().unwrap_or_else(|why| panic!("{method} {path}: {why}"));
    }
}

/// podman does not, the container ends, or serves nothing.
#[test]
fn a_conversion_host_that_serves_nothing_is_left_clean() {
    for (what, expected) in [
        ("run", "cannot start the container that serves the disks: Error: run does not work today"),
        ("program", "ended instead of serving the disks"),
        ("image", "image not known"),
    ] {
        let Some(site) = Site::new("osp-podman", Boot::Volume) else { return };
        let mut more = json!({});
        match what {
            "run" => fs::write(site.converter.path("/srv/fail"), "run\n").unwrap(),
            "program" => fs::write(site.converter.path("/srv/program"), "/bin/false\n").unwrap(),
            _ => more = json!({"uci_container": "of-another-name"}),
        }
        let last = site.run(&more);
        failed(&site, &last, what, expected);
    }
}

/// The container is there, and its program does not begin.
fn waiting(site: &Site) -> Job {
    fs::write(site.converter.path("/srv/wait"), "").unwrap();
    let job = site.start(&json!({}));
    let started = || {
        let container = fs::read_dir(site.converter.path("/srv/podman")).unwrap().next()?.unwrap();
        container.path().join("pid").exists().then_some(())
    };
    poll(LIMIT, started).unwrap_or_else(|| panic!("{:?}\n{}", job.last_state(), site.source.story()));
    job
}

#[test]
fn a_cancelled_job_puts_the_source_back() {
    let Some(site) = Site::new("osp-cancel", Boot::Volume) else { return };
    let mut job = waiting(&site);
    assert!(job.signal(Signal::SIGTERM, "supervisor"));
    let last = site.end(&mut job);
    failed(&site, &last, "cancelled", "signal");
}

/// A power cut: what is not put back then is by hand, once; another time there is nothing to do.
#[test]
fn cleanup_puts_the_source_of_a_killed_job_back() {
    let Some(site) = Site::new("osp-killed", Boot::Volume) else { return };
    let mut job = waiting(&site);
    site.cut(&job);
    let tag = site.tag(&job);
    job.end();
    let attached = site.source.world(|world| {
        world.servers.iter().find(|server| server.id == GUEST).map(|server| server.volumes.len())
    });
    assert_eq!(attached, Some(1), "its data volumes are out");
    for again in [false, true] {
        let document = site.document(&json!({}));
        let mut cleanup = site.sandbox.spawn_with(&["cleanup", &tag], document);
        let status = cleanup.wait_exit(LIMIT).expect("it ends");
        let said = String::from_utf8(cleanup.stdout().bytes).unwrap();
        assert_eq!(status.code(), Some(0), "{said}\n{}", site.source.story());
        site.source_untouched().unwrap_or_else(|why| panic!("{again}: {said} {why}"));
    }
    site.destination_untouched().unwrap();
}

/// A command goes on there when nobody listens any more.
#[test]
fn a_container_that_is_being_started_when_the_job_is_cancelled_goes_too() {
    let Some(site) = Site::new("osp-starting", Boot::Volume) else { return };
    fs::write(site.converter.path("/srv/slow"), "").unwrap();
    let mut job = site.start(&json!({}));
    let starting = || {
        let directory = site.converter.left().pop()?;
        site.converter.path(&format!("/tmp/{directory}/starting")).exists().then_some(())
    };
    poll(LIMIT, starting).unwrap_or_else(|| panic!("{:?}\n{}", job.last_state(), site.source.story()));
    assert!(job.signal(Signal::SIGTERM, "supervisor"));
    let last = site.end(&mut job);
    poll(LIMIT, || site.converter.path("/srv/made").exists().then_some(())).expect("the container is made");
    failed(&site, &last, "cancelled", "signal");
}

/// One worker is killed alone: the supervisor sees to the source.
#[test]
fn a_dead_worker_leaves_the_source_as_it_was() {
    let Some(site) = Site::new("osp-worker", Boot::Volume) else { return };
    let mut job = waiting(&site);
    assert!(job.signal(Signal::SIGKILL, "pid"));
    let last = site.end(&mut job);
    assert_eq!(last["failed"], true, "{last:#}");
    site.source_untouched().unwrap_or_else(|why| panic!("{why}\n{last:#}"));
}
