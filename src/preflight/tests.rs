//! Rules of the checks on this host, on real files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use secrecy::ExposeSecret;

use super::*;
use crate::plan::{LuksVault, plan};
use crate::site::Site;

fn a_plan(document: serde_json::Value) -> Plan {
    let parsed = crate::document::parse(&serde_json::to_vec(&document).unwrap()).unwrap();
    plan(parsed.document, &Site::default(), &Surroundings::default()).unwrap()
}

fn problems(document: serde_json::Value) -> Vec<String> {
    check(&mut a_plan(document), None).err().map(|problems| problems.lines().to_vec()).unwrap_or_default()
}

fn to_directory(directory: &Path) -> serde_json::Value {
    serde_json::json!({"vm_name": "vm", "transport_method": "vddk", "vmware_fingerprint": "f", "vmware_uri": "esx://h",
        "vmware_password": "p", "output_directory": directory})
}

#[test]
fn the_output_directory_must_be_usable_and_free() {
    let root = tempfile::tempdir().unwrap();
    let shown = root.path().display().to_string();
    let case = |name: &str| problems(to_directory(&root.path().join(name)));
    std::fs::write(root.path().join("file"), "").unwrap();
    std::fs::create_dir(root.path().join("ok")).unwrap();
    for other in ["vm2-sda", "other.xml", "vm-sd", "vm-sda1", "vm.xml.old", "xvm.xml"] {
        std::fs::write(root.path().join("ok").join(other), "").unwrap();
    }
    assert_eq!(case("ok"), Vec::<String>::new());
    assert_eq!(
        case("none"),
        [format!("output_directory {shown}/none does not exist: create it or name another")]
    );
    assert_eq!(case("file"), [format!("output_directory {shown}/file is not a directory")]);
    for (name, left) in [("a", "vm-sda"), ("b", "vm-sdab"), ("c", "vm.xml")] {
        std::fs::create_dir(root.path().join(name)).unwrap();
        std::fs::write(root.path().join(name).join(left), "").unwrap();
        let expected = format!(
            "output_directory {shown}/{name} already holds {left}: remove what is there of this virtual machine, or \
             name another directory"
        );
        assert_eq!(case(name), [expected]);
    }
    if !geteuid().is_root() {
        std::fs::set_permissions(root.path().join("ok"), Permissions::from_mode(0o500)).unwrap();
        assert!(case("ok")[0].contains("is not writable"));
    }
}

#[test]
fn local_sources_must_be_there() {
    let root = tempfile::tempdir().unwrap();
    let shown = root.path().display().to_string();
    for file in ["a.img", "b.img", "a.vmx"] {
        std::fs::write(root.path().join(file), "").unwrap();
    }
    std::fs::create_dir_all(root.path().join("dir.ova")).unwrap();
    std::fs::create_dir_all(root.path().join("dir.img")).unwrap();
    let out = root.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let document = |key: &str, value: serde_json::Value| {
        let mut document =
            serde_json::json!({"vm_name": "vm", "transport_method": "local", "output_directory": out});
        document[key] = value;
        problems(document)
    };
    let path = |name: &str| document("source_path", root.path().join(name).to_str().unwrap().into());
    for good in ["a.img", "a.vmx", "dir.ova"] {
        assert_eq!(path(good), Vec::<String>::new());
    }
    assert_eq!(path("c.img"), [format!("source_path {shown}/c.img does not exist")]);
    assert_eq!(path("dir.img"), [format!("source_path {shown}/dir.img is not a file or a block device")]);
    let disks =
        ["a.img", "x.img", "b.img", "y.img"].map(|name| root.path().join(name).to_str().unwrap().to_owned());
    assert_eq!(
        document("source_disks", disks.to_vec().into()),
        [
            format!("source_disks[1] {shown}/x.img does not exist"),
            format!("source_disks[3] {shown}/y.img does not exist")
        ]
    );
}

