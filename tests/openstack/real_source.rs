//! A guest of the real services that goes to another project of theirs: its volumes out of one server and into another, and the
//! source as it was. Its conversion host is a real sshd, with our own program in what plays the container.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::{Map, Value, json};

use super::lab::{Lab, Service, lab};
use super::real::{arrived, document, end, environment, inventory, starts_with};
use crate::exports::site::have;
use crate::openstack_source::converter::{ADDRESS, Converter};
use crate::rig::root;
use crate::rig::sandbox::Sandbox;

const MIB: u64 = 1 << 20;

/// A volume in `demo` with bytes that no other has, to its end.
fn volume(lab: &Lab, name: &str) -> String {
    let made = lab.post(
        "demo",
        Service::Volume,
        "/volumes",
        &json!({"volume": {"name": name, "size": 1, "description": "of old"}}),
    );
    let id = made["volume"]["id"].as_str().unwrap().to_owned();
    lab.wait("demo", Service::Volume, &format!("/volumes/{id}"), |shown| {
        shown["volume"]["status"] == "available"
    });
    let file = fs::OpenOptions::new().write(true).open(lab.file(&id)).unwrap();
    let mut bytes = vec![0; 3 * MIB as usize];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    file.write_all_at(&bytes, 7 * MIB + 4096).unwrap();
    file.write_all_at(b"the end", 1024 * MIB - 7).unwrap();
    id
}

/// A server in `demo` that boots from the first volume and is shut down.
fn guest(lab: &Lab, volumes: &[String]) -> String {
    let boot = format!("/volumes/{}/action", volumes[0]);
    for action in [
        json!({"os-set_bootable": {"bootable": true}}),
        json!({"os-set_image_metadata": {"metadata": {"hw_firmware_type": "uefi"}}}),
    ] {
        lab.post("demo", Service::Volume, &boot, &action);
    }
    let disk = |(index, id): (usize, &String)| {
        let mut disk = json!({"boot_index": if index == 0 { 0 } else { -1 }, "uuid": id, "source_type": "volume",
            "destination_type": "volume"});
        if index == 1 {
            // No tag: with its fake driver nova never forgets such a disk.
            disk["delete_on_termination"] = json!(true);
        }
        disk
    };
    let disks: Vec<Value> = volumes.iter().enumerate().map(disk).collect();
    let server = json!({"server": {"name": "database", "flavorRef": "m1.small", "networks": "none",
        "block_device_mapping_v2": disks}});
    let id =
        lab.post("demo", Service::Compute, "/servers", &server)["server"]["id"].as_str().unwrap().to_owned();
    let path = format!("/servers/{id}");
    lab.wait("demo", Service::Compute, &path, |shown| shown["server"]["status"] == "ACTIVE");
    lab.post("demo", Service::Compute, &format!("{path}/action"), &json!({"os-stop": null}));
    lab.wait("demo", Service::Compute, &path, |shown| shown["server"]["status"] == "SHUTOFF");
    id
}

/// All that the job could have changed at the source.
fn source(lab: &Lab, guest: &str) -> Value {
    let server = lab.get("demo", Service::Compute, &format!("/servers/{guest}"))["server"].clone();
    let mut attached = lab.get("demo", Service::Compute, &format!("/servers/{guest}/os-volume_attachments"))
        ["volumeAttachments"]
        .clone();
    let attached = attached.as_array_mut().unwrap();
    attached.iter_mut().for_each(|one| drop(one.as_object_mut().unwrap().remove("id")));
    attached.sort_by_key(|one| one["device"].as_str().unwrap().to_owned());
    json!({
        "status": server["status"],
        "attached": attached,
        "snapshots": lab.ids("demo", Service::Volume, "/snapshots/detail", "snapshots"),
        "images": lab.get("demo", Service::Image, "/images")["images"].as_array().unwrap().len(),
        "converter": lab.get("demo", Service::Compute, &format!("/servers/{}/os-volume_attachments", lab.servers["demo"])),
    })
}

#[test]
fn a_guest_goes_to_another_project_and_its_source_is_as_it_was() {
    if !have(&["nbdkit", "qemu-nbd", "qemu-img", "sshd", "ssh", "ssh-keygen", "ssh-agent", "nsenter", "ip"])
        || !root::possible()
    {
        return;
    }
    let Some(lab) = lab() else { return };
    let volumes: Vec<String> = ["boot", "data 1", "data 2"].iter().map(|name| volume(&lab, name)).collect();
    let guest = guest(&lab, &volumes);
    let converter_id = &lab.servers["demo"];
    let address = json!({"server": {"accessIPv4": ADDRESS}});
    let answer = lab.ask("PUT", "demo", Service::Compute, &format!("/servers/{converter_id}"), &address);
    assert_eq!(answer.status, 200, "{answer:?}");
    let (before, source_before) = (inventory(&lab), source(&lab, &guest));

    let mut sandbox = Sandbox::new("osp-real");
    sandbox.configure("job", &Map::from_iter([("virt_v2v".to_owned(), json!("/nowhere/virt-v2v"))]));
    let converter = Converter::start(&sandbox.dir);
    sandbox.through = converter.words();
    let more = json!({
        "transport_method": "ssh",
        "ssh_key": converter.key(),
        "osp_source_environment": environment(&lab, "demo"),
        "osp_source_vm_id": guest,
        "osp_source_conversion_vm_id": converter_id,
        "network_mappings": [{"source": "x", "destination": lab.networks["net4"], "mac_address": "00:50:56:00:50:01",
            "ip_address": "10.9.0.50"}],
    });
    let mut job = sandbox.start(document(&lab, "admin", "moved", &more), super::lab::LIMIT);
    let last = end(&sandbox, &mut job);
    let copies = arrived(&lab, &before, &last, &[("net4", "00:50:56:00:50:01", Some("10.9.0.50"))]);
    assert_eq!(copies.len(), 3, "{last:#}");
    for (copy, origin) in copies.iter().zip(&volumes) {
        assert!(starts_with(&lab, copy, &fs::read(lab.file(origin)).unwrap()), "{copy} is not {origin}");
        let shown = lab.get("target", Service::Volume, &format!("/volumes/{copy}"))["volume"].clone();
        assert_eq!((&shown["description"], &shown["size"]), (&json!("of old"), &json!(1)), "{shown:#}");
    }
    let boot = lab.get("target", Service::Volume, &format!("/volumes/{}", copies[0]))["volume"].clone();
    assert_eq!((&boot["name"], &boot["bootable"]), (&json!("boot"), &json!("true")), "{boot:#}");
    assert_eq!(boot["volume_image_metadata"]["hw_firmware_type"], "uefi", "{boot:#}");
    assert_eq!(source(&lab, &guest), source_before, "{last:#}");
    assert_eq!(converter.left(), Vec::<String>::new());
}
