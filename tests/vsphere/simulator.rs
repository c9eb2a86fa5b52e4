//! A simulated vCenter (tests/rigs/vcsim-cbt) with raw files behind its disks, and nbdkit with the stand-in for the VDDK
//! plugin: from `vmware_uri` to the bytes of the disks. The VDDK itself is not tested: it cannot be redistributed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use virt_v2v_wrapper::export::Export;
use virt_v2v_wrapper::guest::{Bus, Firmware};
use virt_v2v_wrapper::job::{Job, JobFiles};
use virt_v2v_wrapper::plan::{Surroundings, plan};
use virt_v2v_wrapper::site::Site;
use virt_v2v_wrapper::source::vsphere::machine::PowerState;
use virt_v2v_wrapper::source::vsphere::soap::{Call, Reference};
use virt_v2v_wrapper::source::vsphere::{self, Vsphere};
use virt_v2v_wrapper::v2v::capabilities::Capabilities;

use super::certificates::{Certificate, self_signed};
use crate::exports::site::{have, nbdkit_with_vddk, private, raw_disk, run, skip};
use crate::exports::{read_back, stop, try_serve};

pub const PASSWORD: &str = "Zx81-!pass <w>ord'\"&-7431";
pub const NAME: &str = "My \"VM\" & 'ü' <1> 虚拟机";

pub fn have_simulator() -> bool {
    have(&["go", "openssl"])
        && (Path::new("/usr/share/gocode/src/github.com/vmware/govmomi/simulator").is_dir()
            || skip("govmomi's simulator is not installed; packaging/install test"))
}

/// Built once; the suite `real` shares the cache.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = directory.join("vcsim-cbt-main");
        run(Command::new("go")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rigs/vcsim-cbt"))
            .env("GO111MODULE", "off")
            .env("GOPATH", "/usr/share/gocode")
            .env("GOCACHE", directory.join("go-cache"))
            .args(["build", "-o"])
            .args([&program, Path::new(".")]));
        program
    })
}

/// A vCenter for one test.
pub struct Vcenter {
    simulator: Child,
    pub address: String,
    pub certificate: Certificate,
    /// Of the simulator: `root/`, the socket `control`, `events.jsonl`.
    pub directory: tempfile::TempDir,
}

impl Vcenter {
    /// `machines` as the simulator's configuration has them.
    pub fn start(machines: &Value, datacenters: u32) -> Self {
        Self::start_in(private(), machines, datacenters)
    }

    /// The same in a directory that may already hold the machines' disks.
    pub fn start_in(directory: tempfile::TempDir, machines: &Value, datacenters: u32) -> Self {
        Self::start_with(directory, machines, datacenters, &[])
    }

    /// With further arguments of the simulator.
    pub fn with(machines: &Value, datacenters: u32, more: &[&str]) -> Self {
        Self::start_with(private(), machines, datacenters, more)
    }

