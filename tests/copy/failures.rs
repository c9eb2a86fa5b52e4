//! Reads that fail, and servers that die, hang or leave: tried again, and told in a sentence when that does not help.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use virt_v2v_wrapper::copy::CopyError;
use virt_v2v_wrapper::copy::ledger::Standing;
use virt_v2v_wrapper::copy::reader::ReadError;

use super::rig::{MIB, Rig, finish, noise, until};
use crate::rig::processes::is_alive;

const SIZE: u64 = 24 * MIB + 512;

#[test]
fn reads_that_fail_now_and_then_are_tried_again() {
    let Some(mut rig) = Rig::new() else { return };
    rig.filtered("", "--filter=error", "error-pread=EIO error-pread-rate=30%");
    rig.read_size.set(256 << 10);
    rig.disk(SIZE, &[(0, noise(1, SIZE as usize))]);
    rig.run(async {
        let job = rig.job().await.unwrap();
        let extents = job.reader.extents(SIZE).await.unwrap();
        job.copy(extents).await.unwrap();
        // Of a hundred reads some did fail.
        assert!(job.reader.last_error().is_some());
        assert_eq!(job.reader.starts(), 1, "an error is no reason to start another server");
    });
    assert!(rig.is_copied());
}

/// What is finished stays finished, and the sentence says where the disk is bad and what the server said.
#[test]
fn a_place_that_cannot_be_read_fails_its_disk_and_nothing_is_read_twice_afterwards() {
    let Some(mut rig) = Rig::new() else { return };
    let bad = rig.path("bad");
    fs::write(&bad, "").unwrap();
    let shell = format!(
        "if [ -e \"{}\" ] && [ $4 -eq {} ]; then echo \"EIO unreadable sector\" >&2; exit 1; fi",
        bad.display(),
        9 * MIB
    );
    rig.played(&shell, "");
    rig.patience.retries = vec![Duration::from_millis(5); 3];
    rig.disk(SIZE, &[(0, noise(2, SIZE as usize))]);
    let error = rig.run(rig.copy()).unwrap_err();
    let CopyError::Read(ReadError::Read { offset, tries: 4, .. }) = &error else { panic!("{error}") };
    assert_eq!(*offset, 9 * MIB);
    let text = error.to_string();
    for part in [rig.path("disk").to_str().unwrap(), "9437184", "unreadable sector"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let ledger = rig.ledger();
    let open: Vec<u64> = (0..7).filter(|index| ledger.standing(*index) == Standing::Open).collect();
    assert_eq!(open, [2], "of seven chunks");
    assert!(ledger.checksum().is_err());
    drop(ledger);

    fs::remove_file(&bad).unwrap();
    let before = rig.reads().len();
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
    let reads = rig.reads().split_off(before);
    assert!(!reads.is_empty() && reads.iter().all(|(offset, _)| offset / (4 * MIB) == 2), "{reads:?}");
}

/// How a server ends in the middle of a copy.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Signal(Signal),
    /// It leaves as soon as its clients are gone, and admits no new ones.
    Leaves,
}

/// A dead one is noticed at once, a stopped one when it has not answered for long (peers.md 6.3, row 22).
#[test]
fn a_server_that_ends_or_hangs_in_the_middle_is_replaced_and_nothing_is_lost() {
    for end in [
        End::Signal(Signal::SIGKILL),
        End::Signal(Signal::SIGTERM),
        End::Signal(Signal::SIGSTOP),
        End::Leaves,
    ] {
        let Some(mut rig) = Rig::new() else { return };
        let leave = rig.path("leave");
        let parameters = format!(
            "rate=200M burstiness=0.01 exit-when-file-created='{}' exit-when-poll=1",
            leave.display()
        );
        rig.filtered("", "--filter=exitwhen --filter=rate", &parameters);
        rig.tuning.spans = 2;
        rig.patience.stall = Duration::from_secs(1);
        rig.disk(SIZE, &[(0, noise(3, SIZE as usize))]);
        let mut first = 0;
        let starts = rig.run(async {
            let job = rig.job().await.unwrap();
            let extents = job.reader.extents(SIZE).await.unwrap();
            let disturb = async {
                until("nothing is finished", || rig.finished() > 0).await;
                assert!(rig.finished() < SIZE, "it is too late to disturb");
                first = rig.servers("nbdkit")[0];
                match end {
                    End::Signal(signal) => kill(Pid::from_raw(first), signal).unwrap(),
                    End::Leaves => fs::write(&leave, "").unwrap(),
                }
            };
            let (copied, ()) = tokio::join!(job.copy(extents), disturb);
            copied.unwrap();
            let starts = job.reader.starts();
            std::rc::Rc::into_inner(job).unwrap().close().await.unwrap();
            starts
        });
        assert!(rig.is_copied(), "{end:?}");
        // nbdkit ends on SIGTERM when its clients have gone: it may have lasted until the end.
        if matches!(end, End::Signal(Signal::SIGKILL | Signal::SIGSTOP)) {
            assert_eq!(starts, 2, "{end:?}");
        }
        assert!(!is_alive(first), "{end:?}");
        assert!(rig.stale().is_empty(), "{end:?}: {:?}", rig.stale());
    }
}

