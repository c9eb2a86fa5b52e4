//! Only what changed is copied, into a copy that is there: the result is the same as that of a new copy.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use virt_v2v_wrapper::copy::chunk::CHUNK;
use virt_v2v_wrapper::copy::ledger::Standing;
use virt_v2v_wrapper::copy::{Copied, CopyError};
use virt_v2v_wrapper::extent::Extents;
use virt_v2v_wrapper::plan::DiskFormat;

use super::child::Manner;
use super::killed::Numbers;
use super::rig::{MIB, Rig, noise};
use crate::rig::poll;

const SIZE: u64 = 41 * MIB + 512;

fn disk(rig: &Rig) {
    rig.disk(SIZE, &[(0, noise(1, 30 * MIB as usize)), (36 * MIB, noise(2, 5 * MIB as usize + 512))]);
}

/// What a guest does between two rounds, and where: small and large writes, zeros that are written, a discard, data where
/// there was a hole, whole chunks, the odd tail.
fn change(rig: &Rig, seed: u64) -> Vec<(u64, u64)> {
    let file = OpenOptions::new().write(true).open(rig.path("disk")).unwrap();
    let zeros = (9 * MIB + 65_536, 300_000);
    let discard = (13 * MIB, 2 * MIB);
    let written =
        [(4096, 512), (7 * MIB - 512, 70_000), (16 * MIB, 8 * MIB), (31 * MIB, 40_000), (SIZE - 512, 512)];
    for (offset, length) in written {
        file.write_all_at(&noise(seed + offset, length as usize), offset).unwrap();
    }
    file.write_all_at(&vec![0; zeros.1 as usize], zeros.0).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, discard.0 as i64, discard.1 as i64).unwrap();
    // As sources list them: in any order, overlapping, rounded, beyond the end.
    let mut areas = vec![(SIZE - 512, 65_536), zeros, discard, (zeros.0, 10)];
    areas.extend(written.iter().take(4));
    areas
}

/// Copies what lies in these areas, and ends the copy.
async fn copy_areas(rig: &Rig, areas: &[(u64, u64)]) -> Result<Copied, CopyError> {
    let job = rig.job().await?;
    let status = job.reader.extents(SIZE).await?;
    job.delta(status.intersect(&Extents::from_changed_areas(areas.iter().copied(), SIZE))).await?;
    let copied = job.seal().await?;
    std::rc::Rc::into_inner(job).unwrap().close().await?;
    Ok(copied)
}

/// The checksum of a new copy of the disk as it is now.
fn checksum_of_a_new_copy(rig: &Rig) -> String {
    let fresh = Rig::new().unwrap();
    fs::copy(rig.path("disk"), fresh.path("disk")).unwrap();
    fresh.run(fresh.copy()).unwrap().checksum().to_owned()
}

#[test]
fn a_copy_brought_up_to_date_is_the_disk_and_has_the_checksum_of_a_new_one() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(mut rig) = Rig::new() else { return };
        rig.format = format;
        rig.logged();
        disk(&rig);
        let base = rig.run(rig.copy()).unwrap();
        for round in 0..3 {
            let areas = change(&rig, round);
            let before = rig.reads().len();
            let copied = rig.run(copy_areas(&rig, &areas)).unwrap();
            assert!(rig.is_copied(), "{format:?}, round {round}");
            assert_ne!(copied, base);
            assert_eq!(copied.checksum(), checksum_of_a_new_copy(&rig), "{format:?}, round {round}");
            let read: u64 = rig.reads()[before..].iter().map(|(_, length)| length).sum();
            assert!(read < 10 * MIB, "{read} bytes were read for 8.5 MiB");
        }
    }
}

