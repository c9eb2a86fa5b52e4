//! Real servers that fail requests, insist on block sizes, refuse, or die.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use virt_v2v_wrapper::extent::{Extent, Kind};
use virt_v2v_wrapper::nbd::budget::Budget;
use virt_v2v_wrapper::nbd::client::{Client, Zeroes};
use virt_v2v_wrapper::nbd::error::Error;
use virt_v2v_wrapper::nbd::pool::Pool;
use virt_v2v_wrapper::nbd::reply::Errno;
use virt_v2v_wrapper::nbd::{Address, Options};

use super::servers::Served;
use super::{all, run};

async fn connect(served: &Served) -> Client {
    Client::connect(&served.address, "", &Options::default()).await.expect("connect")
}

#[test]
fn a_failed_read_names_offset_and_cause_and_the_next_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let trigger = directory.path().join("fail");
    let file = format!("error-file={}", trigger.display());
    let arguments = ["--filter=error", "pattern", "1M", "error-pread=EIO", "error-pread-rate=100%", &file];
    let Some(served) = Served::nbdkit_in(directory, &arguments) else { return };
    run(async {
        let client = connect(&served).await;
        let budget = Budget::new(1 << 20);
        std::fs::write(&trigger, "").unwrap();
        let error = client.read(4096, budget.buffer(512).await).await.unwrap_err();
        let Error::Server { offset: 4096, length: 512, errno: Errno::InputOutput, .. } = error else {
            panic!("{error}")
        };
        std::fs::remove_file(&trigger).unwrap();
        let buffer = client.read(4096, budget.buffer(512).await).await.unwrap();
        assert_eq!(buffer[..8], 4096_u64.to_be_bytes());
    });
}

#[test]
fn of_many_reads_exactly_the_failed_ones_fail() {
    let arguments = ["--filter=error", "pattern", "64M", "error-pread=ENOMEM", "error-pread-rate=30%"];
    let Some(served) = Served::nbdkit(&arguments) else { return };
    run(async {
        let client = connect(&served).await;
        let budget = Budget::new(1 << 20);
        let reads =
            all((0..1000_u64).map(|place| {
                let (client, budget) = (&client, &budget);
                async move {
                    client.read(place << 16, budget.buffer(4096).await).await.map(|buffer| buffer.to_vec())
                }
            }));
        let mut failed = 0;
        for (place, answer) in reads.await.into_iter().enumerate() {
            match answer {
                Ok(bytes) => {
                    assert!(bytes.len() == 4096 && bytes[..8] == ((place as u64) << 16).to_be_bytes())
                }
                Err(error) => {
                    assert!(error.is_too_large() && !error.ends_connection(), "{error}");
                    failed += 1;
                }
            }
        }
        assert!((100..600).contains(&failed), "{failed}");
        assert_eq!(budget.available(), 1 << 20);
    });
}

#[test]
fn a_full_disk_and_a_failed_flush_are_told_apart() {
    let Some(full) = Served::nbdkit(&["full", "1M"]) else { return };
    let script =
        ["eval", "get_size=echo 1048576", "can_write=exit 0", "can_flush=exit 0", "pwrite=cat >/dev/null"];
    let failing = ["pread=head -c $3 /dev/zero", "flush=echo 'EIO the mount is gone' >&2; exit 1"];
    let Some(flush) = Served::nbdkit(&[&script[..], &failing].concat()) else { return };
    run(async {
        let buffer = Arc::new(Budget::new(4096).buffer(512).await);
        let error = connect(&full).await.write(0, &buffer, 0..512, false).await.unwrap_err();
        assert!(error.is_no_space() && !error.ends_connection(), "{error}");
        let client = connect(&flush).await;
        client.write(0, &buffer, 0..512, false).await.expect("write");
        assert_eq!(client.flush().await.unwrap_err().errno(), Some(Errno::InputOutput), "{}", flush.log());
    });
}

#[test]
fn failing_block_status_makes_data_and_no_failure() {
    let arguments = ["--filter=error", "memory", "200M", "error-extents=EINVAL", "error-extents-rate=100%"];
    let Some(served) = Served::nbdkit(&arguments) else { return };
    run(async {
        let client = connect(&served).await;
        assert!(client.export().has_allocation());
        let whole = client.extents(0, 200 << 20).await.expect("block status");
        assert_eq!(whole.as_slice(), [Extent::new(0, 200 << 20, Kind::Data)]);
    });
}

#[test]
fn a_server_without_zeroing_is_not_asked_to() {
    let Some(served) = Served::nbdkit(&["--filter=nozero", "memory", "1M", "zeromode=none"]) else { return };
    run(async {
        let client = connect(&served).await;
        assert!(!client.export().can_zero() && !client.export().can_fast_zero());
        let refused = client.write_zeroes(0, 512, Zeroes::default()).await;
        assert!(matches!(refused, Err(Error::NotOffered { .. })), "{refused:?}");
    });
}

