//! Disks that the program makes, fills and gives to a machine.

use std::fs;

use serde_json::json;

use super::site::{Lab, message};
use crate::two_phase::site::wait;

/// A libvirt XML with hardware and two networks, over the disks of the site.
fn domain(lab: &Lab, name: &str) -> String {
    let disk = |index: usize, target: &str| {
        let path = lab.site.source(index);
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='{target}' bus='scsi'/></disk>",
            path.display()
        )
    };
    let nic = |mac: &str, network: &str| {
        format!("<interface type='bridge'><mac address='{mac}'/><source bridge='{network}'/></interface>")
    };
    format!(
        "<domain type='kvm'><name>{name}</name><memory unit='KiB'>3145728</memory><vcpu>4</vcpu>\
         <cpu><topology sockets='2' cores='2' threads='1'/></cpu><os><type arch='x86_64'>hvm</type></os>\
         <devices>{}{}{}{}{}</devices></domain>",
        disk(0, "sda"),
        disk(1, "sdb"),
        nic("00:50:56:01:02:03", "VM Network"),
        nic("00:50:56:01:02:04", "second"),
        nic("00:50:56:01:02:05", "nowhere")
    )
}

/// From the document to a machine with the hardware of the guest, on the networks it was mapped to.
#[test]
fn the_guest_is_there_with_its_bytes_and_its_hardware() {
    for layout in ["job", "uci"] {
        let Some(lab) = Lab::new(layout) else { return };
        let xml = lab.site.sandbox.path("guest.xml");
        fs::write(&xml, domain(&lab, "guest")).unwrap();
        let last = lab.run(&json!({
            "source_disks": null, "source_path": xml,
            "network_mappings": [
                {"source": "VM Network", "destination": "ovirtmgmt"},
                {"source": "x", "destination": "gold", "mac_address": "00:50:56:01:02:04"},
            ],
        }));
        let id = lab.assert_there(&last, "guest");
        let world = lab.engine.world();
        let vm = &world.vms[&id];
        assert_eq!(vm["memory"], 3_u64 << 30, "{vm:#}");
        assert_eq!(vm["cpu"]["topology"], json!({"sockets": 2, "cores": 2, "threads": 1}));
        assert_eq!(vm["bios"]["type"], "q35_sea_bios");
        let mark = format!("{}-machine", if layout == "job" { lab.tags().remove(0) } else { String::new() });
        assert!(vm["description"].as_str().unwrap().ends_with(&mark), "{vm}");
        let nics: Vec<_> = world
            .nics
            .iter()
            .map(|(_, nic)| (&nic["mac"]["address"], &nic["vnic_profile"]["id"], &nic["interface"]))
            .map(|(mac, profile, model)| (mac.as_str().unwrap(), profile.as_str(), model.as_str().unwrap()))
            .collect();
        let expected = [
            ("00:50:56:01:02:03", Some("p-mgmt"), "virtio"),
            ("00:50:56:01:02:04", Some("p-gold"), "virtio"),
            ("00:50:56:01:02:05", None, "virtio"),
        ];
        assert_eq!(nics, expected);
        assert!(
            last["warnings"].to_string().contains("NIC 3 (nowhere) of the new machine has no network"),
            "{last:#}"
        );
        for disk in world.disks.values() {
            assert_eq!((&disk["sparse"], &disk["format"]), (&json!(true), &json!("raw")), "{disk}");
            assert!(disk["description"].as_str().unwrap().starts_with("Converted on "), "{disk}");
        }
        assert!(world.tokens.is_empty(), "a token was not given back");
    }
}

/// After hours of copying a name with a space is no reason to have nothing.
#[test]
fn a_machine_whose_name_the_engine_does_not_take_gets_a_plain_one() {
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.world().strict = true;
    let last = lab.run(&json!({"vm_name": "my \"web\" 1"}));
    assert_eq!(last["failed"], false, "{last:#}");
    let id = last["vm_id"].as_str().unwrap();
    let world = lab.engine.world();
    assert_eq!(world.vms[id]["name"], "my__web__1");
    assert_eq!(world.attachments.iter().filter(|one| one.vm == id).count(), 2);
    assert!(last["warnings"].to_string().contains("is called my__web__1"), "{last:#}");
}