#[test]
fn the_vault_comes_first_and_fills_the_plan() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("vault.json");
    std::fs::write(&file, r#"{"vm": [{"device": "/dev/sda1", "key": "luks-one"}]}"#).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let mut plan = a_plan(to_directory(root.path()));
    plan.luks_vault = LuksVault { paths: vec![file.clone()], explicit: true, names: vec!["vm".into()] };
    check(&mut plan, None).unwrap();
    assert_eq!(plan.luks_keys[0].key.expose_secret(), "luks-one");
    assert!(plan.secrets().iter().any(|secret| secret.expose_secret() == "luks-one"));
    assert!(!format!("{plan:?}").contains("luks-one"));

    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let mut plan = a_plan(to_directory(&root.path().join("none")));
    plan.luks_vault = LuksVault { paths: vec![file], explicit: true, names: vec!["vm".into()] };
    let problems = check(&mut plan, None).unwrap_err();
    assert_eq!(problems.first(), "LUKS keys vault is accessible to others");
    assert_eq!(problems.lines().len(), 2);
}

#[test]
fn surroundings_give_a_fresh_id_each_time() {
    let look = || {
        surroundings(&|name| (name == "HOME").then(|| "/h".into()), "/v".into(), Default::default()).unwrap()
    };
    let (one, two) = (look(), look());
    assert_eq!((one.guest_id.len(), one.home), (36, Some("/h".into())));
    assert_ne!(one.guest_id, two.guest_id);
}

/// A document that is sent again, or resumed, may hold a time that is over. It is not refused, and not kept quiet.
#[test]
fn an_end_that_is_over_is_told() {
    let root = tempfile::tempdir().unwrap();
    let now = jiff::Timestamp::now();
    let hour = jiff::SignedDuration::from_hours(1);
    for (at, expected) in [(now + hour, 0), (now - hour, 1)] {
        let mut document = to_directory(root.path());
        document["warm"] = true.into();
        document["shutdown_mode"] = "force".into();
        document["finalize_at"] = at.to_string().into();
        let mut plan = a_plan(document);
        check(&mut plan, None).unwrap();
        let told =
            plan.warnings.iter().filter(|text| text.starts_with("finalize_at is over already")).count();
        assert_eq!(told, expected, "{at}: {:?}", plan.warnings);
    }
}

/// What is told of a guest before it is copied: Windows without drivers, and disks that do not fit.
#[test]
fn a_guest_is_warned_of_before_it_is_copied() {
    let root = tempfile::tempdir().unwrap();
    let mut plan = a_plan(to_directory(root.path()));
    let guest = |os: Option<&str>, size: u64| {
        let disk = crate::guest::Disk { size: Some(size), ..Default::default() };
        Guest { os: os.map(str::to_owned), disks: vec![disk.clone(), disk], ..Guest::default() }
    };
    let windows =
        [Some("windows9Server64Guest"), Some("winXPProGuest"), Some("Microsoft Windows 10 (64-bit)")];
    let others = [None, Some("rhel8_64Guest"), Some("darwin20_64Guest")];
    plan.tools.virtio_win = Some(root.path().join("gone"));
    for (systems, warned) in [(windows, true), (others, false)] {
        for os in systems {
            let told = of_guest(&plan, &guest(os, 1), false);
            assert_eq!(
                told.iter().any(|line| line.contains("no Windows drivers")),
                warned,
                "{os:?}: {told:?}"
            );
        }
    }
    plan.tools.virtio_win = Some(root.path().to_owned());
    assert_eq!(of_guest(&plan, &guest(windows[0], 1), false), [""; 0]);

    let free = free_bytes(root.path()).unwrap();
    let told = of_guest(&plan, &guest(None, free), false);
    assert!(matches!(&told[..], [line] if line.contains("the conversion fails")), "{told:?}");
    assert_eq!(
        of_guest(&plan, &guest(None, free), true),
        [""; 0],
        "what a resumed job still needs is not known"
    );
    assert_eq!(room(&plan, &guest(None, 1 << 20)).unwrap().worst_case, 2 << 20);
    plan.output_format = DiskFormat::Qcow2;
    assert!(room(&plan, &guest(None, 1 << 20)).unwrap().worst_case > 2 << 20);
    assert!(!room(&plan, &guest(None, u64::MAX)).unwrap().is_enough());
}
