//! A stand-in for virt-v2v and virt-v2v-in-place, honest where a wrapper can see it, driven by a scenario.
//!
//! It reads `scenario.json` beside its own executable (link it into a case's directory; a hard link keeps its own
//! name, a symbolic link does not). Every key is optional:
//!
//! ```json
//! {"capabilities": "2.2", "caps_exit": 0, "caps_unlink": false, "exit": 0, "no_mr": false,
//!  "on_term": "die", "on_term_ms": 0, "steps": []}
//! ```
//!
//! * `--machine-readable` alone prints the capabilities (`"2.2"`: recorded from virt-v2v 2.2.0; `"1.42"`; or a
//!   list of words) and exits with `caps_exit`. With `caps_unlink` the executable is gone afterwards.
//! * `--version` prints `virt-v2v 2.2.0`.
//! * Anything else is a run. The machine-readable file is made at once (unless `no_mr`), then `record.json`
//!   beside the executable says how the run was started: `argv`, `env`, `pid`, `ppid`, `pgid`, `sid`, `cwd`, `stdin`,
//!   `fds` (descriptor -> what it is), `sig_blocked` and `sig_ignored` (hexadecimal, as in `/proc/self/status`),
//!   and in `files` every argument that names a readable file (alone, or after its last `:` or `=`).
//!   Then the steps are played in turn. A step may hold several of:
//!   `text` (to `"out"`, the default, `"err"` or `"mr"`; `chunk` bytes at a time with `chunk_ms` between),
//!   `disk` (a partial output disk `<-os>/<name>-sda`: `true`, or the suffix `"sdb"`),
//!   `child` (a process in the same group), `daemon` (one in its own session that lives on), both `true` or
//!   `{"ignore_term": true}`, `convert`, `sleep_ms`, and `wait_for` (the path of a file that somebody will make; two
//!   minutes at most).
//! * `convert` is what virt-v2v-in-place does to the disks that its libvirt XML (`-i libvirtxml FILE`) names: it writes
//!   `{"pattern": 90, "offset": 1048576, "length": 65536}` into each by `qemu-io`, as the format that the XML says.
//! * `on_term`: `"die"` leaves the disposition alone, `"ignore"` ignores SIGTERM and SIGINT, `"exit"` behaves like
//!   virt-v2v 2.x: says so on stderr, exits with 1 after `on_term_ms`.
//!
//! Its helpers end by themselves after two minutes, so that a failed test leaves nothing for ever.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{getpgrp, getpid, getppid, getsid, setsid};
use serde::Deserialize;
use serde_json::{Value, json};

const HELPER: &str = "--helper-of-fake-virt-v2v";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scenario {
    capabilities: Value,
    caps_exit: i32,
    caps_unlink: bool,
    exit: i32,
    no_mr: bool,
    on_term: String,
    on_term_ms: u64,
    steps: Vec<Step>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            capabilities: json!("2.2"),
            caps_exit: 0,
            caps_unlink: false,
            exit: 0,
            no_mr: false,
            on_term: "die".to_owned(),
            on_term_ms: 0,
            steps: Vec::new(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Step {
    text: Option<String>,
    to: Option<String>,
    chunk: Option<usize>,
    chunk_ms: u64,
    disk: Option<Value>,
    child: Option<Value>,
    daemon: Option<Value>,
    convert: Option<Change>,
    sleep_ms: u64,
    wait_for: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    pattern: u8,
    offset: u64,
    length: u64,
}

static TERMINATED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_signal(_: libc::c_int) {
    TERMINATED.store(true, Ordering::SeqCst);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == HELPER) {
        return help(&args[1..]);
    }
    // Before anything is opened: what was inherited is what is recorded.
    let fds = open_descriptors();
    let me = std::env::current_exe().unwrap();
    let here = me.parent().unwrap().to_path_buf();
    let scenario: Scenario = match fs::read(here.join("scenario.json")) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            eprintln!("fake virt-v2v: scenario.json: {error}");
            exit(97)
        }),
        Err(_) => Scenario::default(),
    };
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--machine-readable"] => {
            for word in capabilities(&scenario.capabilities) {
                println!("{word}");
            }
            if scenario.caps_unlink {
                fs::remove_file(&me).unwrap();
            }
            exit(scenario.caps_exit)
        }
        ["--version"] => println!("virt-v2v 2.2.0"),
        _ => play(&args, &here, scenario, fds),
    }
}

