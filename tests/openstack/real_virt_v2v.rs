//! The real virt-v2v, with the real `openstack` command, into the real services: the one test in which nothing is played but
//! the hypervisor's part, the devices of attached volumes.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, json};

use super::lab::{Service, lab};
use super::real::{arrived, document, end, inventory, starts_with};
use crate::exports::site::{find, have, run};
use crate::rig::sandbox::Sandbox;

/// A file of the guest's root file system, without an appliance.
fn cat(image: &Path, path: &str) -> Vec<u8> {
    let image = format!("{}?offset=1048576", image.display());
    run(Command::new(find("debugfs").unwrap()).arg("-R").arg(format!("cat {path}")).arg(image))
}

#[test]
fn a_guest_that_virt_v2v_converted_runs_in_the_other_project() {
    if !have(&["virt-v2v", "openstack", "nbdkit", "nbdcopy", "qemu-img", "sfdisk", "mke2fs", "debugfs"]) {
        return;
    }
    let Some(lab) = lab() else { return };
    let before = inventory(&lab);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sandbox = Sandbox::new("v2v");
    let mut site = Map::new();
    site.insert("virt_v2v".into(), json!(find("virt-v2v").unwrap()));
    site.insert("virt_v2v_in_place".into(), json!(null));
    let kvm = Command::new(root.join("packaging/kvm-answers")).output().unwrap();
    if !kvm.status.success() {
        site.insert("libguestfs_backend_settings".into(), json!("force_tcg"));
    }
    sandbox.configure("job", &site);
    // A socket's path has at most 107 bytes, and libguestfs makes one below its own.
    let short = tempfile::Builder::new().prefix("v2v-").tempdir().unwrap();
    sandbox.env.push(("TMPDIR".to_owned(), Some(short.path().to_str().unwrap().to_owned())));
    let guest = sandbox.path("guest");
    let options = ["--name", "guest", "--size", "128", "--payload", "8", "--with-qga"];
    run(Command::new(root.join("tests/rigs/make-guest")).args(options).arg(&guest));
    // A disk that the conversion has no reason to write to: it must arrive bit for bit.
    let mut noise = vec![0; 16 << 20];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
    fs::write(guest.join("noise.img"), &noise).unwrap();
    let more = json!({
        "transport_method": "local",
        "source_disks": [guest.join("guest-disk1.img"), guest.join("noise.img")],
        "network_mappings": [{"source": "default", "destination": lab.networks["net4"],
            "mac_address": "00:50:56:00:40:01", "ip_address": "10.9.0.40"}],
    });
    let mut job = sandbox.start(document(&lab, "admin", "real guest", &more), super::lab::LIMIT);
    let last = end(&sandbox, &mut job);
    let volumes = arrived(&lab, &before, &last, &[("net4", "00:50:56:00:40:01", Some("10.9.0.40"))]);
    assert_eq!(volumes.len(), 2, "{last:#}");
    let boot = lab.file(&volumes[0]);
    let fstab = String::from_utf8(cat(&boot, "/etc/fstab")).unwrap();
    assert!(fstab.contains("/dev/vda1 / ext4"), "not converted: {fstab}");
    let payload = cat(&guest.join("guest-disk1.img"), "/opt/payload.bin");
    assert!(cat(&boot, "/opt/payload.bin") == payload, "the guest's data are not the same");
    assert!(starts_with(&lab, &volumes[1], &noise), "the second disk is not the same");
    let shown = lab.get("target", Service::Volume, &format!("/volumes/{}", volumes[0]))["volume"].clone();
    assert_eq!(shown["metadata"]["virt_v2v_guest_id"], "guest of admin", "{shown:#}");
    assert_eq!(shown["bootable"], "true", "{shown:#}");
}
