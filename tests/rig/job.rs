//! One run of the program, watched from outside: what it says, its state file as it changes, its processes.
//!
//! Three threads watch: one reads stdout, one reads stderr, one samples the state file and `/proc`. Every distinct
//! content of the state file is kept; what was wrong with a read is kept as a fault.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::poll;
use super::processes::{Processes, contains, parent_of};
use super::sandbox::Sandbox;

/// What came through a pipe, and when.
#[derive(Default, Clone)]
pub struct Stream {
    /// All bytes so far.
    pub bytes: Vec<u8>,
    /// When the first line was complete.
    pub first_line: Option<Instant>,
    /// When its end was read.
    pub closed: Option<Instant>,
}

/// What the sampler saw.
#[derive(Default)]
pub struct Seen {
    /// Distinct states in the order they were seen.
    pub states: Vec<Value>,
    /// Reads that found nothing whole after the reply, said once each.
    pub faults: Vec<String>,
    /// Secrets found in a process, said once each.
    pub leaks: Vec<String>,
    /// Number of reads of a whole state.
    pub reads: usize,
}

/// A running (or ended) job.
pub struct Job {
    /// When it was spawned.
    pub spawned: Instant,
    /// Pid of the spawned process.
    pub pid: i32,
    child: Child,
    exit: Option<(ExitStatus, Instant)>,
    stdout: Arc<Mutex<Stream>>,
    stderr: Arc<Mutex<Stream>>,
    seen: Arc<Mutex<Seen>>,
    processes: Arc<Mutex<Processes>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Secrets a job must not show, from its document and its vault.
pub fn secrets_in(document: &Value) -> Vec<String> {
    fn walk(key: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(key, value, found)),
            Value::Array(items) => items.iter().for_each(|item| walk(key, item, found)),
            Value::String(text) if key == "ssh_key" => {
                // The armour's lines are no secret; those between them are.
                found.extend(
                    text.lines().filter(|line| line.len() > 20 && !line.contains("--")).map(Into::into),
                );
            }
            Value::String(text) => {
                let key = key.to_lowercase();
                if (key.contains("password") || key == "key") && text.len() >= 4 {
                    found.push(text.clone());
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk("", document, &mut found);
    found
}

impl Job {
    /// Spawns the command, feeds it and begins to watch.
    pub(super) fn start(command: &mut Command, input: Vec<u8>, sandbox: &Sandbox) -> Self {
        let secrets =
            serde_json::from_slice(&input).map(|document| secrets_in(&document)).unwrap_or_default();
        let spawned = Instant::now();
        let mut child = command.spawn().expect("spawn the program");
        let pid = child.id().cast_signed();
        let mut threads = Vec::new();
        let mut stdin = child.stdin.take().expect("stdin");
        threads.push(std::thread::spawn(move || {
            // The program may refuse before it has read all.
            let _ = stdin.write_all(&input);
        }));
        let replied = Arc::new(AtomicBool::new(false));
        let stdout =
            watch_stream(child.stdout.take().expect("stdout"), Some(Arc::clone(&replied)), &mut threads);
        let stderr = watch_stream(child.stderr.take().expect("stderr"), None, &mut threads);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let processes = Arc::new(Mutex::new(Processes::of(sandbox)));

        // With layout job the newest state may be that of an earlier job: the reply tells.
        let path = (sandbox.layout == "uci").then(|| sandbox.state_file()).flatten();
        let late = LatePath { dir: sandbox.dir.clone(), stdout: Arc::clone(&stdout) };
        let (seen_, stop_) = (Arc::clone(&seen), Arc::clone(&stop));
        threads.push(std::thread::spawn(move || sample(path, &late, &replied, &seen_, &stop_)));
        let (seen_, stop_, processes_) = (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&processes));
        threads.push(std::thread::spawn(move || {
            while !stop_.load(Ordering::SeqCst) {
                let mut leaks = Vec::new();
                processes_.lock().expect("lock").scan(|pid, arguments, environment| {
                    for (place, bytes) in [("arguments", arguments), ("environment", environment)] {
                        for secret in secrets.iter().filter(|secret| contains(bytes, secret.as_bytes())) {
                            let name = String::from_utf8_lossy(arguments).replace('\0', " ");
                            leaks.push(format!("secret {secret:?} in the {place} of {pid}: {name}"));
                        }
                    }
                });
                let mut seen = seen_.lock().expect("lock");
                for leak in leaks {
                    if seen.leaks.len() < 10 && !seen.leaks.contains(&leak) {
                        seen.leaks.push(leak);
                    }
                }
                drop(seen);
                std::thread::sleep(Duration::from_millis(60));
            }
        }));
        Self { spawned, pid, child, exit: None, stdout, stderr, seen, processes, stop, threads }
    }

    /// What stdout said so far.
    pub fn stdout(&self) -> Stream {
        self.stdout.lock().expect("lock").clone()
    }

    /// What stderr said so far.
    pub fn stderr(&self) -> Stream {
        self.stderr.lock().expect("lock").clone()
    }

    /// The reply, once it is whole.
    pub fn reply(&self) -> Option<Value> {
        let stdout = self.stdout();
        stdout.first_line?;
        serde_json::from_slice(&stdout.bytes).ok()
    }

    /// Waits for the reply.
    pub fn wait_reply(&mut self, limit: Duration) -> Option<Value> {
        poll(limit, || match self.reply() {
            None if self.poll_exit().is_some() => {
                self.settle();
                Some(self.reply())
            }
            None => None,
            reply => Some(reply),
        })
        .flatten()
    }

    /// How the spawned process ended, if it did.
    pub fn poll_exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("wait").map(|status| (status, Instant::now()));
        }
        self.exit.map(|(status, _)| status)
    }

