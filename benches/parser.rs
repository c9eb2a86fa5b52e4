//! How fast virt-v2v's log is parsed: MiB per CPU second over a synthetic `-v -x` log.
//!
//! The log is the same bytes on every run: 200 MiB, about 70 bytes a line, 18 kinds of line, one progress line
//! in 300, four disks. Run with `cargo bench --bench parser`.

use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use virt_v2v_wrapper::event::Event;
use virt_v2v_wrapper::v2v::output::LogParser;

const SIZE: usize = 200 << 20;
const DISKS: u64 = 4;
/// What a reader of a growing log gets at once.
const CHUNK: usize = 64 << 10;
const ROUNDS: usize = 7;

/// Marsaglia's xorshift64: no dependency, the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn line(random: &mut Random, number: u64) -> String {
    let value = random.below(1 << 30);
    match random.below(16) {
        0 => {
            format!("nbdkit: file.{}: debug: cow: pread count=262144 offset={value} flags=0x0\n", value % 16)
        }
        1 => {
            format!("nbdkit: vddk[{}]: debug: VixDiskLib_Read ({value} sectors at {number})\n", value % 8 + 1)
        }
        2 => {
            format!("libguestfs: trace: v2v: is_file \"/usr/lib/modules/{value}\" \"followsymlinks:true\"\n")
        }
        3 => format!("libguestfs: trace: v2v: is_file = {} (after {value} us)\n", value % 2),
        4 => format!("guestfsd: => is_file (0x{:x}) took 0.{:02} secs\n", value, value % 100),
        5 => format!("guestfsd: <= aug_match (0x{value:x}) request length {} bytes\n", value % 400),
        6 => format!(
            "[ {:4}.{:06}] virtio_blk virtio{}: [vda] {value} 512-byte logical blocks\n",
            number % 999,
            value % 1_000_000,
            value % 9
        ),
        7 => format!(
            "[    0.{:06}] pci 0000:00:{:02x}.0: reg 0x10: [io 0xc{:03x}]\n",
            value % 1_000_000,
            value % 32,
            value % 4096
        ),
        8 => format!("commandrvf: stdout=y stderr=y flags=0x0 lvm{value} vgs --noheadings -o name\n"),
        9 => format!("libguestfs: send_to_daemon: {value} bytes: 00 00 00 48 | 20 00 f5 f5 | 00 00 00 04\n"),
        10 => format!("rpm: {value}: (contents) /usr/share/doc/package-{}/README\n", value % 5000),
        11 => format!("mount: /dev/sda{} on /sysroot/boot type ext4 (rw,relatime,{value})\n", value % 4),
        12 => format!("supermin: copying /lib/x86_64-linux-gnu/libfoo-{value}.so.1 to the appliance\n"),
        13 => {
            format!("check_for_filesystem_on: /dev/sda{} (xfs) version {value} = NULL (error)\n", value % 9)
        }
        14 => format!("hivex: hivex_open: block id {value:x} at 0x{number:x} used size {}\n", value % 4096),
        _ => format!("nbdkit: debug: starting worker thread vddk.{} of connection {value}\n", value % 16),
    }
}

/// The log, and the percentages in it.
fn log() -> (Vec<u8>, usize) {
    let mut random = Random(20_261_120);
    let mut log = Vec::with_capacity(SIZE + 4096);
    let (mut number, mut percents) = (0, 0);
    for disk in 1..=DISKS {
        log.extend_from_slice(
            format!("[{:6.1}] Copying disk {disk}/{DISKS} to /data/disk{disk} (raw)\n", disk as f64 * 99.5)
                .as_bytes(),
        );
        log.extend_from_slice(
            format!("nbdkit: vddk[1]: debug: Opening file [ds] vm/vm_{disk}.vmdk (ha-nfcssl://x:902)\n")
                .as_bytes(),
        );
        let (from, to) = (log.len(), SIZE / DISKS as usize * disk as usize);
        while log.len() < to {
            number += 1;
            if number % 300 == 0 {
                let done = (log.len() - from) as f64 / (to - from) as f64 * 100.0;
                log.extend_from_slice(format!("    ({done:.2}/100%)\r").as_bytes());
                percents += 1;
            } else {
                log.extend_from_slice(line(&mut random, number).as_bytes());
            }
        }
    }
    log.extend_from_slice(b"[ 999.9] Creating output metadata\n");
    (log, percents)
}

/// CPU time of this thread: wall time means little on a machine that does other work.
fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("Linux counts a thread's time");
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

#[allow(clippy::print_stdout)] // A benchmark's only output.
fn main() {
    let (log, expected) = log();
    let mib = log.len() as f64 / f64::from(1 << 20);
    let lines = log.iter().filter(|byte| **byte == b'\n' || **byte == b'\r').count();
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (mut parser, mut percents, mut copies) = (LogParser::new(), 0, 0);
            let (cpu, wall) = (cpu_seconds(), Instant::now());
            for chunk in log.chunks(CHUNK) {
                parser.feed(chunk, &mut |event| match event {
                    Event::CopyProgress { .. } => percents += 1,
                    Event::CopyStarted { .. } => copies += 1,
                    _ => (),
                });
            }
            parser.finish(&mut |_| ());
            let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
            assert_eq!((percents, copies), (expected, DISKS as usize), "the parser missed something");
            println!("{:7.0} MiB per CPU second, {:7.0} MiB/s", mib / cpu, mib / wall);
            mib / cpu
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("log: {mib:.0} MiB, {lines} lines, {:.0} bytes each", log.len() as f64 / lines as f64);
    println!("median: {:.0} MiB per CPU second", rates[ROUNDS / 2]);
}
