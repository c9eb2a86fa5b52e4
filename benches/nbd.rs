//! How fast the NBD client reads a sparse disk, beside `nbdcopy` in the same run: seconds, MiB/s, CPU.
//!
//! nbdkit serves a file of 1 GiB with 512 MiB of data in pieces of 1 MiB, from the page cache. Both sides ask for
//! block status and read the data only, which is what MiB/s counts; nothing is written (`nbdcopy` copies to `null:`).
//! CPU is that of the client alone; the server's is the same for all. Medians of seven rounds, each round runs all.
//! Needs nbdkit and nbdcopy.
//! Run with `cargo bench --bench nbd`.
#![allow(clippy::print_stdout)]

use std::cell::RefCell;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use virt_v2v_wrapper::extent::Kind;
use virt_v2v_wrapper::nbd::budget::Budget;
use virt_v2v_wrapper::nbd::pool::Pool;
use virt_v2v_wrapper::nbd::{Address, Options};

const SIZE: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const ROUNDS: usize = 7;

/// Connections, requests in flight on all of them together, bytes of each.
const OURS: [(usize, usize, u64); 6] = [
    (1, 1, 256 << 10),
    (1, 16, 256 << 10),
    (1, 64, 256 << 10),
    (4, 64, 256 << 10),
    (4, 16, 1 << 20),
    (4, 8, 2 << 20),
];

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let directory = tempfile::tempdir().expect("directory");
    let (disk, socket) = (directory.path().join("disk"), directory.path().join("socket"));
    make_disk(&disk);
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-r", "-U"]).arg(&socket).arg("file").arg(&disk).stdin(Stdio::null());
    let _server = Server(nbdkit.spawn().expect("nbdkit is needed"));
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let address = Address::Unix(socket);
    let mut results: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for round in 0..=ROUNDS {
        let mut add = |name: String, result: (f64, f64)| {
            // The first round warms the page cache.
            match results.iter_mut().find(|(known, _)| *known == name) {
                Some((_, list)) => list.push(result),
                None => results.push((name, Vec::new())),
            }
        };
        add("nbdcopy (its defaults)".into(), measure(UsageWho::RUSAGE_CHILDREN, || nbdcopy(&[], &uri)));
        let one = ["--connections=1", "--threads=1"];
        add("nbdcopy, 1 connection".into(), measure(UsageWho::RUSAGE_CHILDREN, || nbdcopy(&one, &uri)));
        for (connections, requests, length) in OURS {
            let name = format!("ours, {connections} x {} x {} KiB", requests / connections, length >> 10);
            let read = || ours(&address, connections, requests, length);
            add(name, measure(UsageWho::RUSAGE_SELF, read));
        }
        if round == 0 {
            println!("{:28} {:>8} {:>8} {:>8}", "reader", "seconds", "MiB/s", "CPU s");
        }
    }
    for (name, mut rounds) in results {
        rounds.sort_by(|left, right| left.0.total_cmp(&right.0));
        let (seconds, cpu) = rounds[rounds.len() / 2];
        println!("{name:28} {seconds:8.3} {:8.0} {cpu:8.3}", 512.0 / seconds);
    }
}

/// Every second MiB holds data.
fn make_disk(path: &Path) {
    let file = std::fs::File::create(path).expect("disk");
    file.set_len(SIZE).expect("size");
    let mut piece = vec![0; MIB as usize];
    for offset in (0..SIZE).step_by(2 * MIB as usize) {
        for (place, byte) in piece.iter_mut().enumerate() {
            *byte = (place as u64 ^ offset >> 20) as u8 | 1;
        }
        file.write_all_at(&piece, offset).expect("data");
    }
}

/// Seconds and CPU seconds.
fn measure(who: UsageWho, work: impl FnOnce()) -> (f64, f64) {
    let cpu = || {
        let usage = getrusage(who).expect("usage");
        [usage.user_time(), usage.system_time()]
            .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
            .iter()
            .sum::<f64>()
    };
    let (start, before) = (Instant::now(), cpu());
    work();
    (start.elapsed().as_secs_f64(), cpu() - before)
}

fn nbdcopy(arguments: &[&str], uri: &str) {
    let status = Command::new("nbdcopy").args(arguments).args([uri, "null:"]).status();
    assert!(status.expect("nbdcopy is needed").success());
}

fn ours(address: &Address, connections: usize, requests: usize, length: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let copy = async {
        let connections = NonZeroUsize::new(connections).expect("a connection");
        let pool = Pool::connect(address, "", &Options::default(), connections).await.expect("connect");
        let extents = pool.extents(0, SIZE).await.expect("block status");
        let pieces: Vec<_> = extents.split(NonZeroU64::new(length).expect("a length")).collect();
        let data: Vec<_> = pieces.into_iter().filter(|piece| piece.kind == Kind::Data).collect();
        assert_eq!(data.iter().map(|piece| piece.length).sum::<u64>(), SIZE / 2);
        let work = Rc::new((pool, Budget::new(64 << 20), RefCell::new(data.into_iter())));
        let readers: Vec<_> = (0..requests)
            .map(|_| {
                let work = Rc::clone(&work);
                tokio::task::spawn_local(async move {
                    let (pool, budget, data) = &*work;
                    loop {
                        let next = data.borrow_mut().next();
                        let Some(piece) = next else { return };
                        let buffer = budget.buffer(piece.length as usize).await;
                        let buffer = pool.read(piece.offset, buffer).await.expect("read");
                        assert_eq!(buffer[0] & 1, 1);
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.expect("a reader");
        }
        let (pool, ..) = Rc::into_inner(work).expect("all readers ended");
        pool.disconnect().await.expect("a clean end");
    };
    tokio::task::LocalSet::new().block_on(&runtime, copy);
}