#[test]
fn zeros_that_would_be_slow_are_refused_when_they_must_be_fast() {
    let arguments = ["--filter=nozero", "memory", "1M", "zeromode=emulate", "fastzeromode=slow"];
    let Some(served) = Served::nbdkit(&arguments) else { return };
    run(async {
        let client = connect(&served).await;
        assert!(client.export().can_fast_zero());
        let how = Zeroes { fast: true, ..Zeroes::default() };
        let refused = client.write_zeroes(0, 512, how).await.unwrap_err();
        assert!(refused.is_not_supported(), "{refused}");
        client.write_zeroes(0, 512, Zeroes::default()).await.expect("slow zeros");
    });
}

#[test]
fn a_server_with_strict_block_sizes_gets_only_requests_that_it_takes() {
    let sizes = ["blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=1M"];
    let start = ["--filter=blocksize-policy", "pattern", "10M", "blocksize-error-policy=error"];
    let Some(served) = Served::nbdkit(&[&start[..], &sizes].concat()) else { return };
    run(async {
        let client = connect(&served).await;
        let blocks = client.export().blocks();
        assert_eq!((blocks.minimum, blocks.preferred, blocks.maximum), (4096, 65536, 1 << 20));
        let budget = Budget::new(16 << 20);
        let buffer = client.read(4096, budget.buffer(3 << 20).await).await.expect("a read of three requests");
        for place in (0..buffer.len()).step_by(8) {
            assert_eq!(buffer[place..place + 8], (place as u64 + 4096).to_be_bytes());
        }
        let refused = client.read(100, budget.buffer(4096).await).await.unwrap_err();
        assert!(matches!(refused, Error::Unaligned { minimum: 4096, .. }), "{refused}");
    });
}

#[test]
fn a_server_killed_with_requests_in_flight_fails_them_all() {
    let Some(mut served) = Served::nbdkit(&["--filter=delay", "memory", "1G", "delay-read=600"]) else {
        return;
    };
    run(async {
        let (options, four) = (Options::default(), NonZeroUsize::new(4).unwrap());
        let pool = Pool::connect(&served.address, "", &options, four).await.expect("connect");
        let budget = Budget::new(1 << 20);
        let reads = all((0..40_u64).map(|place| {
            let (pool, budget) = (&pool, &budget);
            async move { pool.read(place << 20, budget.buffer(4096).await).await }
        }));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            served.kill();
        };
        let (answers, ()) = tokio::join!(reads, kill);
        for answer in answers {
            let error = answer.expect_err("nobody was there to answer");
            assert!(matches!(error, Error::Lost { .. }) && error.ends_connection(), "{error}");
        }
        assert!(pool.lost().is_some() && pool.flush().await.is_err());
        assert_eq!(budget.available(), 1 << 20);
        let again =
            Client::connect(&served.address, "", &Options::default()).await.err().expect("nobody listens");
        assert!(matches!(again, Error::Connect { .. }), "{again}");
    });
}

#[test]
fn a_leaving_server_lets_the_connection_end_in_peace_and_goes_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let event = directory.path().join("leave");
    let file = format!("exit-when-file-created={}", event.display());
    let Some(mut served) =
        Served::nbdkit_in(directory, &["--filter=exitwhen", "pattern", "1M", &file, "exit-when-poll=1"])
    else {
        return;
    };
    run(async {
        let client = connect(&served).await;
        std::fs::write(&event, "").unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let budget = Budget::new(1 << 20);
        client.read(0, budget.buffer(4096).await).await.expect("read");
        client.disconnect().await.expect("a clean end");
    });
    assert!(served.ends(), "{}", served.log());
}

#[test]
fn servers_that_do_not_let_us_in_are_told_in_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    std::fs::write(&keys, "user:00112233445566778899aabbccddeeff\n").unwrap();
    let psk = format!("--tls-psk={}", keys.display());
    let Some(tls) = Served::nbdkit_in(directory, &["--tls=require", &psk, "memory", "1M"]) else { return };
    let Some(old) = Served::nbdkit(&["-o", "memory", "1M"]) else { return };
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.raw"), [0; 4096]).unwrap();
    let Some(qemu) = Served::qemu_in(directory, &["-x", "here", "-f", "raw", "a.raw"]) else { return };
    run(async {
        for (served, sentence) in
            [(&tls, "insists on TLS"), (&old, "oldstyle"), (&qemu, "has no export \"elsewhere\"")]
        {
            let error = Client::connect(&served.address, "elsewhere", &Options::default()).await.err();
            let error = error.expect("no way in");
            assert!(
                matches!(error, Error::Refused { .. }) && error.to_string().contains(sentence),
                "{error}"
            );
        }
    });
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    run(async {
        let options = Options { timeout: Duration::from_millis(50), ..Options::default() };
        let error = Client::connect(&Address::Unix(socket), "", &options).await.err().expect("nobody spoke");
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    });
}
