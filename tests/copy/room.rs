//! Targets that are full: the copy waits, says for what, and goes on when there is room (peers.md 6.3, row 39).

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use virt_v2v_wrapper::copy::target::file::Allocation;
use virt_v2v_wrapper::copy::{CopyError, Told};
use virt_v2v_wrapper::plan::DiskFormat;

use super::rig::{MIB, Rig, finish, noise, until};
use crate::exports::site::{run, skip};

/// A small file system, unmounted in the end.
struct Small(PathBuf);

impl Small {
    fn mount(rig: &mut Rig) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("only root mounts a small file system");
            return None;
        }
        let path = rig.path("small");
        std::fs::create_dir(&path).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(&path));
        rig.copies = path.clone();
        Some(Self(path))
    }

    fn grow(&self) {
        run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(&self.0));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn waits(rig: &Rig) -> Option<String> {
    let told = rig.told.borrow();
    told.iter().rev().find_map(|news| match news {
        Told::Waiting(what) => Some(what.clone()),
        _ => None,
    })?
}

#[test]
fn a_full_target_is_waited_for_and_the_copy_is_whole_when_there_is_room() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(mut rig) = Rig::new() else { return };
        rig.format = format;
        rig.tuning.full_retry = Duration::from_millis(50);
        rig.disk(9 * MIB + 512, &[(0, noise(1, 8 * MIB as usize))]);
        let Some(small) = Small::mount(&mut rig) else { return };
        let copied = rig.run(async {
            let job = rig.job().await.unwrap();
            let make_room = async {
                until("it does not wait", || waits(&rig).is_some()).await;
                let what = waits(&rig).unwrap();
                assert!(what.contains("small/disk.copy") && what.contains("full"), "{what}");
                assert!(rig.finished() < 8 * MIB);
                small.grow();
            };
            let (copied, ()) = tokio::join!(finish(job), make_room);
            copied
        });
        copied.unwrap();
        assert_eq!(waits(&rig), None, "{format:?}: it waits no more");
        assert!(rig.is_copied(), "{format:?}");
    }
}

#[test]
fn a_copy_that_waits_for_room_ends_when_its_source_fails() {
    let Some(mut rig) = Rig::new() else { return };
    let (bad, go) = (10 * MIB, rig.path("go"));
    rig.played(
        &format!(
            "if [ $4 -ge {bad} ]; then while [ ! -e \"{}\" ]; do sleep 0.02; done; echo \"EIO gone\" >&2; exit 1; fi",
            go.display()
        ),
        "",
    );
    rig.patience.retries = vec![Duration::from_millis(5)];
    rig.tuning.full_retry = Duration::from_millis(50);
    rig.disk(12 * MIB, &[(0, noise(2, 12 * MIB as usize))]);
    let Some(_small) = Small::mount(&mut rig) else { return };
    let error = rig.run(async {
        let job = rig.job().await.unwrap();
        let fail = async {
            until("it does not wait", || waits(&rig).is_some()).await;
            std::fs::write(&go, "").unwrap();
        };
        tokio::join!(finish(job), fail).0.unwrap_err()
    });
    assert!(matches!(error, CopyError::Read(_) | CopyError::Target(_)), "{error}");
}

#[test]
fn a_preallocated_copy_that_has_no_room_says_so_before_anything_is_read() {
    let Some(mut rig) = Rig::new() else { return };
    rig.allocation = Allocation::Preallocated;
    rig.disk(9 * MIB, &[(0, noise(3, 4096))]);
    let Some(_small) = Small::mount(&mut rig) else { return };
    let error = rig.run(rig.job()).err().expect("there is no room");
    let CopyError::Target(target) = &error else { panic!("{error}") };
    assert!(target.is_full() && error.to_string().contains("small/disk.copy"), "{error}");
}