fn capabilities(wanted: &Value) -> Vec<String> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    match wanted {
        Value::Array(list) => list.iter().map(|word| word.as_str().unwrap().to_owned()).collect(),
        Value::String(version) if version == "1.42" => words(
            "virt-v2v libguestfs-rewrite vcenter-https xen-ssh vddk colours-option vdsm-compat-option in-place \
             io/oo mac-option bandwidth-option mac-ip-option input:disk input:libvirt input:libvirtxml input:ova \
             input:vmx output:glance output:json output:libvirt output:local output:null output:openstack \
             output:qemu output:rhv output:rhv-upload output:vdsm convert:enterprise-linux convert:linux \
             convert:windows",
        ),
        Value::String(version) if version == "2.2" => words(
            "virt-v2v virt-v2v-2.0 libguestfs-rewrite vcenter-https xen-ssh vddk colours-option \
             vdsm-compat-option io/oo mac-option bandwidth-option mac-ip-option input:disk input:libvirt \
             input:libvirtxml input:ova input:vmx output:glance output:kubevirt output:libvirt output:local \
             output:null output:openstack output:qemu output:rhv output:rhv-upload output:vdsm convert:linux \
             convert:windows ovf:ovirt ovf:rhvexp",
        ),
        other => {
            eprintln!("fake virt-v2v: unknown capabilities {other}");
            exit(97)
        }
    }
}

fn play(args: &[String], here: &Path, scenario: Scenario, fds: BTreeMap<String, String>) {
    let disposition = |handler| SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    let action = match scenario.on_term.as_str() {
        "die" => None,
        "ignore" => Some(disposition(SigHandler::SigIgn)),
        "exit" => Some(disposition(SigHandler::Handler(note_signal))),
        other => {
            eprintln!("fake virt-v2v: unknown on_term {other}");
            exit(97)
        }
    };
    let record = record(args, fds);
    if let Some(action) = action {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            // SAFETY: the handler only stores to an atomic.
            unsafe { sigaction(signal, &action) }.unwrap();
        }
    }
    let mut mr = args
        .iter()
        .find_map(|arg| arg.strip_prefix("--machine-readable=file:"))
        .filter(|_| !scenario.no_mr)
        .map(|path| fs::File::create(path).unwrap());
    // Whole at once: a reader that finds the record finds all of it.
    fs::write(here.join("record.json.new"), serde_json::to_vec_pretty(&record).unwrap()).unwrap();
    fs::rename(here.join("record.json.new"), here.join("record.json")).unwrap();

    for step in &scenario.steps {
        if let Some(text) = &step.text {
            let mut out: Box<dyn Write> = match step.to.as_deref() {
                None | Some("out") => Box::new(std::io::stdout().lock()),
                Some("err") => Box::new(std::io::stderr().lock()),
                Some("mr") => match &mut mr {
                    Some(file) => Box::new(file),
                    None => Box::new(std::io::sink()),
                },
                Some(other) => panic!("unknown stream {other}"),
            };
            for piece in text.as_bytes().chunks(step.chunk.unwrap_or(usize::MAX)) {
                // A reader that went away is its own affair.
                let _ = out.write_all(piece).and_then(|()| out.flush());
                pause(step.chunk_ms, &scenario);
            }
        }
        if let Some(disk) = &step.disk {
            let path = output_disk(args, disk.as_str().unwrap_or("sda"));
            fs::write(path, vec![0x56; 1 << 20]).unwrap();
        }
        for (kind, wanted) in [("child", &step.child), ("daemon", &step.daemon)] {
            if let Some(wanted) = wanted {
                spawn_helper(kind, wanted["ignore_term"] == true);
            }
        }
        if let Some(change) = &step.convert {
            convert(args, change);
        }
        pause(step.sleep_ms, &scenario);
        let begun = Instant::now();
        while step.wait_for.as_ref().is_some_and(|path| !path.exists())
            && begun.elapsed() < Duration::from_secs(120)
        {
            pause(5, &scenario);
        }
    }
    exit(scenario.exit)
}

/// Changes all disks of the domain, as a conversion in place does.
fn convert(args: &[String], change: &Change) {
    let xml = args.iter().skip_while(|arg| *arg != "libvirtxml").nth(1).expect("-i libvirtxml FILE");
    // Either quote will do in XML.
    let xml = fs::read_to_string(xml).unwrap().replace('"', "'");
    let attribute = |text: &str, before: &str| {
        let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}")).1;
        rest.split_once('\'').unwrap().0.to_owned()
    };
    for disk in xml.split("<disk ").skip(1) {
        let driver = disk.split_once("<driver ").expect("a driver").1;
        let (format, path) = (attribute(driver, "type='"), attribute(disk, "<source file='"));
        let Change { pattern, offset, length } = change;
        let write = format!("write -P {pattern} {offset} {length}");
        let written = Command::new("qemu-io").args(["-f", &format, "-c", &write, &path]).output().unwrap();
        assert!(written.status.success(), "{written:?}");
    }
}

