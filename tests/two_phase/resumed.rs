//! Interrupted jobs, and those that go on with them: nothing that was finished is done again, and the end is the same.

use std::fs;

use serde_json::json;

use super::site::{Site, wait};
use crate::rig::poll;

/// Hours of copying are not lost by a conversion that fails (peers.md 6.3, row 16).
#[test]
fn a_failed_conversion_leaves_the_copies_and_is_repeated_without_the_source() {
    for layout in ["job", "uci"] {
        let Some(site) = Site::new(layout) else { return };
        site.play_to(&[], 1);
        let mut job = site.start(&json!({}));
        let last = site.end(&mut job);
        let tag = site.tag(&job);
        let message = last["last_message"]["message"].as_str().unwrap();
        assert_eq!(last["failed"], true, "{layout}");
        assert!(message.contains("no root device found"), "{message}");
        assert!(message.contains(&format!("\"resume\": \"{tag}\"")), "{message}");
        site.assert_kept();

        // Once more, which fails as well.
        site.hide_source();
        let mut job = site.start(&json!({"resume": tag}));
        assert_eq!(site.end(&mut job)["failed"], true, "{layout}");
        let again = site.tag(&job);
        assert_ne!(tag, again);
        site.assert_kept();

        site.play(&[]);
        let mut job = site.start(&json!({"resume": again}));
        let last = site.end(&mut job);
        site.assert_moved(&last, "raw");
        // Each of them is over now.
        for (tag, words) in [(&tag, "was resumed by job"), (&again, "was resumed by job")] {
            let said = site.refused(&json!({"resume": tag}));
            assert!(said.contains(tag) && (said.contains(words) || layout == "uci"), "{layout}: {said}");
        }
        site.assert_moved(&last, "raw");
    }
}

/// Everything dies while the second disk is copied.
#[test]
fn a_job_that_was_killed_while_it_copied_is_gone_on_with_and_reads_only_what_is_missing() {
    for (layout, format) in [("job", "raw"), ("uci", "raw"), ("job", "qcow2")] {
        let Some(mut site) = Site::new(layout) else { return };
        site.gate();
        let document = json!({"output_format": format});
        let job = site.start(&document);
        wait(&job, "a finished disk, and a half finished one", |state| {
            let copied = |disk: usize| state["disks"][disk]["copied"].as_u64() > Some(0);
            state["disks"][0]["status"] == "Copied" && copied(1)
        });
        let tag = site.tag(&job);
        if layout == "job" {
            let said = site.refused(&json!({"resume": tag}));
            assert!(said.contains("is running"), "{said}");
        }
        site.cut(&job);
        // Whoever asks for the jobs closes it, and its state names the way on.
        let jobs = site.sandbox.child(&["jobs"], "").wait_with_output().unwrap();
        assert!(jobs.status.success(), "{jobs:?}");
        let state = match layout {
            "job" => site.sandbox.path("state/jobs").join(&tag).join("state.json"),
            _ => site.sandbox.path("state/state.json"),
        };
        let old = crate::rig::json_file(state);
        assert_eq!((&old["finished"], &old["failed"]), (&json!(true), &json!(true)), "{old}");
        let message = old["last_message"]["message"].as_str().unwrap();
        assert!(message.contains(&format!("\"resume\": \"{tag}\"")), "{layout}: {message}");
        assert!(site.copy(0).exists() && site.copy(1).exists());

        let before = site.reads().len();
        site.go();
        let mut next = site.start(&json!({"output_format": format, "resume": tag}));
        let last = site.end(&mut next);
        site.assert_moved(&last, format);
        let reads = site.reads().split_off(before);
        assert!(!reads.is_empty() && reads.iter().all(|(disk, _)| disk == "b.img"), "{layout}: {reads:?}");
        // The first chunks of it were recorded.
        assert!(reads.iter().all(|(_, offset)| *offset >= 4 << 20), "{layout}: {reads:?}");
    }
}

/// Where in the commits everything dies (peers.md 6.3, rows 17 and 18): `$n` is the number of the commit, from 1.
const DEATHS: [(&str, &str); 4] = [
    ("before the first", "[ $n = 1 ] && hang"),
    // Half of the change is in the copy, which is neither old nor new.
    ("in the first", "[ $n = 1 ] && qemu-io -f raw -c 'write -P 0x5a 3080192 32768' $OUT/guest-sda && hang"),
    ("after the first", "[ $n = 1 ] && $REAL \"$@\" && hang"),
    ("before the second", "[ $n = 2 ] && hang"),
];

#[test]
fn a_job_that_was_killed_while_it_committed_is_finished_without_source_and_conversion() {
    for layout in ["job", "uci"] {
        for (name, death) in DEATHS {
            let Some(mut site) = Site::new(layout) else { return };
            let (dir, out) = (site.sandbox.dir.clone(), site.sandbox.path("out"));
            let hang = format!(
                "hang() {{ touch {dir}/hangs; while [ ! -e {dir}/go ]; do sleep 0.02; done; }}\n\
                 echo >> {dir}/commits; n=$(wc -l < {dir}/commits)\n{}",
                death.replace("$OUT", out.to_str().unwrap()),
                dir = dir.display(),
            );
            site.wrap_qemu_img(&hang);
            let job = site.start(&json!({}));
            let hangs = site.sandbox.path("hangs");
            poll(super::site::LIMIT, || hangs.exists().then_some(()))
                .unwrap_or_else(|| panic!("{name}: no commit"));
            let tag = site.tag(&job);
            site.cut(&job);
            site.go();
            site.hide_source();
            fs::remove_file(site.sandbox.path("bin/record.json")).unwrap();
            let mut next = site.start(&json!({"resume": tag}));
            let last = site.end(&mut next);
            site.assert_moved(&last, "raw");
            assert_eq!(site.sandbox.record(), None, "{name}: it is converted once");
            assert_eq!(last["return_code"], 0, "{name}");
            for disk in [0, 1] {
                assert_eq!(last["disks"][disk]["status"], "Committed", "{name}");
                assert_eq!(last["disks"][disk]["commit_progress"], 100.0, "{name}");
            }
        }
    }
}

/// Everything dies while the disks are converted: the copies are as they were, and the conversion begins anew.
#[test]
fn a_job_that_was_killed_while_it_converted_begins_the_conversion_again() {
    let Some(site) = Site::new("job") else { return };
    let never = site.sandbox.path("never");
    site.play(&[json!({"text": "half\n"}), json!({"wait_for": never})]);
    let job = site.start(&json!({}));
    let log = site.sandbox.path("log").join(site.tag(&job)).join("virt-v2v.log");
    poll(super::site::LIMIT, || fs::read_to_string(&log).is_ok_and(|log| log.contains("half")).then_some(()))
        .expect("it converts");
    let tag = site.tag(&job);
    site.cut(&job);
    for disk in [0, 1] {
        assert!(site.is_copy(disk, false, "raw"), "disk {disk}");
    }
    site.hide_source();
    site.play(&[]);
    let mut next = site.start(&json!({"resume": tag}));
    let last = site.end(&mut next);
    site.assert_moved(&last, "raw");
}
