//! A machine that runs: its guest writes to all disks until it is shut down for the last copy. Behind its file systems,
//! which the conversion needs as they are.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::copied::checksum;
use super::{CONVERTING, assert_is_converted, assert_machine, assert_nothing_kept};
use crate::disks;
use crate::job::Job;
use crate::lab::{self, Server, Site};
use crate::secrets::SecretWatch;
use crate::vddk::{PASSWORD, Vcenter};

/// Where the file systems end and what the guest writes begins. No disk ends on a chunk, a cluster or a page.
const BEHIND: u64 = 128 << 20;
const SIZES: [u64; 2] = [BEHIND + (24 << 20) + 512, BEHIND + (9 << 20) + 1536];

/// A guest that writes, until it is dropped.
fn writer(directory: &Path) -> Server {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-writer-real");
    let source = lab::repository("tests/rigs/guest-writer.c");
    lab::run(Command::new("cc").args(["-O2", "-Wall", "-o"]).args([&program, &source]));
    Server::start(Command::new(program).stdout(Stdio::null()).arg(directory).args([
        "--from",
        &BEHIND.to_string(),
        "--rate",
        "2097152",
        "--largest",
        "262144",
    ]))
}

/// What the guest counts in each disk while it writes (tests/rigs/guest-writer.c).
fn number(disk: &Path) -> u64 {
    let mut head = [0; 16];
    fs::File::open(disk).unwrap().read_exact_at(&mut head, BEHIND).unwrap();
    if head.starts_with(b"GUESTSEQ") { u64::from_le_bytes(head[8..].try_into().unwrap()) } else { 0 }
}

fn behind(disk: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = fs::File::open(disk).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(BEHIND)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What a job must not change.
fn found(vcenter: &Vcenter) -> Value {
    let machine = vcenter.machine();
    json!([machine["snapshots"], machine["change_tracking"], machine["disks"]])
}

/// A client asks for something, by a verb.
fn ask(job: &Job<'_>, verb: &str) {
    let state_file = job.state_file.to_str().unwrap();
    let output = job.site.run_with(&[verb, state_file], b"");
    assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Rules: a machine that never stops writing is copied in rounds while it is on, shut down by its guest when the cutover is
/// asked for, and then converted; every disk is what it was when the machine went off, but for the conversion; nothing of
/// the job is left on the source; its password is in no argument, environment or file meanwhile.
#[test]
fn a_vmware_guest_that_runs_arrives_as_it_was_when_it_went_off() {
    if !super::have() || !crate::vddk::have() {
        return;
    }
    let mut site = Site::new();
    site.guest("vm", &["--disks", "2", "--data-size", "64", "--data-payload", "8"]);
    let contents = [1, 2].map(|number| site.path(&format!("guest/vm-disk{number}.img")));
    for (content, size) in contents.iter().zip(SIZES) {
        fs::OpenOptions::new().append(true).open(content).unwrap().set_len(size).unwrap();
    }
    let vcenter = Vcenter::start_with(&mut site, &contents, json!({"tools": "running", "shutdownAfter": 1}));
    let before = found(&vcenter);
    let mut document = vcenter.document(&site, 2);
    let keys = json!({"warm": true, "shutdown_mode": "auto", "finalize_settle_seconds": 1, "output_format": "qcow2"});
    document.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    document.as_object_mut().unwrap().remove("source_disks");

    let watch = SecretWatch::new(&site, PASSWORD);
    let directory = PathBuf::from(vcenter.machine()["directory"].as_str().unwrap());
    let guest = writer(&directory);
    let mut job = site.start(&document);
    for round in 0..3 {
        let over =
            |state: &Value| state["rounds"][round]["seconds"].is_number() && state["status"] == "Waiting";
        job.until("the end of a round", |_, state| over(state));
        assert_eq!(vcenter.machine()["power"], json!("poweredOn"));
        let written = number(&contents[0]);
        lab::wait_for("more from the guest", || number(&contents[0]) > written + 5);
        ask(&job, if round < 2 { "copy-now" } else { "cutover" });
    }
    job.until("the conversion", |_, state| state["status"] == json!(CONVERTING));
    assert_eq!(vcenter.machine()["power"], json!("poweredOff"));
    let at_the_cut = contents.each_ref().map(|content| checksum(content));
    let state = job.assert_converted_with(2, |_| ());
    watch.assert_never_seen();
    assert_nothing_kept(&site);
    assert_eq!(found(&vcenter), before);

    let rounds: Vec<[&Value; 2]> =
        state["rounds"].as_array().unwrap().iter().map(|round| [&round["round"], &round["last"]]).collect();
    let [no, yes] = [json!(false), json!(true)];
    let numbers: Vec<Value> = (0..4).map(|round| json!(round)).collect();
    assert_eq!(rounds, [[&numbers[0], &no], [&numbers[1], &no], [&numbers[2], &no], [&numbers[3], &yes]]);
    let bytes: Vec<u64> =
        state["rounds"].as_array().unwrap().iter().filter_map(|round| round["bytes"].as_u64()).collect();
    // vSphere tells areas of 64 KiB.
    let most = SIZES.iter().map(|size| size - BEHIND + (128 << 10)).sum::<u64>();
    assert!(bytes[1..].iter().all(|delta| (1..=most).contains(delta)), "not only what changed: {bytes:?}");
    drop(guest);

    let targets = ["sda", "sdb"].map(|disk| site.path(&format!("output/DC0_H0_VM0-{disk}")));
    for (index, (content, target)) in contents.iter().zip(&targets).enumerate() {
        assert_eq!(
            checksum(content),
            at_the_cut[index],
            "disk {index} was written to after the machine went off"
        );
        assert_eq!(state["disks"][index]["checksum"], json!(at_the_cut[index]), "{state:#}");
        assert_eq!(disks::image_info(target), ("qcow2".to_owned(), SIZES[index]));
        let raw = site.path(&format!("sim/converted-{index}.img"));
        lab::run(Command::new("qemu-img").args(["convert", "-O", "raw"]).args([target, &raw]));
        assert!(number(content) > 15, "the guest wrote {} times", number(content));
        assert!(behind(&raw) == behind(content), "what the guest wrote into disk {index}");
    }
    let converted = [0, 1].map(|index| site.path(&format!("sim/converted-{index}.img")));
    assert_is_converted(&converted[0]);
    assert!(disks::cat(&converted[0], "/opt/payload.bin") == disks::cat(&contents[0], "/opt/payload.bin"));
    for path in ["/README", "/payload.bin"] {
        assert!(
            disks::cat(&converted[1], path) == disks::cat(&contents[1], path),
            "{path} of the second disk"
        );
    }
    let [one, two] = targets;
    assert_machine(&site.path("output/DC0_H0_VM0.xml"), &[(one, "qcow2"), (two, "qcow2")]);
}
