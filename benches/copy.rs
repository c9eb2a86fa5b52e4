//! How fast the copy engine copies a disk, beside `nbdcopy` and `qemu-img convert` in the same run: seconds, their share of
//! nbdcopy's, CPU seconds, peak memory.
//!
//! nbdkit serves a sparse file of 4 GiB with 1.5 GiB of data in 95 extents; each side starts its own and writes a raw
//! file. Ours always flushes, so nbdcopy is told to (`--flush`); qemu-img does at its end. Then the same with the
//! source limited to 400 MiB/s, where a network would be the limit, and a list of 2,000 changed extents of 64 KiB to
//! 1 MiB beside a bare pread/pwrite of the same ranges. Medians of `V2V_BENCH_ROUNDS` (5) rounds, each round runs all;
//! the first warms up.
//!
//! `cargo bench --bench copy`; `V2V_BENCH_DIR` names the directory (default: `/dev/shm`, so tmpfs to tmpfs).
#![allow(clippy::print_stdout)]

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use virt_v2v_wrapper::copy::ledger::{Identity, Ledger, Record, Standing};
use virt_v2v_wrapper::copy::reader::{Patience, Reader, Serving};
use virt_v2v_wrapper::copy::target::Target;
use virt_v2v_wrapper::copy::target::file::{Allocation, FileTarget};
use virt_v2v_wrapper::copy::{Job, Shared, Tuning, chunk};
use virt_v2v_wrapper::export::{Export, Filters};
use virt_v2v_wrapper::extent::Extents;
use virt_v2v_wrapper::plan::DiskFormat;
use virt_v2v_wrapper::throttle::bucket::Bucket;

const SIZE: u64 = 4 << 30;
const DATA: u64 = 1536 << 20;
const EXTENTS: u64 = 95;
const CHANGED: u64 = 2000;
const LIMIT: u64 = 400 << 20;

/// A small generator, the same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(mode) = std::env::var_os("V2V_BENCH_OURS") {
        return ours(&mode.to_string_lossy());
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let above = std::env::var_os("V2V_BENCH_DIR").map_or_else(|| "/dev/shm".into(), PathBuf::from);
    let rounds = std::env::var("V2V_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let directory = tempfile::tempdir_in(&above).expect("directory");
    let place = directory.path();
    std::env::set_current_dir(place).expect("directory");
    make_disk();
    let limited = place.join("nbdkit-limited");
    let script = format!("#!/bin/sh\nexec nbdkit --filter=rate \"$@\" rate={} burstiness=0.1\n", LIMIT * 8);
    std::fs::write(&limited, script).expect("script");
    std::fs::set_permissions(&limited, std::fs::Permissions::from_mode(0o755)).expect("script");

    let nbdcopy = |nbdkit: &str| {
        let mut command = Command::new("nbdcopy");
        command.args(["--flush", "--", "[", nbdkit, "--exit-with-parent", "-r", "file", "disk", "]", "copy"]);
        command
    };
    let mut qemu = Command::new("nbdkit");
    qemu.args(["-r", "-U", "-", "file", "disk", "--run"]);
    qemu.arg(
        "truncate -s 4G copy; qemu-img convert -n -W -m 16 --target-is-zero -f raw -O raw \"$uri\" copy",
    );
    let limited = limited.to_string_lossy().into_owned();
    let us = |mode: &str| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env("V2V_BENCH_OURS", mode);
        command
    };
    let whole = [
        ("nbdcopy", nbdcopy("nbdkit")),
        ("qemu-img convert -n -W", qemu),
        ("ours, verify off", us("off")),
        ("ours, verify on", us("on")),
    ];
    table("4 GiB, 1.5 GiB of data", whole, rounds);
    let slow = [("nbdcopy", nbdcopy(&limited)), ("ours, verify on", us("limited"))];
    table("the same, source limited to 400 MiB/s", slow, rounds);
    let delta = [
        ("pread, pwrite", us("floor")),
        ("ours, verify off", us("delta")),
        ("ours, verify on", us("delta-on")),
    ];
    table("2,000 changed extents", delta, rounds);
}

fn table<const N: usize>(title: &str, commands: [(&str, Command); N], rounds: usize) {
    let mut results: Vec<Vec<(f64, f64, u64)>> = vec![Vec::new(); N];
    let mut commands = commands;
    for round in 0..=rounds {
        for ((name, command), results) in commands.iter_mut().zip(&mut results) {
            for left in ["copy", "ledger"] {
                std::fs::remove_file(left).ok();
            }
            if title.starts_with("2,000") {
                old_copy();
            }
            let result = measure(name, command);
            if round > 0 {
                results.push(result);
            }
        }
    }
    println!("{title}\n{:26} {:>8} {:>8} {:>8} {:>8}", "", "seconds", "x first", "CPU s", "MiB");
    let median = |list: &[(f64, f64, u64)], of: fn(&(f64, f64, u64)) -> f64| {
        let mut values: Vec<f64> = list.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let first = median(&results[0], |result| result.0);
    for ((name, _), list) in commands.iter().zip(&results) {
        let (seconds, cpu) = (median(list, |result| result.0), median(list, |result| result.1));
        let memory = list.iter().map(|result| result.2).max().unwrap_or(0);
        println!("{name:26} {seconds:8.3} {:8.2} {cpu:8.3} {:8}", first / seconds, memory >> 20);
    }
    println!();
}

/// Seconds, CPU seconds of the whole tree, peak bytes of one process. Ours tell seconds by themselves where they prepare
/// something first.
fn measure(name: &str, command: &mut Command) -> (f64, f64, u64) {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect(name);
    let pid = child.id() as i32;
    let mut said = String::new();
    let mut stdout = child.stdout.take().expect("stdout");
    std::io::Read::read_to_string(&mut stdout, &mut said).expect("stdout");
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: plain wait for our own child, into memory that is ours.
    let waited = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
    assert!(waited == pid && status == 0, "{name}: status {status}");
    drop(child);
    // SAFETY: wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    let seconds = said.trim().parse().unwrap_or_else(|_| start.elapsed().as_secs_f64());
    let time = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds, time(usage.ru_utime) + time(usage.ru_stime), usage.ru_maxrss as u64 * 1024)
}