    /// Waits for the spawned process to end.
    pub fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let status = poll(limit, || self.poll_exit());
        if status.is_some() {
            self.settle();
        }
        status
    }

    /// What an ended process wrote may still be in the pipes: waits for their ends, or for long enough when
    /// somebody else holds them open.
    fn settle(&self) {
        poll(Duration::from_secs(5), || {
            (self.stdout().closed.is_some() && self.stderr().closed.is_some()).then_some(())
        });
    }

    /// Waits for a state, in vain only as long as there is a process that could write it.
    pub fn wait_state(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let mut asked = Instant::now();
        let mut deserted: Option<Instant> = None;
        poll(limit, || {
            let found = self.last_state().filter(|state| wanted(state));
            if found.is_some() {
                return Some(found);
            }
            if asked.elapsed() > Duration::from_millis(200) {
                asked = Instant::now();
                deserted = self.alive().is_empty().then(|| deserted.unwrap_or(asked));
            }
            // The sampler reads what was written last a moment after the writer went.
            deserted.is_some_and(|since| since.elapsed() > Duration::from_secs(2)).then_some(None)
        })
        .flatten()
    }

    /// The last state seen.
    pub fn last_state(&self) -> Option<Value> {
        self.seen.lock().expect("lock").states.last().cloned()
    }

    /// Waits for the last state.
    pub fn wait_finished(&self, limit: Duration) -> Option<Value> {
        self.wait_state(limit, |state| state["finished"] == true)
    }

    /// Waits until no process of the case is left; else those that are.
    pub fn gone_within(&self, limit: Duration) -> Result<(), Vec<(i32, String)>> {
        poll(limit, || self.alive().is_empty().then_some(())).ok_or_else(|| self.alive())
    }

    /// Processes of the case that are alive now.
    pub fn alive(&self) -> Vec<(i32, String)> {
        self.processes.lock().expect("lock").alive()
    }

    /// Stops watching, with a last look at the state; what was seen.
    pub fn end(&mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let threads = std::mem::take(&mut self.threads);
        let deadline = Instant::now() + Duration::from_secs(10);
        for thread in threads {
            // A pipe that a leftover process holds open is never at its end.
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() {
                thread.join().expect("watcher");
            }
        }
        std::mem::take(&mut *self.seen.lock().expect("lock"))
    }

    /// The pid a signal for `to` goes to: `pid` (of the state), `wrapper` (the spawned process), `worker`
    /// (virt-v2v's parent), `supervisor` (`wrapper_pid` of the state).
    pub fn address(&self, to: &str) -> Option<i32> {
        let state = self.last_state();
        let number = |key: &str| state.as_ref()?[key].as_i64()?.try_into().ok();
        match to {
            "pid" => number("pid"),
            "wrapper" => Some(self.pid),
            "worker" => parent_of(number("pid")?),
            "supervisor" => number("wrapper_pid"),
            other => panic!("no such addressee: {other}"),
        }
    }

    /// Sends a signal; false when there is nobody to send it to.
    pub fn signal(&self, signal: Signal, to: &str) -> bool {
        self.address(to).is_some_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Only the spawned process: another job of the same sandbox may be what is looked at. Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch_stream(
    mut pipe: impl Read + Send + 'static,
    replied: Option<Arc<AtomicBool>>,
    threads: &mut Vec<JoinHandle<()>>,
) -> Arc<Mutex<Stream>> {
    let stream = Arc::new(Mutex::new(Stream::default()));
    let shared = Arc::clone(&stream);
    threads.push(std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        loop {
            let count = pipe.read(&mut buffer).expect("read a pipe");
            let mut stream = shared.lock().expect("lock");
            if count == 0 {
                stream.closed = Some(Instant::now());
                return;
            }
            stream.bytes.extend_from_slice(&buffer[..count]);
            if stream.first_line.is_none() && stream.bytes.contains(&b'\n') {
                stream.first_line = Some(Instant::now());
                let line = serde_json::from_slice::<Value>(&stream.bytes);
                if let (Some(replied), Ok(Value::Object(_))) = (&replied, line) {
                    replied.store(true, Ordering::SeqCst);
                }
            }
        }
    }));
    stream
}

