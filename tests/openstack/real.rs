//! Jobs on the real services: every byte of the guest in the volumes of a server that runs, and nothing of the job anywhere else.
//!
//! Few: what can be shown on the fake is shown there.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::lab::{Lab, PASSWORD, Service, lab};
use crate::exports::site::have;
use crate::rig::always;
use crate::rig::job::Job;
use crate::rig::sandbox::Sandbox;
use crate::two_phase::site::{converted, play_to};

/// A conversion in software emulation, on a machine with other work.
const LIMIT: Duration = Duration::from_secs(900);
const MIB: u64 = 1 << 20;

/// What each project has, of all kinds.
pub fn inventory(lab: &Lab) -> Value {
    let of = |project: &str| {
        json!({
            "volumes": lab.ids(project, Service::Volume, "/volumes/detail", "volumes"),
            "transfers": lab.ids(project, Service::Volume, "/os-volume-transfer/detail", "transfers"),
            "servers": lab.ids(project, Service::Compute, "/servers", "servers"),
            "ports": lab.ids(project, Service::Network, "/ports", "ports"),
        })
    };
    json!({"admin": of("admin"), "demo": of("demo"), "target": of("target")})
}

pub fn environment(lab: &Lab, project: &str) -> Value {
    let user = if project == "admin" { "admin" } else { "demo" };
    json!({
        "os_auth_url": lab.url(Service::Identity, project),
        "os_identity_api_version": "3",
        "os_user_domain_name": "Default",
        "os_project_domain_name": "Default",
        "os_username": user,
        "os_password": PASSWORD,
        "os_project_name": project,
    })
}

pub fn document(lab: &Lab, project: &str, name: &str, more: &Value) -> Vec<u8> {
    let mut document = json!({
        "vm_name": name,
        "osp_environment": environment(lab, project),
        "osp_destination_project_id": lab.project("target"),
        "osp_flavor_id": "m1.small",
        "osp_security_groups_ids": [lab.group],
        "osp_server_id": lab.servers[project],
        "osp_guest_id": format!("guest of {project}"),
    });
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document.to_string().into_bytes()
}

pub fn end(sandbox: &Sandbox, job: &mut Job) -> Value {
    let last = job.wait_finished(LIMIT);
    assert!(last.is_some(), "no last state: {:?}", job.last_state());
    assert!(job.gone_within(LIMIT).is_ok(), "processes left");
    job.wait_exit(LIMIT);
    let mut broken = always::states(&job.end());
    let streams = [("stdout", &job.stdout()), ("stderr", &job.stderr())];
    // As a value: it is a word that is also a key.
    let secrets = [":", ": ", "="].map(|before| format!("{before}\"{PASSWORD}\""));
    broken.extend(always::leftovers(sandbox, &secrets, &streams));
    assert!(broken.is_empty(), "{}\n{last:#?}", broken.join("\n"));
    last.unwrap()
}

/// The new server, as it should be; its volumes in order. `before` is what there was.
pub fn arrived(lab: &Lab, before: &Value, last: &Value, ports: &[(&str, &str, Option<&str>)]) -> Vec<String> {
    assert_eq!(last["failed"], false, "{last:#}");
    let id = last["vm_id"].as_str().unwrap_or_else(|| panic!("{last:#}"));
    let server = lab.get("target", Service::Compute, &format!("/servers/{id}"))["server"].clone();
    assert_eq!(server["status"], "ACTIVE", "{server:#}");
    let attached = lab.get("target", Service::Compute, &format!("/servers/{id}/os-volume_attachments"));
    let mut attached = attached["volumeAttachments"].as_array().unwrap().clone();
    attached.sort_by_key(|one| one["device"].as_str().unwrap().to_owned());
    let volumes: Vec<String> =
        attached.iter().map(|one| one["volumeId"].as_str().unwrap().to_owned()).collect();
    let now = inventory(lab);
    assert_eq!((&now["admin"], &now["demo"]), (&before["admin"], &before["demo"]), "{last:#}");
    let new = |kind: &str| -> Vec<Value> {
        let had = before["target"][kind].as_array().unwrap();
        now["target"][kind].as_array().unwrap().iter().filter(|id| !had.contains(id)).cloned().collect()
    };
    let mut wanted: Vec<&String> = volumes.iter().collect();
    wanted.sort();
    assert_eq!(json!(new("volumes")), json!(wanted));
    assert_eq!((new("servers"), new("transfers")), (vec![json!(id)], vec![]));
    let found: Vec<Value> = new("ports")
        .iter()
        .map(|port| {
            lab.get("target", Service::Network, &format!("/ports/{}", port.as_str().unwrap()))["port"].clone()
        })
        .collect();
    assert_eq!(found.len(), ports.len(), "{found:#?}");
    for (network, mac, ip) in ports {
        let port = found
            .iter()
            .find(|port| port["mac_address"] == *mac)
            .unwrap_or_else(|| panic!("{mac}: {found:#?}"));
        assert_eq!(
            (&port["device_id"], &port["network_id"], &port["security_groups"]),
            (&json!(id), &json!(lab.networks[*network]), &json!([lab.group])),
            "{port:#}"
        );
        let ips: Vec<&Value> =
            port["fixed_ips"].as_array().unwrap().iter().map(|ip| &ip["ip_address"]).collect();
        match ip {
            Some(ip) => assert_eq!(ips, [ip], "{port:#}"),
            // The network gives it one of its own.
            None => assert_eq!(ips.len(), 1, "{port:#}"),
        }
    }
    volumes
}

