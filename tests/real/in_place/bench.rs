//! Copied disks, jobs built by hand, and what a test does while the stage runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};
use virt_v2v_wrapper::domain::Placed;
use virt_v2v_wrapper::guest::{Bus, Disk, Firmware, Guest, Nic};
use virt_v2v_wrapper::in_place::{self, InPlaceError, Replay, Task};
use virt_v2v_wrapper::job::{Job, JobFiles};
use virt_v2v_wrapper::journal::{self, Entry, Journal};
use virt_v2v_wrapper::plan::{self, DiskFormat, Surroundings, TwoPhasePrograms};
use virt_v2v_wrapper::recorder::Recorder;
use virt_v2v_wrapper::secret::Scrubber;
use virt_v2v_wrapper::signals::Signals;
use virt_v2v_wrapper::state::State;
use virt_v2v_wrapper::throttle::Throttling;
use virt_v2v_wrapper::v2v::capabilities::Capabilities;
use virt_v2v_wrapper::v2v::output::Drivers;
use virt_v2v_wrapper::{document, process, site};

use crate::job::{POLL, Process};
use crate::lab::{self, Site, V2V};

/// A name that is none of: a word, a file name, ASCII, no option.
pub const NAME: &str = "-a/b ü & 'c'";
/// For what must happen while a tool runs.
const LONG: Duration = Duration::from_secs(600);

pub fn have() -> bool {
    lab::have(V2V) && lab::have(&["virt-v2v-in-place"])
}

/// True in the process that is to do the test; elsewhere starts that process and waits for it.
pub fn alone(test: &str) -> bool {
    const MARK: &str = "V2V_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    // Holds one of the places for conversions meanwhile.
    let _slot = Site::new();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("in_place::{test}"), "--nocapture"])
        .env(MARK, "1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
    false
}

/// Copied disks of a guest with two, and the jobs that convert them.
pub struct Bench {
    pub site: Site,
    pub guest: Guest,
    pub copies: Vec<Placed>,
    pub programs: TwoPhasePrograms,
}

impl Bench {
    pub fn new() -> Self {
        process::become_subreaper().unwrap();
        let site = Site::new();
        site.guest("guest", &["--disks", "2", "--data-size", "64", "--data-payload", "4"]);
        let copies = vec![
            Placed { path: site.path("output/copy-1"), format: DiskFormat::Raw },
            Placed { path: site.path("output/copy-2"), format: DiskFormat::Qcow2 },
        ];
        let mut guest = Guest {
            name: NAME.into(),
            firmware: Firmware::Efi { secure_boot: true },
            memory_kib: 1 << 20,
            vcpus: 4,
            cores_per_socket: Some(2),
            ..Guest::default()
        };
        for (bus, (copy, number)) in [Bus::Sata, Bus::Scsi].into_iter().zip(copies.iter().zip(1..)) {
            guest.disks.push(Disk { bus, ..Disk::default() });
            let source = site.path(&format!("guest/guest-disk{number}.img"));
            lab::run(
                Command::new("qemu-img")
                    .args(["convert", "-O", copy.format.as_str()])
                    .args([&source, &copy.path]),
            );
        }
        guest.nics.push(Nic {
            mac: Some("52:54:00:00:00:01".into()),
            network: Some("VM Network".into()),
            model: Some("vmxnet3".into()),
            ..Nic::default()
        });
        let find = |program| lab::find(program).unwrap();
        let programs = TwoPhasePrograms {
            nbdkit: find("nbdkit"),
            qemu_nbd: find("qemu-nbd"),
            qemu_img: find("qemu-img"),
            virt_v2v_in_place: find("virt-v2v-in-place"),
        };
        Self { site, guest, copies, programs }
    }

