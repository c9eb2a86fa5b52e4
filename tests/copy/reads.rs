//! Sizes, holes, blocks and how much is read at a time.

use virt_v2v_wrapper::copy::Told;
use virt_v2v_wrapper::copy::target::file::Allocation;

use super::rig::{MIB, Rig, allocated, finish, noise};

#[test]
fn a_disk_of_any_size_is_copied_byte_for_byte_and_keeps_its_holes() {
    for size in [0, 1, 511, 512, 4096, 65_535, 4 * MIB, 4 * MIB + 512, 37 * MIB + 1] {
        let Some(rig) = Rig::new() else { return };
        let mut pieces = vec![];
        if size > 3 * MIB {
            pieces.push((MIB, noise(1, 700_001)));
            pieces.push((size - 3, vec![7; 3]));
        } else if size > 0 {
            pieces.push((size / 2, vec![9; (size - size / 2) as usize]));
        }
        rig.disk(size, &pieces);
        let copied = rig.run(rig.copy()).unwrap();
        assert!(rig.is_copied(), "{size}");
        assert!(copied.checksum().starts_with("blake3-4MiB:"), "{}", copied.checksum());
        if size == 37 * MIB + 1 {
            let bytes = allocated(&rig.path("disk.copy"));
            assert!(bytes < 2 * MIB, "{bytes} bytes are allocated");
        }
        assert!(matches!(rig.told.borrow()[0], Told::ToCopy(_)), "{:?}", rig.told);
        assert_eq!(rig.finished(), rig.to_copy());
    }
}

#[test]
fn a_preallocated_copy_has_all_its_room() {
    let Some(mut rig) = Rig::new() else { return };
    rig.allocation = Allocation::Preallocated;
    rig.disk(9 * MIB + 512, &[(5 * MIB, noise(2, 100_000))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
    assert!(allocated(&rig.path("disk.copy")) >= 9 * MIB);
}

/// A source that cannot tell is read whole; zeros are found while they are read.
#[test]
fn a_source_without_block_status_is_read_whole_and_its_copy_has_holes_all_the_same() {
    let Some(mut rig) = Rig::new() else { return };
    rig.filtered("", "--filter=noextents", "");
    rig.disk(13 * MIB + 512, &[(9 * MIB + 17, noise(3, 300_000))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
    assert_eq!(rig.to_copy(), 13 * MIB + 512);
    assert!(allocated(&rig.path("disk.copy")) < MIB);
}

/// VDDK refuses the last part of disks of odd size (peers.md 6.3, row 25).
#[test]
fn where_block_status_fails_at_the_tail_only_the_tail_is_read_as_data() {
    let Some(mut rig) = Rig::new() else { return };
    let size = 130 * MIB + 3 * 512;
    let extents = "can_extents='exit 0' extents='\
                   if [ $(($4 + $3)) -gt 136000000 ]; then echo \"EIO no status at the tail\" >&2; exit 1; fi\n\
                   echo \"$4 $3 hole,zero\"'";
    rig.played("", extents);
    rig.disk(size, &[(size - 700, noise(4, 700))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
    assert_eq!(rig.to_copy(), size - 128 * MIB);
    assert!(rig.reads().iter().all(|(offset, _)| *offset >= 128 * MIB), "{:?}", rig.reads());
}

#[test]
fn a_fragmented_disk_is_read_where_it_has_data_and_nowhere_else() {
    let Some(mut rig) = Rig::new() else { return };
    rig.logged();
    let pieces: Vec<_> = (0..1500_u64).map(|n| (n * 20_480, noise(n, 4096))).collect();
    rig.disk(31 * MIB, &pieces);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
    assert_eq!(rig.to_copy(), 1500 * 4096);
    let read: u64 = rig.reads().iter().map(|(_, length)| length).sum();
    assert_eq!(read, 1500 * 4096);
}

/// Disks of 4 KiB sectors (peers.md 6.3, row 40): every request is whole blocks, whatever the disk and its holes. A
/// last block that is not whole can be read by nobody: nbdkit refuses it itself.
#[test]
fn a_server_with_strict_block_sizes_is_read_whatever_the_size_of_the_disk() {
    for (minimum, size, noextents) in [
        (4096, 4096, false),
        (4096, 5 * MIB + 8192, false),
        (4096, 7 * MIB + 4096, true),
        (512, 5 * MIB + 512, false),
        (512, 4 * MIB - 512, true),
    ] {
        let Some(mut rig) = Rig::new() else { return };
        let filter = if noextents { "--filter=noextents" } else { "" };
        let parameters = format!(
            "blocksize-minimum={minimum} blocksize-preferred=4096 blocksize-maximum=64K blocksize-error-policy=error"
        );
        rig.filtered("", &format!("--filter=blocksize-policy {filter}"), &parameters);
        rig.disk(size, &[(size / 2, noise(5, (size / 4) as usize)), (size - 1, vec![1])]);
        rig.run(rig.copy()).unwrap_or_else(|error| panic!("{size}: {error}"));
        assert!(rig.is_copied(), "{size}");
    }
}

/// The holes of a file may begin within a block of the server, which then is read whole.
#[test]
fn extents_that_begin_within_a_block_of_the_server_are_read_as_whole_blocks() {
    let Some(mut rig) = Rig::new() else { return };
    let list = rig.path("extents");
    std::fs::write(&list, "512 1536 hole,zero\n2048 6656 \n8704 4185600 hole,zero\n").unwrap();
    let parameters = format!(
        "extentlist='{}' blocksize-minimum=4096 blocksize-preferred=4096 blocksize-maximum=64K \
         blocksize-error-policy=error",
        list.display()
    );
    rig.filtered("", "--filter=blocksize-policy --filter=extentlist", &parameters);
    rig.disk(4 * MIB, &[(0, noise(6, 512)), (2048, noise(7, 6656))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
}

/// ESXi has little memory for reads and says so in its own way (peers.md 6.3, row 23).
#[test]
fn reads_that_are_too_large_for_the_host_are_halved_for_all_its_disks() {
    let errors = ["ENOMEM sorry", "EIO Failed to allocate the requested 24117272 bytes"];
    for error in errors {
        let Some(mut rig) = Rig::new() else { return };
        rig.played(&format!("if [ $3 -gt 300000 ]; then echo \"{error}\" >&2; exit 1; fi"), "");
        rig.disk(3 * MIB + 512, &[(0, noise(8, 3 * MIB as usize))]);
        rig.run(rig.copy()).unwrap();
        assert!(rig.is_copied(), "{error}");
        assert_eq!(rig.read_size.get(), 256 << 10, "{error}");
        let before = rig.reads().len();
        rig.disk_named("second", MIB, &[(0, noise(9, MIB as usize))]);
        rig.run(async { finish(rig.job_of("second", &rig.shared()).await?).await }).unwrap();
        assert!(rig.is_copied_of("second"), "{error}");
        let reads = rig.reads();
        assert!(reads[before..].iter().all(|(_, length)| *length <= 256 << 10), "{error}: {reads:?}");
    }
}

/// A host that is used up refuses the next connection (peers.md 6.3, row 24).
#[test]
fn a_host_that_admits_fewer_connections_is_read_over_those_it_admits() {
    let Some(mut rig) = Rig::new() else { return };
    rig.filtered("", "--filter=limit", "limit=2");
    rig.disk(12 * MIB, &[(0, noise(10, 12 * MIB as usize))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
}
