//! What is refused before anything begins: exit code 1, a sentence, nothing on stdout, nothing made.

use std::fs;

use serde_json::{Value, json};

use super::site::Site;

#[test]
fn a_tag_that_cannot_be_resumed_is_refused_at_once() {
    let Some(site) = Site::new("job") else { return };
    let mut job = site.start(&json!({}));
    let last = site.end(&mut job);
    site.assert_moved(&last, "raw");
    let succeeded = site.tag(&job);
    for (tag, words) in [
        (succeeded.as_str(), "succeeded: there is nothing to resume"),
        ("20200101T000000-1", "there is no job 20200101T000000-1"),
        ("../../etc", "must be the tag of an earlier job"),
    ] {
        let said = site.refused(&json!({"resume": tag}));
        assert!(said.contains(words), "{tag}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
    // Nothing of that has touched the machine that is there.
    site.assert_moved(&last, "raw");
}

#[test]
fn a_host_that_cannot_convert_in_place_refuses_before_hours_of_copying() {
    for (keys, capabilities, words) in [
        (json!({}), json!("1.42"), "two_phase needs virt-v2v 2.0 or later"),
        (
            json!({"virt_v2v_in_place": "/nowhere/virt-v2v-in-place"}),
            Value::Null,
            "/nowhere/virt-v2v-in-place",
        ),
        (json!({"nbdkit": "/nowhere/nbdkit"}), Value::Null, "/nowhere/nbdkit"),
    ] {
        let Some(mut site) = Site::new("job") else { return };
        site.set(keys);
        if !capabilities.is_null() {
            site.sandbox.scenario(&json!({"capabilities": capabilities}));
        }
        let said = site.refused(&json!({}));
        assert!(said.contains("two_phase") && said.contains(words), "{said}");
        assert_eq!((site.names("out"), site.kept()), (vec![], vec![]));
    }
}

/// Another job's disks are not gone on with by accident.
#[test]
fn copies_of_something_else_are_not_gone_on_with_and_not_touched() {
    let Some(mut site) = Site::new("job") else { return };
    site.gate();
    let job = site.start(&json!({}));
    super::site::wait(&job, "something finished", |state| state["disks"][1]["copied"].as_u64() > Some(0));
    let tag = site.tag(&job);
    site.cut(&job);
    site.go();
    let copies = [0, 1].map(|disk| fs::read(site.copy(disk)).unwrap());
    let other = json!({"resume": tag, "source_disks": [site.source(1), site.source(0)]});
    let mut next = site.start(&other);
    let last = site.end(&mut next);
    let message = last["last_message"]["message"].as_str().unwrap();
    assert!(last["failed"] == true && message.contains("the disk is another one"), "{message}");
    for (disk, copy) in copies.iter().enumerate() {
        assert!(fs::read(site.copy(disk)).unwrap() == *copy, "disk {disk}");
    }
    // And they are still there for the right document.
    let mut again = site.start(&json!({"resume": site.tag(&next)}));
    let last = site.end(&mut again);
    site.assert_moved(&last, "raw");
}
