//! `"two_phase": true` with the real nbdkit, qemu-nbd, qemu-img and virt-v2v-in-place. Oracle of every copy is the
//! source's own content, kept raw beside it, and a checksum computed here.

/// What a state says of copied disks.
mod copied;
/// Sources that are not files of this host: a vCenter, a datastore over ssh.
mod remote;
/// A machine that runs and writes while it is copied.
mod warm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::disks;
use crate::job::Process;
use crate::lab::{self, Site, V2V};

use copied::{Expected, Seen, assert_copied, checksum};

const PRE_COPY: &str = "Pre-copy #0 (last)";
const CONVERTING: &str = "Starting virt-v2v";
const COMMITTING: &str = "Finishing (committing overlays)";

fn have() -> bool {
    lab::have(V2V) && lab::have(&["virt-v2v-in-place"])
}

/// Asserts that virt-v2v converted the guest on this raw disk as it does in one phase.
fn assert_is_converted(image: &Path) {
    disks::assert_is_converted(image);
    let text = |path| String::from_utf8(disks::cat(image, path)).unwrap();
    assert_eq!(text("/boot/initrd.img-6.1.0-99-amd64"), "stand-in initrd\n", "the initramfs is not rebuilt");
    let modules = text("/etc/initramfs-tools/modules");
    assert!(["virtio_blk", "virtio_net"].iter().all(|module| modules.contains(module)), "{modules}");
}

/// Asserts that `<name>.xml` is one that virt-v2v reads, with these disks in their order, all on virtio.
fn assert_machine(xml: &Path, disks: &[(PathBuf, &str)]) -> String {
    let mut print = Command::new("virt-v2v");
    print.args(["-i", "libvirtxml"]).arg(xml).arg("--print-source");
    let said = String::from_utf8(lab::run(&mut print)).unwrap();
    let (_, rest) = said.split_once("disks:").unwrap();
    let (buses, _) = rest.split_once("removable media:").unwrap();
    let buses: Vec<&str> = buses.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let virtio: Vec<String> = (0..disks.len()).map(|disk| format!("{disk} [virtio-blk]")).collect();
    assert_eq!(buses, virtio, "{said}");
    let xml = fs::read_to_string(xml).unwrap();
    let mut rest = xml.as_str();
    for ((path, format), letter) in disks.iter().zip('a'..) {
        let disk = format!(
            "<driver name='qemu' type='{format}'/>\n      <source file='{}'/>\n      <target dev='vd{letter}' bus='virtio'/>",
            path.display()
        );
        rest = rest.split_once(&disk).unwrap_or_else(|| panic!("{disk} is not in {xml}")).1;
    }
    xml
}

/// Nothing is kept for a later job: no copies' ledgers, no lock.
fn assert_nothing_kept(site: &Site) {
    let kept: Vec<PathBuf> = lab::files(&site.path("state"))
        .into_iter()
        .filter(|file| {
            let name = file.file_name().unwrap().to_string_lossy();
            name.starts_with("copies-") || name == "lock"
        })
        .collect();
    assert_eq!(kept, Vec::<PathBuf>::new());
}

/// SIGKILL to every process of the site's jobs; none of them can do anything about another one's end.
fn kill_everything(site: &Site, supervisor: i32) {
    lab::signal(supervisor, Signal::SIGSTOP);
    lab::wait_for("end of all processes", || {
        let processes = site.processes();
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for process in &processes {
                match kill(Pid::from_raw(process.pid), signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => panic!("{signal} to {process:?}: {error}"),
                }
            }
        }
        processes.is_empty()
    });
}

/// Directories that libguestfs made for its sockets outside of every directory of ours.
fn socket_directories(processes: &[Process]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for process in processes {
        let arguments = String::from_utf8_lossy(&process.cmdline);
        for (at, beginning) in arguments.match_indices("/tmp/libguestfs") {
            let name = arguments.get(at + "/tmp/".len()..).and_then(|rest| rest.split('/').next()).unwrap();
            assert!(name.len() > "libguestfs".len(), "{beginning}: {arguments}");
            found.push(Path::new("/tmp").join(name));
        }
    }
    found
}

/// A guest of two disks described by a libvirt XML: one raw, one qcow2 on a base that holds other bytes.
struct TwoDisks {
    site: Site,
    document: Value,
    /// The disks' own content, beside the sources.
    contents: [PathBuf; 2],
}

