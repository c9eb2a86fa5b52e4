//! Conversion in place of copied disks with the real virt-v2v-in-place: under overlays, committed when it succeeded,
//! and finished later when the commit was interrupted.
//!
//! Driven through the library, with a job built by hand. The library waits for, and at the end kills, all children of
//! its process, so each of these tests is a process of its own ([`alone`]).

mod bench;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use serde_json::json;
use virt_v2v_wrapper::convert::Stopped;
use virt_v2v_wrapper::domain::{self, Placed};
use virt_v2v_wrapper::guest::{Bus, Disk, Firmware, Guest, Nic};
use virt_v2v_wrapper::in_place::{self, InPlaceError};
use virt_v2v_wrapper::journal::Entry;
use virt_v2v_wrapper::plan::DiskFormat;
use virt_v2v_wrapper::{state_file, undo};

use crate::disks;
use crate::lab::{self, Site};

use bench::{Bench, NAME, alone, have, journal_of, state, straight, tool, until};

/// Rules, in the life of one guest (peers.md 6.3, rows 16-18, 45): a converter that is killed leaves the copies as they
/// were and no overlay; one that succeeds is committed; a commit that is killed in the middle of the first disk, and
/// again by a cancel, is finished by a later start, and then both disks are what a straight commit makes; firmware and
/// buses of the source are told to the converter, and firmware to the user.
#[test]
fn a_conversion_is_committed_whole_or_finished_later() {
    if !have() || !alone("a_conversion_is_committed_whole_or_finished_later") {
        return;
    }
    let mut bench = Bench::new();
    let before = bench.contents();
    let tmp = bench.site.path("tmp");

    // Killed while it has the overlays open.
    let job = bench.job("killed");
    let result = bench.run(&job, None, || {
        until("appliance", || {
            let log = fs::read_to_string(job.files.v2v_log()).ok()?;
            log.contains("Opening the source").then_some(())
        });
        let pid = state(&job.files).unwrap()["pid"].as_i64().unwrap();
        lab::signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
    });
    let Err(InPlaceError::NotConverted(converted)) = result else { panic!("{result:?}") };
    let sentence = converted.evidence.sentence(converted.exit);
    assert!(sentence.starts_with("virt-v2v-in-place was killed by signal 9"), "{sentence}");
    assert!(converted.stopped.is_none_or(|stopped| stopped == Stopped::Signalled(9)));
    assert!(bench.contents() == before, "a killed conversion wrote into a copy");
    assert!(!job.files.overlay_directory(&tmp).exists(), "overlays outlive a failed conversion");
    assert_eq!(in_place::earlier(&journal_of(&job)), None);

    // Converted; killed in the middle of the first commit.
    bench.slow_commits(true);
    let job = bench.job("converted");
    let xml = job.files.private_directory(&tmp).join("in-place.xml");
    let first = fs::read(&bench.copies[0].path).unwrap();
    let copy = bench.copies[0].path.clone();
    let result = bench.run(&job, None, || {
        let pid = until("commit that has begun to write", || {
            let pid = tool(&["commit", "disk-1.qcow2"])?;
            (fs::read(&copy).unwrap() != first).then_some(pid)
        });
        let state = state(&job.files).unwrap();
        assert_eq!(state["status"], json!("Finishing (committing overlays)"));
        assert_eq!(state["pid"], json!(getpid().as_raw()), "no pid of a tool that is over");
        assert_eq!(state["return_code"], json!(0));
        kill(pid, Signal::SIGKILL).unwrap();
    });
    let Err(InPlaceError::Overlay(error)) = result else { panic!("{result:?}") };
    assert!(error.to_string().contains("could not commit"), "{error}");
    let earlier = in_place::earlier(&journal_of(&job));
    let Some(replay) = &earlier else { panic!("{:?}", journal_of(&job)) };
    assert!(replay.committed.is_empty(), "{replay:?}");
    assert_eq!(replay.drivers.arch(), "x86_64");
    assert_eq!(undo::undo(&journal_of(&job)), Vec::<String>::new());
    let expected = [1, 2].map(|number| straight(&bench, &replay.overlays, number));
    let half = bench.contents();
    assert!(half[0] != before[0] && half[0] != expected[0], "the first commit was not killed in its middle");
    assert!(half[1] == before[1], "the second disk is committed after the first");
    assert_xml(&fs::read_to_string(xml).unwrap(), &replay.overlays);

    // Taken over, and cancelled.
    let job = bench.job("cancelled");
    let result = bench.run(&job, earlier.as_ref(), || {
        until("commit", || tool(&["commit", "disk-1.qcow2"]));
        kill(getpid(), Signal::SIGTERM).unwrap();
    });
    assert!(matches!(result, Err(InPlaceError::Cancelled(15))), "{result:?}");
    let again = in_place::earlier(&journal_of(&job));
    assert_eq!(again, earlier, "a job that took the overlays over hands them on");

    // Taken over, and finished.
    bench.slow_commits(false);
    let job = bench.job("finished");
    let drivers = bench.run(&job, again.as_ref(), || ()).unwrap();
    let after = bench.contents();
    for disk in [0, 1] {
        assert!(after[disk] == expected[disk], "disk {} is not what a straight commit makes", disk + 1);
    }
    assert!(after[0] != before[0], "nothing was converted");
    disks::assert_is_converted(&bench.copies[0].path);
    assert!(!replay.overlays.exists(), "overlays outlive their commit");
    assert_eq!(tool(&[""]), None, "a process outlives the job");
    let committed = journal_of(&job).into_iter().filter(|entry| matches!(entry, Entry::Committed { .. }));
    assert_eq!(committed.collect::<Vec<_>>(), [0, 1].map(|disk| Entry::Committed { disk }));
    assert_eq!(state_file::read(&job.files.state()).unwrap().return_code, Some(0));
    let xml = domain::final_domain(&bench.guest, &bench.copies, &[], &drivers);
    for part in [
        "<name>-a/b ü &amp; &apos;c&apos;</name>",
        "http://debian.org/debian/12",
        "<os firmware='efi'>",
        "name='secure-boot'",
        "machine='q35'",
        "<target dev='vdb' bus='virtio'/>",
        "<source bridge='VM Network'/>\n      <model type='virtio'/>",
    ] {
        assert!(xml.contains(part), "{part} not in {xml}");
    }

    // Killed after the last commit and before the journal says that all is well: nothing is left to do.
    let finished = in_place::earlier(&journal_of(&job));
    let job = bench.job("once-more");
    assert_eq!(bench.run(&job, finished.as_ref(), || ()).unwrap(), drivers);
    assert!(bench.contents() == after);
}

