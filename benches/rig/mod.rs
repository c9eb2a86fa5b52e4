//! What the benchmarks of the whole program share: private surroundings, jobs, readings of `/proc`, one table.
//!
//! The program under test is a command that takes a document on stdin and gives a reply on stdout, nothing more is
//! assumed of it, so that a peer can be measured side by side. virt-v2v is `examples/bench-virt-v2v.rs`, found
//! through `PATH`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

pub mod proc;
pub mod table;

/// Marks every process of a benchmark, so that none is left behind.
const MARKER: &str = "V2V_BENCH";
/// A step of a job that takes longer than this will never happen.
const LIMIT: Duration = Duration::from_secs(180);

/// A command that speaks the contract.
#[derive(Debug, Clone)]
pub struct Program {
    /// What the table calls it.
    pub name: &'static str,
    command: Vec<String>,
    document: Option<String>,
}

/// The program under test (`V2V_WRAPPER`, or this crate's), and the peer if `V2V_PEER` names one.
/// A peer that needs another document finds it in the file `V2V_PEER_DOCUMENT`.
pub fn programs() -> Vec<Program> {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    let own = std::env::var("V2V_WRAPPER").unwrap_or(env!("CARGO_BIN_EXE_virt-v2v-wrapper").to_owned());
    let document =
        std::env::var_os("V2V_PEER_DOCUMENT").map(|path| fs::read_to_string(path).expect("document"));
    let peer = std::env::var("V2V_PEER").ok().filter(|command| !command.trim().is_empty());
    let peer = peer.map(|command| Program { name: "peer", command: words(command), document });
    std::iter::once(Program { name: "wrapper", command: words(own), document: None }).chain(peer).collect()
}

/// Private surroundings, gone with all processes at the end. On the disk that holds `target`, since the fsync of the
/// state file belongs to what is measured; `V2V_BENCH_DIR` names another place, such as a memory file system.
pub struct Rig {
    directory: tempfile::TempDir,
    marker: String,
}