impl TwoDisks {
    fn new() -> Self {
        let site = Site::new();
        let options =
            ["--disks", "2", "--data-size", "64", "--data-payload", "8", "--formats", "raw,libvirtxml"];
        site.guest("guest", &options);
        let content = |number| site.path(&format!("sim/content-{number}.img"));
        fs::copy(site.path("guest/guest-disk1.img"), content(1)).unwrap();
        fs::rename(site.path("guest/guest-disk2.img"), content(2)).unwrap();
        let (base, top) = (site.path("guest/base.qcow2"), site.path("guest/top.qcow2"));
        let qemu_img = |arguments: &[&str], files: &[&Path]| {
            lab::run(Command::new("qemu-img").args(arguments).args(files));
        };
        qemu_img(&["convert", "-O", "qcow2"], &[&content(2), &base]);
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b"], &[&content(2), &top]);
        lab::run(Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 7 12M 5M"]).arg(&base));
        // From here on the top holds where the base differs.
        qemu_img(&["rebase", "-f", "qcow2", "-F", "qcow2", "-b"], &[&base, &top]);
        let xml = site.path("guest/guest.xml");
        let (one, two) = (site.text("guest/guest-disk2.img"), site.text("guest/top.qcow2"));
        let text = fs::read_to_string(&xml).unwrap();
        let (before, after) = text.split_once(&one).unwrap();
        let (before, kind) = before.rsplit_once("type='raw'").unwrap();
        fs::write(&xml, format!("{before}type='qcow2'{kind}{two}{after}")).unwrap();
        let document = json!({
            "vm_name": "guest",
            "transport_method": "local",
            "two_phase": true,
            "source_path": xml,
            "output_directory": site.path("output"),
        });
        let contents = [content(1), content(2)];
        Self { site, document, contents }
    }

    fn targets(&self) -> [PathBuf; 2] {
        ["sda", "sdb"].map(|disk| self.site.path(&format!("output/guest-{disk}")))
    }

    /// Every file of the source and what it hashes to.
    fn sources(&self, directory: &str) -> Vec<(String, String)> {
        let mut files: Vec<PathBuf> = lab::files(&self.site.path(directory));
        files.sort();
        let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
        files.iter().map(|file| (name(file), checksum(file))).collect()
    }

    fn assert_copied(&self, state: &Value) {
        for (index, name) in ["guest/guest-disk1.img", "guest/top.qcow2"].into_iter().enumerate() {
            let (path, content) = (self.site.text(name), &self.contents[index]);
            let label = ["Hard disk 1", "Hard disk 2"][index];
            assert_copied(
                state,
                index,
                &Expected { absolute_path: path.clone(), path, label, maps: true, content },
            );
        }
    }
}

/// Rules, in the life of one guest: what is shown of its copies is true; when everything is killed in the middle of the
/// conversion the copies are what the source was; the job that resumes it converts them without the source, is done as
/// any other, and nothing of either job is left.
#[test]
fn a_guest_killed_in_the_middle_of_its_conversion_is_only_converted_again() {
    if !have() {
        return;
    }
    let guest = TwoDisks::new();
    let (site, targets) = (&guest.site, guest.targets());
    let sources = guest.sources("guest");
    let mut job = site.start(&guest.document);
    let mut seen = Seen::default();
    let overlay = site.path(&format!("tmp/v2v-{}-overlays/disk-1.qcow2", job.tag()));
    let mut size = None;
    let state = job.until("an overlay that is written to", |job, state| {
        seen.look(state);
        if state["status"] != json!(CONVERTING) {
            return false;
        }
        let now = fs::metadata(&overlay).map(|meta| meta.len()).unwrap_or_default();
        now > *size.get_or_insert(now) && job.v2v_log().contains("] Converting 12.0 to run on KVM")
    });
    guest.assert_copied(&state);
    let progress = state["progress"].as_f64().unwrap();
    assert!((85.0..95.0).contains(&progress), "{state:#}");
    seen.assert_in_order(&[CONVERTING], 2, &["Copied"]);
    let sockets = socket_directories(&site.processes());
    assert!(!sockets.is_empty(), "{:?}", site.processes());

    kill_everything(site, i32::try_from(state["wrapper_pid"].as_i64().unwrap()).unwrap());
    assert_eq!(job.state()["finished"], Value::Null, "somebody lived on");
    assert!(overlay.exists(), "somebody lived on");
    for (target, content) in targets.iter().zip(&guest.contents) {
        assert!(
            fs::read(target).unwrap() == fs::read(content).unwrap(),
            "{} was written to",
            target.display()
        );
    }

    fs::rename(site.path("guest"), site.path("gone")).unwrap();
    let mut document = guest.document.clone();
    document["resume"] = json!(job.tag());
    let mut again = site.start(&document);
    let closed = job.state();
    assert_eq!((&closed["failed"], &closed["finished"]), (&json!(true), &json!(true)), "{closed:#}");
    let mut seen = Seen::default();
    let state = again.assert_converted_with(2, |state| seen.look(state));
    seen.assert_in_order(&[CONVERTING], 2, &["Copied", "Committed"]);
    seen.assert_never(PRE_COPY);
    for (index, content) in guest.contents.iter().enumerate() {
        assert_eq!(state["disks"][index]["checksum"], json!(checksum(content)), "{state:#}");
        assert_eq!(state["disks"][index]["commit_progress"], json!(100.0), "{state:#}");
    }
    assert_nothing_kept(site);
    for directory in sockets {
        assert!(!directory.exists(), "{} outlives its job", directory.display());
    }
    assert!(guest.sources("gone") == sources, "the source was written to");
    assert_is_converted(&targets[0]);
    for path in ["/README", "/payload.bin"] {
        assert!(
            disks::cat(&targets[1], path) == disks::cat(&guest.contents[1], path),
            "{path} of the second disk"
        );
    }
    // Mounted by the conversion, so something of its file system is new.
    assert!(
        fs::read(&targets[1]).unwrap() != fs::read(&guest.contents[1]).unwrap(),
        "the second disk is not committed"
    );
    let [one, two] = targets;
    let xml = assert_machine(&site.path("output/guest.xml"), &[(one, "raw"), (two, "raw")]);
    assert!(xml.contains("<mac address='52:54:00:00:00:01'/>"), "{xml}");
    assert_eq!(lab::files(&site.path("output")).len(), 3);
}

/// Rules: a guest that cannot be converted keeps its copies, byte for byte the source; the user reads virt-v2v's reason
/// and how to go on; the job that resumes it begins with the conversion, without the source; cancelled, it leaves nothing.
#[test]
fn a_failed_conversion_keeps_the_copies_for_another_try() {
    if !have() {
        return;
    }
    let site = Site::new();
    site.guest("guest", &["--no-kernel", "--formats", "raw,vmx"]);
    let content = site.path("sim/content.img");
    fs::rename(site.path("guest/guest-disk1.img"), &content).unwrap();
    split_vmdk(&content, &site.path("guest"), "guest-disk1");
    let mut job = site.start(&json!({
        "vm_name": "guest",
        "transport_method": "local",
        "two_phase": true,
        "source_path": site.path("guest/guest.vmx"),
        "output_directory": site.path("output"),
    }));
    let message = job.assert_failure();
    let resume = format!("\"resume\": \"{}\"", job.tag());
    for part in ["no installed kernel packages were found", "was kept", &resume] {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    let state = job.state();
    assert_eq!(state["return_code"], json!(1));
    let path = site.text("guest/guest-disk1.vmdk");
    let absolute_path = path.clone();
    let expected = Expected { path, absolute_path, label: "Hard disk 1", maps: false, content: &content };
    assert_copied(&state, 0, &expected);
    assert_eq!(state["disks"][0]["status"], json!("Copied"), "{state:#}");
    let target = site.path("output/guest-sda");
    assert_eq!(lab::files(&site.path("output")), std::slice::from_ref(&target));
    assert!(fs::read(&target).unwrap() == fs::read(&content).unwrap(), "the copy is not the source");

    fs::rename(site.path("guest"), site.path("gone")).unwrap();
    let mut again = site.resume(job.tag());
    let mut seen = Seen::default();
    let state = again.until("virt-v2v-in-place", |_, state| {
        seen.look(state);
        state["started"] == json!(true)
    });
    let pid = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
    let running = Process::of(pid).expect("the pid is the converter's");
    assert!(lab::contains(&running.cmdline, b"virt-v2v-in-place"), "{running:?}");
    assert_eq!(state["disks"][0]["checksum"], json!(checksum(&content)), "{state:#}");
    seen.assert_in_order(&[CONVERTING], 1, &["Copied"]);
    seen.assert_never(PRE_COPY);
    lab::signal(i32::try_from(state["wrapper_pid"].as_i64().unwrap()).unwrap(), Signal::SIGTERM);
    let message = again.assert_failed();
    assert!(message.starts_with("Exiting on signal number 15"), "{message}");
    assert_nothing_kept(&site);
}

/// A raw image as VMware Workstation splits it: a descriptor and its pieces.
fn split_vmdk(raw: &Path, directory: &Path, name: &str) {
    let bytes = fs::read(raw).unwrap();
    let pieces: Vec<&[u8]> = bytes.chunks(bytes.len() / 2).collect();
    let mut extents = String::new();
    for (piece, number) in pieces.iter().zip(1..) {
        let file = format!("{name}-f00{number}.vmdk");
        fs::write(directory.join(&file), piece).unwrap();
        extents.push_str(&format!("RW {} FLAT \"{file}\" 0\n", piece.len() / 512));
    }
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n{extents}\n\
         ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"16\"\nddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n"
    );
    fs::write(directory.join(format!("{name}.vmdk")), descriptor).unwrap();
}
