//! What the program costs and how fast it is, as an orchestrator sees it: whole processes, real files.
//!
//! `cargo bench --bench wrapper` takes some four minutes; `-- reply`, `memory`, `idle`, `lag` or `fleet` runs one:
//!
//! * `reply`: spawn to reply, with a virt-v2v that answers the question for its capabilities at once, and with the
//!   real one where it is installed; that question alone is timed too and taken off, round by round
//! * `memory`: supervisor and worker together while virt-v2v runs
//! * `idle`: CPU time and context switches of both while virt-v2v is silent, copies, or talks a lot
//! * `lag`: from a progress record in virt-v2v's log to its value in the state file
//! * `fleet`: two hundred jobs at once
//!
//! `V2V_WRAPPER` names another program to measure, `V2V_PEER` a second one to measure the same way (see `rig`), each
//! with its arguments. Times are wall times and mean little on a machine that does other work: its load is printed.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A benchmark's only output.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rig::table::Table;
use rig::{Job, Program, Rig, cpu_of_children, proc, reap};
use serde_json::Value;

mod rig;

const MIB: f64 = (1 << 20) as f64;
const REPLIES: usize = 200;
const REAL_REPLIES: usize = 25;
const MEMORY_JOBS: usize = 7;
/// How long the monitoring is watched.
const WATCHED: Duration = Duration::from_secs(60);
const FLEET: usize = 200;
const FLEET_RUNS_FOR: u64 = 30;
/// A progress record every 250 ms; alone, and behind as many debug lines as `-v -x` can bring.
const COPYING: &str = "progress 64 250 0";
const TALKING: &str = "progress 64 250 65536";

type Measurement = fn(&Rig, &Program, &Table);

const ALL: [(&str, Measurement); 5] =
    [("reply", reply), ("memory", memory), ("idle", idle), ("lag", lag), ("fleet", fleet)];

fn main() {
    // Cargo itself adds --bench.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let Some(unknown) = wanted.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        eprintln!("no measurement {unknown}; there are {}", known.join(", "));
        std::process::exit(1);
    }
    let rig = Rig::new();
    println!("load before: {}", load());
    let table = Table::new();
    for (name, measure) in ALL {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            for program in rig::programs() {
                measure(&rig, &program, &table);
            }
        }
    }
    println!("load after: {}", load());
}

/// Runnable processes over the last 1, 5 and 15 minutes, and the processors they share.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} on {processors} processors", load.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn reply(rig: &Rig, program: &Program, table: &Table) {
    let floor: Vec<f64> = (0..REPLIES).map(|_| milliseconds(durable_write(&rig.path("state")))).collect();
    table.values("storage: a file of 500 bytes replaced durably", "-", "ms", &floor);
    reply_with(rig, program, table, &rig.fake(), "", REPLIES);
    match rig.half_real() {
        Some(virt_v2v) => reply_with(rig, program, table, &virt_v2v, ", real virt-v2v asked", REAL_REPLIES),
        None => table.text("reply, real virt-v2v asked", program.name, "not installed"),
    }
}