/// What virt-v2v-in-place was given: the hardware of the source, on the overlays.
fn assert_xml(xml: &str, overlays: &Path) {
    for (part, number) in [("<target dev='sda' bus='sata'/>", 1), ("<target dev='sdb' bus='scsi'/>", 2)] {
        let disk = format!(
            "<driver name='qemu' type='qcow2'/>\n      <source file='{}/disk-{number}.qcow2'/>\n      {part}",
            overlays.display()
        );
        assert!(xml.contains(&disk), "{disk} not in {xml}");
    }
    assert!(xml.contains("<os firmware='efi'>"), "{xml}");
}

/// Rule: a converter that fails after it wrote leaves the copies as they were, whatever it wrote.
#[test]
fn a_failed_conversion_leaves_the_copies_untouched() {
    if !have() || !alone("a_failed_conversion_leaves_the_copies_untouched") {
        return;
    }
    let mut bench = Bench::new();
    let before: Vec<Vec<u8>> = bench.copies.iter().map(|copy| fs::read(&copy.path).unwrap()).collect();
    // The real one fails after a minute, and before it writes: this one is quicker and worse.
    let failing = bench.site.path("virt-v2v-in-place");
    let script = format!(
        "#!/usr/bin/env bash\nfor disk in '{}'/*-overlays/*.qcow2; do\n  qemu-io -f qcow2 -c 'write -P 9 0 4M' \"$disk\"\ndone\n\
         echo 'virt-v2v-in-place: error: it went wrong' >&2\nexit 1\n",
        bench.site.path("tmp").display()
    );
    fs::write(&failing, script).unwrap();
    fs::set_permissions(&failing, fs::Permissions::from_mode(0o755)).unwrap();
    bench.programs.virt_v2v_in_place = failing;
    let job = bench.job("failing");
    let result = bench.run(&job, None, || ());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("virt-v2v-in-place error: it went wrong"), "{error}");
    let log = fs::read_to_string(job.files.v2v_log()).unwrap();
    assert_eq!(log.matches("wrote 4194304/4194304 bytes").count(), 2, "{log}");
    for (copy, before) in bench.copies.iter().zip(before) {
        assert!(fs::read(&copy.path).unwrap() == before, "{} was written to", copy.path.display());
    }
    assert!(!job.files.overlay_directory(&bench.site.path("tmp")).exists());
}

