//! Copies that are killed at any moment, and gone on with. What the ledger says is true at each of these moments, what
//! it has is not read again, and in the end the copy is the disk.
//!
//! A failure names the seed, and `V2V_TEST_SEED=<seed>` repeats its numbers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::{Child, Command};
use std::time::Duration;

use virt_v2v_wrapper::copy::chunk::{CHUNK, Digest};
use virt_v2v_wrapper::copy::ledger::Ledger;
use virt_v2v_wrapper::plan::DiskFormat;

use super::child::Manner;
use super::rig::{LIMIT, MIB, Rig, noise, recorded};
use crate::rig::poll;

const SIZE: u64 = 44 * MIB + 512;
/// Room for three chunks that are read and not yet recorded.
const UNPROVEN: u64 = 12 * MIB;

/// Numbers that spread.
pub struct Numbers {
    seed: u64,
    state: u64,
}

impl Numbers {
    pub fn new() -> Self {
        let seed = std::env::var("V2V_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        Self { seed, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % limit
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "repeat with V2V_TEST_SEED={}", self.seed);
        }
    }
}

#[test]
fn a_raw_copy_killed_fifty_times_is_the_disk_and_reads_again_only_what_was_not_recorded() {
    kill_and_go_on(DiskFormat::Raw, 50);
}

/// The image may only lose what was not flushed, and is checked before it is gone on with (peers.md 6.3, row 37).
#[test]
fn a_qcow2_copy_killed_with_its_server_is_sound_and_is_gone_on_with() {
    kill_and_go_on(DiskFormat::Qcow2, 12);
}

/// Kills so many times, over as many copies as that takes; the last one is finished.
fn kill_and_go_on(format: DiskFormat, kills: u32) {
    let Some(mut rig) = Rig::new() else { return };
    let mut random = Numbers::new();
    rig.logged();
    rig.format = format;
    let holes = [(0, 3), (6, 17), (25, 19)];
    let pieces = holes.map(|(at, length)| (at * MIB + 4096, noise(at, (length * MIB) as usize)));
    rig.disk(SIZE, &pieces);
    let manner = Manner { limit: Some(60 * MIB), unproven: Some(UNPROVEN), areas: None };
    let (mut killed, mut in_the_middle) = (0, 0);
    while killed < kills {
        for file in ["disk.copy", "disk.ledger"] {
            fs::remove_file(rig.path(file)).ok();
        }
        loop {
            let (before, reads) = (recorded_so_far(&rig), rig.reads().len());
            let mut child = rig.start(&manner);
            let finished = killed == kills || !kill_some_time(&rig, &mut child, reads, &mut random);
            if finished {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                rig.deserted();
                assert!(rig.is_copied(), "after {killed} kills");
                break;
            }
            killed += 1;
            let after = recorded_so_far(&rig);
            in_the_middle += u32::from(!after.is_empty());
            judge(&rig, &before, &after, &rig.reads()[reads..]);
        }
    }
    assert!(in_the_middle * 3 > kills, "only {in_the_middle} of {kills} kills hit a copy that had begun");
}

/// Kills the copy after some of its reads, or earlier. False when it was quicker.
fn kill_some_time(rig: &Rig, child: &mut Child, reads: usize, random: &mut Numbers) -> bool {
    let mut over = false;
    if random.below(6) > 0 {
        let wanted = reads + random.below(14) as usize;
        poll(LIMIT, || {
            over = child.try_wait().unwrap().is_some();
            (over || rig.reads().len() > wanted).then_some(())
        })
        .expect("it reads");
    }
    std::thread::sleep(Duration::from_micros(random.below(60_000)));
    over = over || child.try_wait().unwrap().is_some();
    if !over {
        if random.below(2) == 0 {
            rig.kill(child);
        } else {
            // Its servers learn of it by themselves.
            child.kill().unwrap();
            child.wait().unwrap();
            rig.deserted();
        }
    }
    !over
}

fn recorded_so_far(rig: &Rig) -> BTreeMap<u64, Digest> {
    // A ledger whose head was not written yet is none.
    Ledger::open(&rig.path("disk.ledger")).map(|ledger| recorded(&ledger)).unwrap_or_default()
}

fn judge(rig: &Rig, before: &BTreeMap<u64, Digest>, after: &BTreeMap<u64, Digest>, reads: &[(u64, u64)]) {
    // What is recorded is on the target, and was on the source.
    let contents = [("disk", fs::read(rig.path("disk")).unwrap()), ("copy", content(rig, !after.is_empty()))];
    for (index, digest) in after {
        for (name, bytes) in &contents {
            let from = (index * CHUNK) as usize;
            let to = (from + CHUNK as usize).min(bytes.len());
            assert_eq!(blake3::hash(&bytes[from..to]), *digest, "chunk {index} of the {name}");
        }
    }
    // What was recorded before is still recorded, and was not read.
    for (index, digest) in before {
        assert_eq!(after.get(index), Some(digest), "chunk {index} is forgotten");
        let again = reads.iter().find(|(offset, _)| offset / CHUNK == *index);
        assert_eq!(again, None, "chunk {index} was recorded and is read again");
    }
    // What is read again later is no more than may be unproven at a time.
    let lost: u64 = reads
        .iter()
        .filter(|(offset, _)| !after.contains_key(&(offset / CHUNK)))
        .map(|(_, length)| length)
        .sum();
    assert!(lost <= UNPROVEN, "{lost} bytes were read and not recorded");
}

/// All bytes of the copy.
fn content(rig: &Rig, begun: bool) -> Vec<u8> {
    let copy = rig.path("disk.copy");
    if !begun || rig.format == DiskFormat::Raw {
        return fs::read(copy).unwrap_or_default();
    }
    // As the engine does, on a copy of the image: the engine is to find it as the kill left it.
    let (image, raw) = (rig.path("image"), rig.path("raw"));
    fs::copy(&copy, &image).unwrap();
    let qemu_img = |arguments: &[&str]| {
        let output = Command::new("qemu-img").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (image, raw) = (image.to_str().unwrap(), raw.to_str().unwrap());
    let (checked, said) = qemu_img(&["check", "-r", "leaks", "-f", "qcow2", image]);
    assert!(matches!(checked, Some(0 | 3)), "{checked:?}: {said}");
    assert_eq!(qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image, raw]).0, Some(0));
    fs::read(raw).unwrap()
}
