//! A sandbox with a guest of two raw disks, and jobs that move it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::exports::site::{find, have};
use crate::rig::always;
use crate::rig::job::Job;
use crate::rig::poll;
use crate::rig::sandbox::Sandbox;

pub const MIB: u64 = 1 << 20;
/// Nothing here takes so long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(90);
/// What the conversion writes into each disk: data over data, and data into a hole.
const CHANGE: (u8, u64, u64) = (0x5a, 3 * MIB - 65_536, 131_072);
/// Bytes of the guest's disks that are data.
pub const DATA: u64 = 3 * MIB + 9 * MIB;

/// What virt-v2v-in-place does in a sandbox: the words of the real one around the change, these steps, and a good end or
/// a bad one.
pub fn play_to(sandbox: &Sandbox, steps: &[Value], exit: i32) {
    let log = include_str!("../../fixtures/virt-v2v/2.2.0/in-place-libvirtxml-two-disks-plain/v2v.log");
    let (before, after) = log.split_once("[  95.1]").unwrap();
    let (pattern, offset, length) = CHANGE;
    let change = json!({"text": before, "convert": {"pattern": pattern, "offset": offset, "length": length}});
    let mut all = vec![change];
    all.extend_from_slice(steps);
    if exit == 0 {
        all.push(json!({"text": format!("[  95.1]{after}")}));
    } else {
        all.push(json!({"text": "virt-v2v-in-place: error: no root device found\n", "to": "err"}));
    }
    sandbox.scenario(&json!({"steps": all, "exit": exit, "on_term": "exit"}));
}

/// The bytes of a disk after that.
pub fn converted(mut bytes: Vec<u8>) -> Vec<u8> {
    let (pattern, offset, length) = CHANGE;
    bytes[offset as usize..(offset + length) as usize].fill(pattern);
    bytes
}

/// What the state gives as the checksum of a disk of these bytes.
pub fn checksum(bytes: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    for chunk in bytes.chunks(4 << 20) {
        hasher.update(blake3::hash(chunk).as_bytes());
    }
    format!("blake3-4MiB:{}", hasher.finalize().to_hex())
}

/// Two disks, of which the second is given out from 8 MiB on only when `go` exists, if a test says so.
pub struct Site {
    pub sandbox: Sandbox,
    keys: Map<String, Value>,
    layout: &'static str,
}

impl Site {
    /// `None`, with a printed reason, where a tool is missing.
    pub fn new(layout: &'static str) -> Option<Self> {
        if !have(&["nbdkit", "qemu-nbd", "qemu-img", "qemu-io"]) {
            return None;
        }
        let mut site = Self { sandbox: Sandbox::new("two-phase"), keys: Map::new(), layout };
        site.set(json!({}));
        site.play(&[]);
        fs::create_dir(site.sandbox.path("source")).unwrap();
        for (name, size, at, length) in
            [("a.img", 9 * MIB + 512, 0, 3 * MIB), ("b.img", 14 * MIB, 4096, 9 * MIB)]
        {
            let file = fs::File::create(site.sandbox.path("source").join(name)).unwrap();
            file.set_len(size).unwrap();
            let mut bytes = vec![0; length as usize];
            blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
            file.write_all_at(&bytes, at).unwrap();
        }
        Some(site)
    }

    /// More keys of the site configuration.
    pub fn set(&mut self, keys: Value) {
        self.keys.extend(keys.as_object().unwrap().clone());
        self.sandbox.configure(self.layout, &self.keys);
    }

    /// What virt-v2v-in-place does: the words of the real one around the change, these steps, and a good end.
    pub fn play(&self, steps: &[Value]) {
        self.play_to(steps, 0);
    }

    pub fn play_to(&self, steps: &[Value], exit: i32) {
        play_to(&self.sandbox, steps, exit);
    }

