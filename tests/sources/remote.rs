//! A host with a datastore, by a real sshd: the vmx fetched, the disks served by nbdkit's ssh plugin.

use virt_v2v_wrapper::guest::Bus;
use virt_v2v_wrapper::source::ssh::client::Host;
use virt_v2v_wrapper::source::ssh::guest;

use super::*;
use crate::exports::site::{Ssh, skip};

fn rig() -> Option<Ssh> {
    let tools = ["nbdkit", "qemu-img", "sshd", "ssh", "ssh-agent", "ssh-add", "ssh-keygen"];
    let root = || nix::unistd::geteuid().is_root() || skip("only root can start an sshd");
    (have(&tools) && root()).then(|| {
        let rig = Ssh::with_keys();
        rig.add_key();
        rig
    })
}

/// `path` in a URI.
fn escaped(path: &Path) -> String {
    let escape = |byte: &u8| match byte {
        b'/' | b'-' | b'a'..=b'z' | b'0'..=b'9' => char::from(*byte).to_string(),
        other => format!("%{other:02X}"),
    };
    path.to_str().unwrap().as_bytes().iter().map(escape).collect()
}

/// The host and the path that a URI of this vmx names.
fn host(rig: &Ssh, vmx: &Path) -> (Host, String) {
    let uri = format!("ssh://root@127.0.0.1:{}{}", rig.port, escaped(vmx));
    let (host, path) = Host::of(&uri, rig.path("agent")).unwrap();
    assert_eq!(path, vmx.to_str().unwrap());
    (Host { known_hosts: Some(rig.path("known_hosts")), ..host }, path)
}

async fn open_remote(rig: &Ssh, vmx: &Path) -> Result<Opened, String> {
    let (host, path) = host(rig, vmx);
    guest::open(&host, &path, "guest", "test").await.map_err(|error| chain(&error))
}

/// A datastore's directory with `name.vmx` and two flat disks.
fn store(rig: &Ssh, directory: &str, name: &str) -> PathBuf {
    let directory = rig.path(directory);
    fs::create_dir_all(&directory).unwrap();
    for (disk, mark) in [("web 1", 1), ("data", 2)] {
        marked_disk(&directory.join("raw.tmp"), mark);
        let image = directory.join(format!("{disk}.vmdk"));
        site::run(
            Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat"])
                .arg(directory.join("raw.tmp"))
                .arg(image),
        );
    }
    fs::remove_file(directory.join("raw.tmp")).unwrap();
    let vmx = directory.join(format!("{name}.vmx"));
    let data = directory.join("data.vmdk");
    let data = data.to_str().unwrap().replace('"', "|22");
    let text = format!(
        ".encoding = \"UTF-8\"\nmemsize = \"512\"\nnumvcpus = \"2\"\n\
         scsi1:0.present = \"TRUE\"\nscsi1:0.fileName = \"{data}\"\n\
         scsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"web 1.vmdk\"\n"
    );
    fs::write(&vmx, text).unwrap();
    vmx
}

/// Names are data: to our shell, to the host's, to ssh and to nbdkit (peers.md 6.3, row 46). Two controllers with equal
/// units are two disks (row 31), and a write is noticed.
#[test]
fn a_guest_with_odd_names_is_opened_read_and_watched() {
    let Some(rig) = rig() else { return };
    let directory = "it's \"ä\" $HOME `id`; -x % 中";
    let vmx = store(&rig, directory, "-n 'name' = \\");
    let directory = vmx.parent().unwrap();
    let job_directory = private();
    run(async {
        // With an agent of the job's own, as a job has.
        let key = plan::SshKey::Text(fs::read_to_string(rig.path("id")).unwrap().into());
        let agent = source::ssh::start_agent("test", &key, job_directory.path()).await.unwrap();
        let (host, path) = host(&rig, &vmx);
        let opened = guest::open(&Host { agent, ..host }, &path, "guest", "test").await.unwrap();
        let guest = &opened.guest;
        assert_eq!((guest.name.as_str(), guest.memory_kib, guest.vcpus), ("guest", 512 << 10, 2));
        let places: Vec<_> = guest
            .disks
            .iter()
            .map(|disk| (disk.bus, disk.controller, disk.unit, disk.path.clone()))
            .collect();
        let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        assert_eq!(
            places,
            [
                (Bus::Scsi, Some(0), Some(0), path("web 1.vmdk")),
                (Bus::Scsi, Some(1), Some(0), path("data.vmdk"))
            ]
        );
        assert_eq!(opened.disks[1].absolute_path, Some(path("data.vmdk")));
        // No ESXi: it cannot be told.
        assert!(opened.warnings[0].contains("cannot tell whether"), "{:?}", opened.warnings);
        let expected = ["web 1-flat.vmdk", "data-flat.vmdk"].map(|name| fs::read(path(name)).unwrap());
        assert_reads(&opened, &expected, job_directory.path()).await;

        let job = local_job(Path::new("/any"));
        let before = marks_of(&opened);
        assert_eq!(marks(&job, &opened).await, before);
        let flat = fs::File::options().write(true).open(path("data-flat.vmdk")).unwrap();
        flat.set_modified(std::time::SystemTime::now() + Duration::from_secs(9)).unwrap();
        let after = marks(&job, &opened).await;
        assert!(after[0] == before[0] && after[1] != before[1], "{after:?}");
    });
}