    /// Commits take seconds from now on, or as long as they did before.
    pub fn slow_commits(&mut self, slow: bool) {
        let real = lab::find("qemu-img").unwrap();
        let path = self.site.path("slow-qemu-img");
        let script = format!(
            "#!/usr/bin/env bash\nif [ \"$1\" = commit ]; then shift; set -- commit -r 256K \"$@\"; fi\n\
             exec '{}' \"$@\"\n",
            real.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.programs.qemu_img = if slow { path } else { real };
    }

    /// A job with its directories, as the conductor would hand it over.
    pub fn job(&self, tag: &str) -> Job {
        let document = json!({"vm_name": "guest", "transport_method": "local", "two_phase": true,
            "source_path": self.site.path("guest/guest-disk1.img"),
            "output_directory": self.site.path("output")});
        let config = self.site.path("config.toml");
        let site = site::Site::parse(&fs::read_to_string(&config).unwrap(), &config).unwrap();
        let around = Surroundings { two_phase_programs: self.programs.clone(), ..Surroundings::default() };
        let document = document::parse(document.to_string().as_bytes()).unwrap().document;
        let directory = self.site.path(tag);
        let job = Job {
            plan: plan::plan(document, &site, &around).unwrap(),
            files: JobFiles {
                tag: tag.into(),
                directory: directory.clone(),
                log_directory: directory.clone(),
            },
            capabilities: Capabilities::default(),
            earlier: None,
        };
        fs::create_dir(&directory).unwrap();
        fs::create_dir(job.files.private_directory(&job.plan.tools.tmp_dir)).unwrap();
        job
    }

    /// The whole stage, with somebody beside it who interferes.
    pub fn run(
        &self,
        job: &Job,
        earlier: Option<&Replay>,
        interfere: impl FnOnce() + Send,
    ) -> Result<Drivers, InPlaceError> {
        std::thread::scope(|scope| {
            scope.spawn(interfere);
            // The tools die with the thread that starts them: this one.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let drivers = runtime.block_on(async {
                let mut signals = Signals::listen().unwrap();
                let mut recorder =
                    Recorder::new(job.files.state(), State::default(), Scrubber::new(Vec::new()));
                let mut journal = Journal::create(&job.files.journal()).unwrap();
                let task = Task { guest: &self.guest, domain: None, copies: &self.copies, earlier };
                let (mut throttling, _) = Throttling::start(job);
                in_place::run(job, task, &mut recorder, &mut journal, &mut signals, &mut throttling).await
            });
            process::kill_all(process::descendants, Duration::from_secs(10));
            drivers
        })
    }

    /// The contents of the copies.
    pub fn contents(&self) -> [Vec<u8>; 2] {
        [0, 1].map(|disk| content(&self.copies[disk], &self.site.path("content.img")))
    }
}

/// What a guest sees of an image.
pub fn content(image: &Placed, raw: &Path) -> Vec<u8> {
    let convert = ["convert", "-U", "-f", image.format.as_str(), "-O", "raw"];
    lab::run(Command::new("qemu-img").args(convert).args([image.path.as_path(), raw]));
    fs::read(raw).unwrap()
}

/// What a straight commit makes of an untouched copy: the conversion's overlay put over the source's own disk.
pub fn straight(bench: &Bench, overlays: &Path, number: usize) -> Vec<u8> {
    let overlay = Placed { path: bench.site.path("straight.qcow2"), format: DiskFormat::Qcow2 };
    fs::copy(overlays.join(format!("disk-{number}.qcow2")), &overlay.path).unwrap();
    let source = bench.site.path(&format!("guest/guest-disk{number}.img"));
    lab::run(
        Command::new("qemu-img").args(["rebase", "-u", "-F", "raw", "-b"]).args([&source, &overlay.path]),
    );
    content(&overlay, &bench.site.path("content.img"))
}

/// Waits for something that the stage does, and gives what it found.
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} in {LONG:?}");
        std::thread::sleep(POLL);
    }
}

pub fn state(job: &JobFiles) -> Option<Value> {
    serde_json::from_slice(&fs::read(job.state()).ok()?).ok()
}

/// The pid of a tool of this process with these words in its command line.
pub fn tool(words: &[&str]) -> Option<Pid> {
    let own = process::descendants();
    own.iter().map(|seen| seen.pid).find(|pid| {
        Process::of(pid.as_raw())
            .is_some_and(|process| words.iter().all(|word| lab::contains(&process.cmdline, word.as_bytes())))
    })
}

pub fn journal_of(job: &Job) -> Vec<Entry> {
    journal::read(&job.files.journal()).unwrap()
}