    /// The second disk is not read to its end before [`Self::go`]; what is read is noted.
    pub fn gate(&mut self) {
        let script = format!(
            "disk=\nfor word; do disk=$word; done\nexport disk=\"${{disk#file=}}\"\n\
             # Without the last two words, which are the plugin and its parameter.\n\
             left=$(($# - 2))\n\
             for word; do shift; [ $left -le 0 ] || set -- \"$@\" \"$word\"; left=$((left - 1)); done\n\
             exec '{nbdkit}' \"$@\" eval thread_model='echo parallel' get_size='stat -c %s \"$disk\"' \
             can_extents='exit 0' extents='echo \"$4 $3 \"' pread='echo \"$disk $4 $3\" >> {dir}/reads\n\
             case \"$disk\" in */b.img) while [ $4 -ge 8388608 ] && [ ! -e {dir}/go ]; do sleep 0.02; done;; esac\n\
             exec dd if=\"$disk\" skip=$4 count=$3 iflag=skip_bytes,count_bytes bs=1M status=none'",
            nbdkit = find("nbdkit").unwrap().display(),
            dir = self.sandbox.dir.display(),
        );
        let script = self.sandbox.script("nbdkit", &script);
        self.set(json!({"nbdkit": script}));
    }

    pub fn go(&self) {
        fs::write(self.sandbox.path("go"), "").unwrap();
    }

    /// Reads of the gated disks so far: file name, offset.
    pub fn reads(&self) -> Vec<(String, u64)> {
        let text = fs::read_to_string(self.sandbox.path("reads")).unwrap_or_default();
        let of_line = |line: &str| {
            let mut words = line.rsplit('/').next()?.split(' ');
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        };
        text.lines().filter_map(of_line).collect()
    }

    /// Before each commit the real qemu-img is kept waiting, or not, by this shell; `$1` is `commit`.
    pub fn wrap_qemu_img(&mut self, shell: &str) {
        fs::create_dir_all(self.sandbox.path("path")).unwrap();
        let real = find("qemu-img").unwrap();
        let text = format!("if [ \"$1\" = commit ]; then\n{shell}\nfi\nexec '{}' \"$@\"", real.display());
        let script = self.sandbox.script("qemu-img", &text.replace("$REAL", real.to_str().unwrap()));
        fs::rename(script, self.sandbox.path("path/qemu-img")).unwrap();
        let path = std::env::var("PATH").unwrap();
        self.sandbox.env.push(("PATH".to_owned(), Some(format!("${{DIR}}/path:{path}"))));
    }

    pub fn source(&self, disk: usize) -> PathBuf {
        self.sandbox.path("source").join(["a.img", "b.img"][disk])
    }

    pub fn copy(&self, disk: usize) -> PathBuf {
        self.sandbox.path("out").join(["guest-sda", "guest-sdb"][disk])
    }

    /// The guest has no disks any more where they were.
    pub fn hide_source(&self) {
        fs::rename(self.sandbox.path("source"), self.sandbox.path("hidden")).unwrap();
    }

    /// All bytes of the source, wherever it is now.
    pub fn bytes(&self, disk: usize) -> Vec<u8> {
        let hidden = self.sandbox.path("hidden").join(["a.img", "b.img"][disk]);
        fs::read(if hidden.exists() { hidden } else { self.source(disk) }).unwrap()
    }

    /// Is a copy what the disk is, with the conversion's change or without? That of a qcow2 is compared by qemu-img.
    pub fn is_copy(&self, disk: usize, is_converted: bool, format: &str) -> bool {
        let bytes = if is_converted { converted(self.bytes(disk)) } else { self.bytes(disk) };
        if format == "raw" {
            return fs::read(self.copy(disk)).is_ok_and(|copy| copy == bytes);
        }
        let expected = self.sandbox.path("expected");
        fs::write(&expected, bytes).unwrap();
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-q", "-f", "raw", "-F", format]).args([expected, self.copy(disk)]);
        compare.status().unwrap().success()
    }

    /// What the state must give as a disk's checksum.
    pub fn checksum(&self, disk: usize) -> String {
        checksum(&self.bytes(disk))
    }