/// Until its clients have gone it answers, but never with data.
#[test]
fn a_server_that_says_that_it_is_leaving_is_left() {
    let Some(mut rig) = Rig::new() else { return };
    let leaver = rig.path("leaver");
    // Only the first server leaves; the shell's parent is the server.
    let shell = format!(
        "[ -e \"{0}\" ] || echo $PPID > \"{0}\"\n\
         if [ $(cat \"{0}\") = $PPID ] && [ $4 -ge {1} ]; then echo \"ESHUTDOWN leaving\" >&2; exit 1; fi",
        leaver.display(),
        5 * MIB
    );
    rig.played(&shell, "");
    rig.disk(9 * MIB, &[(0, noise(6, 9 * MIB as usize))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
}

/// Before the first byte is read, too.
#[test]
fn a_server_that_does_not_answer_about_its_blocks_is_replaced() {
    let Some(mut rig) = Rig::new() else { return };
    let tried = rig.path("tried");
    // Only the first server is slow.
    let shell = format!("delay=600; [ -e '{0}' ] && delay=0; touch '{0}'", tried.display());
    rig.filtered(&shell, "--filter=delay", "delay-extents=$delay");
    rig.patience.stall = Duration::from_millis(300);
    rig.disk(5 * MIB, &[(MIB, noise(4, 100_000))]);
    rig.run(rig.copy()).unwrap();
    assert!(rig.is_copied());
}

/// One disk fails, the others are recorded as complete: lost data at a peer (peers.md 6.3, row 1).
#[test]
fn a_failed_disk_beside_a_good_one_has_no_checksum_and_only_proven_chunks() {
    let Some(mut rig) = Rig::new() else { return };
    let shell = format!(
        "case \"$disk\" in */bad) if [ $4 -ge {} ]; then echo \"EIO gone\" >&2; exit 1; fi;; esac",
        17 * MIB
    );
    rig.played(&shell, "");
    rig.patience.retries = vec![Duration::from_millis(5); 2];
    for name in ["good", "bad"] {
        rig.disk_named(name, SIZE, &[(0, noise(name.len() as u64, SIZE as usize))]);
    }
    let (good, bad) = rig.run(async {
        let shared = rig.shared();
        let copy = |name| {
            let (rig, shared) = (&rig, &shared);
            async move { finish(rig.job_of(name, shared).await?).await }
        };
        tokio::join!(copy("good"), copy("bad"))
    });
    good.unwrap();
    assert!(matches!(bad, Err(CopyError::Read(_))), "{bad:?}");
    assert!(rig.is_copied_of("good"));
    let ledger = virt_v2v_wrapper::copy::ledger::Ledger::open(&rig.path("bad.ledger")).unwrap();
    assert!(ledger.checksum().is_err());
    let standings: Vec<bool> = (0..7).map(|index| ledger.standing(index) == Standing::Compared).collect();
    assert_eq!(standings, [true, true, true, true, false, false, false]);
    let copy = fs::read(rig.path("bad.copy")).unwrap();
    let disk = fs::read(rig.path("bad")).unwrap();
    assert!(copy[..16 * MIB as usize] == disk[..16 * MIB as usize]);
}

/// Another disk of the same name would be mixed with the first.
#[test]
fn a_disk_that_has_another_size_when_its_server_is_replaced_is_not_gone_on_with() {
    let Some(mut rig) = Rig::new() else { return };
    rig.filtered("", "--filter=rate", "rate=200M burstiness=0.01");
    rig.tuning.spans = 2;
    let disk = rig.disk(SIZE, &[(0, noise(5, SIZE as usize))]);
    let error = rig.run(async {
        let job = rig.job().await.unwrap();
        let extents = job.reader.extents(SIZE).await.unwrap();
        let disturb = async {
            until("nothing is finished", || rig.finished() > 0).await;
            fs::OpenOptions::new().write(true).open(&disk).unwrap().set_len(SIZE + 4096).unwrap();
            kill(Pid::from_raw(rig.servers("nbdkit")[0]), Signal::SIGKILL).unwrap();
        };
        let (copied, ()) = tokio::join!(job.copy(extents), disturb);
        copied.unwrap_err()
    });
    let CopyError::Read(ReadError::Resized { before: SIZE, now, .. }) = error else { panic!("{error}") };
    assert_eq!(now, SIZE + 4096);
}
