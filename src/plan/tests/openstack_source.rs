//! A guest that comes from an OpenStack: both documented shapes of its keys (contract.md 1.6).

use super::*;
use crate::plan::{Destination, SshKey};

/// The whole of one shape; `more` on top.
fn moved(more: Value) -> Result<Plan, Vec<String>> {
    let mut document = document("osp");
    let source = json!({
        "transport_method": "ssh", "vmware_uri": null, "vmware_fingerprint": null, "vmware_password": null,
        "osp_source_vm_id": "vm", "osp_source_conversion_vm_id": "host",
        "osp_source_environment": {"os-auth_url": "http://k", "OS_USERNAME": "u", "os-password": "source secret"},
    });
    merge(&mut document, &source);
    merge(&mut document, &more);
    run(&document, "two_phase = \"ignore\"", &around())
}

#[test]
fn both_shapes_say_the_same() {
    let plain = json!({"osp_source_vm_id": null, "osp_source_conversion_vm_id": null,
        "osp_source_environment": {"auth_url": "http://k", "username": "u", "password": "source secret", "vm_id": "vm",
                                   "conversion_vm_id": "host", "verify": true}});
    // Ids inside are only for want of those outside.
    let both = json!({"osp_source_environment": {"os-auth_url": "http://k", "os-username": "u",
        "os-password": "source secret", "os-vm_id": "another", "conversion_vm_id": "another", "os-verify": "True"}});
    for more in [json!({}), plain, both] {
        let plan = moved(more.clone()).unwrap();
        let Source::Openstack { environment, insecure, vm_id, converter_id, image, key, .. } = &plan.source
        else {
            panic!("{more}: {:?}", plan.source)
        };
        let mut keys: Vec<&str> = environment.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["auth-url", "password", "username"], "{more}");
        assert_eq!((vm_id.as_str(), converter_id.as_str(), *insecure), ("vm", "host", false), "{more}");
        assert_eq!(image, "v2v-conversion-host");
        assert!(matches!(key, SshKey::Default));
        assert!(matches!(plan.destination, Destination::Openstack { .. }));
        // Whatever the site says of such conversions: there is no other way.
        assert!(plan.two_phase.as_ref().is_some_and(|two_phase| !two_phase.convert && two_phase.verify));
        use secrecy::ExposeSecret;
        assert!(plan.secrets().iter().any(|secret| secret.expose_secret() == "source secret"));
        assert!(!format!("{plan:?}").contains("source secret"));
    }
}

#[test]
fn what_is_said_of_certificates_and_containers_is_heeded() {
    for (more, insecure, image) in [
        (json!({"insecure_connection": true}), true, "v2v-conversion-host"),
        (
            json!({"insecure_connection": true, "osp_source_environment": {"auth_url": "x", "verify": true},
                   "uci_container": "old"}),
            false,
            "old",
        ),
        (
            json!({"osp_source_environment": {"auth_url": "x", "os-verify": false}, "uci_container": "old",
                   "uci_container_image": "new"}),
            true,
            "new",
        ),
    ] {
        let plan = moved(more.clone()).unwrap();
        let Source::Openstack { insecure: is, image: of, .. } = &plan.source else { panic!("{more}") };
        assert_eq!((*is, of.as_str()), (insecure, image), "{more}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (more, expected) in [
        (json!({"osp_source_vm_id": null}), "Missing argument: osp_source_vm_id"),
        (json!({"osp_source_conversion_vm_id": ""}), "Missing argument: osp_source_conversion_vm_id"),
        (json!({"transport_method": null}), "No transport method specified"),
        (json!({"transport_method": "vddk"}), "osp_source_environment needs transport_method ssh, not vddk"),
        (json!({"warm": true}), "warm: a guest of an OpenStack is copied when it is shut down"),
        (json!({"uci_container_image": "--privileged"}), "uci_container_image must not begin with -"),
        (
            json!({"osp_source_environment": {"os-cloud": "x"}}),
            "osp_source_environment: os-cloud cannot be used",
        ),
    ] {
        let problems = moved(more.clone()).err().unwrap_or_default();
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{more}: {problems:?}");
    }
}