/// The rounds of a warm migration, in one process.
#[test]
fn several_rounds_of_one_job_leave_the_disk_as_it_is_last() {
    let Some(rig) = Rig::new() else { return };
    disk(&rig);
    rig.run(async {
        let job = rig.job().await.unwrap();
        job.copy(job.reader.extents(SIZE).await.unwrap()).await.unwrap();
        for round in 0..3 {
            let areas = change(&rig, 10 + round);
            let status = job.reader.extents(SIZE).await.unwrap();
            let areas = Extents::from_changed_areas(areas, SIZE);
            job.delta(status.intersect(&areas)).await.unwrap();
            if round == 1 {
                // It is sealed after the last round, or whenever somebody wants to know.
                continue;
            }
            let copied = job.seal().await.unwrap();
            assert_eq!(job.ledger.checksum().unwrap(), copied.checksum());
            assert!(rig.is_copied(), "round {round}");
        }
        // Nothing changed.
        job.delta(Extents::default()).await.unwrap();
        let copied = job.seal().await.unwrap();
        assert_eq!(job.ledger.checksum().unwrap(), copied.checksum());
    });
    assert!(rig.is_copied());
}

#[test]
fn a_part_of_a_chunk_that_was_never_copied_is_refused_and_a_whole_chunk_is_not() {
    let Some(rig) = Rig::new() else { return };
    disk(&rig);
    let error = rig.run(copy_areas(&rig, &[(2 * CHUNK + 512, 512)])).unwrap_err();
    let CopyError::PartOfNothing { offset, .. } = error else { panic!("{error}") };
    assert_eq!(offset, 2 * CHUNK);
    assert_eq!(rig.ledger().count(Standing::Stale), 0);
    // A whole one says all of itself; the disk is not finished by it.
    let error = rig.run(copy_areas(&rig, &[(2 * CHUNK, CHUNK)])).unwrap_err();
    assert!(matches!(error, CopyError::Ledger(_)), "{error}");
    assert_eq!(rig.ledger().count(Standing::Compared), 1);
}

/// From its first byte on, the copy is neither the old nor the new disk: nothing may say that it is one.
#[test]
fn a_killed_round_leaves_no_checksum_and_repeated_it_is_the_disk() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(mut rig) = Rig::new() else { return };
        let mut random = Numbers::new();
        rig.format = format;
        rig.logged();
        disk(&rig);
        rig.copy_whole(&Manner::default());
        let areas = change(&rig, 20);
        let manner = Manner { limit: Some(20 * MIB), unproven: Some(8 * MIB), areas: Some(areas) };
        for kills in 0..5 {
            let wanted = rig.reads().len() + 1 + random.below(5) as usize;
            let mut child = rig.start(&manner);
            poll(super::rig::LIMIT, || {
                (rig.reads().len() >= wanted || child.try_wait().unwrap().is_some()).then_some(())
            });
            std::thread::sleep(Duration::from_millis(random.below(100)));
            let over = child.try_wait().unwrap();
            rig.kill(&mut child);
            assert_eq!(over, None, "{format:?}: it is too late to kill");
            assert!(rig.ledger().checksum().is_err(), "{format:?}, kill {kills}");
        }
        let told = rig.copy_whole(&Manner { limit: None, ..manner });
        assert!(rig.is_copied(), "{format:?}");
        assert_eq!(told["checksum"], checksum_of_a_new_copy(&rig), "{format:?}");
    }
}

/// A changed area that is a hole now must not keep what was there (peers.md 6.3, row 35).
#[test]
fn what_became_zeros_is_zeros_on_the_copy() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(mut rig) = Rig::new() else { return };
        rig.format = format;
        disk(&rig);
        rig.run(rig.copy()).unwrap();
        // All of it.
        let file = File::options().write(true).open(rig.path("disk")).unwrap();
        file.set_len(0).unwrap();
        file.set_len(SIZE).unwrap();
        let copied = rig.run(copy_areas(&rig, &[(0, 20 * MIB), (20 * MIB, SIZE)])).unwrap();
        assert!(rig.is_copied(), "{format:?}");
        assert_eq!(copied.checksum(), checksum_of_a_new_copy(&rig));
    }
}
