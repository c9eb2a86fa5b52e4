//! What real servers hold, and what the client reads, writes and says about it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use virt_v2v_wrapper::extent::Kind;
use virt_v2v_wrapper::nbd::Options;
use virt_v2v_wrapper::nbd::budget::{Budget, Buffer};
use virt_v2v_wrapper::nbd::client::{Client, Zeroes};
use virt_v2v_wrapper::nbd::pool::Pool;

use super::servers::{Served, installed, tool};
use super::{all, run};

/// Everything the export holds, read in pieces on several connections at the same time.
async fn content(pool: &Pool, piece: usize) -> Vec<u8> {
    let budget = Budget::new(4 << 20);
    let size = pool.export().size() as usize;
    let pieces = (0..size).step_by(piece).map(|start| {
        let budget = &budget;
        async move {
            let buffer = budget.buffer(piece.min(size - start)).await;
            pool.read(start as u64, buffer).await.expect("read").to_vec()
        }
    });
    all(pieces).await.concat()
}

async fn pool(served: &Served, options: &Options, connections: usize) -> Pool {
    let connections = NonZeroUsize::new(connections).expect("at least one");
    Pool::connect(&served.address, "", options, connections).await.expect("connect")
}

async fn filled(budget: &Budget, length: usize, byte: u8) -> Arc<Buffer> {
    let mut buffer = budget.buffer(length).await;
    buffer.fill(byte);
    Arc::new(buffer)
}

/// The list of the whole export as nbdinfo writes it.
async fn map(pool: &Pool) -> Vec<(u64, u64, u64)> {
    let extents = pool.extents(0, pool.export().size()).await.expect("block status");
    let flags = |kind| match kind {
        Kind::Data => 0,
        Kind::Zero => 2,
        Kind::Hole => 3,
    };
    extents.iter().map(|extent| (extent.offset, extent.length, flags(extent.kind))).collect()
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size as u64).step_by(8).flat_map(u64::to_be_bytes).take(size).collect()
}

#[test]
fn every_byte_of_a_pattern_is_read_at_its_place_with_and_without_structured_replies() {
    let size = 3 * 1024 * 1024 + 777;
    let Some(served) = Served::nbdkit(&["pattern", &size.to_string()]) else { return };
    run(async {
        for structured in [true, false] {
            let options = Options { structured, ..Options::default() };
            let pool = pool(&served, &options, 3).await;
            assert_eq!(pool.export().has_allocation(), structured);
            assert!(content(&pool, 100_003).await == pattern(size));
            pool.disconnect().await.expect("a clean end");
        }
    });
}

#[test]
fn a_server_on_tcp_is_read_like_one_on_a_socket() {
    let Some(served) = Served::nbdkit_tcp(&["pattern", "1M"]) else { return };
    run(async {
        let pool = pool(&served, &Options::default(), 2).await;
        assert!(content(&pool, 65536).await == pattern(1 << 20));
        pool.disconnect().await.expect("a clean end");
    });
}

#[test]
fn the_export_that_was_named_is_the_one_that_is_read() {
    let Some(served) = Served::nbdkit(&["info", "exportname"]) else { return };
    run(async {
        let client =
            Client::connect(&served.address, "disk ü/1", &Options::default()).await.expect("connect");
        let buffer = Budget::new(4096).buffer(client.export().size() as usize).await;
        assert_eq!(&client.read(0, buffer).await.unwrap()[..], "disk ü/1".as_bytes());
    });
}

#[test]
fn what_is_written_zeroed_and_trimmed_on_many_connections_is_what_the_disk_then_holds() {
    const SIZE: usize = 8 << 20;
    for arguments in [&["memory", "8M"][..], &["--filter=nozero", "memory", "8M", "zeromode=emulate"]] {
        let Some(served) = Served::nbdkit(arguments) else { return };
        run(async {
            let pool = pool(&served, &Options::default(), 4).await;
            assert_eq!(pool.connections(), 4);
            assert!(pool.export().can_zero() && pool.export().can_flush() && pool.export().can_trim());
            let budget = Budget::new(2 << 20);
            let mut model = vec![0_u8; SIZE];
            let mut random = 42_u64;
            let mut below = |limit: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % limit) as usize
            };
            // Disjoint slots, so that the order does not matter; within each a few changes one after the other.
            let mut changes = Vec::new();
            for slot in 0..64 {
                for _ in 0..3 {
                    let start = slot * (SIZE / 64) + below(60_000);
                    changes.push((slot, below(3), start, below(65_536) + 1, below(255) as u8));
                }
            }
            for (_, what, start, length, byte) in &changes {
                model[*start..start + length].fill(if *what == 0 { 0 } else { *byte });
            }
            let work = (0..64).map(|slot| {
                let (pool, budget) = (&pool, &budget);
                let changes: Vec<_> = changes.iter().filter(|change| change.0 == slot).collect();
                async move {
                    for (_, what, start, length, byte) in changes {
                        if *what == 0 {
                            let how = Zeroes { fua: slot % 2 == 0, no_hole: slot % 3 == 0, fast: false };
                            pool.write_zeroes(*start as u64, *length as u64, how).await.expect("zero");
                        } else {
                            let buffer = filled(budget, length + 5, *byte).await;
                            pool.write(*start as u64, &buffer, 5..length + 5, false).await.expect("write");
                        }
                    }
                }
            });
            all(work).await;
            pool.flush().await.expect("flush");
            assert!(content(&pool, 300_000).await == model, "{arguments:?}");
            pool.trim(0, SIZE as u64).await.expect("trim");
            pool.disconnect().await.expect("a clean end");
        });
    }
}

