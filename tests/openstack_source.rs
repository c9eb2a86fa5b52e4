//! A guest of an OpenStack that goes to another one. Both clouds are `openstack::fake`'s; the conversion host of the source is a
//! real sshd with stand-ins for sudo and podman, in which our own program serves the volumes by the real nbdkit.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// The conversion host beside the guest.
pub mod converter;
/// Failures at each step, signals, power cuts.
mod failures;
/// Interrupted jobs that are gone on with, and guests that ran meanwhile.
mod resumed;
/// Two clouds and a conversion host in each.
mod site;

use serde_json::json;

use site::{Boot, GUEST, Site};

/// All disks, in the order of the devices, with all that their cloud knew of them; the source as it was.
#[test]
fn a_guest_that_boots_from_a_volume_is_moved() {
    let Some(site) = Site::new("osp-volume", Boot::Volume) else { return };
    let last = site.run(&json!({}));
    let volumes = site.arrived(&last);
    for (volume, origin) in volumes.iter().zip(&site.volumes) {
        assert!(site.is_copy(volume, origin), "{volume:?} is not {origin}");
    }
    let shown: Vec<_> = volumes
        .iter()
        .map(|volume| (volume.name.as_str(), volume.size, volume.kind.as_str(), volume.bootable))
        .collect();
    let expected = [
        ("disk /dev/vda", 1, "fast", true),
        ("disk /dev/vdb", 1, "__DEFAULT__", false),
        ("disk /dev/vdc", 1, "__DEFAULT__", false),
    ];
    assert_eq!(shown, expected);
    assert_eq!(volumes[0].description, "what it boots from");
    let properties = &volumes[0].image_metadata;
    assert_eq!(properties.get("hw_firmware_type"), Some(&json!("uefi")), "{properties:?}");
    assert!(!properties.contains_key("checksum") && !properties.contains_key("min_disk"), "{properties:?}");
    let disks: Vec<_> =
        last["disks"].as_array().unwrap().iter().map(|disk| (&disk["path"], &disk["progress"])).collect();
    let [a, b, c] = [json!("/dev/vda"), json!("/dev/vdb"), json!("/dev/vdc")];
    let all = json!(100.0);
    assert_eq!(disks, [(&a, &all), (&b, &all), (&c, &all)]);
    assert!(last.get("started").is_none() && last.get("return_code").is_none(), "{last:#}");
    assert!(last.get("warnings").is_none(), "{last:#}");
    site.source_untouched().unwrap();
    let tag = std::fs::read_dir(site.sandbox.path("log")).unwrap().next().unwrap().unwrap().path();
    let log = std::fs::read_to_string(tag.join("source-conversion-host.log")).unwrap();
    assert!(log.contains("NBD exports ready"), "{log}");
}

/// The disk that was made of an image is no volume; of the others only those that were asked for go.
#[test]
fn a_guest_that_boots_from_an_image_is_moved() {
    let Some(site) = Site::new("osp-image", Boot::Image) else { return };
    let environment = json!({"auth_url": site.source.url(), "username": "admin", "password": "hunter2",
        "project_name": "p", "user_domain_name": "Default", "project_domain_name": "Default",
        "vm_id": GUEST, "conversion_vm_id": "converter", "verify": false});
    let last = site.run(&json!({"osp_source_environment": environment, "osp_source_vm_id": null,
        "osp_source_conversion_vm_id": null, "source_disks": [site.volumes[1]]}));
    let volumes = site.arrived(&last);
    assert_eq!(volumes.len(), 2, "{volumes:?}");
    assert!(site.is_copy(&volumes[0], GUEST) && site.is_copy(&volumes[1], &site.volumes[1]));
    assert_eq!((volumes[0].name.as_str(), volumes[0].bootable), ("rhosp-migration-root-database", true));
    let paths: Vec<_> = last["disks"].as_array().unwrap().iter().map(|disk| disk["path"].clone()).collect();
    assert_eq!(paths, ["/dev/vda", "/dev/vdc"]);
    site.source_untouched().unwrap();
}