/// Sleeps, and dies of SIGTERM in the meantime as virt-v2v 2.x does when asked to.
fn pause(ms: u64, scenario: &Scenario) {
    let until = Instant::now() + Duration::from_millis(ms);
    loop {
        if TERMINATED.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(scenario.on_term_ms));
            eprintln!("virt-v2v: Exiting on signal SIGTERM");
            exit(1);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(10)));
    }
}

fn spawn_helper(kind: &str, ignore_term: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([HELPER, kind]).stdin(Stdio::null());
    if ignore_term {
        command.arg("ignore_term");
    }
    if kind == "daemon" {
        // A daemon holds nobody's pipes; a child shares the log, as nbdkit does.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe and the closure touches nothing else.
        unsafe { command.pre_exec(|| setsid().map(drop).map_err(Into::into)) };
    }
    // Nobody waits for it here: as with a real server that outlives its program, the next parent does.
    drop(command.spawn().unwrap());
}

fn help(options: &[String]) {
    if options.iter().any(|option| option == "ignore_term") {
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler function is installed.
        unsafe { sigaction(Signal::SIGTERM, &ignore) }.unwrap();
    }
    std::thread::sleep(Duration::from_secs(120));
}

/// Where virt-v2v would write: `-os` and the name from `-on`, or from the positional argument.
fn output_disk(args: &[String], suffix: &str) -> PathBuf {
    const WITH_VALUE: [&str; 17] = [
        "-i", "-ic", "-if", "-io", "-ip", "-it", "-o", "-oa", "-oc", "-of", "-on", "-oo", "-op", "-os",
        "--bridge", "--mac", "--key",
    ];
    let (mut os, mut on, mut positional) = (None, None, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "-os" => os = rest.next(),
            "-on" => on = rest.next(),
            "--root" | "--password-file" | "--network" | "-b" | "-n" => _ = rest.next(),
            option if WITH_VALUE.contains(&option) => _ = rest.next(),
            option if option.starts_with('-') => {}
            _ => positional = positional.or(Some(arg)),
        }
    }
    let name = on.cloned().unwrap_or_else(|| {
        let base = positional.unwrap().rsplit('/').next().unwrap();
        base.trim_end_matches(".vmx").trim_end_matches(".xml").trim_end_matches(".ova").to_owned()
    });
    Path::new(os.unwrap()).join(format!("{name}-{suffix}"))
}

fn record(args: &[String], fds: BTreeMap<String, String>) -> Value {
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    let env: BTreeMap<String, String> =
        std::env::vars_os().map(|(key, value)| (lossy(key), lossy(value))).collect();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let files: Vec<Value> = args.iter().filter_map(|arg| handed_over(arg)).collect();
    json!({
        "argv": args,
        "env": env,
        "pid": getpid().as_raw(),
        "ppid": getppid().as_raw(),
        "pgid": getpgrp().as_raw(),
        "sid": getsid(None).unwrap().as_raw(),
        "cwd": std::env::current_dir().ok(),
        "stdin": fds.get("0"),
        "fds": fds,
        "sig_blocked": field("SigBlk:"),
        "sig_ignored": field("SigIgn:"),
        "files": files,
    })
}

/// The file an argument names, with what is in it.
fn handed_over(arg: &str) -> Option<Value> {
    let tail = arg.rfind([':', '=']).map(|at| &arg[at + 1..]);
    let path = [Some(arg), tail].into_iter().flatten().find(|path| {
        path.starts_with('/') && fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() < 1 << 20)
    })?;
    let meta = fs::metadata(path).ok()?;
    Some(json!({
        "arg": arg,
        "path": path,
        "link": fs::read_link(path).ok(),
        "content": fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        "mode": format!("{:04o}", meta.mode() & 0o7777),
        "uid": meta.uid(),
        "parent_mode": path.rsplit_once('/').and_then(|(parent, _)| fs::metadata(parent).ok())
            .map(|parent| format!("{:04o}", parent.mode() & 0o7777)),
    }))
}

fn open_descriptors() -> BTreeMap<String, String> {
    let own = format!("/proc/{}/fd", getpid());
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            // The directory being listed is ours.
            (target != own).then(|| (entry.file_name().to_string_lossy().into_owned(), target))
        })
        .collect()
}
