//! What a target holds before, and what kind it is: in the end it holds the disk, and who cannot keep it says so.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use virt_v2v_wrapper::copy::ledger::Ledger;
use virt_v2v_wrapper::copy::target::TargetError;
use virt_v2v_wrapper::copy::target::file::Allocation;
use virt_v2v_wrapper::copy::{Copied, CopyError};
use virt_v2v_wrapper::plan::DiskFormat;

use super::rig::{MIB, Rig, allocated, finish, noise, recorded, until};
use crate::exports::site::{run, skip};

const SIZE: u64 = 18 * MIB + 512;

/// Data, holes, and zeros that are written.
fn disk(rig: &Rig) {
    let pieces =
        [(4096, noise(1, 2_000_000)), (9 * MIB, vec![0; 3_000_000]), (17 * MIB, noise(2, 1_000_000))];
    rig.disk(SIZE, &pieces);
}

/// Copies onto a target that holds anything, as after a job of which nothing was recorded.
fn copy_over(rig: &Rig) -> Result<Copied, CopyError> {
    Ledger::create(&rig.path("disk.ledger"), rig.identity("disk", SIZE)).unwrap();
    rig.run(rig.copy())
}

/// Unwritten is not zero there (peers.md 6.3, rows 34 and 35).
#[test]
fn where_the_source_has_holes_or_zeros_the_garbage_of_an_old_target_is_gone() {
    for allocation in [Allocation::Sparse, Allocation::Preallocated] {
        for noextents in [false, true] {
            let Some(mut rig) = Rig::new() else { return };
            rig.allocation = allocation;
            if noextents {
                rig.filtered("", "--filter=noextents", "");
            }
            disk(&rig);
            fs::write(rig.path("disk.copy"), noise(3, SIZE as usize)).unwrap();
            copy_over(&rig).unwrap();
            assert!(rig.is_copied(), "{allocation:?} {noextents}");
            let bytes = allocated(&rig.path("disk.copy"));
            match allocation {
                Allocation::Sparse => assert!(bytes < 5 * MIB, "{bytes}"),
                Allocation::Preallocated => assert!(bytes >= SIZE, "{bytes}"),
            }
        }
    }
}

#[test]
fn the_garbage_of_an_old_qcow2_is_gone_too() {
    let Some(mut rig) = Rig::new() else { return };
    rig.format = DiskFormat::Qcow2;
    disk(&rig);
    let copy = rig.path("disk.copy");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&copy).arg(SIZE.to_string()));
    run(Command::new("qemu-io").args(["-f", "qcow2", "-c", &format!("write -P 0xaa 0 {SIZE}")]).arg(&copy));
    copy_over(&rig).unwrap();
    assert!(rig.is_copied());
}

#[test]
fn a_qcow2_of_any_size_is_what_the_disk_is() {
    for allocation in [Allocation::Sparse, Allocation::Preallocated] {
        for size in [512, 4 * MIB, 9 * MIB + 512] {
            let Some(mut rig) = Rig::new() else { return };
            rig.format = DiskFormat::Qcow2;
            rig.allocation = allocation;
            rig.disk(size, &[(size / 2, noise(4, (size / 3) as usize)), (size - 9, vec![5; 9])]);
            rig.run(rig.copy()).unwrap();
            assert!(rig.is_copied(), "{allocation:?} {size}");
            let check = Command::new("qemu-img")
                .args(["check", "-q", "-f", "qcow2"])
                .arg(rig.path("disk.copy"))
                .status();
            assert!(check.unwrap().success(), "{allocation:?} {size}");
            assert!(rig.stale().is_empty(), "{:?}", rig.stale());
        }
    }
}

