//! What the suites stand on: a site (configuration, directories, guests), a job started in it, and the processes that
//! belong to the job. Not here: any expectation of one suite only.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::job::{Job, POLL, Process};

/// May this test run here? With `CI` set, a missing tool is a failure.
pub fn have(tools: &[&str]) -> bool {
    let missing: Vec<&&str> = tools.iter().filter(|tool| find(tool).is_none()).collect();
    missing.is_empty() || skip(&format!("not installed: {missing:?}; packaging/install test"))
}

/// Skips the calling test with this reason (returns false), or fails it in CI.
pub fn skip(reason: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "cannot be skipped in CI: {reason}");
    note(&format!("SKIPPED: {reason}"));
    false
}

/// Says something to the person at the terminal: written past the test harness, which hides what passing tests print.
pub fn note(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}

/// What every real conversion needs.
pub const V2V: &[&str] =
    &["virt-v2v", "nbdkit", "nbdcopy", "qemu-img", "qemu-nbd", "sfdisk", "mke2fs", "debugfs"];

/// Path of a program, the system directories included (an ordinary user's PATH lacks them).
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a command to its end; panics with its output when it fails.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Does KVM work here? Asked once, and not by looking at `/dev/kvm`, which may exist and hang.
fn kvm() -> bool {
    static KVM: OnceLock<bool> = OnceLock::new();
    *KVM.get_or_init(|| {
        let output =
            Command::new(repository("packaging/kvm-answers")).output().expect("packaging/kvm-answers");
        note(String::from_utf8_lossy(&output.stdout).trim());
        output.status.success()
    })
}

/// At most two conversions at once: each wants a core and 3 GB of memory.
struct Slot;

static BUSY: (Mutex<u32>, Condvar) = (Mutex::new(0), Condvar::new());

impl Slot {
    fn take() -> Self {
        let mut busy = BUSY.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while *busy >= 2 {
            busy = BUSY.1.wait(busy).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *busy += 1;
        Slot
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *BUSY.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) -= 1;
        BUSY.1.notify_one();
    }
}

/// A host as its administrator set it up: a configuration file and directories, all below one temporary directory.
pub struct Site {
    directory: tempfile::TempDir,
    environment: BTreeMap<String, String>,
    _slot: Option<Slot>,
}

impl Site {
    /// Waits until fewer than two other sites exist, then makes the directories.
    pub fn new() -> Self {
        Self::with(Some(Slot::take()), !kvm())
    }

    /// A site whose administrator has not noticed that /dev/kvm hangs; `None` where it does not. Its conversions idle,
    /// so they need no slot.
    pub fn with_hanging_kvm() -> Option<Self> {
        (Path::new("/dev/kvm").exists() && !kvm()).then(|| Self::with(None, false))
    }

    fn with(slot: Option<Slot>, emulate: bool) -> Self {
        // A short path: libguestfs puts sockets below it, and a socket's path has at most 107 bytes.
        let directory = tempfile::Builder::new()
            .prefix("v2v-")
            .permissions(fs::Permissions::from_mode(0o755))
            .disable_cleanup(std::env::var_os("V2V_TEST_KEEP").is_some())
            .tempdir()
            .unwrap();
        let site = Self { directory, environment: BTreeMap::new(), _slot: slot };
        for name in ["guest", "output", "tmp", "vddk", "sim"] {
            fs::create_dir(site.path(name)).unwrap();
        }
        let mut config = String::new();
        for (key, name) in
            [("state_dir", "state"), ("log_dir", "log"), ("tmp_dir", "tmp"), ("vddk_libdir", "vddk")]
        {
            config.push_str(&format!("{key} = {:?}\n", site.path(name)));
        }
        if emulate {
            config.push_str("libguestfs_backend_settings = \"force_tcg\"\n");
        }
        fs::write(site.path("config.toml"), config).unwrap();
        site
    }

