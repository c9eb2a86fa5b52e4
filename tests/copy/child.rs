//! A copy as a program of its own (`examples/copy-disk.rs`): to be killed, and to have its memory measured.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use virt_v2v_wrapper::plan::DiskFormat;

use super::rig::{LIMIT, Rig};
use crate::rig::poll;
use crate::rig::processes::contains;

/// How the program copies.
#[derive(Clone, Default)]
pub struct Manner {
    /// Bytes per second.
    pub limit: Option<u64>,
    /// Bytes that may be read and not yet recorded; the engine's own number where there is none.
    pub unproven: Option<u64>,
    /// Only these are copied (offset, length).
    pub areas: Option<Vec<(u64, u64)>>,
}

impl Rig {
    /// Starts to copy `disk`, or goes on with it.
    pub fn start(&self, manner: &Manner) -> Child {
        let task = json!({
            "nbdkit": self.nbdkit,
            "disk": self.path("disk"),
            "copy": self.path("disk.copy"),
            "ledger": self.path("disk.ledger"),
            "private": self.path("private"),
            "qcow2": self.format == DiskFormat::Qcow2,
            "spans": 16,
            "unproven": manner.unproven.unwrap_or(512 << 20),
            "prove_ms": if manner.unproven.is_some() { 10 } else { 500 },
            "limit": manner.limit,
            "areas": manner.areas,
        });
        let test = std::env::current_exe().unwrap();
        let program = test.ancestors().nth(2).unwrap().join("examples/copy-disk");
        Command::new(&program)
            .arg(task.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
    }

    /// Copies to the end; what the program said.
    pub fn copy_whole(&self, manner: &Manner) -> Value {
        let mut child = self.start(manner);
        let ended = poll(LIMIT, || child.try_wait().unwrap());
        if ended.is_none() {
            self.kill(&mut child);
        }
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
        serde_json::from_slice(&stdout).unwrap()
    }

    /// Kills the program and its servers as a power cut would, and waits until none is left.
    pub fn kill(&self, child: &mut Child) {
        let servers = self.processes();
        // Already gone is as good.
        let _ = child.kill();
        for pid in servers {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        child.wait().unwrap();
        self.deserted();
    }

    /// Waits until no process has anything to do with this directory. qemu-nbd (7.2) misses a signal that comes after its handler
    /// is in place and before its loop begins: it is told again, as the program's next start does.
    pub fn deserted(&self) {
        if poll(LIMIT / 10, || self.processes().is_empty().then_some(())).is_none() {
            for pid in self.processes() {
                let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
                if name.starts_with(b"qemu-nbd") {
                    // Gone in the meantime is as good.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
            }
        }
        poll(LIMIT, || self.processes().is_empty().then_some(())).expect("servers outlive the copy");
    }

    /// Those that name this directory in their arguments, but for the copy itself.
    fn processes(&self) -> Vec<i32> {
        let directory = self.path("private");
        let directory = directory.to_str().unwrap().as_bytes();
        let ours = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            contains(&arguments, directory) && !arguments.ends_with(b"}\0")
        };
        let all = fs::read_dir(Path::new("/proc")).unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
    }
}