fn reply_with(rig: &Rig, program: &Program, table: &Table, virt_v2v: &Path, kind: &str, count: usize) {
    let (mut replies, mut probes, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    // The first round fills the page cache.
    for round in 0..=count {
        let probe = probe(virt_v2v);
        let mut job = rig.launch(program, "sleep 0", virt_v2v, None);
        let reply = milliseconds(job.read_reply().expect("a job that is not refused"));
        job.close();
        if round > 0 {
            replies.push(reply);
            probes.push(probe);
            differences.push(reply - probe);
        }
    }
    table.values(&format!("reply{kind}"), program.name, "ms", &replies);
    table.values(&format!("reply{kind}: that question alone"), program.name, "ms", &probes);
    table.values(&format!("reply{kind}: without it"), program.name, "ms", &differences);
}

/// What this disk takes for one state of a job, whoever writes it: write, flush, rename, flush of the directory.
fn durable_write(directory: &Path) -> Duration {
    let began = Instant::now();
    let (new, old) = (directory.join("new"), directory.join("old"));
    let mut file = fs::File::create(&new).expect("file");
    file.write_all(&[b' '; 500]).and_then(|()| file.sync_data()).expect("write");
    fs::rename(&new, &old).expect("rename");
    fs::File::open(directory).and_then(|directory| directory.sync_all()).expect("flush");
    began.elapsed()
}

/// How long asking virt-v2v takes, as any program would do it.
fn probe(virt_v2v: &Path) -> f64 {
    let began = Instant::now();
    let mut command = Command::new(virt_v2v);
    command.arg("--machine-readable").stdin(Stdio::null()).stderr(Stdio::null());
    let answer = command.output().expect("virt-v2v");
    assert!(answer.status.success() && !answer.stdout.is_empty(), "virt-v2v has no capabilities");
    milliseconds(began.elapsed())
}

fn memory(rig: &Rig, program: &Program, table: &Table) {
    let mut readings = Vec::new();
    for _ in 0..MEMORY_JOBS {
        let job = rig.start(program, "sleep 3", None);
        let pids = job.processes();
        // What was only needed to begin is over by then.
        std::thread::sleep(Duration::from_secs(1));
        readings.push(proc::memory(&pids));
        job.close();
    }
    let column = |field: fn(&proc::Memory) -> f64| readings.iter().map(|one| field(one) / MIB).collect();
    let columns: [(&str, Vec<f64>); 3] = [
        ("RSS", column(|memory| memory.rss)),
        ("PSS", column(|memory| memory.pss)),
        ("private dirty", column(|memory| memory.private_dirty)),
    ];
    for (name, values) in columns {
        table.values(&format!("memory of all its processes, {name}"), program.name, "MiB", &values);
    }
}

/// The three at once, each with its own job: their processes do not meet.
fn idle(rig: &Rig, program: &Program, table: &Table) {
    let jobs =
        [("silent", "sleep 64"), ("a record every 250 ms", COPYING), ("and 64 KiB before each", TALKING)]
            .map(|(kind, scenario)| {
                let job = rig.start(program, scenario, None);
                let pids = job.processes();
                (kind, job, pids)
            });
    std::thread::sleep(Duration::from_secs(1));
    let before = jobs.each_ref().map(|(_, _, pids)| proc::work(pids));
    let began = Instant::now();
    std::thread::sleep(WATCHED);
    let (after, minutes) = (
        jobs.each_ref().map(|(_, _, pids)| (proc::work(pids), proc::peak(pids) / MIB)),
        began.elapsed().as_secs_f64() / 60.0,
    );
    for (((kind, job, _), before), (after, peak)) in jobs.into_iter().zip(before).zip(after) {
        let cpu = (after.cpu - before.cpu) * 1000.0 / minutes;
        let switches = (after.switches - before.switches) / minutes;
        match kind {
            "silent" => {
                table.value("CPU per hour, virt-v2v silent (60 s, scaled)", program.name, "ms", cpu * 60.0);
                table.value(
                    "switches per hour, virt-v2v silent (60 s, scaled)",
                    program.name,
                    "",
                    switches * 60.0,
                );
            }
            _ => {
                table.value(&format!("CPU per minute, {kind}"), program.name, "ms", cpu);
                table.value(&format!("switches per minute, {kind}"), program.name, "", switches);
            }
        }
        table.value(&format!("peak RSS, {kind}"), program.name, "MiB", peak);
        job.close();
    }
}

fn lag(rig: &Rig, program: &Program, table: &Table) {
    for (kind, scenario) in [("", COPYING), (", 64 KiB of debug lines before each", TALKING)] {
        let times = rig.path("times");
        let job = rig.start(program, scenario, Some(&times));
        let seen = watch(&job);
        job.close();
        let written = read_times(&times);
        // A value that was overtaken came when the later one did. What never came counts as missed.
        let lags: Vec<f64> = written
            .iter()
            .filter_map(|(value, at)| {
                let shown = seen.range(value..).map(|(_, shown)| *shown).min()?;
                Some((shown - at) as f64 / 1e6)
            })
            .collect();
        table.values(&format!("lag from log to state file{kind}"), program.name, "ms", &lags);
        table.value(
            &format!("values never shown{kind}"),
            program.name,
            "",
            (written.len() - lags.len()) as f64,
        );
    }
}

/// Looks at the state file whenever something happens in its directory, until the copy is over. Gives when each
/// sum of the disks' progress was first read.
fn watch(job: &Job) -> BTreeMap<i64, i64> {
    let mut inotify = inotify::Inotify::init().expect("inotify");
    let mask = inotify::WatchMask::MOVED_TO | inotify::WatchMask::CLOSE_WRITE;
    inotify.watches().add(job.state_file().parent().expect("directory"), mask).expect("inotify");
    let (mut seen, mut buffer) = (BTreeMap::new(), [0; 4096]);
    loop {
        // Now and then without being told, for programs that write in ways not thought of here.
        let tick = PollTimeout::from(100_u8);
        poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&inotify), PollFlags::POLLIN)], tick).expect("poll");
        // WouldBlock is an empty queue.
        let _ = inotify.read_events(&mut buffer).map(Iterator::count);
        let Some(state) = job.state() else { continue };
        seen.entry(sum_of_progress(&state)).or_insert_with(monotonic);
        if state["return_code"].is_i64() || state["finished"] == true {
            return seen;
        }
    }
}

