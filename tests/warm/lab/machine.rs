//! What a test does to the machine of a lab and to its vCenter while jobs run, and what these tell.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use super::{LIMIT, Lab, fill};
use crate::rig::poll;

impl Lab {
    /// A command of the simulator's control socket (tests/rigs/vcsim-cbt/control.go), e.g. `slow-removals?seconds=2`.
    pub fn control(&self, command: &str) -> Value {
        let mut socket = UnixStream::connect(self.vcenter.directory.path().join("control")).unwrap();
        write!(socket, "POST /{command} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200"), "{command}: {body}");
        serde_json::from_str(body).unwrap()
    }

    /// The next `count` snapshots fail.
    pub fn fail_snapshots(&self, count: u32) {
        self.control(&format!("fail-snapshots?n={count}"));
    }

    /// The next `count` snapshots that quiesce the guest fail.
    pub fn fail_quiesced(&self, count: u32) {
        self.control(&format!("fail-snapshots?n={count}&quiesced=1"));
    }

    /// The next `count` removals of snapshots fail.
    pub fn fail_removals(&self, count: u32) {
        self.control(&format!("fail-removals?n={count}"));
    }

    /// The next `count` questions for changed areas fail.
    pub fn fail_queries(&self, count: u32) {
        self.control(&format!("fail-queries?n={count}"));
    }

    /// Answers to questions for changed areas are about at most so many bytes of disk, or all (0).
    pub fn slice(&self, bytes: u64) {
        self.control(&format!("chunk?bytes={bytes}"));
    }

    /// Answers to questions for changed areas tell at most so many of them, or all (0).
    pub fn fewer_areas(&self, most: u32) {
        self.control(&format!("areas?n={most}"));
    }

    /// Seconds from a shutdown of the guest until the machine is off; -1: never.
    pub fn shutdown_after(&self, seconds: f64) {
        self.control(&format!("guest?shutdownAfter={seconds}"));
    }

    /// VMware Tools are `running`, `notRunning` or `notInstalled`.
    pub fn tools(&self, state: &str) {
        self.control(&format!("guest?tools={state}"));
    }

    /// Each snapshot takes so long to be made, those that have begun too.
    pub fn slow_snapshot(&self, seconds: f64) {
        self.control(&format!("slow-snapshots?seconds={seconds}"));
    }

    /// Each removal of a snapshot takes so long, those that have begun too.
    pub fn slow_removal(&self, seconds: f64) {
        self.control(&format!("slow-removals?seconds={seconds}"));
    }

    /// No change id of before is valid.
    pub fn reset_cbt(&self) {
        self.control("reset-cbt");
    }

    /// All sessions with the vCenter are over.
    pub fn expire_sessions(&self) {
        self.control("expire-sessions");
    }

    /// The vCenter answers nothing for so long.
    pub fn freeze(&self, seconds: f64) {
        self.control(&format!("freeze?seconds={seconds}"));
    }

    /// Gives the machine another disk on a controller; its raw file becomes the last of [`Self::raws`]. Gives its key.
    pub fn add_disk(&mut self, size: u64, controller: u32) -> u64 {
        let raw = self.vcenter.directory.path().join(format!("disk{}.raw", self.raws.len()));
        fill(&raw, size, self.raws.len());
        let answer = self.control(&format!("add-disk?file={}&controller={controller}", raw.display()));
        self.raws.push(raw);
        answer["key"].as_u64().unwrap()
    }

    /// Takes a disk away from the machine; its raw file stays.
    pub fn remove_disk(&self, key: u64) {
        self.control(&format!("remove-disk?key={key}"));
    }

    /// Makes a disk longer.
    pub fn grow_disk(&self, key: u64, size: u64) {
        self.control(&format!("grow-disk?key={key}&size={size}"));
    }

    /// Switches the machine `on` or `off`, as somebody else would.
    pub fn switch(&self, state: &str) {
        self.control(&format!("power?state={state}"));
    }

    /// `poweredOn` or another word of VMware's.
    pub fn power(&self) -> String {
        self.dump()["power"].as_str().unwrap().to_owned()
    }

    /// What the machine looks like: power, `change_tracking`, `snapshots` with names, `disks` with files and keys.
    pub fn dump(&self) -> Value {
        self.control("dump")
    }

    /// The directory that the simulator has for the machine.
    pub fn machine(&self) -> PathBuf {
        self.dump()["directory"].as_str().unwrap().into()
    }

    /// Managed object id.
    pub fn moref(&self) -> String {
        self.dump()["moref"].as_str().unwrap().to_owned()
    }

    /// Keys of the disks, in the machine's order.
    pub fn keys(&self) -> Vec<u64> {
        self.dump()["disks"].as_array().unwrap().iter().filter_map(|disk| disk["key"].as_u64()).collect()
    }

    /// What happened so far, in order: calls to the vCenter, and disks opened and closed by the VDDK stand-in
    /// (`vddk: open`).
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.vcenter.directory.path().join("events.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Those of one method and phase: `begun`, `done` or `failed`.
    pub fn events_of(&self, method: &str, phase: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["method"] == method && event["phase"] == phase);
        events
    }

    /// Waits until there are so many of them.
    pub fn wait_events(&self, method: &str, phase: &str, count: usize) {
        let happened = || (self.events_of(method, phase).len() >= count).then_some(());
        poll(LIMIT, happened).unwrap_or_else(|| panic!("never {method} {phase} {count} times"));
    }

    /// What happened of these methods, in order, as `"method phase snapshot's name"`.
    pub fn steps(&self, methods: &[&str]) -> Vec<String> {
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let mut events = self.events();
        events.retain(|event| methods.contains(&text(event, "method").as_str()));
        let step = |event| ["method", "phase", "snapshot_name"].map(|key| text(event, key)).join(" ");
        events.iter().map(step).collect()
    }

    /// What the VDDK stand-in does from now on: the lines of its control file (tests/rigs/nbdkit-vddk.c). They are there
    /// as a whole or not at all.
    pub fn vddk(&self, lines: &str) {
        let at = |name: &str| self.vcenter.directory.path().join(name);
        fs::write(at("vddk.control.new"), lines).unwrap();
        fs::rename(at("vddk.control.new"), at("vddk.control")).unwrap();
    }
}