/// Through the job's own agent and the account's known_hosts, where a host of a minute's age cannot be.
#[test]
fn a_host_whose_key_is_not_known_is_refused_and_says_what_to_do() {
    let Some(rig) = rig() else { return };
    let vmx = store(&rig, "store", "guest");
    let key = fs::read_to_string(rig.path("id")).unwrap();
    let uri = format!("ssh://root@127.0.0.1:{}{}", rig.port, escaped(&vmx));
    let job = job(&json!({"transport_method": "ssh", "vmware_uri": uri, "ssh_key": key}));
    let directory = private();
    let error = run(open(&job, directory.path())).unwrap_err();
    let advice = format!("run `ssh -p {} root@127.0.0.1` once", rig.port);
    assert!(error.contains("is not known to this account") && error.contains(&advice), "{error}");
    // Another key than the known one is somebody else, or a new host.
    let other = fs::read_to_string(rig.path("id.pub")).unwrap();
    let line = format!("[127.0.0.1]:{} {other}", rig.port);
    fs::write(rig.path("known_hosts"), line).unwrap();
    let error = run(open_remote(&rig, &vmx)).unwrap_err();
    assert!(error.contains("is not the one in known_hosts"), "{error}");
}

/// A flat file is read as it is: whatever is not the whole disk in one flat file would be a wrong disk.
#[test]
fn a_snapshots_delta_and_other_disks_that_are_not_flat_are_refused() {
    let Some(rig) = rig() else { return };
    let vmx = store(&rig, "store", "guest");
    let at = |name: &str| vmx.parent().unwrap().join(name);
    let base = fs::read_to_string(at("data.vmdk")).unwrap();
    let delta = base
        .replace("parentCID=ffffffff", "parentCID=1a2b3c4d\nparentFileNameHint=\"data.vmdk\"")
        .replace("data-flat.vmdk", "data-000001-flat.vmdk")
        .replace("createType=\"monolithicFlat\"", "createType=\"vmfsSparse\"");
    assert_ne!(delta, base);
    fs::write(at("data-000001.vmdk"), delta).unwrap();
    // As large as the base, and readable: only the descriptor tells.
    fs::copy(at("data-flat.vmdk"), at("data-000001-flat.vmdk")).unwrap();
    qemu_img(vmx.parent().unwrap(), "create -q -f vmdk sparse.vmdk 1M");
    fs::write(at("short.vmdk"), base.replace("data-flat", "short-flat")).unwrap();
    fs::write(at("short-flat.vmdk"), [0; 512]).unwrap();
    let text = fs::read_to_string(&vmx).unwrap();
    for (disk, words) in [
        ("data-000001.vmdk", "consolidate (delete) its snapshots"),
        ("sparse.vmdk", "it is not a descriptor"),
        ("short.vmdk", "has 512 bytes, but its descriptor says 9437696"),
        ("gone.vmdk", "No such file"),
    ] {
        fs::write(&vmx, text.replace("web 1.vmdk", disk)).unwrap();
        let error = run(open_remote(&rig, &vmx)).unwrap_err();
        assert!(error.contains(words), "{disk}: {error}");
        let name = disk.trim_end_matches(".vmdk");
        assert!(error.contains(name) && error.contains("127.0.0.1"), "{error}");
    }
}

/// contract.md 6.3: a running machine's disks are not copied.
#[test]
fn a_machine_that_is_powered_on_is_refused() {
    let Some(rig) = rig() else { return };
    let vmx = store(&rig, "store", "guest");
    let lock = vmx.with_extension("vmx.lck");
    fs::write(&lock, "").unwrap();
    let error = run(open_remote(&rig, &vmx)).unwrap_err();
    assert!(error.starts_with("Cannot perform final copy for running VM: "), "{error}");
    assert!(error.contains(lock.to_str().unwrap()), "{error}");
}

/// Neither a key that nobody admits, nor a file that is none, nor one without end, holds the job up.
#[test]
fn a_host_that_is_of_no_help_is_told() {
    let Some(rig) = rig() else { return };
    let vmx = store(&rig, "store", "guest");
    let error = run(open_remote(&rig, &vmx.with_file_name("gone.vmx"))).unwrap_err();
    assert!(error.contains("cannot read") && error.contains("No such file"), "{error}");
    let error = run(open_remote(&rig, Path::new("/dev/zero"))).unwrap_err();
    assert!(error.contains("wrote more than"), "{error}");
    fs::write(rig.path("authorized_keys"), "").unwrap();
    let error = run(open_remote(&rig, &vmx)).unwrap_err();
    assert!(error.contains("does not let root in") && error.contains("authorized_keys"), "{error}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (host, path) = host(&rig, &vmx);
    let error = run(guest::open(&Host { port: Some(closed), ..host }, &path, "guest", "test")).unwrap_err();
    assert!(error.to_string().contains("cannot reach 127.0.0.1 by ssh: "), "{error}");
}
