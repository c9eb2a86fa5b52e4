//! A vCenter with one machine whose guest writes to its disks all the time, and jobs that move it. What a test does
//! to the machine is in `machine`.
//!
//! Everything of the vCenter is outside of the sandbox: what is left of a job is looked for below that.

use std::fs;
use std::os::unix::fs::FileExt;
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

/// What is done to the machine and its vCenter, and what they tell.
mod machine;

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
    /// `size` instead of a file (four megabytes or more), or is that number alone. `None`, with a printed reason,
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
        self.sandbox.start(self.document(more), LIMIT)
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
        let mut seen = job.end();
        // With layout uci the states of the job before are in the same file.
        if self.layout == "uci" {
            let last = seen.states.iter().rev().skip(1).position(|state| state["finished"] == true);
            let earlier = last.map_or(0, |back| seen.states.len() - 1 - back);
            seen.states.drain(..earlier);
        }
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

/// The number that the guest wrote last into a disk or into a copy of it (tests/rigs/guest-writer.c); `None`
/// before it did.
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