/// Rule: overlays that cannot grow end the job with a sentence. The appliance's qemu would stand still for ever.
#[test]
fn overlays_without_room_are_noticed() {
    if !have() || !lab::root() && !lab::skip("only root mounts a small file system") {
        return;
    }
    if !alone("overlays_without_room_are_noticed") {
        return;
    }
    let bench = Bench::new();
    let before = bench.contents();
    let tmp = bench.site.path("tmp");
    // virt-v2v wants 1 GB there when it begins; later it looks no more.
    let small = Small::mount(&tmp);
    let job = bench.job("small");
    let result = bench.run(&job, None, || {
        until("inspection", || {
            let log = fs::read_to_string(job.files.v2v_log()).ok()?;
            log.contains("Inspecting the source").then_some(())
        });
        small.shrink();
    });
    let Err(InPlaceError::NotConverted(converted)) = result else { panic!("{result:?}") };
    let sentence = converted.evidence.sentence(converted.exit);
    assert_eq!(converted.stopped, Some(Stopped::NoRoom), "{sentence}");
    assert!(bench.contents() == before);
    assert!(!job.files.overlay_directory(&tmp).exists());
}

/// A small file system, unmounted in the end.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> Self {
        lab::run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2g", "tmpfs"]).arg(path));
        Self(path.to_owned())
    }

    /// From now on next to nothing more has room.
    fn shrink(&self) {
        let used = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let bytes = (used.blocks() - used.blocks_free()) * used.fragment_size() + (128 << 10);
        lab::run(Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.0));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: after a failure something may still be there.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Rule: what we word, the real tool understands as it was meant: name, memory, processors, firmware, buses.
#[test]
fn the_real_tool_reads_what_we_write() {
    if !have() {
        return;
    }
    let site = Site::new();
    let disks: Vec<Placed> = ["one", "two", "three"]
        .map(|name| {
            let path: PathBuf = site.path(name);
            lab::run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("1M"));
            Placed { path, format: DiskFormat::Qcow2 }
        })
        .into();
    let understood = |xml: &str| {
        let file = site.path("domain.xml");
        fs::write(&file, xml).unwrap();
        let mut command = Command::new("virt-v2v-in-place");
        command
            .env("LIBGUESTFS_BACKEND", "direct")
            .args(["-i", "libvirtxml"])
            .arg(&file)
            .arg("--print-source");
        let said = String::from_utf8(lab::run(&mut command)).unwrap();
        said.lines().map(str::trim).collect::<Vec<_>>().join("\n")
    };
    let guest = Guest {
        name: NAME.into(),
        memory_kib: 3 << 20,
        vcpus: 4,
        cores_per_socket: Some(2),
        disks: [Bus::Ide, Bus::Virtio, Bus::Sata].map(|bus| Disk { bus, ..Disk::default() }).into(),
        nics: vec![Nic {
            mac: Some("52:54:00:00:00:02".into()),
            network: Some("a b".into()),
            ..Nic::default()
        }],
        ..Guest::default()
    };
    for (firmware, word) in [
        (Firmware::Unknown, "unknown"),
        (Firmware::Bios, "bios"),
        (Firmware::Efi { secure_boot: true }, "uefi"),
    ] {
        let said = understood(&domain::for_conversion(&Guest { firmware, ..guest.clone() }, &disks));
        for part in [
            "source name: -a/b ü & 'c'",
            "memory: 3221225472 (bytes)",
            "nr vCPUs: 4",
            "sockets: 2 cores/socket: 2",
            &format!("firmware: {word}\n"),
            "0 [ide]\n1 [virtio-blk]\n2 [sata]",
            "Bridge \"a b\" mac: 52:54:00:00:00:02",
        ] {
            assert!(said.contains(part), "{part} not in {said}");
        }
    }
    let users = "<domain type='kvm'><name>theirs</name><memory unit='GiB'> 3 </memory><vcpu>1</vcpu>\
        <os><type>hvm</type><loader type='pflash'>/x</loader></os><devices>\
        <disk type='network' device='disk'><source protocol='nbd' name='x'/><target dev='sda' bus='scsi'/></disk>\
        <disk type='volume'><source pool='p' volume='v'/><target dev='vda' bus='virtio'/></disk>\
        <disk type='file' device='cdrom'><source file='/nonexistent.iso'/><target dev='hda' bus='ide'/></disk>\
        <disk type='block' device='disk'><source dev='/dev/x'/><target dev='hdb' bus='ide'/></disk>\
        </devices></domain>";
    let said = understood(&domain::patched(users, &disks).unwrap());
    for part in [
        "source name: theirs",
        "memory: 3221225472 (bytes)",
        "firmware: uefi",
        "0 [scsi]\n1 [virtio-blk]\n2 [ide]",
        "CD-ROM [ide]",
    ] {
        assert!(said.contains(part), "{part} not in {said}");
    }
}