fn make_disk() {
    let file = File::create("disk").expect("disk");
    file.set_len(SIZE).expect("size");
    let mut piece = vec![0; (DATA / EXTENTS) as usize & !0xffff];
    let mut numbers = Numbers(42);
    for extent in 0..EXTENTS {
        piece.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&numbers.next().to_le_bytes()));
        file.write_all_at(&piece, (extent * (SIZE / EXTENTS)) & !0xffff).expect("data");
    }
}

/// The changed extents: offset and length, in order, none overlapping.
fn changed() -> Vec<(u64, u64)> {
    let mut numbers = Numbers(7);
    (0..CHANGED).map(|at| ((at * (SIZE / CHANGED)) & !0xffff, (numbers.next() % 16 + 1) << 16)).collect()
}

fn old_copy() {
    let status = Command::new("cp").args(["--sparse=always", "disk", "copy"]).status();
    assert!(status.expect("cp").success());
}

/// What the child does.
fn ours(mode: &str) {
    if mode == "floor" {
        let (from, to) =
            (File::open("disk").expect("disk"), OpenOptions::new().write(true).open("copy").expect("copy"));
        let mut buffer = vec![0; 1 << 20];
        let start = Instant::now();
        for (offset, length) in changed() {
            let buffer = &mut buffer[..length as usize];
            from.read_exact_at(buffer, offset).expect("read");
            to.write_all_at(buffer, offset).expect("write");
        }
        to.sync_data().expect("flush");
        println!("{}", start.elapsed().as_secs_f64());
        return;
    }
    let verify = matches!(mode, "on" | "limited" | "delta-on");
    let program = if mode == "limited" { "./nbdkit-limited" } else { "nbdkit" };
    let place = std::env::current_dir().expect("directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let number = |name: &str, default: usize| {
            std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
        };
        let serving = Serving {
            program: which(program),
            tag: "bench".into(),
            export: Export::File { path: place.join("disk") },
            filters: Filters::default(),
            library_path: None,
            private: place.clone(),
            number: 0,
            connections: NonZeroUsize::new(number("CONNECTIONS", 4)).expect("connections"),
        };
        let read_size = Rc::new(Cell::new(number("READ_SIZE", 1 << 20) as u32));
        let reader = Reader::new(serving, Patience::default(), read_size);
        let size = reader.open().await.expect("open");
        let identity = Identity {
            source: "disk".into(),
            size,
            mark: None,
            target: place.join("copy"),
            format: DiskFormat::Raw,
        };
        let delta = mode.starts_with("delta");
        let ledger = Ledger::create(&place.join("ledger"), identity).expect("ledger");
        let copy = place.join("copy");
        let target = match delta {
            true => FileTarget::open(&copy, size, Allocation::Sparse).expect("target"),
            false => FileTarget::create(&copy, size, Allocation::Sparse).expect("target"),
        };
        let tuning = Tuning { spans: number("SPANS", Tuning::default().spans), ..Tuning::default() };
        let job = Rc::new(Job {
            reader,
            target: Target::File(Arc::new(target)),
            ledger,
            verify,
            shared: Shared::new(number("MEMORY", 96) << 20, tuning, Bucket::default()),
            resumed: false,
            tell: Box::new(|_| ()),
        });
        if delta {
            let digest = blake3::hash(b"");
            let records =
                (0..chunk::count(size)).map(|index| Record { index, standing: Standing::Flushed, digest });
            job.ledger.record(records.collect()).await.expect("ledger");
            let areas = Extents::from_changed_areas(changed(), size);
            let start = Instant::now();
            let extents = job.reader.extents(size).await.expect("extents").intersect(&areas);
            job.delta(extents).await.expect("copy");
            println!("{}", start.elapsed().as_secs_f64());
        } else {
            let extents = job.reader.extents(size).await.expect("extents");
            job.delta(extents).await.expect("copy");
        }
        Rc::into_inner(job).expect("one owner").close().await.expect("close");
    });
}

fn which(program: &str) -> PathBuf {
    if program.contains('/') {
        return std::env::current_dir().expect("directory").join(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| Path::exists(file));
    found.expect("nbdkit is needed")
}
