//! The virt-v2v of the benchmarks (`benches/wrapper.rs`): so small that what is measured is the wrapper.
//!
//! Not the fake of the tests: it checks nothing and records nothing. The lone `--machine-readable` prints the
//! capabilities of virt-v2v 2.2.0. Anything else is a run, as the environment variable `BENCH_V2V` says:
//!
//! * `sleep SECONDS`: silent, then a good end
//! * `progress SECONDS EVERY_MS DEBUG_BYTES`: every so often that many bytes of debug lines and one record of
//!   nbdcopy's bar, one percent further each time, over as many disks of 100 % as it takes
//!
//! With `BENCH_V2V_TIMES` naming a file it gets a line for each record: the sum of all disks' percentages that the
//! record means, and `CLOCK_MONOTONIC` in nanoseconds just before it was written. `BENCH_V2V_BARS=1.4` writes
//! `qemu-img`'s records as virt-v2v 1.4x passed them on, for wrappers that know no others.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

const CAPABILITIES: &str = "virt-v2v\nvirt-v2v-2.0\nlibguestfs-rewrite\nvcenter-https\nxen-ssh\nvddk\n\
colours-option\nvdsm-compat-option\nio/oo\nmac-option\nbandwidth-option\nmac-ip-option\ninput:disk\ninput:libvirt\n\
input:libvirtxml\ninput:ova\ninput:vmx\noutput:glance\noutput:kubevirt\noutput:libvirt\noutput:local\noutput:null\n\
output:openstack\noutput:qemu\noutput:rhv\noutput:rhv-upload\noutput:vdsm\nconvert:linux\nconvert:windows\n";

const DEBUG_LINE: &[u8] = b"nbdkit: vddk[3]: debug: VixDiskLib_Read (2048 sectors at 73400320)\n";
const SPINNER: [&str; 8] = ["▝", "▐", "▗", "▃", "▖", "▍", "▘", "▀"];

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["--machine-readable"] {
        return std::io::stdout().write_all(CAPABILITIES.as_bytes());
    }
    // Old wrappers wait for this file before they look at anything.
    if let Some(path) = args.iter().find_map(|arg| arg.strip_prefix("--machine-readable=file:")) {
        File::create(path)?;
    }
    let scenario = std::env::var("BENCH_V2V").unwrap_or_default();
    let words: Vec<&str> = scenario.split(' ').collect();
    let number = |index: usize| words.get(index).and_then(|word| word.parse().ok()).unwrap_or(0);
    match words.first() {
        Some(&"progress") => progress(number(1), Duration::from_millis(number(2)), number(3) as usize)?,
        _ => std::thread::sleep(Duration::from_secs(number(1))),
    }
    Ok(())
}

fn progress(seconds: u64, every: Duration, debug_bytes: usize) -> std::io::Result<()> {
    let old = std::env::var_os("BENCH_V2V_BARS").is_some_and(|version| version == "1.4");
    let mut times = std::env::var_os("BENCH_V2V_TIMES").map(File::create).transpose()?;
    let records = u32::try_from(seconds * 1000 / (every.as_millis() as u64).max(1)).unwrap_or(u32::MAX);
    let disks = records.div_ceil(100);
    let debug: Vec<u8> = DEBUG_LINE.iter().copied().cycle().take(debug_bytes).collect();
    let mut log = std::io::stderr();
    let began = Instant::now();
    for record in 1..=records {
        std::thread::sleep((began + every * record).saturating_duration_since(Instant::now()));
        let (disk, percent) = ((record - 1) / 100 + 1, (record - 1) % 100 + 1);
        if percent == 1 {
            log.write_all(header(old, disk, disks, began.elapsed().as_secs_f64()).as_bytes())?;
        }
        if debug_bytes > 0 {
            log.write_all(&debug)?;
            log.write_all(b"\n")?;
        }
        let bar = bar(old, percent);
        let now = monotonic();
        log.write_all(bar.as_bytes())?;
        if let Some(times) = &mut times {
            writeln!(times, "{record} {now}")?;
        }
    }
    // The last record shall be seen as such, before what ends the copy.
    std::thread::sleep(Duration::from_secs(1));
    log.write_all(format!("\n[{:6.1}] Creating output metadata\n", began.elapsed().as_secs_f64()).as_bytes())
}

fn header(old: bool, disk: u32, disks: u32, seconds: f64) -> String {
    match old {
        // The old line names the target; the source is told by the disk's server.
        true => format!(
            "\n[{seconds:6.1}] Copying disk {disk}/{disks} to /out/disk{disk} (raw)\n\
             nbdkit: vddk[1]: debug: Opening file [ds] vm/vm_{disk}.vmdk (ha-nfcssl://x:902)\n"
        ),
        false => format!("\n[{seconds:6.1}] Copying disk {disk}/{disks}\n"),
    }
}

fn bar(old: bool, percent: u32) -> String {
    if old {
        return format!("    ({percent}.00/100%)\r");
    }
    let done = percent as usize * 40 / 100;
    let spinner = SPINNER[percent as usize % SPINNER.len()];
    format!("{spinner} {percent:3}% [{}{}]\r", "*".repeat(done), "-".repeat(40 - done))
}

/// The one clock that two processes share and nobody sets.
fn monotonic() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure it is given and to nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
