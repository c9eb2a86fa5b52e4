//! One job's private surroundings: its directories, its site configuration, the fake virt-v2v with its scenario.
//!
//! A second job may run in the same surroundings (`spawn` again): that is how restarts and locks are tested.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};

use super::job::Job;
use super::processes::Processes;

/// Environment variable that marks every process of a case.
pub const MARKER: &str = "V2V_TEST_CASE";

/// The account that stands for "somebody else".
pub const NOBODY: u32 = 65534;

/// A directory of its own for one case.
pub struct Sandbox {
    /// `${DIR}`.
    pub dir: PathBuf,
    /// Value of [`MARKER`] for every process started here.
    pub marker: String,
    /// Whether the program runs as [`NOBODY`] instead of the caller.
    pub as_nobody: bool,
    /// Set the umask of the program to this.
    pub umask: String,
    /// Environment variables set (`Some`) or removed (`None`) for the program.
    pub env: Vec<(String, Option<String>)>,
    /// `uci` or `job`.
    pub layout: String,
    /// Further placeholders, with what they stand for.
    pub placeholders: Vec<(String, String)>,
    /// Words before the program's own, whose program becomes ours in the end: the pid must stay.
    pub through: Vec<String>,
    key: OnceLock<String>,
}

impl Sandbox {
    /// Fresh directories and a site configuration with layout `uci`.
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // No case's directory begins as another's does: by it a case tells its processes from those of others.
        let tag = format!("{}-{number:03}", std::process::id());
        let dir = base().join(&tag);
        let sandbox = Self {
            marker: format!("{name}-{tag}"),
            dir,
            as_nobody: false,
            umask: "022".to_owned(),
            env: Vec::new(),
            layout: "uci".to_owned(),
            placeholders: Vec::new(),
            through: Vec::new(),
            key: OnceLock::new(),
        };
        for part in ["state", "log", "tmp", "out", "vddk", "bin", "home"] {
            fs::create_dir_all(sandbox.path(part)).expect("directory of the case");
        }
        fs::hard_link(fake(), sandbox.path("bin/virt-v2v")).expect("fake virt-v2v");
        fs::hard_link(fake(), sandbox.path("bin/virt-v2v-in-place")).expect("fake virt-v2v-in-place");
        sandbox.scenario(&Value::Object(Map::new()));
        sandbox
    }

    /// A path below `${DIR}`.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.join(relative)
    }

    /// What the fake virt-v2v plays.
    pub fn scenario(&self, scenario: &Value) {
        let text = serde_json::to_vec(scenario).expect("scenario");
        fs::write(self.path("bin/scenario.json"), text).expect("scenario.json");
    }

    /// Writes the site configuration: the conventions' keys, with `extra` on top (`null` leaves a key out).
    pub fn configure(&mut self, layout: &str, extra: &Map<String, Value>) {
        self.layout = layout.to_owned();
        let mut keys = Map::new();
        keys.insert("layout".into(), layout.into());
        for (key, value) in [
            ("state_dir", "${DIR}/state"),
            ("log_dir", "${DIR}/log"),
            ("tmp_dir", "${DIR}/tmp"),
            ("vddk_libdir", "${VDDK}"),
            ("virt_v2v", "${DIR}/bin/virt-v2v"),
            ("virt_v2v_in_place", "${DIR}/bin/virt-v2v-in-place"),
        ] {
            keys.insert(key.into(), value.into());
        }
        for (key, value) in extra {
            keys.insert(key.clone(), value.clone());
        }
        let toml: String = keys
            .iter()
            .filter(|(_, value)| !value.is_null())
            // JSON's strings, numbers and booleans are TOML's too.
            .map(|(key, value)| format!("{key} = {}\n", self.substitute(value)))
            .collect();
        fs::write(self.path("config.toml"), toml).expect("config.toml");
    }

    /// The program, spawned bare: no observer, the caller's own environment but for what is set, this text on stdin.
    pub fn child(&self, args: &[&str], stdin: &str) -> Child {
        let env =
            self.env.iter().filter_map(|(key, value)| Some((key, self.substitute_text(value.as_deref()?))));
        let mut child = Command::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper"))
            .args(args)
            .env("VIRT_V2V_WRAPPER_CONFIG", self.path("config.toml"))
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // A verb that reads no stdin may be gone already.
        let _ = child.stdin.take().expect("stdin").write_all(stdin.as_bytes());
        child
    }

    /// An executable script of the case; its path.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("script");
        path
    }

    /// Placeholders of a text replaced.
    pub fn substitute_text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in [("${OUT}", "out"), ("${VDDK}", "vddk"), ("${DIR}", "")] {
            if text.contains(name) {
                let path = if value.is_empty() { self.dir.clone() } else { self.path(value) };
                text = text.replace(name, path.to_str().expect("path"));
            }
        }
        for (name, value) in &self.placeholders {
            text = text.replace(name, value);
        }
        if text.contains("${TEST_KEY}") {
            text = text.replace("${TEST_KEY}", self.test_key());
        }
        text
    }

    /// Placeholders of every string of a value replaced.
    pub fn substitute(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.substitute_text(text).into(),
            Value::Array(items) => items.iter().map(|item| self.substitute(item)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (self.substitute_text(key), self.substitute(value)))
                .collect::<Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    /// A fresh unencrypted key, made once.
    pub fn test_key(&self) -> &str {
        self.key.get_or_init(|| {
            let path = self.path("home/key");
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
                .arg(&path)
                .stdin(Stdio::null())
                .status()
                .expect("ssh-keygen");
            assert!(made.success(), "ssh-keygen: {made}");
            let text = fs::read_to_string(&path).expect("key");
            // What is left below ${DIR} must not hold the key.
            fs::remove_file(&path).expect("key");
            text
        })
    }

    /// Where the state file is: fixed for `uci`, of the newest job for `job`.
    pub fn state_file(&self) -> Option<PathBuf> {
        if self.layout == "uci" {
            return Some(self.path("state/state.json"));
        }
        let jobs = fs::read_dir(self.path("state/jobs")).ok()?;
        jobs.flatten().map(|job| job.path().join("state.json")).filter(|path| path.exists()).max()
    }

    /// What the fake recorded of its (last) run.
    pub fn record(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.path("bin/record.json")).ok()?).ok()
    }

    /// Starts the program on `input`.
    pub fn spawn(&self, input: Vec<u8>) -> Job {
        self.spawn_with(&[], input)
    }

    /// Starts a job that the program takes: it has replied.
    pub fn start(&self, document: Vec<u8>, limit: Duration) -> Job {
        let mut job = self.spawn(document);
        if job.wait_reply(limit).is_none() {
            job.wait_exit(limit);
            panic!("no reply: {}", String::from_utf8_lossy(&job.stderr().bytes));
        }
        job
    }

    /// Starts the program with arguments.
    pub fn spawn_with(&self, args: &[&str], input: Vec<u8>) -> Job {
        // The shell sets the umask and becomes the program: the pid stays.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "umask \"$0\" && exec \"$@\"", &self.umask])
            .args(self.through.iter().map(|word| self.substitute_text(word)))
            .arg(env!("CARGO_BIN_EXE_virt-v2v-wrapper"))
            .args(args)
            .current_dir(&self.dir)
            .env(MARKER, &self.marker)
            .env("VIRT_V2V_WRAPPER_CONFIG", self.path("config.toml"))
            .env("HOME", self.path("home"))
            // Whoever runs the tests through sudo is no client of the program.
            .env_remove("SUDO_UID")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, self.substitute_text(value)),
                None => command.env_remove(key),
            };
        }
        if self.as_nobody {
            for part in ["state", "log", "tmp", "home"] {
                std::os::unix::fs::chown(self.path(part), Some(NOBODY), Some(NOBODY)).expect("chown");
            }
            fs::set_permissions(self.path("bin"), fs::Permissions::from_mode(0o777)).expect("chmod");
            command.uid(NOBODY).gid(NOBODY);
        }
        Job::start(&mut command, input, self)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A failed test leaves no process either. Only our own: they carry the marker.
        Processes::of(self).kill_all();
        if std::env::var_os("V2V_TEST_KEEP").is_none() {
            // The directory is in the build's own space: what cannot be removed goes with `cargo clean`.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Where cases live: beside the build where paths are short enough for a socket, else the system's own place.
fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let beside = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let base = if beside.as_os_str().len() <= 48 { beside } else { std::env::temp_dir() };
        let base = base.join("v2v");
        fs::create_dir_all(&base).expect("directory of the cases");
        base
    })
}

/// The fake virt-v2v, on the file system of the cases: copied at most once, so that no case executes a file
/// that another thread's fork still holds open for writing.
fn fake() -> &'static Path {
    static FAKE: OnceLock<PathBuf> = OnceLock::new();
    FAKE.get_or_init(|| {
        let test = std::env::current_exe().expect("own path");
        let built = test.ancestors().nth(2).expect("target directory").join("examples/fake-virt-v2v");
        let probe = base().join(format!("probe-{}", std::process::id()));
        if fs::hard_link(&built, &probe).is_ok() {
            fs::remove_file(&probe).expect("probe");
            return built;
        }
        let near = base().join(format!("fake-virt-v2v-{}", std::process::id()));
        fs::copy(&built, &near).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
        near
    })
}