    fn start_with(directory: tempfile::TempDir, machines: &Value, datacenters: u32, more: &[&str]) -> Self {
        let certificate = self_signed(directory.path(), "vcenter");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("vms.json"), machines.to_string()).unwrap();
        fs::create_dir(at("tmp")).unwrap();
        let mut simulator = Command::new(program())
            .env("TMPDIR", at("tmp"))
            .args(["-l", "127.0.0.1:0", "-user", &format!("administrator@vsphere.local:{PASSWORD}")])
            .args(["-dc", &datacenters.to_string()])
            .args(["-root".as_ref(), at("root").as_path(), "-config".as_ref(), at("vms.json").as_path()])
            .args([
                "-control".as_ref(),
                at("control").as_path(),
                "-events".as_ref(),
                at("events.jsonl").as_path(),
            ])
            .args(["-cert".as_ref(), certificate.file.as_path(), "-key".as_ref(), certificate.key.as_path()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(simulator.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.trim().strip_prefix("READY https://").and_then(|url| url.strip_suffix("/sdk"));
        let address = address.unwrap_or_else(|| panic!("the simulator said {ready:?}")).to_owned();
        Self { simulator, address, certificate, directory }
    }

    /// The URI of its host.
    pub fn uri(&self) -> String {
        format!("vpx://{}/DC0/DC0_H0?no_verify=1", self.address)
    }

    /// A job as the worker gets it.
    pub fn job(&self, name: &str, password: &str) -> Job {
        self.job_with(name, password, &json!({}))
    }

    /// The same with further keys of the document.
    pub fn job_with(&self, name: &str, password: &str, more: &Value) -> Job {
        let mut document = json!({
            "vm_name": name,
            "transport_method": "vddk",
            "vmware_uri": self.uri(),
            // VDDK gets the SHA-1 form all the same.
            "vmware_fingerprint": self.certificate.fingerprint("sha256"),
            "vmware_password": password,
            "output_directory": "/nowhere",
        });
        for (key, value) in more.as_object().unwrap() {
            document[key] = value.clone();
        }
        let document = virt_v2v_wrapper::document::parse(document.to_string().as_bytes()).unwrap().document;
        let plan = plan(document, &Site::default(), &Surroundings::default()).unwrap();
        let directory = self.directory.path().to_owned();
        let files = JobFiles { tag: "t".into(), directory: directory.clone(), log_directory: directory };
        Job { plan, files, capabilities: Capabilities::default(), earlier: None }
    }

    async fn opened(&self, name: &str) -> Result<virt_v2v_wrapper::source::Opened, String> {
        vsphere::open(&self.job(name, PASSWORD)).await.map_err(|error| error.to_string())
    }
}

impl Drop for Vcenter {
    fn drop(&mut self) {
        // Not killed: it removes its own directories.
        kill(nix::unistd::Pid::from_raw(self.simulator.id() as i32), Signal::SIGTERM).ok();
        self.simulator.wait().ok();
    }
}

/// From the URI to the bytes: a machine with a name that nobody would choose, two disks, and what is read of them is what
/// the vCenter keeps.
#[tokio::test]
async fn a_machine_is_found_and_its_disks_are_read() {
    if !have_simulator() || !have(&["nbdkit", "nbdcopy", "cc"]) {
        return;
    }
    let files = private();
    let raw: Vec<PathBuf> = ["a.raw", "b.raw"].iter().map(|name| files.path().join(name)).collect();
    raw.iter().for_each(|file| raw_disk(file));
    fs::OpenOptions::new().append(true).open(&raw[1]).unwrap().set_len(12 << 20).unwrap();
    let vcenter = Vcenter::start(
        &json!([{"vm": "DC0_H0_VM0", "name": NAME, "disks": raw, "guest": "rhel8_64Guest", "firmware": "efi",
            "memory": 1024, "off": true, "uuid": "421e9f3d-6e2a-9c2c-2f0b-d2a4a1a7c001"}]),
        1,
    );
    let opened = vcenter.opened(NAME).await.unwrap();

    let guest = &opened.guest;
    assert_eq!((guest.name.as_str(), guest.memory_kib, guest.vcpus), (NAME, 1 << 20, 1));
    assert_eq!(guest.os.as_deref(), Some("rhel8_64Guest"));
    assert_eq!(guest.firmware, Firmware::Efi { secure_boot: false });
    let sizes: Vec<_> = guest.disks.iter().map(|disk| disk.size).collect();
    assert_eq!(sizes, [Some((9 << 20) + 512), Some(12 << 20)]);
    assert!(guest.disks.iter().all(|disk| disk.bus == Bus::Scsi && disk.controller == Some(0)), "{guest:?}");
    assert_ne!((guest.disks[0].key, guest.disks[0].unit), (guest.disks[1].key, guest.disks[1].unit));
    let nic = &guest.nics[0];
    assert_eq!(nic.network.as_deref(), Some("DC0_DVPG0"));
    assert!(nic.mac.as_ref().is_some_and(|mac| mac.len() == 17 && *mac == mac.to_lowercase()), "{nic:?}");

    let nbdkit = nbdkit_with_vddk(vcenter.directory.path(), PASSWORD);
    assert_eq!(opened.disks.len(), 2);
    for (disk, raw) in opened.disks.iter().zip(&raw) {
        let path = disk.absolute_path.as_deref().unwrap();
        // A directory of the simulator, without the slash that a real one has at its end.
        assert!(path.starts_with('/') && path.contains("/DC0_H0_VM0/disk"), "{path}");
        assert_eq!((disk.read_size, disk.connections), (2 << 20, 1));
        let server = try_serve(&nbdkit, &disk.export, files.path()).await.unwrap();
        assert!(read_back(&server, &files.path().join("copy")) == fs::read(raw).unwrap(), "{raw:?}");
        stop(server, files.path()).await;
    }
    let passed = fs::read_to_string(vcenter.directory.path().join("vddk.log")).unwrap();
    let sha1 = vcenter.certificate.fingerprint("sha1");
    for part in [
        "user=administrator@vsphere.local ",
        &format!("thumbprint={sha1} "),
        "transports=nbdssl:nbd ",
        "server=127.0.0.1 ",
    ] {
        assert!(passed.contains(part), "{part}: {passed}");
    }
    let Export::Vddk { port, snapshot, .. } = &opened.disks[0].export else { panic!("{opened:?}") };
    let listens = vcenter.address.rsplit(':').next().map(|port| port.parse().unwrap());
    assert_eq!((*port, snapshot), (listens, &None));
}

/// contract.md 6.1: only one machine can be meant.
#[tokio::test]
async fn a_name_that_two_machines_have_is_refused_with_both() {
    if !have_simulator() {
        return;
    }
    let same = |machine: &str| json!({"vm": machine, "name": "twin", "off": true, "disks": []});
    let vcenter = Vcenter::start(&json!([same("DC0_H0_VM0"), same("DC1_H0_VM1")]), 2);
    let error = vcenter.opened("twin").await.unwrap_err();
    assert!(error.starts_with("VM name \"twin\" is not unique: vm-"), "{error}");
    assert!(error.contains(" in /DC0/vm") && error.contains(" in /DC1/vm"), "{error}");
    let error = vcenter.opened("twins").await.unwrap_err();
    assert!(error.starts_with("No VM with name \"twins\" among the 8 "), "{error}");
    let error = vsphere::open(&vcenter.job("twin", "wrong-5512")).await.unwrap_err().to_string();
    assert!(error.contains("refuses the login of administrator@vsphere.local"), "{error}");
    assert!(!error.contains("5512"), "{error}");
}

/// contract.md 6.3: what runs is not copied, and what ran in between is known by its mark.
#[tokio::test]
async fn a_running_machine_is_refused_and_leaves_another_mark() {
    if !have_simulator() {
        return;
    }
    let disks = private();
    let raw = disks.path().join("a.raw");
    raw_disk(&raw);
    let vcenter = Vcenter::start(&json!([{"vm": "DC0_H0_VM0", "disks": [raw], "off": true}]), 1);
    let marks = |opened: virt_v2v_wrapper::source::Opened| opened.disks[0].mark.clone().unwrap();
    let first = marks(vcenter.opened("DC0_H0_VM0").await.unwrap());
    assert_eq!(first, marks(vcenter.opened("DC0_H0_VM0").await.unwrap()));

    let session = Vsphere::connect(&vcenter.job("DC0_H0_VM0", PASSWORD).plan).await.unwrap();
    let machine = session.machine("DC0_H0_VM0").await.unwrap();
    assert_eq!(machine.power, PowerState::Off);
    let reference = Reference::new("VirtualMachine", &machine.moref);
    session.client().call(&Call::new("PowerOnVM_Task", &reference)).await.unwrap();
    let running = wait_for(&session, PowerState::On).await;
    let error = vcenter.opened("DC0_H0_VM0").await.unwrap_err();
    let expected = format!(
        "Cannot perform final copy for running VM \"DC0_H0_VM0\" ({}): it is switched on. Shut it down and start the job again",
        running.moref
    );
    assert_eq!(error, expected);
    session.client().call(&Call::new("PowerOffVM_Task", &reference)).await.unwrap();
    wait_for(&session, PowerState::Off).await;
    session.keep_alive().await.unwrap();
    session.close().await;
    assert_ne!(first, marks(vcenter.opened("DC0_H0_VM0").await.unwrap()));
}

pub async fn wait_for(session: &Vsphere, power: PowerState) -> vsphere::machine::Inventory {
    for _ in 0..500 {
        let machine = session.machine("DC0_H0_VM0").await.unwrap();
        if machine.power == power {
            return machine;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("never {power:?}");
}

/// What virt-v2v learns through libvirt is what we learn: a guest converted in two phases is that of one phase.
#[tokio::test]
async fn libvirt_is_told_the_same() {
    if !have_simulator() || !have(&["virt-v2v", "nbdkit", "cc"]) {
        return;
    }
    let disks = private();
    let raw = disks.path().join("a.raw");
    raw_disk(&raw);
    let machines =
        json!([{"vm": "DC0_H0_VM0", "disks": [raw], "off": true, "memory": 512, "firmware": "efi"}]);
    let vcenter = Vcenter::start(&machines, 1);
    let opened = vcenter.opened("DC0_H0_VM0").await.unwrap();
    nbdkit_with_vddk(vcenter.directory.path(), PASSWORD);
    let directory = vcenter.directory.path().display();
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap());
    let mut virt_v2v = Command::new("virt-v2v");
    virt_v2v
        .env("PATH", path)
        .env("TMPDIR", disks.path())
        .args([
            "-ic",
            &format!("vpx://administrator%40vsphere.local@{}/DC0/DC0_H0?no_verify=1", vcenter.address),
        ])
        .args([
            "-ip",
            &format!("{directory}/password"),
            "-it",
            "vddk",
            "-io",
            &format!("vddk-libdir={directory}"),
        ])
        .args(["-io", &format!("vddk-thumbprint={}", vcenter.certificate.fingerprint("sha1"))])
        .args(["DC0_H0_VM0", "--print-source"]);
    let told = String::from_utf8(run(&mut virt_v2v)).unwrap();
    let (guest, [disk], [nic]) = (&opened.guest, opened.guest.disks.as_slice(), opened.guest.nics.as_slice())
    else {
        panic!("{opened:?}")
    };
    assert_eq!((guest.firmware, disk.bus), (Firmware::Efi { secure_boot: false }, Bus::Scsi));
    for part in [
        guest.name.clone(),
        format!("memory: {} (bytes)", guest.memory_kib << 10),
        format!("nr vCPUs: {}", guest.vcpus),
        "firmware: uefi".to_owned(),
        "[scsi]".to_owned(),
        format!("mac: {}", nic.mac.as_deref().unwrap()),
    ] {
        assert!(told.contains(&part), "{part}: {told}");
    }
}
