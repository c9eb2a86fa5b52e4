//! Jobs from their beginning to their end: what is in the cloud afterwards.

use serde_json::json;

use super::fake::state::CREDENTIAL;
use super::fake::{Fault, Harm};
use super::site::{Mode, SIZES, Site};
use crate::two_phase::site::converted;

#[test]
fn volumes_that_virt_v2v_made_become_a_server_in_their_order() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();
    let ips = site.fake.world(|world| {
        let of = |mac: &str| world.ports.iter().find(|port| port.mac == mac).unwrap().ips.clone();
        [of("00:50:56:00:00:01"), of("00:50:56:00:00:02")]
    });
    // The second one's address is in no subnet of its network: the network gives it one.
    assert_eq!((ips[0].as_slice(), ips[1].len()), (&["10.0.0.7".to_owned()][..], 1));
    assert_ne!(ips[1], ["10.0.0.8"]);
}

#[test]
fn two_disks_are_copied_to_volumes_and_become_a_server() {
    let Some(site) = Site::new(Mode::TwoPhase) else { return };
    let last = site.run(&json!({}));
    let volumes = site.arrived(&last).unwrap();
    for (disk, volume) in volumes.iter().enumerate() {
        let source = std::fs::read(site.source(disk)).unwrap();
        assert!(site.bytes(volume, SIZES[disk]) == converted(source), "disk {disk}: {last:#}");
    }
    let boot = site.fake.world(|world| world.volume(&volumes[0]).unwrap().image_metadata.clone());
    assert_eq!(boot.get("hw_disk_bus"), Some(&json!("virtio")), "{boot:?}");
    // As virt-v2v marks the volumes that it makes.
    for (index, volume) in volumes.iter().enumerate() {
        let metadata = site.fake.world(|world| world.volume(volume).unwrap().metadata.clone());
        assert_eq!(metadata["virt_v2v_guest_id"], "guest", "{metadata:?}");
        assert_eq!(metadata["virt_v2v_disk_index"], format!("{}/2", index + 1), "{metadata:?}");
    }
}

/// An address of IPv6, the same project on both sides, names instead of ids, an application credential.
#[test]
fn what_a_document_may_say_otherwise_is_understood() {
    let mapping = |network: &str, ip: &str| {
        json!([
            {"source": "a", "destination": network, "mac_address": "00:50:56:00:00:01", "ip_address": ip},
            {"source": "b", "destination": "net2", "mac_address": "00:50:56:00:00:02"},
        ])
    };
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    let last = site.run(&json!({"network_mappings": mapping("net1 by name", "fd00:0::0007"),
        "osp_security_groups_ids": ["sg1 by name"]}));
    site.arrived(&last).unwrap();
    let ips = site
        .fake
        .world(|world| world.ports.iter().find(|port| port.mac == "00:50:56:00:00:01").unwrap().ips.clone());
    assert_eq!(ips, ["fd00::7"]);

    let Some(site) = Site::new(Mode::OnePhase) else { return };
    site.fake.world(|world| {
        world.networks.iter_mut().for_each(|network| network.project = "p".to_owned());
        world.groups.iter_mut().for_each(|(_, project)| *project = "p".to_owned());
    });
    let last = site.run(&json!({
        "osp_environment": {"OS_AUTH_URL": site.fake.url(), "os_application_credential_id": CREDENTIAL.0,
            "os_application_credential_secret": CREDENTIAL.1},
        "osp_destination_project_id": "p",
    }));
    assert_eq!(last["failed"], false, "{last:#}\n{}", site.fake.story());
    assert_eq!(site.fake.count("POST", "transfer"), 0, "{}", site.fake.story());
    let project = site.fake.world(|world| world.volume(&site.volumes[0]).unwrap().project.clone());
    assert_eq!(project, "p");
}

/// A token that ends soon is renewed, and one that ended early is too.
#[test]
fn a_copy_that_lasts_longer_than_a_token_ends_well() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    site.fake.world(|world| world.token_life = 1);
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();

    let Some(site) = Site::new(Mode::OnePhase) else { return };
    for (method, path) in [("GET", "/volume/v3/p/volumes/"), ("POST", "/ports$"), ("GET", "/servers/")] {
        site.fake.fail(Fault::once(method, path, Harm::Expired).nth(2));
    }
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();
}

/// A volume printed again and again is one; one that is somebody else's, or nobody's, stays what it is.
#[test]
fn ids_in_the_log_that_are_not_ours_are_not_touched() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    let foreign = site.fake.world(|world| {
        let id = world.id();
        let volume = world.add_volume(&id, "p", "disk of another guest");
        volume.metadata.insert("virt_v2v_guest_id".into(), json!("another guest"));
        let used = world.id();
        let volume = world.add_volume(&used, "p", "disk of a server");
        (volume.status, volume.attached) = ("in-use", Some(("srv-2".to_owned(), "/dev/vdb".to_owned())));
        world.add_server("srv-2", "p", "another server");
        vec![id, used]
    });
    let mut printed = vec![foreign[0].clone()];
    printed.extend(site.volumes.clone());
    printed.push(foreign[1].clone());
    for (exit, fails) in [(0, false), (1, true)] {
        let before = site.fake.world(|world| [0, 1].map(|at| format!("{:?}", world.volume(&foreign[at]))));
        site.play(&[json!({"text": super::site::show(&printed)})], exit);
        let last = site.run(&json!({"vm_name": format!("foreign-{exit}")}));
        assert_eq!(last["failed"], fails, "{last:#}\n{}", site.fake.story());
        let after = site.fake.world(|world| [0, 1].map(|at| format!("{:?}", world.volume(&foreign[at]))));
        assert_eq!(before, after, "{}", site.fake.story());
        if !fails {
            let server = site.fake.world(|world| world.servers.last().unwrap().clone());
            assert_eq!(server.volumes, site.volumes);
            // The next one's virt-v2v fails with the same log: these are not its to remove any more.
            site.fake.world(|world| {
                let volumes = world.volumes.iter_mut().filter(|volume| site.volumes.contains(&volume.id));
                volumes.for_each(|volume| volume.project = "elsewhere".to_owned());
            });
        }
    }
}
