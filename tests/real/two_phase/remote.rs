//! Sources that are not files of this host: a vCenter with the stand-in for the VDDK, a datastore over ssh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::copied::{Expected, Seen, assert_copied};
use super::{COMMITTING, CONVERTING, PRE_COPY, assert_is_converted, assert_machine, assert_nothing_kept};
use crate::disks;
use crate::lab::{self, Site};
use crate::secrets::SecretWatch;
use crate::ssh::{KnownHosts, Sshd};
use crate::vddk::{PASSWORD, Vcenter};

/// Commits take seconds, so that a client sees them; otherwise the real qemu-img, in front of `PATH`.
fn slow_commits(site: &Site) {
    let path = site.path("sim/bin/qemu-img");
    let script = format!(
        "#!/usr/bin/env bash\nif [ \"$1\" = commit ]; then shift; set -- commit -r 256K \"$@\"; fi\n\
         exec '{}' \"$@\"\n",
        lab::find("qemu-img").unwrap().display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Rules: a machine that is switched on is refused in the contract's words, a certificate that is not the pinned one with
/// both fingerprints, and nothing is left of either; one that is off arrives with all its disks under the names that
/// vSphere has for them, in the order of its states; its password is in no argument, environment or file meanwhile.
#[test]
fn a_vmware_guest_is_copied_by_us_and_its_password_is_seen_nowhere() {
    if !super::have() || !crate::vddk::have() {
        return;
    }
    let mut site = Site::new();
    site.guest("vm", &[]);
    disks::noise(&site.path("guest/noise.img"), 16);
    let long = fs::OpenOptions::new().append(true).open(site.path("guest/noise.img")).unwrap();
    // No multiple of a chunk, of a cluster or of 4 KiB; and not all of it data.
    long.set_len((24 << 20) + 512).unwrap();
    let contents = [site.path("guest/vm-disk1.img"), site.path("guest/noise.img")];
    let vcenter = Vcenter::start(&mut site, &contents);
    slow_commits(&site);
    // Each read takes so long that a client that looks now and then sees the copy.
    site.set("VDDK_SIM_DELAY_US", "500000");
    let mut document = vcenter.document(&site, 2);
    document["two_phase"] = json!(true);
    document["output_format"] = json!("qcow2");
    // Found out by the program.
    document.as_object_mut().unwrap().remove("source_disks");

    let refused = |key: &str, value: &str| -> String {
        let mut other = document.clone();
        other[key] = json!(value);
        let message = site.start(&other).assert_failed();
        assert_nothing_kept(&site);
        message
    };
    // The simulator's other machines are on.
    let message = refused("vm_name", "DC0_H0_VM1");
    assert!(message.starts_with("Cannot perform final copy for running VM"), "{message}");
    assert!(message.contains("DC0_H0_VM1") && message.contains("Shut it down"), "{message}");
    let shown = document["vmware_fingerprint"].as_str().unwrap();
    let wrong = shown.replace(':', "").chars().rev().collect::<String>();
    let message = refused("vmware_fingerprint", &wrong);
    let digits = message.replace(':', "");
    assert!(digits.contains(&wrong) && digits.contains(&shown.replace(':', "")), "{message}");

    let watch = SecretWatch::new(&site, PASSWORD);
    let mut job = site.start(&document);
    let mut seen = Seen::default();
    let state = job.assert_converted_with(2, |state| seen.look(state));
    watch.assert_never_seen();
    seen.assert_in_order(&[PRE_COPY, CONVERTING, COMMITTING], 2, &["Copying", "Copied", "Committed"]);
    assert_nothing_kept(&site);
    for (index, content) in contents.iter().enumerate() {
        let name = format!("DC0_H0_VM0/disk{}.vmdk", index + 1);
        let path = format!("[LocalDS_0] {name}");
        let (absolute_path, label) = (format!("/{name}"), &format!("Hard disk {}", index + 1));
        assert_copied(&state, index, &Expected { path, absolute_path, label, maps: true, content });
        assert_eq!(state["disks"][index]["status"], json!("Committed"));
        assert_eq!(state["disks"][index]["commit_progress"], json!(100.0));
    }
    assert!(state["bytes_copied"] == state["bytes_total"] && state["bytes_total"].as_u64() > Some(16 << 20));

    let targets = ["sda", "sdb"].map(|disk| site.path(&format!("output/DC0_H0_VM0-{disk}")));
    for (target, content) in targets.iter().zip(&contents) {
        let size = fs::metadata(content).unwrap().len();
        assert_eq!(disks::image_info(target), ("qcow2".to_owned(), size));
    }
    disks::assert_same_content((&contents[1], "raw"), (&targets[1], "qcow2"));
    let raw = site.path("sim/converted.img");
    lab::run(Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&targets[0], &raw]));
    assert_is_converted(&raw);
    let [one, two] = targets;
    let xml = assert_machine(&site.path("output/DC0_H0_VM0.xml"), &[(one, "qcow2"), (two, "qcow2")]);
    assert!(xml.contains("<memory unit='KiB'>1048576</memory>"), "{xml}");
    let opened = fs::read_to_string(site.path("sim/vddk.log")).unwrap();
    assert!(opened.contains("transports=nbdssl:nbd"), "{opened}");
}