/// A loop device, given back in the end.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A device may be larger than the disk; what it holds behind it stays.
#[test]
fn a_block_device_with_anything_on_it_holds_the_disk_afterwards() {
    let Some(rig) = Rig::new() else { return };
    disk(&rig);
    let file = rig.path("device");
    let before = noise(5, SIZE as usize + 4096 + 512);
    fs::write(&file, &before).unwrap();
    let set_up = Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
    let device = match set_up {
        Ok(output) if output.status.success() => {
            Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        }
        other => {
            skip(&format!("no loop devices here: {other:?}"));
            return;
        }
    };
    std::os::unix::fs::symlink(&device.0, rig.path("disk.copy")).unwrap();
    copy_over(&rig).unwrap();
    run(Command::new("blockdev").arg("--flushbufs").arg(&device.0));
    let (source, after) = (fs::read(rig.path("disk")).unwrap(), fs::read(&file).unwrap());
    assert!(after[..SIZE as usize] == source, "the device holds the disk");
    assert!(after[SIZE as usize..] == before[SIZE as usize..], "and nothing more");

    // One that is too small says so before anything is written.
    fs::remove_file(rig.path("disk.ledger")).unwrap();
    rig.disk(SIZE + MIB, &[(0, noise(6, 4096))]);
    Ledger::create(&rig.path("disk.ledger"), rig.identity("disk", SIZE + MIB)).unwrap();
    let error = rig.run(rig.copy()).unwrap_err();
    let CopyError::Target(TargetError::TooSmall { have, need, .. }) = &error else { panic!("{error}") };
    assert_eq!((*have, *need), (SIZE + 4096 + 512, SIZE + MIB));
}

/// Two jobs on one target (peers.md 6.3, row 32).
#[test]
fn a_target_belongs_to_one_copy_at_a_time() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(mut rig) = Rig::new() else { return };
        rig.format = format;
        disk(&rig);
        let error = rig.run(async {
            let first = rig.job().await.unwrap();
            let second = rig.job().await.err().expect("it is taken");
            // The first is not disturbed.
            finish(first).await.unwrap();
            second
        });
        let text = error.to_string();
        assert!(
            text.contains("disk.copy") && (text.contains("in use") || text.contains("another process")),
            "{text}"
        );
        assert!(rig.is_copied());
    }
}

/// What was not flushed is not finished, whatever was acknowledged (peers.md 6.3, row 38).
#[test]
fn a_target_that_dies_before_its_flush_has_nothing_recorded_and_is_written_again() {
    let Some(mut rig) = Rig::new() else { return };
    rig.format = DiskFormat::Qcow2;
    let go = rig.path("go");
    let wait = format!("while [ $4 -ge {} ] && [ ! -e \"{}\" ]; do sleep 0.02; done", 16 * MIB, go.display());
    let extents = format!("can_extents='exit 0' extents='echo \"0 {SIZE} \"'");
    rig.played(&wait, &extents);
    rig.tuning.prove_every = Duration::from_secs(3600);
    rig.tuning.prove_bytes = u64::MAX;
    // Nobody reads back either: it is the flush that must fail.
    rig.verify = false;
    disk(&rig);
    let error = rig.run(async {
        let disturb = async {
            // Its data are in the image, although nobody knows for how long.
            let copy = rig.path("disk.copy");
            until("nothing is written", || copy.exists() && allocated(&copy) > 2 * MIB).await;
            kill(Pid::from_raw(rig.servers("qemu-nbd")[0]), Signal::SIGKILL).unwrap();
            fs::write(&go, "").unwrap();
        };
        let (copied, ()) = tokio::join!(rig.copy(), disturb);
        copied.unwrap_err()
    });
    let text = error.to_string();
    assert!(matches!(error, CopyError::Target(_)) && text.contains("disk.copy"), "{text}");
    assert!(recorded(&rig.ledger()).is_empty());

    rig.verify = true;
    rig.tuning.prove_every = Duration::from_millis(50);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
}

/// Repairing what cannot be trusted would be guessing (peers.md 6.3, row 37).
#[test]
fn a_damaged_image_of_an_interrupted_copy_is_refused() {
    let Some(mut rig) = Rig::new() else { return };
    rig.format = DiskFormat::Qcow2;
    disk(&rig);
    rig.run(rig.copy()).unwrap();
    // The first entry of the second-level tables points into the void.
    let copy = rig.path("disk.copy");
    let mut image = fs::read(&copy).unwrap();
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap()) as usize;
    let first = number(&image[40..48]);
    let second = number(&image[first..first + 8]) & 0x00ff_ffff_ffff_fe00;
    image[second..second + 8].copy_from_slice(&0x8000_0000_0000_0200_u64.to_be_bytes());
    fs::write(&copy, image).unwrap();
    let error = rig.run(rig.copy()).unwrap_err().to_string();
    assert!(error.starts_with("checking ") && error.contains("disk.copy"), "{error}");
}