/// Finds the state file of a job whose path only its reply tells.
struct LatePath {
    dir: PathBuf,
    stdout: Arc<Mutex<Stream>>,
}

impl LatePath {
    fn find(&self) -> Option<PathBuf> {
        let stdout = self.stdout.lock().expect("lock");
        stdout.first_line?;
        let reply: Value = serde_json::from_slice(&stdout.bytes).ok()?;
        let path = PathBuf::from(reply["state_file"].as_str()?);
        path.starts_with(&self.dir).then_some(path)
    }
}

fn sample(
    mut path: Option<PathBuf>,
    late: &LatePath,
    replied: &AtomicBool,
    seen: &Mutex<Seen>,
    stop: &AtomicBool,
) {
    let mut last: Option<Vec<u8>> = None;
    loop {
        // Both asked before the read: what they promise must already hold then.
        let (over, must_be_there) = (stop.load(Ordering::SeqCst), replied.load(Ordering::SeqCst));
        if path.is_none() {
            path = late.find();
        }
        if let Some(path) = &path {
            let read = std::fs::read(path);
            let mut seen = seen.lock().expect("lock");
            let fault = match read {
                Ok(bytes) if last.as_ref() == Some(&bytes) => {
                    seen.reads += 1;
                    None
                }
                Ok(bytes) => match serde_json::from_slice::<Value>(&bytes) {
                    Ok(state) if state.is_object() => {
                        seen.reads += 1;
                        seen.states.push(state);
                        last = Some(bytes);
                        None
                    }
                    _ => Some(format!("state torn: {:?}", String::from_utf8_lossy(&bytes))),
                },
                Err(error) if must_be_there || last.is_some() => Some(format!("state: {error}")),
                Err(_) => None,
            };
            if let Some(fault) = fault
                && seen.faults.len() < 10
                && !seen.faults.contains(&fault)
            {
                seen.faults.push(fault);
            }
        }
        if over {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