/// Rules: a guest is copied from a host's datastore over ssh with the document's key, which is in no argument, environment
/// or file; a host that cannot tell whether the guest runs is a warning; the conversion needs the host no more.
#[test]
fn a_vmx_over_ssh_is_copied_by_us_and_converted_without_its_host() {
    if !super::have() || !crate::ssh::have() {
        return;
    }
    let site = Site::new();
    site.guest("guest", &["--formats", "vmx-flat"]);
    let sshd = Sshd::start(&site);
    // ssh and nbdkit's libssh ask the password database where the account's home is, not the environment.
    let known_hosts = KnownHosts::with(&fs::read(sshd.directory.join("known_hosts")).unwrap());
    let key = fs::read_to_string(sshd.directory.join("id")).unwrap();
    let watch = SecretWatch::new(&site, key.lines().nth(2).expect("a key of several lines"));
    let mut job = site.start(&json!({
        "vm_name": "guest",
        "transport_method": "ssh",
        "two_phase": true,
        "vmware_uri": format!("ssh://root@127.0.0.1:{}{}", sshd.port, site.text("guest/guest.vmx")),
        "ssh_key": key,
        "output_directory": site.path("output"),
    }));
    let mut seen = Seen::default();
    job.until("the end of the copy", |_, state| {
        seen.look(state);
        state["status"] == json!(CONVERTING)
    });
    drop((known_hosts, sshd));
    fs::rename(site.path("guest"), site.path("gone")).unwrap();
    let state = job.assert_converted_with(1, |state| seen.look(state));
    watch.assert_never_seen();
    seen.assert_in_order(&[CONVERTING], 1, &["Copied", "Committed"]);
    assert_nothing_kept(&site);
    let path = site.text("guest/guest-disk1.vmdk");
    let content = site.path("gone/guest-disk1-flat.vmdk");
    // sftp knows of no holes.
    let expected =
        Expected { absolute_path: path.clone(), path, label: "Hard disk 1", maps: false, content: &content };
    assert_copied(&state, 0, &expected);
    let told = |words: &str| {
        let warnings = state["warnings"].as_array().into_iter().flatten();
        warnings.filter_map(Value::as_str).any(|warning| warning.contains(words))
    };
    assert!(told("cannot tell whether the virtual machine is powered off"), "{state:#}");
    let target: PathBuf = site.path("output/guest-sda");
    assert_eq!(disks::image_info(&target), ("raw".to_owned(), 128 << 20));
    assert_is_converted(&target);
    assert!(disks::cat(&target, "/opt/payload.bin") == disks::cat(&content, "/opt/payload.bin"));
    let xml = assert_machine(&site.path("output/guest.xml"), &[(target, "raw")]);
    for part in ["<memory unit='KiB'>1048576</memory>", "<mac address='00:0c:29:00:00:01'/>", "VM Network"] {
        assert!(xml.contains(part), "{part} is not in {xml}");
    }
}
