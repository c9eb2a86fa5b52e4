//! A job as a client sees it (reply, state, logs) and as the host sees it (processes). Every look checks what must
//! always be true; the ends of a job are checked in one place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Site, files};

/// One conversion takes one to two minutes in software emulation, several on a machine with other work.
const CONVERSION: Duration = Duration::from_secs(600);
/// How often a client may look; only a bound for how late the tests notice, never a condition of theirs.
pub const POLL: Duration = Duration::from_millis(50);

/// A running or finished job.
pub struct Job<'a> {
    pub site: &'a Site,
    pub reply: Value,
    pub state_file: PathBuf,
    last: Value,
}

impl<'a> Job<'a> {
    /// The job of this reply.
    pub fn new(site: &'a Site, reply: Value, state_file: PathBuf) -> Self {
        Self { site, reply, state_file, last: json!({}) }
    }

    /// The state as a client reads it. Every state seen must be whole, and neither progress nor sequence may fall.
    pub fn state(&mut self) -> Value {
        let bytes = fs::read(&self.state_file).expect("the state file is never missing after the reply");
        let state: Value = serde_json::from_slice(&bytes).expect("the state file is never torn");
        for key in ["progress", "sequence"] {
            let (before, now) = (self.last[key].as_f64(), state[key].as_f64());
            assert!(before <= now, "{key} fell from {before:?} to {now:?}");
        }
        self.last = state.clone();
        state
    }

    /// Looks until `found` says yes; panics when the job finishes first or the time is up.
    pub fn until(&mut self, what: &str, mut found: impl FnMut(&mut Self, &Value) -> bool) -> Value {
        let deadline = Instant::now() + CONVERSION;
        loop {
            let state = self.state();
            if found(self, &state) {
                return state;
            }
            assert!(
                state["finished"].is_null(),
                "the job finished before {what}: {state:#}\n{}",
                self.logs()
            );
            assert!(Instant::now() < deadline, "no {what} in {CONVERSION:?}: {state:#}\n{}", self.logs());
            std::thread::sleep(POLL);
        }
    }

    /// Waits for virt-v2v's own message that begins so.
    pub fn until_message(&mut self, text: &str) -> Value {
        self.until(text, |job, _| {
            job.v2v_log().lines().any(|line| message(line).is_some_and(|m| m.starts_with(text)))
        })
    }

    /// Waits for the end and returns the final state; `look` sees every state on the way.
    pub fn finish_with(&mut self, mut look: impl FnMut(&Value)) -> Value {
        self.until("the end of the job", |_, state| {
            look(state);
            state["finished"] == json!(true)
        })
    }

    /// Waits for the end and returns the final state.
    pub fn finish(&mut self) -> Value {
        self.finish_with(|_| ())
    }

    /// Its name, by which a later job resumes it.
    pub fn tag(&self) -> &str {
        self.state_file.parent().and_then(|directory| directory.file_name()?.to_str()).unwrap()
    }

    /// The tool's pid, once it runs.
    pub fn until_started(&mut self) -> i32 {
        let state = self.until("virt-v2v's pid", |_, state| state["started"] == json!(true));
        i32::try_from(state["pid"].as_i64().expect("pid beside started")).unwrap()
    }

    /// virt-v2v's log so far.
    pub fn v2v_log(&self) -> String {
        let path = self.reply["v2v_log"].as_str().expect("v2v_log in the reply");
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The ends of both logs, for a failure's report.
    pub fn logs(&self) -> String {
        ["wrapper_log", "v2v_log"]
            .map(|key| {
                let path = self.reply[key].as_str().unwrap_or_default();
                let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
                let lines: Vec<&str> = text.lines().collect();
                format!("--- {path}\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n"))
            })
            .concat()
    }

    /// What every successful job ends with.
    pub fn assert_converted(&mut self, disks: usize) -> Value {
        self.assert_converted_with(disks, |_| ())
    }

    /// The same; `look` sees every state on the way.
    pub fn assert_converted_with(&mut self, disks: usize, mut look: impl FnMut(&Value)) -> Value {
        let mut between = false;
        let state = self.finish_with(|state| {
            look(state);
            between |= state["progress"].as_f64().is_some_and(|percent| percent > 0.0 && percent < 100.0);
        });
        assert_eq!(state["failed"], json!(false), "{state:#}\n{}", self.logs());
        assert_eq!(state["return_code"], json!(0), "{state:#}");
        assert_eq!(state["disk_count"], json!(disks), "{state:#}");
        let progress: Vec<Option<f64>> =
            state["disks"].as_array().unwrap().iter().map(|disk| disk["progress"].as_f64()).collect();
        assert_eq!(progress, vec![Some(100.0); disks], "{state:#}");
        assert!(between, "no progress was shown between start and end");
        let mode = fs::metadata(&self.state_file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "clients read the state file as another user");
        self.site.assert_nothing_left();
        state
    }

    /// What every failed job ends with that has nothing to keep; returns the sentence for the user.
    pub fn assert_failed(&mut self) -> String {
        let message = self.assert_failure();
        assert_eq!(files(&self.site.path("output")), Vec::<PathBuf>::new(), "a failed job leaves no disk");
        message
    }

    /// What every failed job ends with; returns the sentence for the user.
    pub fn assert_failure(&mut self) -> String {
        let state = self.finish();
        assert_eq!(state["failed"], json!(true), "{state:#}\n{}", self.logs());
        let message = state["last_message"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(!message.is_empty(), "a failed job says why: {state:#}");
        assert_eq!(state["last_message"]["type"], json!("error"));
        self.site.assert_nothing_left();
        message
    }
}

/// The text of virt-v2v's own message lines, `[  12.3] TEXT`: exactly one decimal.
fn message(line: &str) -> Option<&str> {
    let (stamp, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (_, decimals) = stamp.trim().split_once('.')?;
    (decimals.len() == 1).then_some(text)
}

/// A process as seen in /proc.
#[derive(PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub cmdline: Vec<u8>,
    pub environ: Vec<u8>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cmdline = String::from_utf8_lossy(&self.cmdline).replace('\0', " ");
        write!(f, "{} (parent {}): {cmdline}", self.pid, self.parent)
    }
}

impl Process {
    /// Every process of the machine that is not a zombie and not this one.
    pub fn all() -> Vec<Self> {
        let own = i32::try_from(std::process::id()).unwrap();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != own)
            .filter_map(Self::of)
            .collect()
    }

    /// The process with this id, if it lives.
    pub fn of(pid: i32) -> Option<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read_to_string(directory.join("stat")).ok()?;
        // "pid (name) state ppid ...": the name may contain anything, the last ')' ends it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        Some(Self {
            pid,
            parent: fields.next()?.parse().ok()?,
            cmdline: fs::read(directory.join("cmdline")).unwrap_or_default(),
            environ: fs::read(directory.join("environ")).unwrap_or_default(),
        })
    }
}
