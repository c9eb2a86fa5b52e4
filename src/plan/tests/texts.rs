//! Every text of the contract, and which comes first.

use super::*;

#[test]
fn texts_of_the_contract_general() {
    for (more, expected) in [
        (json!({"vm_name": null}), &["Missing vm_name"][..]),
        (json!({"vm_name": ""}), &["Missing vm_name"]),
        (json!({"transport_method": null}), &["No transport method specified"]),
        (json!({"transport_method": "ftp"}), &["Unknown transport method: ftp"]),
        (json!({"transport_method": "VDDK"}), &["Unknown transport method: VDDK"]),
        (json!({"vmware_fingerprint": null}), &["Missing argument: vmware_fingerprint"]),
        (json!({"vmware_uri": null}), &["Missing argument: vmware_uri"]),
        (json!({"vmware_password": null}), &["Missing argument: vmware_password"]),
        (
            json!({"vmware_password": null, "vmware_uri": null, "vmware_fingerprint": null}),
            &[
                "Missing argument: vmware_fingerprint",
                "Missing argument: vmware_uri",
                "Missing argument: vmware_password",
            ],
        ),
        (json!({"network_mappings": {"a": 1}}), &["\"network_mappings\" must be an array"]),
        (json!({"network_mappings": "x"}), &["\"network_mappings\" must be an array"]),
        (
            json!({"network_mappings": [{"source": "a"}, {"destination": "b"}, {}]}),
            &["Both \"source\" and \"destination\" must be provided in network mapping"],
        ),
        (
            json!({"warm": true, "two_phase": false}),
            &["Cannot disable two-phase conversion when warm conversion is requested"],
        ),
        (json!({"output_format": "vmdk"}), &["Invalid output format 'vmdk', expected raw or qcow2"]),
        (json!({"output_format": "RAW"}), &["Invalid output format 'RAW', expected raw or qcow2"]),
        (json!({"iteration_seconds": -1}), &["Invalid value for `iteration_seconds`"]),
        (json!({"iteration_seconds": "soon"}), &["Invalid value for `iteration_seconds`"]),
        (
            json!({"two_phase": true, "verify": "some", "resume": "../x"}),
            &[
                "verify: some is neither full nor off",
                "resume must be the tag of an earlier job, like 20260131T235959-4711",
            ],
        ),
        (
            json!({"nbd_export_only": {"/dev/x": 1}, "vm_name": null}),
            &["nbd_export_only serves disks until a signal comes: there is no job to plan"],
        ),
        (
            json!({"osp_source_environment": {}}),
            &[
                "Missing argument: osp_source_environment",
                "Missing argument: osp_source_vm_id",
                "Missing argument: osp_source_conversion_vm_id",
                "osp_source_environment needs transport_method ssh, not vddk: the source conversion host is reached that \
                 way",
                "osp_source_environment: a guest of an OpenStack can only go to an OpenStack: give osp_environment",
            ],
        ),
    ] {
        refused("local", more, expected);
    }
}

