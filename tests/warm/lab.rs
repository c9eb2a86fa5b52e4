//! A vCenter with one machine whose guest writes to its disks all the time, and jobs that move it.
//!
//! Everything of the vCenter is outside of the sandbox: what is left of a job is looked for below that.
#![allow(dead_code, reason = "some of it is for jobs that this version refuses yet")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::exports::site::{have, nbdkit_with_vddk, private, qemu_img, run};
use crate::rig::job::Job;
use crate::rig::sandbox::Sandbox;
use crate::rig::{always, poll};
use crate::two_phase::site::{checksum, converted, play_to};
use crate::vsphere::simulator::{PASSWORD, Vcenter, have_simulator};

pub const MIB: u64 = 1 << 20;
/// Nothing here takes so long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(120);
/// The machine, in the simulator's inventory and in documents.
pub const NAME: &str = "DC0_H0_VM0";

/// A vCenter, a machine, a guest, and a sandbox for jobs.
pub struct Lab {
    pub sandbox: Sandbox,
    pub vcenter: Vcenter,
    /// Raw files of the disks, in the machine's order.
    pub raws: Vec<PathBuf>,
    writer: Option<Child>,
    keys: Map<String, Value>,
    layout: &'static str,
}

impl Lab {
    /// `machine` has the keys of the simulator's configuration (tests/rigs/vcsim-cbt/main.go) but `vm`. A disk has its
    /// `size` instead of a file, a size of three megabytes and more, or is that number alone. `None`, with a printed reason,
    /// where a tool is missing.
    pub fn start(layout: &'static str, machine: &Value) -> Option<Self> {
        if !have(&["nbdkit", "qemu-nbd", "qemu-img", "qemu-io", "cc"]) || !have_simulator() {
            return None;
        }
        let directory = private();
        let mut machine = machine.clone();
        machine["vm"] = json!(NAME);
        let mut raws = Vec::new();
        for (index, disk) in machine["disks"].as_array_mut().unwrap().iter_mut().enumerate() {
            let size = disk.as_u64().or(disk["size"].as_u64()).unwrap();
            let raw = directory.path().join(format!("disk{index}.raw"));
            fill(&raw, size, index);
            if disk.is_u64() {
                *disk = json!({});
            }
            disk.as_object_mut().unwrap().remove("size");
            disk["file"] = json!(raw);
            raws.push(raw);
        }
        let vcenter = Vcenter::start_in(directory, &json!([machine]), 1);
        let nbdkit = nbdkit_with_vddk(vcenter.directory.path(), PASSWORD);
        let sandbox = Sandbox::new("warm");
        let mut lab = Self { sandbox, vcenter, raws, writer: None, keys: Map::new(), layout };
        lab.set(&json!({"nbdkit": nbdkit}));
        lab.play(&[]);
        Some(lab)
    }

    /// More keys of the site configuration.
    pub fn set(&mut self, keys: &Value) {
        self.keys.extend(keys.as_object().unwrap().clone());
        self.sandbox.configure(self.layout, &self.keys);
    }

    /// What virt-v2v-in-place does: the words of the real one, a change to each disk, these steps, and a good end.
    pub fn play(&self, steps: &[Value]) {
        play_to(&self.sandbox, steps, 0);
    }

    // ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────

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

    /// Each removal of a snapshot takes so long.
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

    /// What the VDDK stand-in does from now on: the lines of its control file (tests/rigs/nbdkit-vddk.c). They are there as
    /// a whole or not at all.
    pub fn vddk(&self, lines: &str) {
        let at = |name: &str| self.vcenter.directory.path().join(name);
        fs::write(at("vddk.control.new"), lines).unwrap();
        fs::rename(at("vddk.control.new"), at("vddk.control")).unwrap();
    }

    // ── the guest ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// The guest begins to write. `options` are those of tests/rigs/guest-writer.c.
    pub fn write(&mut self, options: &[&str]) {
        assert!(self.writer.is_none(), "it writes");
        let mut writer = Command::new(writer());
        writer.arg(self.machine()).args(options).stdin(Stdio::null()).stdout(Stdio::piped());
        self.writer = Some(writer.spawn().unwrap());
    }