fn sum_of_progress(state: &Value) -> i64 {
    let disks = state["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    disks.iter().filter_map(|disk| disk["progress"].as_f64()).sum::<f64>().round() as i64
}

fn read_times(path: &PathBuf) -> Vec<(i64, i64)> {
    let text = fs::read_to_string(path).expect("the fake notes its times");
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).expect("two numbers a line");
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            (number(words.next()), number(words.next()))
        })
        .collect()
}

/// The clock of the fake's notes.
fn monotonic() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure it is given and to nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn fleet(rig: &Rig, program: &Program, table: &Table) {
    let cpu_before = cpu_of_children();
    let began = Instant::now();
    let scenario = format!("sleep {FLEET_RUNS_FOR}");
    let mut jobs: Vec<Job> = (0..FLEET).map(|_| rig.launch(program, &scenario, &rig.fake(), None)).collect();
    let spawned = began.elapsed().as_secs_f64();
    // What was refused said why on stderr, and is counted by its absence at the end.
    jobs.retain_mut(|job| job.read_reply().is_some());
    let replied = began.elapsed().as_secs_f64();
    let families: Vec<Vec<i32>> = jobs.iter().map(Job::processes).collect();
    let started = began.elapsed().as_secs_f64();
    let pids: Vec<i32> = families.concat();
    // A process that ended counts among the children once it was waited for.
    reap();
    let cpu_to_start = cpu_of_children() - cpu_before + proc::work(&pids).cpu;
    std::thread::sleep(Duration::from_secs(1));
    let memory = proc::memory(&pids);
    let alive = pids.iter().filter(|pid| proc::memory(&[**pid]).rss > 0.0).count();
    let good = jobs.len() as f64;
    jobs.into_iter().for_each(Job::close);
    let over = began.elapsed().as_secs_f64();

    let name = program.name;
    let value =
        |what: &str, unit: &str, value: f64| table.value(&format!("{FLEET} jobs: {what}"), name, unit, value);
    value("spawned after", "s", spawned);
    value("all replied after", "s", replied);
    value("all started after", "s", started);
    value("CPU until all started", "s", cpu_to_start);
    value("processes alive when memory was read", "", alive as f64);
    value("RSS of all", "MiB", memory.rss / MIB);
    value("PSS of all", "MiB", memory.pss / MIB);
    value("PSS each", "MiB", memory.pss / MIB / good);
    value("private dirty each", "MiB", memory.private_dirty / MIB / good);
    value(&format!("all over after (virt-v2v: {FLEET_RUNS_FOR} s)"), "s", over);
    value("CPU, whole, virt-v2v included", "s", cpu_of_children() - cpu_before);
    value("finished and not failed", "", good);
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