/// Both disks are asked for before either is unlocked, and each is waited for.
#[test]
fn a_locked_disk_is_waited_for_and_one_that_stays_locked_ends_the_job() {
    let Some(mut lab) = Lab::new("job") else { return };
    lab.site.set(json!({"patience_percent": 1}));
    lab.engine.world().lock = None;
    let last = lab.run(&json!({}));
    assert_eq!(message(&last), "Timed out waiting for disks to become unlocked");
    // Nobody can remove what is locked: it is told, and can be removed later.
    let tag = lab.tags().remove(0);
    let warnings = last["warnings"].to_string();
    assert!(warnings.contains("left at the destination: the disk"), "{warnings}");
    assert!(warnings.contains(&format!("virt-v2v-wrapper cleanup {tag}")), "{warnings}");
    let ids: Vec<String> = lab.engine.world().disks.keys().cloned().collect();
    assert_eq!(ids.len(), 2);
    lab.engine.world().locked.clear();
    let (done, said) = lab.cleanup(&tag);
    assert!(done, "{said}");
    lab.assert_as_before();
    assert_eq!(lab.cleanup(&tag), (true, format!("nothing of job {tag} is left\n")));
}

/// What the engine could not make is not waited for.
#[test]
fn a_disk_that_is_broken_ends_the_job_at_once() {
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.world().illegal = true;
    let last = lab.run(&json!({}));
    assert!(message(&last).contains("is illegal: the engine could not make it"), "{}", message(&last));
    lab.assert_as_before();
}

/// A device that does not appear: the program runs elsewhere than it was told.
#[test]
fn a_device_that_does_not_appear_is_waited_for_and_then_told() {
    let Some(mut lab) = Lab::new("job") else { return };
    lab.site.set(json!({"patience_percent": 1}));
    let other = lab.engine.world().machine("another", "up");
    let last = lab.run(&json!({"conversion_host_uuid": other}));
    let text = message(&last);
    assert!(text.starts_with("Timed out waiting for disks to get plugged/noticed"), "{text}");
    assert!(text.contains("conversion_host_uuid"), "{text}");
    lab.engine.world().vms.remove(&other);
    lab.assert_as_before();
}

/// The engine is full: known before anything is made.
#[test]
fn preallocated_disks_that_have_no_room_are_not_begun() {
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.world().storage[0]["available"] = (20 << 20).into();
    lab.engine.world().storage[0]["storage"]["type"] = "FCP".into();
    let last = lab.run(&json!({}));
    let text = message(&last);
    assert!(text.contains("\"data\" has 20 MiB free, and the disks of the guest take 24 MiB"), "{text}");
    assert_eq!(lab.engine.count("^POST disks"), 0);
    // As sparse disks they may do, with a warning.
    let last = lab.run(&json!({"allocation": "sparse"}));
    lab.assert_there(&last, "guest");
    assert!(last["warnings"].to_string().contains("has 20 MiB free"), "{last:#}");
}

/// Hours of copying are not lost: a later job finds the disks where the earlier one left them, or attaches them again.
#[test]
fn a_failed_conversion_keeps_the_disks_for_the_next_job() {
    let Some(lab) = Lab::new("job") else { return };
    lab.site.play_to(&[], 1);
    let last = lab.run(&json!({}));
    let tag = lab.tags().remove(0);
    assert!(message(&last).contains(&format!("\"resume\": \"{tag}\"")), "{last:#}");
    lab.assert_kept();
    // Somebody took one of them out of the conversion host meanwhile.
    lab.engine.world().take_out(0);
    lab.site.hide_source();
    lab.site.play(&[]);
    let last = lab.run(&json!({"resume": tag}));
    lab.assert_there(&last, "guest");
    assert_eq!(lab.engine.count("^POST disks"), 2, "disks are made once");
}

/// What is gone was not copied: a disk of the same number would be empty.
#[test]
fn a_disk_that_is_gone_is_not_taken_for_a_copy() {
    let Some(lab) = Lab::new("job") else { return };
    lab.site.play_to(&[], 1);
    lab.run(&json!({}));
    let tag = lab.tags().remove(0);
    {
        let mut world = lab.engine.world();
        world.take_out(0);
        let gone = world.disks.iter().find(|(_, disk)| disk["name"] == "guest_Disk1").unwrap().0.clone();
        world.attachments.retain(|one| one.disk != gone);
        world.disks.remove(&gone);
    }
    lab.site.play(&[]);
    let last = lab.run(&json!({"resume": tag}));
    assert!(message(&last).contains("is not at the engine any more"), "{}", message(&last));
    assert_eq!(lab.engine.world().vms.len(), 1);
}

/// The user wants nothing of it: the disks are detached and removed.
#[test]
fn a_cancelled_job_leaves_nothing() {
    let Some(mut lab) = Lab::new("job") else { return };
    lab.site.gate();
    let mut job = lab.start(&json!({}));
    wait(&job, "a copied disk", |state| state["disks"][0]["status"] == "Copied");
    assert_eq!(lab.engine.world().attachments.len(), 2);
    assert!(job.signal(nix::sys::signal::Signal::SIGTERM, "supervisor"));
    let last = lab.end(&mut job);
    assert!(message(&last).starts_with("Exiting on signal number 15"), "{last:#}");
    lab.assert_as_before();
}