#[test]
fn texts_of_the_contract_destinations() {
    for (kind, more, expected) in [
        (
            "none",
            json!({}),
            &["Cannot detect type of host: give rhv_url, export_domain, osp_environment or output_directory"]
                [..],
        ),
        ("none", json!({"rhv_url": ""}), &["No target specified"]),
        ("rhv", json!({"rhv_cluster": null}), &["Missing argument: rhv_cluster"]),
        ("rhv", json!({"rhv_password": null}), &["Missing argument: rhv_password"]),
        ("rhv", json!({"rhv_storage": null}), &["Missing argument: rhv_storage"]),
        (
            "none",
            json!({"rhv_url": "https://e"}),
            &[
                "Missing argument: rhv_cluster",
                "Missing argument: rhv_password",
                "Missing argument: rhv_storage",
            ],
        ),
        ("rhv", json!({"two_phase": true}), &["Missing argument: conversion_host_uuid"]),
        (
            "rhv",
            json!({"two_phase": true, "conversion_host_uuid": "/"}),
            &["Missing argument: conversion_host_uuid"],
        ),
        (
            "rhv",
            json!({"two_phase": true, "conversion_host_uuid": "", "rhv_storage": null}),
            &["Missing argument: rhv_storage"],
        ),
        (
            "none",
            json!({"osp_environment": {}}),
            &[
                "Missing argument: osp_destination_project_id",
                "Missing argument: osp_environment",
                "Missing argument: osp_flavor_id",
                "Missing argument: osp_security_groups_ids",
                "Missing argument: osp_server_id",
            ],
        ),
        (
            "osp",
            json!({"osp_environment": {"os-auth_url": "x", "foo": "b", "OS-": 1, "xos-a": 1}}),
            &[
                "found invalid key in Openstack environment: OS-",
                "found invalid key in Openstack environment: foo",
                "found invalid key in Openstack environment: xos-a",
            ],
        ),
        (
            "osp",
            json!({"osp_environment": {"os_auth_url": "https://me:hunter2@k:5000/v3", "os-username": "a@b"}}),
            &[
                "osp_environment: os-auth_url must not hold a user or a password: give os-username and os-password",
            ],
        ),
        ("osp", json!({"osp_security_groups_ids": "sg"}), &["osp_security_groups_ids must be a list"]),
        ("osp", json!({"osp_security_groups_ids": {"a": 1}}), &["osp_security_groups_ids must be a list"]),
        (
            "osp",
            json!({"network_mappings": [{"source": "a", "destination": "b"}, {"source": "a", "destination": "b"}]}),
            &["Missing mac address in one of network mappings"],
        ),
        (
            "osp",
            json!({"network_mappings": [{"source": "a", "mac_address": "m"}]}),
            &["Both \"source\" and \"destination\" must be provided in network mapping"],
        ),
        (
            "osp",
            json!({"output_directory": "/out"}),
            &["output_directory and osp_environment cannot both be given: name one destination"],
        ),
        (
            "domain",
            json!({"output_directory": "/out"}),
            &["output_directory and export_domain cannot both be given: name one destination"],
        ),
        ("local", json!({"output_directory": "out"}), &["output_directory must be an absolute path: out"]),
        ("local", json!({"output_directory": ""}), &["output_directory is empty"]),
        ("rhv", json!({"rhv_cafile": "ca.pem"}), &["rhv_cafile must be an absolute path: ca.pem"]),
        (
            "osp",
            json!({"osp_environment": {"os-cloud": "x"}}),
            &["osp_environment: os-cloud cannot be used; give os-auth_url and the credentials themselves"],
        ),
    ] {
        refused(kind, more, expected);
    }
}

/// Each document is wrong in everything from some point of the old program's order on: the first line is that point's.
/// One-phase needs the fingerprint, as ever; two-phase needs somebody who vouches for the certificate.
#[test]
fn a_two_phase_source_may_leave_the_fingerprint_to_authorities() {
    let verified = |more: Value| {
        let mut document = json!({"vmware_fingerprint": null, "vmware_uri": "vpx://u@vc/DC"});
        merge(&mut document, &more);
        document
    };
    let missing = "Missing argument: vmware_fingerprint";
    refused("local", verified(json!({})), &[missing]);
    refused("local", verified(json!({"two_phase": false})), &[missing]);
    let mut ignored = document("local");
    merge(&mut ignored, &verified(json!({"two_phase": true})));
    assert_eq!(run(&ignored, "two_phase = 'ignore'", &around()).unwrap_err(), [missing]);
    let plan = run(&ignored, "ca_bundle = '/ca.pem'", &around()).unwrap();
    let Source::Vddk { thumbprint: None, ca_bundle: Some(bundle), .. } = plan.source else {
        panic!("{plan:?}")
    };
    assert_eq!(bundle, PathBuf::from("/ca.pem"));
    let anybody = "vmware_uri says no_verify=1 and there is no vmware_fingerprint, so anybody could answer: give the \
                   fingerprint, or leave no_verify=1 out";
    refused(
        "local",
        verified(json!({"two_phase": true, "vmware_uri": "vpx://u@vc/DC?no_verify=1"})),
        &[anybody],
    );
}