impl Rig {
    /// Builds the fake and lays everything out.
    pub fn new() -> Self {
        // Daemons become our children: their end can be waited for, and their CPU time is ours to read.
        nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
        let above = std::env::var("V2V_BENCH_DIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").to_owned());
        let directory = tempfile::tempdir_in(above).expect("directory");
        let rig = Self { directory, marker: format!("{MARKER}={}", std::process::id()) };
        for part in ["state", "log", "tmp", "out", "bin", "real"] {
            fs::create_dir(rig.path(part)).expect("directory");
        }
        for disk in 1..=3 {
            let file = fs::File::create(rig.path(&format!("disk{disk}"))).expect("disk");
            file.set_len(1 << 20).expect("disk");
        }
        let keys = [("state_dir", "state"), ("log_dir", "log"), ("tmp_dir", "tmp")];
        let config: String =
            keys.iter().map(|(key, part)| format!("{key} = {}\n", json!(rig.path(part)))).collect();
        fs::write(rig.path("config.toml"), config).expect("config");
        fs::copy(fake(), rig.fake()).expect("fake virt-v2v");
        if Path::new(REAL).exists() {
            // The real program answers the question, the fake does the work.
            let script = format!(
                "#!/bin/sh\n[ \"$*\" = --machine-readable ] && exec {REAL} \"$@\"\nexec '{}' \"$@\"\n",
                rig.fake().display()
            );
            fs::write(rig.path("real/virt-v2v"), script).expect("script");
            fs::set_permissions(rig.path("real/virt-v2v"), fs::Permissions::from_mode(0o755)).expect("mode");
        }
        rig
    }

    /// A path in the private directory.
    pub fn path(&self, part: &str) -> PathBuf {
        self.directory.path().join(part)
    }

    /// The fake virt-v2v.
    pub fn fake(&self) -> PathBuf {
        self.path("bin/virt-v2v")
    }

    /// The one whose capabilities are the real virt-v2v's, where that is installed.
    pub fn half_real(&self) -> Option<PathBuf> {
        Some(self.path("real/virt-v2v")).filter(|path| path.exists())
    }

    /// Spawns a job whose virt-v2v (the one in the directory of `virt_v2v`) plays `scenario`.
    pub fn launch(&self, program: &Program, scenario: &str, virt_v2v: &Path, times: Option<&Path>) -> Job {
        let document = program.document.clone().unwrap_or_else(|| self.document().to_string());
        let inherited = std::env::var("PATH").unwrap_or_default();
        let bin = virt_v2v.parent().expect("directory").display();
        let mut command = Command::new(&program.command[0]);
        command
            .args(&program.command[1..])
            .env("VIRT_V2V_WRAPPER_CONFIG", self.path("config.toml"))
            .env("PATH", format!("{bin}:{inherited}"))
            // Python holds back what it prints into a pipe.
            .env("PYTHONUNBUFFERED", "1")
            .env("BENCH_V2V", scenario)
            .env(MARKER, std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(times) = times {
            command.env("BENCH_V2V_TIMES", times);
        }
        let spawned = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.command[0]));
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(document.as_bytes()).expect("the program reads its document");
        drop(stdin);
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        Job { spawned, child, stdout, state_file: PathBuf::new() }
    }

    /// [`Self::launch`] with the fake, and wait for the reply.
    pub fn start(&self, program: &Program, scenario: &str, times: Option<&Path>) -> Job {
        let mut job = self.launch(program, scenario, &self.fake(), times);
        job.read_reply().expect("a job that is not refused");
        job
    }

    fn document(&self) -> Value {
        json!({
            "vm_name": "bench",
            "transport_method": "local",
            "source_disks": (1..=3).map(|disk| self.path(&format!("disk{disk}"))).collect::<Vec<_>>(),
            "output_directory": self.path("out"),
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let left = proc::carrying(&self.marker);
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            reap();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where the real one would be.
const REAL: &str = "/usr/bin/virt-v2v";

/// The fake's executable. Cargo builds examples for tests but not for benchmarks, so it is asked to.
fn fake() -> PathBuf {
    let release = Path::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper")).parent().expect("release directory");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--example", "bench-virt-v2v", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(release.parent().expect("target directory"))
        .status()
        .expect("cargo");
    assert!(built.success(), "examples/bench-virt-v2v.rs does not build");
    release.join("examples/bench-virt-v2v")
}

/// A job under way.
pub struct Job {
    /// When it was spawned.
    pub spawned: Instant,
    child: Child,
    stdout: BufReader<ChildStdout>,
    state_file: PathBuf,
}

impl Job {
    /// Waits for the reply; gives the time since the spawn, or nothing if the job was refused.
    pub fn read_reply(&mut self) -> Option<Duration> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("stdout");
        let took = self.spawned.elapsed();
        if line.is_empty() {
            return None;
        }
        let reply: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("reply {line:?}: {error}"));
        self.state_file = reply["state_file"].as_str().expect("state_file").into();
        Some(took)
    }

    /// Where its state is.
    pub fn state_file(&self) -> &Path {
        &self.state_file
    }

    /// Its state, unless the file is caught in the middle of being replaced.
    pub fn state(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(&self.state_file).ok()?).ok()
    }

    /// Waits until the state is as `wanted`, looking every `pace`.
    pub fn wait_for(&self, what: &str, pace: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.state() {
                Some(state) if wanted(&state) => return state,
                state if Instant::now() >= deadline => panic!("never {what}: {state:?}"),
                _ => std::thread::sleep(pace),
            }
        }
    }

    /// Waits until virt-v2v runs; gives the wrapper's processes: whoever started virt-v2v, and the supervisor where
    /// there is one.
    pub fn processes(&self) -> Vec<i32> {
        let state = self.wait_for("started", Duration::from_millis(5), |state| state["started"] == true);
        let pid = |key: &str| state[key].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let worker = pid("pid").and_then(proc::parent);
        let mut found: Vec<i32> = pid("wrapper_pid").into_iter().chain(worker).collect();
        found.dedup();
        found
    }

    /// Waits for the good end of the job and of its processes.
    pub fn close(mut self) {
        let state = self.wait_for("finished", Duration::from_millis(5), |state| state["finished"] == true);
        assert_ne!(state["failed"], true, "a benchmark of failing jobs is none: {state}");
        // Any of these may have been waited for already, below, at the end of another job.
        let _ = self.child.wait();
        if let Some(pid) = state["wrapper_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = waitpid(Pid::from_raw(pid), None);
        }
        // The daemon's intermediate process.
        reap();
    }
}

/// Waits for every child that has ended.
pub fn reap() {
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
}

/// CPU seconds of all children that were waited for, theirs included.
pub fn cpu_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}
