//! The copy engine on real servers: what is on the target afterwards is what was on the source, or the copy failed.
//!
//! The oracle of every test is a comparison of all bytes of both. The suite drives the library, because faults are put
//! between its steps; the whole way through the program is in `tests/two_phase.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod rig;

use rig::{MIB, Rig, noise, same};
use virt_v2v_wrapper::copy::Told;

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
        let disk = rig.disk(size, &pieces);
        let copied = rig.run(rig.copy()).unwrap();
        assert!(same(&disk, &rig.path("copy")), "{size}");
        assert!(copied.checksum.starts_with("blake3-4MiB:"), "{}", copied.checksum);
        use std::os::unix::fs::MetadataExt;
        if size == 37 * MIB + 1 {
            let blocks = std::fs::metadata(rig.path("copy")).unwrap().blocks() * 512;
            assert!(blocks < 2 * MIB, "{blocks} bytes are allocated");
        }
        let told = rig.told.borrow();
        assert!(matches!(told[0], Told::ToCopy(_)), "{told:?}");
    }
}