#[test]
fn there_are_as_many_connections_as_the_server_is_good_for() {
    for (arguments, connections) in [
        (&["memory", "1M"][..], 4),
        (&["--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable"], 1),
        (&["--filter=limit", "memory", "1M", "limit=2"], 2),
    ] {
        let Some(served) = Served::nbdkit(arguments) else { return };
        run(async {
            let pool = pool(&served, &Options::default(), 4).await;
            assert_eq!(pool.connections(), connections, "{arguments:?}");
            assert!(content(&pool, 4096).await == vec![0; 1 << 20]);
            pool.disconnect().await.expect("a clean end");
        });
    }
}

#[test]
fn a_file_behind_nbdkit_holds_what_was_written_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    std::fs::write(&file, vec![0xaa; 1_000_001]).unwrap();
    let argument = file.display().to_string();
    let Some(served) = Served::nbdkit_in(directory, &["file", &argument]) else { return };
    run(async {
        let pool = pool(&served, &Options::default(), 2).await;
        let budget = Budget::new(1 << 20);
        pool.write(999_990, &filled(&budget, 11, 1).await, 0..11, true).await.expect("write at the odd end");
        pool.write_zeroes(100, 4000, Zeroes::default()).await.expect("zero");
        pool.flush().await.expect("flush");
        pool.disconnect().await.expect("a clean end");
    });
    let mut expected = vec![0xaa; 1_000_001];
    expected[999_990..].fill(1);
    expected[100..4100].fill(0);
    assert!(std::fs::read(served.path().join("disk")).unwrap() == expected);
}

#[test]
fn extents_are_those_that_nbdinfo_sees() {
    let sparse = "data=@32768 1*5 @1048576 0xff*100000 @50331648 0x78*4096";
    let Some(served) = Served::nbdkit(&["data", sparse, "size=3G"]) else { return };
    run(async {
        let pool = pool(&served, &Options::default(), 1).await;
        let ours = map(&pool).await;
        assert_eq!(ours, served.map());
        assert!(ours.len() >= 6, "{ours:?}");
        let inside = pool.extents(32768 + 100, 1 << 20).await.expect("block status");
        assert_eq!((inside.covered(), inside.end()), (1 << 20, 32768 + 100 + (1 << 20)));
    });
}

#[test]
fn without_block_status_everything_is_data() {
    let Some(served) = Served::nbdkit(&["--filter=noextents", "memory", "1G"]) else { return };
    run(async {
        let pool = pool(&served, &Options::default(), 1).await;
        assert_eq!(map(&pool).await, [(0, 1 << 30, 0)]);
    });
}

#[test]
fn a_qcow2_behind_qemu_nbd_is_read_byte_by_byte_with_its_holes() {
    if installed(&["qemu-img", "qemu-io"]).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_owned();
    tool(&here, "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "24M"]);
    let writes = ["-c", "write -P 1 0 64k", "-c", "write -P 2 1M 3M", "-c", "write -z 2M 128k"];
    let more = ["-c", "write -P 3 10000000 1234", "-c", "write -P 4 25165312 512", "a.qcow2"];
    tool(&here, "qemu-io", &[&["-f", "qcow2"][..], &writes, &more].concat());
    tool(&here, "qemu-img", &["convert", "-O", "raw", "a.qcow2", "a.raw"]);
    let arguments = ["-r", "-e", "8", "-f", "qcow2", "a.qcow2"];
    let Some(served) = Served::qemu_in(directory, &arguments) else { return };
    run(async {
        let pool = pool(&served, &Options::default(), 4).await;
        assert!(pool.export().is_read_only() && pool.export().can_multi_conn());
        assert_eq!(pool.connections(), 4);
        assert!(content(&pool, 256 << 10).await == std::fs::read(here.join("a.raw")).unwrap());
        let ours = map(&pool).await;
        pool.disconnect().await.expect("a clean end");
        assert_eq!(ours, served.map());
        assert!(ours.len() > 5 && ours.iter().any(|(_, _, flags)| *flags == 3), "{ours:?}");
    });
}

#[test]
fn a_qcow2_written_through_qemu_nbd_is_whole_after_flush_and_disconnect() {
    if installed(&["qemu-img", "qemu-io"]).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_owned();
    tool(&here, "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "16M"]);
    let Some(mut served) = Served::qemu_in(directory, &["-f", "qcow2", "a.qcow2"]) else { return };
    run(async {
        let pool = pool(&served, &Options::default(), 4).await;
        let budget = Budget::new(1 << 20);
        for place in 0..16 {
            let buffer = filled(&budget, 200_000, place).await;
            pool.write(u64::from(place) << 20, &buffer, 0..200_000, false).await.expect("write");
        }
        pool.write_zeroes(5 << 20, 100_000, Zeroes::default()).await.expect("zero");
        pool.flush().await.expect("flush");
        pool.disconnect().await.expect("a clean end");
    });
    served.kill();
    tool(&here, "qemu-img", &["check", "-q", "a.qcow2"]);
    tool(&here, "qemu-img", &["convert", "-O", "raw", "a.qcow2", "a.raw"]);
    let mut expected = vec![0; 16 << 20];
    for place in 0..16 {
        expected[place << 20..(place << 20) + 200_000].fill(place as u8);
    }
    expected[5 << 20..(5 << 20) + 100_000].fill(0);
    assert!(std::fs::read(here.join("a.raw")).unwrap() == expected);
}
