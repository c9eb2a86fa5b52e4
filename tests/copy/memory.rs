//! Large disks and little memory: neither the size of a disk nor the number of disks makes a copy large or stops it.

use super::child::Manner;
use super::rig::{MIB, Rig, allocated, finish, noise, segments};

#[test]
fn a_sparse_disk_of_one_tebibyte_is_copied_with_little_memory() {
    let Some(rig) = Rig::new() else { return };
    let size = 1 << 40;
    // From the first byte to the last, not on any grid.
    let pieces: Vec<_> = (0..100_u64).map(|n| (n * (size - MIB) / 99, noise(n, MIB as usize))).collect();
    let disk = rig.disk(size, &pieces);
    let told = rig.copy_whole(&Manner::default());
    assert!(rig.is_copied());
    assert!(segments(&std::fs::File::open(disk).unwrap()).len() >= 99, "the file system keeps holes");
    let bytes = allocated(&rig.path("disk.copy"));
    assert!(bytes < 120 * MIB, "{bytes} bytes are allocated");
    let peak = told["peak_kib"].as_u64().unwrap();
    assert!(peak < 256 << 10, "{peak} KiB");
}

#[test]
fn a_large_disk_full_of_data_is_copied_with_the_same_memory() {
    let Some(rig) = Rig::new() else { return };
    let disk = rig.disk(700 * MIB, &[]);
    let file = std::fs::OpenOptions::new().write(true).open(&disk).unwrap();
    let piece = noise(1, 50 * MIB as usize);
    for place in 0..14 {
        std::os::unix::fs::FileExt::write_all_at(&file, &piece, place * 50 * MIB).unwrap();
    }
    let told = rig.copy_whole(&Manner::default());
    assert!(rig.is_copied());
    let peak = told["peak_kib"].as_u64().unwrap();
    assert!(peak < 256 << 10, "{peak} KiB");
}

/// Each of them needs memory to go on, and no one gives back what it waits with.
#[test]
fn many_disks_share_little_memory_and_none_waits_for_ever() {
    let Some(mut rig) = Rig::new() else { return };
    rig.memory = 8 << 20;
    let names: Vec<String> = (0..8).map(|number| format!("disk{number}")).collect();
    for (number, name) in (0..).zip(&names) {
        rig.disk_named(name, 20 * MIB + number * 512, &[(number * MIB, noise(number, 9 * MIB as usize))]);
    }
    rig.run(async {
        let shared = rig.shared();
        let mut jobs = tokio::task::JoinSet::new();
        for name in &names {
            jobs.spawn_local(finish(rig.job_of(name, &shared).await.unwrap()));
        }
        while let Some(copied) = jobs.join_next().await {
            copied.unwrap().unwrap();
        }
        assert_eq!(shared.budget.available(), 8 << 20);
    });
    for name in &names {
        assert!(rig.is_copied_of(name), "{name}");
    }
}

/// One disk whose first chunk alone is more than there is.
#[test]
fn a_read_that_is_larger_than_all_memory_goes_through() {
    let Some(mut rig) = Rig::new() else { return };
    rig.memory = 256 << 10;
    rig.read_size.set(8 << 20);
    rig.disk(17 * MIB, &[(0, noise(1, 17 * MIB as usize))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
}
