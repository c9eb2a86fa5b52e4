//! What was written is read back before it counts, and what is found there is told exactly.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use virt_v2v_wrapper::copy::chunk::CHUNK;
use virt_v2v_wrapper::copy::ledger::Standing;
use virt_v2v_wrapper::copy::{Copied, CopyError, Told};

use super::rig::{MIB, Rig, finish, flip, noise, recorded, until};

const SIZE: u64 = 3 * CHUNK + 512;

/// Chunk 0 is data from 4 KiB to 1 MiB and a hole behind it, chunk 1 is a hole, chunk 2 and the rest is data.
fn disk(rig: &Rig) {
    rig.disk(SIZE, &[(4096, noise(1, MIB as usize - 4096)), (2 * CHUNK, noise(2, CHUNK as usize + 512))]);
}

/// A source whose last chunks are not given out before `go` exists, and proofs that wait for them.
fn gated(rig: &mut Rig) {
    let go = rig.path("go");
    let wait =
        format!("while [ $4 -ge {} ] && [ ! -e \"{}\" ]; do sleep 0.02; done", 2 * CHUNK, go.display());
    let extents =
        "can_extents='exit 0' extents='echo \"0 1048576 \n1048576 7340032 hole,zero\n8388608 4194816 \"'";
    rig.played(&wait, extents);
    rig.tuning.prove_every = Duration::from_secs(3600);
    rig.tuning.prove_bytes = u64::MAX;
}

/// Copies while `change` is done between the write of chunk 0 and its proof.
fn copy_with(rig: &Rig, change: impl FnOnce()) -> Result<Copied, CopyError> {
    let (source, length) = (noise(1, MIB as usize - 4096), MIB as usize - 4096);
    rig.run(async {
        let disturb = async {
            until("chunk 0 is not written", || {
                let mut bytes = vec![0; length];
                let read =
                    File::open(rig.path("disk.copy")).and_then(|file| file.read_exact_at(&mut bytes, 4096));
                read.is_ok() && bytes == source
            })
            .await;
            change();
            File::create(rig.path("go")).unwrap();
        };
        let (copied, ()) = tokio::join!(async { finish(rig.job().await?).await }, disturb);
        copied
    })
}

#[test]
fn a_byte_that_changes_between_write_and_read_back_is_found_where_it_is() {
    // In data, in a hole of a chunk with data, in a chunk that is a hole.
    for offset in [700_001, 3 * MIB + 5, CHUNK + 77_777, 2 * CHUNK - 1] {
        let Some(mut rig) = Rig::new() else { return };
        gated(&mut rig);
        disk(&rig);
        let error = copy_with(&rig, || flip(&rig.path("disk.copy"), offset)).unwrap_err();
        let CopyError::Mismatch { offset: found, .. } = &error else { panic!("{offset}: {error}") };
        assert_eq!(*found, offset);
        let text = error.to_string();
        let (disk, copy) = (rig.path("disk"), rig.path("disk.copy"));
        for part in [disk.to_str().unwrap(), copy.to_str().unwrap(), &format!("at offset {offset}")] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(rig.ledger().checksum().is_err());
        assert!(!recorded(&rig.ledger()).contains_key(&(offset / CHUNK)));
    }
}

#[test]
fn without_verification_nothing_is_read_back_and_the_ledger_says_so() {
    let Some(mut rig) = Rig::new() else { return };
    gated(&mut rig);
    disk(&rig);
    rig.verify = false;
    copy_with(&rig, || flip(&rig.path("disk.copy"), 700_001)).unwrap();
    assert!(!rig.is_copied());
    let ledger = rig.ledger();
    assert_eq!((ledger.count(Standing::Flushed), ledger.count(Standing::Compared)), (4, 0));
}

/// The guest still runs: then it is not the storage that is to blame.
#[test]
fn a_source_that_reads_differently_the_second_time_is_blamed_instead_of_the_target() {
    let Some(mut rig) = Rig::new() else { return };
    gated(&mut rig);
    disk(&rig);
    let change = || {
        flip(&rig.path("disk"), 600_000);
        flip(&rig.path("disk.copy"), 700_001);
    };
    let error = copy_with(&rig, change).unwrap_err();
    let CopyError::SourceChanges { offset: 0, .. } = &error else { panic!("{error}") };
    assert!(error.to_string().contains("switch the machine off"), "{error}");
}

/// To say where the copy differs, both sides are read once more, which must not wait for memory that it holds itself.
#[test]
fn a_difference_is_told_however_little_memory_there_is() {
    let Some(mut rig) = Rig::new() else { return };
    gated(&mut rig);
    disk(&rig);
    rig.memory = MIB as usize;
    let error = copy_with(&rig, || flip(&rig.path("disk.copy"), 700_001)).unwrap_err();
    assert!(matches!(error, CopyError::Mismatch { offset: 700_001, .. }), "{error}");
}

/// Somebody wrote to the copy between two jobs.
#[test]
fn what_changed_since_it_was_finished_is_found_and_copied_again() {
    for offset in [700_001, CHUNK + 77_777, SIZE - 1] {
        let Some(rig) = Rig::new() else { return };
        disk(&rig);
        let first = rig.run(rig.copy()).unwrap();
        flip(&rig.path("disk.copy"), offset);
        rig.told.borrow_mut().clear();
        let second = rig.run(rig.copy()).unwrap();
        assert!(rig.is_copied(), "{offset}");
        assert_eq!(first, second);
        let told = rig.told.borrow();
        let warned = told.iter().any(|news| {
            matches!(news, Told::Warning(text) if text.contains("1 of 4 finished chunks") && text.contains("disk.copy"))
        });
        assert!(warned, "{told:?}");
        let most = told.iter().filter_map(|news| match news {
            Told::Finished(bytes) => Some(*bytes),
            _ => None,
        });
        assert_eq!(most.max(), Some(rig.to_copy()), "no byte is counted twice");
    }
}