    /// The guest ends; gives the last number that it wrote. To be called before the content is looked at, unless the
    /// machine is off.
    pub fn rest(&mut self) -> u64 {
        let writer = self.writer.take().expect("it writes");
        kill(Pid::from_raw(writer.id().cast_signed()), Signal::SIGTERM).unwrap();
        let output = writer.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        said.split(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until the guest has written `more` times than it has now.
    pub fn wait_written(&self, more: u64) {
        let number = || number(&self.raws[0]).unwrap_or(0);
        let wanted = number() + more;
        poll(LIMIT, || (number() >= wanted).then_some(())).expect("the guest writes");
    }

    /// The guest writes this, once, into one disk.
    pub fn write_at(&self, disk: usize, offset: u64, bytes: &[u8]) {
        let lock = fs::File::create(self.machine().join("lock")).unwrap();
        lock.lock().unwrap();
        let raw = fs::OpenOptions::new().write(true).open(&self.raws[disk]).unwrap();
        raw.write_all_at(bytes, offset).unwrap();
    }

    // ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A client's document for a warm migration, with more keys or others.
    pub fn document(&self, more: &Value) -> Vec<u8> {
        let mut document = json!({
            "vm_name": NAME,
            "transport_method": "vddk",
            "vmware_uri": self.vcenter.uri(),
            "vmware_fingerprint": self.vcenter.certificate.fingerprint("sha1"),
            "vmware_password": PASSWORD,
            "warm": true,
            "output_directory": self.sandbox.path("out"),
        });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document.to_string().into_bytes()
    }

    /// A job that the program takes.
    pub fn job(&self, more: &Value) -> Job {
        let mut job = self.sandbox.spawn(self.document(more));
        if job.wait_reply(LIMIT).is_none() {
            job.wait_exit(LIMIT);
            panic!("no reply: {}", String::from_utf8_lossy(&job.stderr().bytes));
        }
        job
    }

    /// What the program says to a document that it refuses: exit code 1, one sentence, nothing on stdout.
    pub fn refused(&self, more: &Value) -> String {
        let mut job = self.sandbox.spawn(self.document(more));
        let exit = job.wait_exit(LIMIT).and_then(|status| status.code());
        assert_eq!((exit, job.stdout().bytes.len()), (Some(1), 0), "{more}");
        String::from_utf8_lossy(&job.stderr().bytes).into_owned()
    }

    /// A file that a job looks for: `cutover`, `copy_trigger`, `pause_operations`.
    pub fn trigger(&self, job: &Job, name: &str) -> PathBuf {
        let state = PathBuf::from(job.reply().unwrap()["state_file"].as_str().unwrap());
        state.with_file_name(name)
    }

    /// Makes one of them.
    pub fn touch(&self, job: &Job, name: &str) {
        fs::write(self.trigger(job, name), "").unwrap();
    }

    /// Where the copy of a disk is.
    pub fn target(&self, disk: usize) -> PathBuf {
        let letter = char::from(b'a' + u8::try_from(disk).unwrap());
        self.sandbox.path("out").join(format!("{NAME}-sd{letter}"))
    }

    /// Waits for the last state, looks at all that were seen, and gives it.
    pub fn end(&self, job: &mut Job) -> Value {
        self.states(job).pop().unwrap()
    }

    /// The same; gives all that were seen.
    pub fn states(&self, job: &mut Job) -> Vec<Value> {
        let last = job.wait_finished(LIMIT);
        assert!(last.is_some(), "no last state: {:?}", job.last_state());
        let left = job.gone_within(LIMIT);
        assert!(left.is_ok(), "processes left: {left:?}");
        job.wait_exit(LIMIT);
        let seen = job.end();
        let broken = always::states(&seen);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        seen.states
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut writer) = self.writer.take() {
            // Our own child, not yet waited for.
            let _ = writer.kill();
            let _ = writer.wait();
        }
    }
}

/// Waits until a state says so.
pub fn wait(job: &Job, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    job.wait_state(LIMIT, wanted).unwrap_or_else(|| panic!("not seen: {what}; last {:?}", job.last_state()))
}

/// Waits for a `status`.
pub fn wait_status(job: &Job, status: &str) -> Value {
    wait(job, status, |state| state["status"] == status)
}

/// The number that the guest wrote last into a disk or into a copy of it (tests/rigs/guest-writer.c); `None` before it did.
pub fn number(disk: &Path) -> Option<u64> {
    let mut head = [0; 16];
    fs::File::open(disk).unwrap().read_exact_at(&mut head, 0).unwrap();
    head.starts_with(b"GUESTSEQ").then(|| u64::from_le_bytes(head[8..].try_into().unwrap()))
}

/// What the state gives as the checksum of this disk.
pub fn hash(raw: &Path) -> String {
    checksum(&fs::read(raw).unwrap())
}

/// Is the target what the raw file is, with the conversion's change in it or without? Else where they differ first.
pub fn compare(raw: &Path, target: &Path, format: &str, is_converted: bool) -> Result<(), String> {
    let expected = fs::read(raw).unwrap();
    let expected = if is_converted { converted(expected) } else { expected };
    let directory = private();
    let plain = directory.path().join("plain");
    let got = match format {
        "raw" => fs::read(target).map_err(|error| format!("{}: {error}", target.display()))?,
        format => {
            qemu_img(
                Path::new("/"),
                &format!("convert -f {format} -O raw {} {}", target.display(), plain.display()),
            );
            fs::read(plain).unwrap()
        }
    };
    let same = expected.iter().zip(&got).take_while(|(one, other)| one == other).count();
    if same == expected.len() && got.len() >= same && got[same..].iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(format!(
        "{}: byte {same} of {} differs (the target has {})",
        target.display(),
        expected.len(),
        got.len()
    ))
}

/// A raw disk with noise at its beginning, in its middle and at its end, and holes between.
fn fill(raw: &Path, size: u64, number: usize) {
    let file = fs::File::create(raw).unwrap();
    file.set_len(size).unwrap();
    for (at, length) in [(0, 2 * MIB), (size / 2, MIB), (size - 4608, 4608)] {
        let mut bytes = vec![0; usize::try_from(length.min(size - at)).unwrap()];
        blake3::Hasher::new().update(format!("{number} {at}").as_bytes()).finalize_xof().fill(&mut bytes);
        file.write_all_at(&bytes, at).unwrap();
    }
}

/// The guest, built once.
fn writer() -> &'static Path {
    static WRITER: OnceLock<PathBuf> = OnceLock::new();
    WRITER.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-writer");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rigs/guest-writer.c");
        run(Command::new("cc").args(["-O2", "-Wall", "-o"]).args([&program, &source]));
        program
    })
}
