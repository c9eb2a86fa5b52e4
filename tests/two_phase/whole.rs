//! Jobs from their beginning to their end: what the state says on the way, and what is there afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::site::{DATA, LIMIT, MIB, Site, wait};
use crate::exports::site::{run, skip};
use crate::rig::poll;

#[test]
fn two_disks_are_copied_proven_converted_and_committed_whatever_the_format() {
    for (layout, more, format) in [
        ("job", json!({}), "raw"),
        ("uci", json!({"output_format": "qcow2"}), "qcow2"),
        ("uci", json!({"allocation": "preallocated", "verify": "off"}), "raw"),
        ("job", json!({"allocation": "preallocated", "output_format": "qcow2"}), "qcow2"),
    ] {
        let Some(site) = Site::new(layout) else { return };
        let mut job = site.start(&more);
        let last = site.end(&mut job);
        site.assert_moved(&last, format);
        assert_eq!(last["progress"], 100.0, "{more}");
        assert_eq!(last["bytes_copied"], last["bytes_total"], "{more}");
        for disk in [0, 1] {
            let size = fs::metadata(site.source(disk)).unwrap().len();
            let shown = &last["disks"][disk];
            assert_eq!(shown["path"], site.source(disk).to_str().unwrap());
            assert_eq!((&shown["size"], &shown["status"]), (&json!(size), &json!("Committed")), "{more}");
            assert_eq!(
                (&shown["progress"], &shown["commit_progress"]),
                (&json!(100.0), &json!(100.0)),
                "{more}"
            );
            assert_eq!(shown["copied"], shown["to_copy"], "{more}");
            let round = &shown["copies"][0];
            assert_eq!((&round["change_id"], &round["status"]), (&json!("*"), &json!("Copied")), "{more}");
            assert!(round["start_time"].as_f64() <= round["end_time"].as_f64(), "{round}");
            let room = fs::metadata(site.copy(disk)).unwrap().blocks() * 512;
            match more["allocation"].is_string() {
                true => assert!(room >= size, "{more}: {room}"),
                false => assert!(room < size - MIB, "{more}: {room}"),
            }
        }
        let xml = fs::read_to_string(site.sandbox.path("out/guest.xml")).unwrap();
        for disk in [0, 1] {
            assert!(xml.contains(site.copy(disk).to_str().unwrap()), "{xml}");
        }
        assert!(xml.contains(&format!("type='{format}'")), "{xml}");
    }
}

/// contract.md 3.4 and 3.5: what clients see of the stages, in their order.
#[test]
fn the_stages_are_told_in_the_words_of_the_contract() {
    let Some(mut site) = Site::new("job") else { return };
    site.gate();
    let (ready, convert) = (site.sandbox.path("ready"), site.sandbox.path("convert"));
    site.play(&[json!({"wait_for": convert})]);
    site.wrap_qemu_img(&format!("while [ ! -e {} ]; do sleep 0.02; done", ready.display()));
    let mut job = site.start(&json!({}));

    let copying = wait(&job, "a rate while the second disk waits", |state| {
        state["rate"].is_u64() && state["disks"][0]["status"] == "Copied" && state["disks"][1]["copied"] != 0
    });
    assert_eq!(copying["status"], "Pre-copy #0 (last)");
    assert_eq!(copying["disk_count"], 2);
    assert_eq!(copying["pid"].as_i64(), job.address("pid").map(i64::from), "somebody to cancel it by");
    assert_eq!(copying["disks"][0]["label"], "Hard disk 1");
    let second = &copying["disks"][1];
    assert_eq!((&second["status"], &second["copies"][0]["status"]), (&json!("Copying"), &json!("Copying")));
    assert!(second["copied"].as_u64() < second["to_copy"].as_u64(), "{second}");
    assert!(second["progress"].as_f64().is_some_and(|percent| percent > 0.0 && percent < 100.0), "{second}");
    assert!(copying["bytes_copied"].as_u64() < copying["bytes_total"].as_u64(), "{copying}");
    site.go();

    let converting = wait(&job, "virt-v2v-in-place", |state| state["started"] == true);
    assert_eq!(converting["status"], "Starting virt-v2v");
    assert_eq!(converting["disks"][1]["checksum"], site.checksum(1));
    assert_eq!(converting["disks"][1]["progress"], 100.0);
    let record = poll(LIMIT, || site.sandbox.record()).unwrap();
    assert_eq!(converting["pid"], record["pid"], "whom a client kills to cancel");
    let words: Vec<&str> = record["argv"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(words.windows(2).any(|pair| pair == ["-i", "libvirtxml"]), "{words:?}");
    fs::write(&convert, "").unwrap();

    let committing = wait(&job, "the commit", |state| state["disks"][0]["status"] == "Committing");
    assert_eq!(committing["status"], "Finishing (committing overlays)");
    assert_eq!(committing["disks"][0]["commit_progress"], 0.0);
    assert_eq!(committing["return_code"], 0);
    assert_ne!(committing["pid"], record["pid"], "that one is dead");
    fs::write(&ready, "").unwrap();

    let last = site.end(&mut job);
    site.assert_moved(&last, "raw");
    let seen = [&copying, &converting, &committing, &last].map(|state| state["progress"].as_f64().unwrap());
    assert!(seen.is_sorted() && seen[0] > 0.0 && seen[3] == 100.0, "{seen:?}");
}

/// A small file system, unmounted in the end.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The state says for what it waits (peers.md 6.3, row 39).
#[test]
fn a_full_output_directory_is_waited_for() {
    if !nix::unistd::geteuid().is_root() {
        skip("only root mounts a small file system");
        return;
    }
    let Some(site) = Site::new("job") else { return };
    let out = site.sandbox.path("out");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=5m", "tmpfs"]).arg(&out));
    let _small = Small(out.clone());
    let mut job = site.start(&json!({}));
    let waiting = wait(&job, "what it waits for", |state| state["waiting_for"].is_string());
    assert!(waiting["waiting_for"].as_str().unwrap().contains("guest-sd"), "{waiting}");
    assert!(waiting["bytes_copied"].as_u64() < Some(DATA), "{waiting}");
    let warned = waiting["warnings"][0].as_str().unwrap_or_default();
    assert!(warned.contains("has 5 MiB free, and the disks may grow to 23 MiB there"), "{waiting}");
    run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(&out));
    let last = site.end(&mut job);
    assert_eq!(last.get("waiting_for"), None);
    site.assert_moved(&last, "raw");
}