/// A machine that several names fit is told by its id or its path; virt-v2v knows neither.
#[test]
fn a_machine_may_be_told_by_id_or_path() {
    let which = |more: Value| match with("local", more.clone()).unwrap() {
        Plan { source: Source::Vddk { which, .. }, warnings, .. } => (which, warnings),
        other => panic!("{more}: {other:?}"),
    };
    let (moref, path) =
        (json!({"vmware_moref": "vm-62"}), json!({"vmware_inventory_path": "/DC0/vm/a%2fb/web"}));
    let two_phase = |mut more: Value| {
        more["two_phase"] = json!(true);
        which(more)
    };
    assert_eq!(two_phase(moref.clone()), (Some(Machine::Moref("vm-62".to_owned())), Vec::new()));
    assert_eq!(two_phase(path.clone()), (Some(Machine::Path("/DC0/vm/a%2fb/web".to_owned())), Vec::new()));
    assert_eq!(two_phase(json!({"vmware_moref": ""})), (None, Vec::new()));
    let by_name = "is ignored: in a one-phase conversion virt-v2v looks for the machine by its name";
    assert_eq!(which(moref).1, [format!("vmware_moref {by_name}")]);
    assert_eq!(which(path).1, [format!("vmware_inventory_path {by_name}")]);
    let ssh = json!({"transport_method": "ssh", "vmware_uri": "ssh://h/a.vmx", "vmware_moref": "vm-1"});
    assert_eq!(
        with("local", ssh).unwrap().warnings,
        ["vmware_moref is ignored: it is for transport_method vddk"]
    );
    for (more, problem) in [
        (
            json!({"vmware_moref": "vm-1", "vmware_inventory_path": "/a/vm/b"}),
            "vmware_moref and vmware_inventory_path cannot both be given",
        ),
        (json!({"vmware_moref": "vm 1"}), "vmware_moref is an id like vm-62, not vm 1"),
        (json!({"vmware_moref": "<x>"}), "vmware_moref is an id like vm-62, not <x>"),
        (
            json!({"vmware_inventory_path": "DC0/vm/web"}),
            "vmware_inventory_path is a path like /datacenter/vm/folder/name, not DC0/vm/web",
        ),
        (
            json!({"vmware_inventory_path": "/"}),
            "vmware_inventory_path is a path like /datacenter/vm/folder/name, not /",
        ),
    ] {
        refused("local", more, &[problem]);
    }
}

#[test]
fn the_first_problem_is_what_the_old_program_said() {
    let mut all_wrong = json!({"vm_name": "-a/\n", "network_mappings": 1, "warm": true, "two_phase": false,
        "output_format": "x", "osp_environment": {"foo": 1}, "osp_security_groups_ids": 1, "iteration_seconds": -5,
        "transport_method": "vddk", "output_directory": "rel", "virtio_win": "\u{0}", "allocation": "\u{0}"});
    let order = [
        (
            json!({"osp_environment": null, "output_directory": null}),
            "Cannot detect type of host: give rhv_url, export_domain, osp_environment or output_directory",
        ),
        (json!({"osp_environment": {"foo": 1}, "vm_name": null}), "Missing vm_name"),
        (json!({"vm_name": "-a/\n", "transport_method": null}), "No transport method specified"),
        (json!({"transport_method": "x"}), "Unknown transport method: x"),
        (json!({"transport_method": "vddk"}), "Missing argument: vmware_fingerprint"),
        (json!({"vmware_fingerprint": "a"}), "Missing argument: vmware_uri"),
        (json!({"vmware_uri": "esx://a:b:c/d@e"}), "Missing argument: vmware_password"),
        (json!({"vmware_password": "p"}), "\"network_mappings\" must be an array"),
        (
            json!({"network_mappings": [{}]}),
            "Both \"source\" and \"destination\" must be provided in network mapping",
        ),
        (
            json!({"network_mappings": [{"source": "a", "destination": "b"}]}),
            "Cannot disable two-phase conversion when warm conversion is requested",
        ),
        (json!({"two_phase": true}), "Invalid output format 'x', expected raw or qcow2"),
        (json!({"output_format": "raw"}), "Missing argument: osp_destination_project_id"),
        (json!({"osp_destination_project_id": "a"}), "Missing argument: osp_flavor_id"),
        (json!({"osp_flavor_id": "a"}), "Missing argument: osp_server_id"),
        (json!({"osp_server_id": "a"}), "found invalid key in Openstack environment: foo"),
        (json!({"osp_environment": {"os-a": 1}}), "osp_security_groups_ids must be a list"),
        (json!({"osp_security_groups_ids": []}), "Missing mac address in one of network mappings"),
        (json!({"network_mappings": null}), "Invalid value for `iteration_seconds`"),
        // Nothing of the contract is left: now come the problems only this program knows.
        (
            json!({"iteration_seconds": 5}),
            "vm_name must not begin with -: virt-v2v would take it for an option",
        ),
    ];
    for (more, first) in order {
        merge(&mut all_wrong, &more);
        let problems = run(&all_wrong, "", &around()).unwrap_err();
        assert_eq!(problems[0], first, "{problems:?}");
        assert!(problems.iter().all(|line| !line.chars().any(char::is_control)), "{problems:?}");
    }
}