    pub fn document(&self, more: &Value) -> Vec<u8> {
        let mut document = json!({
            "vm_name": "guest",
            "transport_method": "local",
            "two_phase": true,
            "source_disks": [self.source(0), self.source(1)],
            "output_directory": self.sandbox.path("out"),
        });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document.to_string().into_bytes()
    }

    /// A job that the program takes.
    pub fn start(&self, more: &Value) -> Job {
        self.sandbox.start(self.document(more), LIMIT)
    }

    /// What the program says to a document that it refuses: exit code 1, one sentence, nothing on stdout.
    pub fn refused(&self, more: &Value) -> String {
        let mut job = self.sandbox.spawn(self.document(more));
        let exit = job.wait_exit(LIMIT).and_then(|status| status.code());
        assert_eq!((exit, job.stdout().bytes.len()), (Some(1), 0), "{more}");
        String::from_utf8_lossy(&job.stderr().bytes).into_owned()
    }

    /// Waits for the last state, looks at all that were seen, and gives it.
    pub fn end(&self, job: &mut Job) -> Value {
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
        seen.states.last().unwrap().clone()
    }

    /// The tag of a job: in its reply's paths, or, where these are always the same, of the only copies that are there.
    pub fn tag(&self, job: &Job) -> String {
        if self.layout == "job" {
            let file = PathBuf::from(job.reply().unwrap()["state_file"].as_str().unwrap());
            return file.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        }
        let copies = self.kept();
        assert_eq!(copies.len(), 1, "{copies:?}");
        copies[0].file_name().unwrap().to_str().unwrap().strip_prefix("copies-").unwrap().to_owned()
    }

    /// Directories with ledgers of copies that can be resumed.
    pub fn kept(&self) -> Vec<PathBuf> {
        let jobs = fs::read_dir(self.sandbox.path("state/jobs")).into_iter().flatten().flatten();
        let places = jobs.map(|job| job.path()).chain([self.sandbox.path("state")]);
        let in_places = places.flat_map(|place| fs::read_dir(place).unwrap().flatten());
        let copies = in_places.filter(|entry| entry.file_name().to_string_lossy().starts_with("copies-"));
        copies.map(|entry| entry.path()).collect()
    }

    /// What is in a directory of the case.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.sandbox.path(directory)).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Kills every process of the job as a power cut would.
    pub fn cut(&self, job: &Job) {
        let cut = || {
            let alive = job.alive();
            for (pid, _) in &alive {
                // Gone in the meantime is as good.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            alive.is_empty().then_some(())
        };
        poll(LIMIT, cut).expect("all are killed");
    }

    /// Both disks hold the conversion, the machine is described, and nothing else is left.
    pub fn assert_moved(&self, last: &Value, format: &str) {
        assert_eq!(last["failed"], false, "{last}");
        for disk in [0, 1] {
            assert!(self.is_copy(disk, true, format), "disk {disk}: {last}");
            assert_eq!(last["disks"][disk]["checksum"], self.checksum(disk));
        }
        assert_eq!(self.names("out"), ["guest-sda", "guest-sdb", "guest.xml"]);
        assert_eq!(self.names("tmp"), [""; 0]);
        assert_eq!(self.kept(), Vec::<PathBuf>::new());
    }

    /// Both disks are what the source is, and can be gone on with.
    pub fn assert_kept(&self) {
        for disk in [0, 1] {
            assert!(self.is_copy(disk, false, "raw"), "disk {disk}");
        }
        assert_eq!(self.names("out"), ["guest-sda", "guest-sdb"]);
        assert_eq!(self.names("tmp"), [""; 0]);
        assert_eq!(self.kept().len(), 1);
    }
}

/// Waits until a state says so.
pub fn wait(job: &Job, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    job.wait_state(LIMIT, wanted).unwrap_or_else(|| panic!("not seen: {what}; last {:?}", job.last_state()))
}