    /// A path below the site's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text, for documents.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Adds to the environment of the program (and so of its tools).
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.environment.insert(key.to_owned(), value.into());
    }

    /// Builds a guest in `guest/`: 128 MiB, about 26 MB of data, and what `options` add.
    pub fn guest(&self, name: &str, options: &[&str]) {
        run(Command::new(repository("tests/rigs/make-guest"))
            .args(["--name", name, "--size", "128", "--payload", "8", "--with-qga"])
            .args(options)
            .arg(self.path("guest")));
    }

    /// The environment variable that names the configuration: also the mark by which a job's processes are found.
    pub fn mark(&self) -> String {
        format!("VIRT_V2V_WRAPPER_CONFIG={}", self.text("config.toml"))
    }

    /// The document that converts one local image, `guest`, into `output`.
    pub fn local_document(&self, image: &str) -> Value {
        json!({
            "vm_name": "guest",
            "transport_method": "local",
            "source_path": self.path(image),
            "output_directory": self.path("output"),
        })
    }

    /// Starts the program as a client does: document, end of file, and the whole of stdout until it is closed.
    pub fn run(&self, document: &Value) -> Output {
        self.run_with(&[], document.to_string().as_bytes())
    }

    /// The same with arguments.
    pub fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper"))
            .args(arguments)
            .env("VIRT_V2V_WRAPPER_CONFIG", self.path("config.toml"))
            .envs(&self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Starts a job that passes validation.
    pub fn start(&self, document: &Value) -> Job<'_> {
        self.started(|| self.run(document))
    }

    /// Resumes a job by its tag alone.
    pub fn resume(&self, tag: &str) -> Job<'_> {
        self.started(|| self.run_with(&["resume", tag], b""))
    }

    fn started(&self, run: impl FnOnce() -> Output) -> Job<'_> {
        let begun = Instant::now();
        let output = run();
        assert!(
            output.status.success(),
            "the program refused the document: {:?}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the reply and the end of stdout must not wait for the conversion"
        );
        self.job(&output.stdout)
    }

    /// The job this reply belongs to.
    pub fn job(&self, reply: &[u8]) -> Job<'_> {
        let reply: Value = serde_json::from_slice(reply).expect("stdout is exactly one JSON document");
        let state_file = PathBuf::from(reply["state_file"].as_str().expect("state_file in the reply"));
        Job::new(self, reply, state_file)
    }

    /// All processes of this site's jobs, zombies excepted.
    pub fn processes(&self) -> Vec<Process> {
        let mark = self.mark();
        let private = self.text("tmp");
        Process::all()
            .into_iter()
            .filter(|process| {
                contains(&process.environ, mark.as_bytes()) || contains(&process.cmdline, private.as_bytes())
            })
            .collect()
    }

    /// Nothing of the job may outlive it: no process, no temporary file.
    pub fn assert_nothing_left(&self) {
        // Helpers of a killed appliance need up to two seconds; ten are enough on any machine.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        assert_eq!(self.processes(), [], "processes outlive the job");
        assert_eq!(files(&self.path("tmp")), Vec::<PathBuf>::new(), "temporary files outlive the job");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Only after a failed assertion: what is still there is ours, by the mark.
        for process in self.processes() {
            kill(Pid::from_raw(process.pid), Signal::SIGKILL).ok();
        }
    }
}

/// Every file, socket and link below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries.flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        }
    }
    found
}

/// Does `haystack` contain `needle`?
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

/// A server for the length of a test: terminated at its end.
pub struct Server(pub Child);

impl Server {
    /// Starts it with a stdin of its own.
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).ok();
        self.0.wait().ok();
    }
}

/// Waits for something outside the program under test, at most a minute.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ready() {
        assert!(Instant::now() < deadline, "no {what} in a minute");
        std::thread::sleep(POLL);
    }
}

/// Sends a signal to a process that must exist.
pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("{signal} to {pid}: {error}"));
}

/// Runs a command with a limit and stdin; for clients that must not hang.
pub fn with_limit(command: &mut Command, stdin: &[u8], limit: Duration) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (done, over) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if over.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            kill(pid, Signal::SIGKILL).ok();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watchdog.join().unwrap();
    assert!(output.status.signal() != Some(9), "no end in {limit:?}: {command:?}");
    output
}

/// `PATH` with this directory in front.
pub fn path_with(directory: &Path) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let joined =
        std::env::join_paths(std::iter::once(directory.to_owned()).chain(std::env::split_paths(&path)));
    joined.unwrap().to_str().unwrap().to_owned()
}

/// Are we root? Some things can only be tried as root.
pub fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `name` as an argument, checked to be one word.
pub fn word(name: &OsStr) -> &str {
    let name = name.to_str().unwrap();
    assert!(!name.contains(|c: char| c.is_whitespace() || "'\"\\$".contains(c)), "not one word: {name}");
    name
}