pub fn starts_with(lab: &Lab, volume: &str, bytes: &[u8]) -> bool {
    let mut have = vec![0; bytes.len()];
    fs::File::open(lab.file(volume)).unwrap().read_exact_at(&mut have, 0).unwrap();
    have == bytes
}

#[test]
fn a_two_phase_job_ends_in_a_server_that_runs_from_the_copies() {
    if !have(&["nbdkit", "qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let Some(lab) = lab() else { return };
    let before = inventory(&lab);
    let mut sandbox = Sandbox::new("openstack-real");
    sandbox.configure("job", &Map::new());
    play_to(&sandbox, &[], 0);
    let sources: Vec<_> = ["a.img", "b.img"].map(|name| sandbox.path(name)).to_vec();
    // The second is no whole number of GiB: its volume is larger.
    for (index, (path, size)) in sources.iter().zip([1024 * MIB, 1030 * MIB + 512]).enumerate() {
        let file = fs::File::create(path).unwrap();
        file.set_len(size).unwrap();
        let mut bytes = vec![0; 5 * MIB as usize];
        blake3::Hasher::new().update(&[index as u8]).finalize_xof().fill(&mut bytes);
        file.write_all_at(&bytes, 4096).unwrap();
        file.write_all_at(b"the end", size - 7).unwrap();
    }
    let mapping = |network: &str, mac: &str, ip: &str| json!({"source": "x", "destination": lab.networks[network], "mac_address": mac, "ip_address": ip});
    let name = "two-phase: it's \"real\" *";
    let more = json!({
        "transport_method": "local",
        "two_phase": true,
        "source_disks": sources,
        "network_mappings": [
            mapping("net4", "00:50:56:00:10:01", "10.9.0.7"),
            mapping("net2", "00:50:56:00:10:02", "10.9.0.8"),
            mapping("net4", "00:50:56:00:10:03", "fd09::0007"),
        ],
    });
    let mut job = sandbox.start(document(&lab, "admin", name, &more), LIMIT);
    let last = end(&sandbox, &mut job);
    let ports = [
        ("net4", "00:50:56:00:10:01", Some("10.9.0.7")),
        ("net2", "00:50:56:00:10:02", None),
        ("net4", "00:50:56:00:10:03", Some("fd09::7")),
    ];
    let volumes = arrived(&lab, &before, &last, &ports);
    for (source, volume) in sources.iter().zip(&volumes) {
        assert!(
            starts_with(&lab, volume, &converted(fs::read(source).unwrap())),
            "{}: {volume}",
            source.display()
        );
    }
    let boot = lab.get("target", Service::Volume, &format!("/volumes/{}", volumes[0]))["volume"].clone();
    assert_eq!((&boot["bootable"], &boot["size"]), (&json!("true"), &json!(1)), "{boot:#}");
    assert_eq!(boot["volume_image_metadata"]["hw_disk_bus"], "virtio", "{boot:#}");
    let data = lab.get("target", Service::Volume, &format!("/volumes/{}", volumes[1]))["volume"].clone();
    assert_eq!(data["size"], 2, "{data:#}");
}

/// Volumes as virt-v2v makes them, and what its log says meanwhile.
#[test]
fn volumes_of_virt_v2v_become_a_server_in_the_other_project() {
    let Some(lab) = lab() else { return };
    let mut sandbox = Sandbox::new("openstack-real");
    sandbox.configure("job", &Map::new());
    let name = "one phase";
    let before = inventory(&lab);
    let mut volumes = Vec::new();
    let mut log = String::new();
    for index in 1..=2 {
        let volume = json!({"volume": {"name": format!("{name}-sd{index}"), "size": 1,
            "description": format!("{name} disk {index}/2 converted by virt-v2v")}});
        let made = lab.post("demo", Service::Volume, "/volumes", &volume);
        let id = made["volume"]["id"].as_str().unwrap().to_owned();
        let path = format!("/volumes/{id}");
        lab.wait("demo", Service::Volume, &path, |shown| shown["volume"]["status"] == "available");
        let file = fs::OpenOptions::new().write(true).open(lab.file(&id)).unwrap();
        file.write_all_at(format!("converted disk {index}").as_bytes(), MIB).unwrap();
        let metadata = json!({"metadata": {"virt_v2v_guest_id": "guest of demo", "virt_v2v_disk_index": format!("{index}/2"),
            "virt_v2v_version": "2.2.0"}});
        lab.post("demo", Service::Volume, &format!("{path}/metadata"), &metadata);
        if index == 1 {
            let bootable = json!({"os-set_bootable": {"bootable": true}});
            lab.post("demo", Service::Volume, &format!("{path}/action"), &bootable);
        }
        log += "openstack '--os-username=demo' 'volume' 'create' '-f' 'json' '--size' '1'\n";
        log += &format!("openstack '--os-username=demo' 'volume' 'show' '-f' 'json' '{id}'\n").repeat(3);
        volumes.push(id);
    }
    for id in &volumes {
        log += &format!("openstack '--os-username=demo' 'volume' 'show' '-f' 'json' '{id}'\n");
    }
    sandbox.scenario(&json!({"steps": [{"text": log}], "on_term": "exit"}));
    let more = json!({
        "transport_method": "vddk",
        "vmware_fingerprint": "01:23:45:67:89:AB:CD:EA:DB:EE:F0:12:34:56:78:9A:BC:DE:F0:12",
        "vmware_uri": "esx://root@127.0.0.1?no_verify=1",
        "vmware_password": "vmw-secret",
        "network_mappings": [{"source": "x", "destination": lab.networks["net4"], "mac_address": "00:50:56:00:20:01",
            "ip_address": "10.9.0.20"}],
    });
    let mut job = sandbox.start(document(&lab, "demo", name, &more), LIMIT);
    let last = end(&sandbox, &mut job);
    let found = arrived(&lab, &before, &last, &[("net4", "00:50:56:00:20:01", Some("10.9.0.20"))]);
    assert_eq!(found, volumes);
    for (index, volume) in volumes.iter().enumerate() {
        let mut wanted = vec![0; MIB as usize];
        wanted.extend(format!("converted disk {}", index + 1).bytes());
        assert!(starts_with(&lab, volume, &wanted), "{volume}");
    }
}

/// A step that neutron refuses: what was copied can be gone on with, and what was made goes when nobody does.
#[test]
fn a_job_that_fails_on_the_real_services_leaves_nothing_after_cleanup() {
    if !have(&["nbdkit", "qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let Some(lab) = lab() else { return };
    let mut sandbox = Sandbox::new("openstack-real");
    sandbox.configure("job", &Map::new());
    play_to(&sandbox, &[], 0);
    // Somebody has the address.
    let taken = json!({"port": {"network_id": lab.networks["net2"], "name": "somebody",
        "fixed_ips": [{"ip_address": "10.8.0.99"}]}});
    lab.post("target", Service::Network, "/ports", &taken);
    let before = inventory(&lab);
    let source = sandbox.path("a.img");
    fs::write(&source, vec![7; 4 * MIB as usize]).unwrap();
    let more = json!({
        "transport_method": "local",
        "two_phase": true,
        "source_disks": [source],
        "network_mappings": [
            {"source": "x", "destination": lab.networks["net4"], "mac_address": "00:50:56:00:30:01"},
            {"source": "y", "destination": lab.networks["net2"], "mac_address": "00:50:56:00:30:02", "ip_address": "10.8.0.99"},
        ],
    });
    let document = document(&lab, "admin", "fails", &more);
    let mut job = sandbox.start(document.clone(), LIMIT);
    let tag = fs::read_dir(sandbox.path("state/jobs")).unwrap().next().unwrap().unwrap().file_name();
    let last = end(&sandbox, &mut job);
    let message = last["last_message"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("Failed to create port") && message.contains("10.8.0.99"), "{last:#}");
    let tag = tag.to_str().unwrap();
    let document = String::from_utf8(document).unwrap();
    let output = sandbox.child(&["cleanup", "--discard", tag], &document).wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}");
    assert_eq!(inventory(&lab), before, "{words}\n{last:#}");
}
