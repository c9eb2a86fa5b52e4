//! Rules of the plan: every text of the contract and the order in which the old program found it.

use serde_json::{Value, json};

use super::*;
use crate::document::parse;

fn around() -> Surroundings {
    Surroundings {
        two_phase_programs: TwoPhasePrograms::default(),
        home: Some("/home/u".into()),
        pod_directory: None,
        virt_v2v: "/usr/bin/virt-v2v".into(),
        guest_id: "random".into(),
    }
}

/// A document that is complete for each kind of destination.
fn document(kind: &str) -> Value {
    let mut document = json!({"vm_name": "My Virtual", "transport_method": "vddk", "vmware_fingerprint": "01:23",
        "vmware_uri": "esx://root@127.0.0.1?no_verify=1", "vmware_password": "vmw-secret"});
    let destination = match kind {
        "local" => json!({"output_directory": "/out"}),
        "rhv" => {
            json!({"rhv_url": "https://e/api", "rhv_cluster": "c", "rhv_password": "rhv-secret", "rhv_storage": "s"})
        }
        "domain" => json!({"export_domain": "h:/x"}),
        "osp" => json!({"osp_environment": {"os-auth_url": "http://k:5000/v3", "OS_PASSWORD": "hunter2"},
            "osp_destination_project_id": "dest", "osp_flavor_id": "m1", "osp_security_groups_ids": ["sg1"],
            "osp_server_id": "srv"}),
        _ => json!({}),
    };
    merge(&mut document, &destination);
    document
}

fn merge(document: &mut Value, more: &Value) {
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
}

fn run(document: &Value, site: &str, around: &Surroundings) -> Result<Plan, Vec<String>> {
    let site = Site::parse(site, std::path::Path::new("/c")).unwrap();
    let parsed = parse(&serde_json::to_vec(document).unwrap()).unwrap();
    plan(parsed.document, &site, around).map_err(|problems| problems.lines().to_vec())
}

fn with(kind: &str, more: Value) -> Result<Plan, Vec<String>> {
    let mut document = document(kind);
    merge(&mut document, &more);
    run(&document, "", &around())
}

#[track_caller]
fn refused(kind: &str, more: Value, expected: &[&str]) {
    assert_eq!(with(kind, more.clone()).err().unwrap_or_default(), expected, "{kind} {more}");
}

mod openstack_source;
mod secrets;
mod texts;
mod warm;

#[test]
fn hosts_are_detected_in_the_contracts_order() {
    let pod = Surroundings { pod_directory: Some("/data/vm".into()), ..around() };
    let osp = document("osp");
    let mut rhv_and_osp = document("rhv");
    merge(&mut rhv_and_osp, &osp);
    for (document, site, around, expected, warning) in [
        (&document("rhv"), "", &pod, "Ovirt", None),
        (&document("domain"), "", &pod, "ExportDomain", None),
        (&rhv_and_osp, "", &pod, "Ovirt", Some("osp_environment is ignored: rhv_url is given")),
        (&osp, "layout='uci'", &pod, "Openstack", None),
        (&document("local"), "layout='uci'", &pod, "Local", None),
        (&document("none"), "layout='uci'", &pod, "Kubevirt", None),
    ] {
        let plan = run(document, site, around).unwrap();
        assert!(format!("{:?}", plan.destination).starts_with(expected), "{:?}", plan.destination);
        assert_eq!(plan.warnings.first().map(String::as_str), warning);
    }
    // A pod is over when its first process is, so that one stays; v1.13 and later were told so by the document.
    let mut told = document("none");
    for (daemonize, site, stays) in
        [(Value::Null, "layout='uci'", true), (true.into(), "layout='uci'", false), (false.into(), "", true)]
    {
        told["daemonize"] = daemonize;
        let plan = run(&told, site, &pod).unwrap();
        assert_eq!((plan.destination.has_api(), plan.daemonize), (false, !stays), "{told}");
    }
    // A directory data/vm means something only in the container.
    let problems = run(&document("none"), "", &pod).unwrap_err();
    assert!(problems[0].starts_with("Cannot detect type of host"));
    let mut warm = document("none");
    warm["warm"] = true.into();
    let problems = run(&warm, "layout='uci'", &pod).unwrap_err();
    assert_eq!(problems, ["This output does not support two-phase conversion"]);
}

#[test]
fn two_phase_is_ignored_where_the_site_says_so() {
    let mut document = document("local");
    merge(&mut document, &json!({"two_phase": true, "warm": null, "conversion_host_uuid": "/api/vms/x"}));
    let plan = run(&document, "two_phase = \"ignore\"", &around()).unwrap();
    assert_eq!(plan.warnings, ["two_phase is ignored, as the site configuration says: one-phase conversion"]);
    document["two_phase"] = false.into();
    assert!(run(&document, "", &around()).unwrap().warnings.is_empty());
}

#[test]
fn names_are_plain_and_safe() {
    for (name, transport, uri, plain, vault) in [
        ("My VM", "ssh", "ssh://root@h/v/a/My%20VM.vmx", "My VM", &["My VM", "My VM"][..]),
        ("plain", "ssh", "ssh://root@h/v/a/other.vmx", "plain", &["plain", "other"]),
        (
            "ssh://root@h/v/ds/My%20VM/My%20VM.vmx",
            "ssh",
            "",
            "My VM",
            &["ssh://root@h/v/ds/My%20VM/My%20VM.vmx", "My VM"],
        ),
        ("My VM", "vddk", "vpx://root@vc/dc/esxi", "My VM", &["My VM"]),
    ] {
        let plan = with("local", json!({"vm_name": name, "transport_method": transport, "vmware_uri": uri}))
            .unwrap();
        assert_eq!(plan.vm_name, plain);
        assert_eq!(plan.luks_vault.names, vault);
        if let Source::Ssh { uri: used, .. } = plan.source {
            assert_eq!(used, if uri.is_empty() { name } else { uri });
        }
    }
    for (name, problem) in [
        ("-x", "vm_name must not begin with -: virt-v2v would take it for an option"),
        ("a/b", "vm_name must not contain / or control characters"),
        ("a\nb", "vm_name must not contain / or control characters"),
        ("ssh://root@h/a%2fb.vmx", "vm_name must not contain / or control characters"),
        ("ssh://root@h/%2drf.vmx", "vm_name must not begin with -: virt-v2v would take it for an option"),
        ("ssh://root@h/", "vm_name: the URI does not name a vmx file"),
    ] {
        refused("local", json!({"vm_name": name}), &[problem]);
    }
    let nul = with("local", json!({"vm_name": "a\u{0}b"})).unwrap_err();
    assert_eq!(nul[0], "vm_name must not contain a NUL character");
}

#[test]
fn ssh_needs_the_uri_of_a_vmx_file() {
    let ssh = |more: Value| {
        let mut document = json!({"vm_name": "a", "transport_method": "ssh", "output_directory": "/out"});
        merge(&mut document, &more);
        run(&document, "", &around())
    };
    assert_eq!(ssh(json!({})).unwrap_err(), ["Missing argument: vmware_uri"]);
    assert_eq!(
        ssh(json!({"vmware_uri": "-oProxyCommand=x"})).unwrap_err(),
        ["vmware_uri must begin with ssh:// for transport_method ssh"]
    );
    let uri = json!({"vmware_uri": "ssh://h/a.vmx"});
    let key = |more: Value| {
        let mut all = uri.clone();
        merge(&mut all, &more);
        match ssh(all).unwrap().source {
            Source::Ssh { key, .. } => format!("{key:?}"),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(key(json!({})), "Default");
    assert_eq!(key(json!({"ssh_key": ""})), "Default");
    assert_eq!(key(json!({"ssh_key_file": "/k"})), "File(\"/k\")");
    assert!(key(json!({"ssh_key": "PEM", "ssh_key_file": "/k"})).starts_with("Text("));
}

#[test]
fn local_sources_are_told_by_their_names() {
    let local = |more: Value| {
        let mut document = json!({"vm_name": "a", "transport_method": "local", "output_directory": "/out"});
        merge(&mut document, &more);
        run(&document, "", &around())
    };
    for (more, expected) in [
        (json!({"source_path": "/a.img"}), "Disk(\"/a.img\")"),
        (json!({"source_path": "/dev/sdx"}), "Disk(\"/dev/sdx\")"),
        (json!({"source_path": "/a.xml"}), "LibvirtXml(\"/a.xml\")"),
        (json!({"source_path": "/a.VMX"}), "Vmx(\"/a.VMX\")"),
        (json!({"source_path": "/a.ova"}), "Ova(\"/a.ova\")"),
        (json!({"source_disks": ["/a", "/b"]}), "Disks([\"/a\", \"/b\"])"),
    ] {
        let Source::Local(source) = local(more).unwrap().source else { panic!() };
        assert_eq!(format!("{source:?}"), expected);
    }
    for (more, expected) in [
        (json!({}), "transport_method local needs source_path or source_disks"),
        (json!({"source_disks": []}), "transport_method local needs source_path or source_disks"),
        (
            json!({"source_path": "/a", "source_disks": ["/b"]}),
            "source_path and source_disks cannot both be given for transport_method local",
        ),
        (json!({"source_path": "a.img"}), "source_path must be an absolute path: a.img"),
        (json!({"source_disks": ["/a", "b"]}), "source_disks[1] must be an absolute path: b"),
        (json!({"source_path": "/a\u{0}"}), "source_path must not contain a NUL character"),
    ] {
        assert_eq!(local(more).unwrap_err(), [expected]);
    }
}

#[test]
fn nothing_with_a_nul_reaches_a_command_line() {
    for (kind, more, key) in [
        ("local", json!({"vmware_uri": "esx://\u{0}"}), "vmware_uri"),
        ("local", json!({"vmware_fingerprint": "\u{0}"}), "vmware_fingerprint"),
        ("local", json!({"allocation": "\u{0}"}), "allocation"),
        ("local", json!({"output_directory": "/\u{0}"}), "output_directory"),
        ("local", json!({"virtio_win": "/\u{0}"}), "virtio_win"),
        ("local", json!({"luks_keys_vault": "/\u{0}"}), "luks_keys_vault"),
        ("rhv", json!({"rhv_url": "https://\u{0}"}), "rhv_url"),
        ("rhv", json!({"rhv_cluster": "\u{0}"}), "rhv_cluster"),
        ("rhv", json!({"rhv_storage": "\u{0}"}), "rhv_storage"),
        ("rhv", json!({"rhv_cafile": "/\u{0}"}), "rhv_cafile"),
        ("domain", json!({"export_domain": "\u{0}"}), "export_domain"),
        ("osp", json!({"osp_server_id": "\u{0}"}), "osp_server_id"),
        ("osp", json!({"osp_guest_id": "\u{0}"}), "osp_guest_id"),
        ("osp", json!({"osp_volume_type_id": "\u{0}"}), "osp_volume_type_id"),
        (
            "local",
            json!({"network_mappings": [{"source": "a", "destination": "\u{0}"}]}),
            "network_mappings[0].destination",
        ),
    ] {
        refused(kind, more, &[&format!("{key} must not contain a NUL character")]);
    }
}

#[test]
fn the_rest_of_the_document_reaches_the_plan() {
    let plan = with(
        "osp",
        json!({"source_disks": ["b", "a"], "allocation": "sparse", "insecure_connection": true, "daemonize": false,
            "output_format": "qcow2", "osp_volume_type_id": "fast", "virtio_win": "/win.iso",
            "network_mappings": [{"source": "s", "destination": "d", "mac_address": "m", "ip_address": "1.2.3.4"}]}),
    )
    .unwrap();
    assert_eq!((plan.source_disks, plan.source_disks_given), (vec!["b".to_owned(), "a".to_owned()], true));
    assert_eq!(plan.allocation.as_deref(), Some("sparse"));
    assert!(plan.insecure_connection && !plan.daemonize);
    assert_eq!(plan.output_format, DiskFormat::Qcow2);
    assert_eq!(plan.tools.virtio_win, Some("/win.iso".into()));
    assert_eq!(plan.network_mappings[0].ip_address.as_deref(), Some("1.2.3.4"));
    let Destination::Openstack { environment, guest_id, volume_type_id, security_groups_ids, .. } =
        plan.destination
    else {
        panic!()
    };
    let keys: Vec<_> = environment.iter().map(|(key, _)| key.as_str()).collect();
    // serde_json sorts the keys of this test's document; the order of the text is a rule of the document.
    assert_eq!(keys, ["password", "auth-url"]);
    assert_eq!((guest_id.as_str(), volume_type_id.as_deref()), ("random", Some("fast")));
    assert_eq!(security_groups_ids, ["sg1"]);

    let plan =
        with("osp", json!({"osp_security_groups_ids": null, "osp_security_group_ids": ["other"]})).unwrap();
    let Destination::Openstack { security_groups_ids, .. } = plan.destination else { panic!() };
    assert_eq!(security_groups_ids, ["other"]);
    assert!(plan.daemonize && !plan.source_disks_given);
}

#[test]
fn the_ca_file_is_the_documents_or_the_sites() {
    let cafile = |more: Value, site: &str| {
        let mut document = document("rhv");
        merge(&mut document, &more);
        match run(&document, site, &around()).unwrap().destination {
            Destination::Ovirt { cafile, .. } => cafile,
            other => panic!("{other:?}"),
        }
    };
    let uci = "/etc/pki/ca-trust/source/anchors/v2v-conversion-host-ca-bundle.pem";
    assert_eq!(cafile(json!({}), ""), PathBuf::from("/etc/pki/vdsm/certs/cacert.pem"));
    assert_eq!(cafile(json!({}), "layout = 'uci'"), PathBuf::from(uci));
    assert_eq!(cafile(json!({}), "ca_bundle = '/ca'"), PathBuf::from("/ca"));
    assert_eq!(cafile(json!({"rhv_cafile": "/mine"}), "ca_bundle = '/ca'"), PathBuf::from("/mine"));
}

#[test]
fn keys_without_effect_are_warnings() {
    let plan = with(
        "local",
        json!({"install_drivers": true, "virtio_win": "win.iso", "resume": "20260101T000000-1",
            "verify": "full", "backend": "x", "rhv_debug": true, "vm_uuid": "u", "luks_keys_files": []}),
    )
    .unwrap();
    assert_eq!(plan.warnings.len(), 4, "{:?}", plan.warnings);
    assert_eq!(plan.tools.virtio_win, None);
    let plan = with("local", json!({"install_drivers": false, "verify": false, "resume": null})).unwrap();
    assert!(plan.warnings.is_empty());
}

#[test]
fn limits_that_are_none_are_warnings_and_the_others_hold() {
    let plan = with("local", json!({"throttling": {"cpu": 50, "network": "fast"}})).unwrap();
    assert_eq!(plan.limits.cpu.map(|cpu| cpu.to_string()).as_deref(), Some("50%"));
    assert_eq!(plan.limits.network, None);
    assert_eq!(plan.warnings.len(), 1);
    assert!(plan.warnings[0].starts_with("Failed to parse value for network limit: "), "{:?}", plan.warnings);
    let plan = with("local", json!({"throttling": {"cpu": null, "network": null}})).unwrap();
    assert_eq!((plan.limits, plan.warnings.len()), (Limits::default(), 0));
}

#[test]
fn vaults_are_looked_for_where_each_generation_did() {
    let paths = |more: Value, site: &str, around: &Surroundings| {
        let mut document = document("local");
        merge(&mut document, &more);
        run(&document, site, around).unwrap().luks_vault.paths
    };
    let none = Surroundings { home: None, ..around() };
    let home = PathBuf::from("/home/u/.v2v_luks_keys_vault.json");
    let uci = PathBuf::from("/var/lib/uci/luks_keys_vault.json");
    assert_eq!(paths(json!({}), "", &around()), [home.as_path()]);
    assert_eq!(paths(json!({}), "layout='uci'", &around()), [home, uci.clone()]);
    assert_eq!(paths(json!({}), "layout='uci'", &none), [uci]);
    assert!(paths(json!({}), "", &none).is_empty());
    assert_eq!(paths(json!({"luks_keys_vault": "/v"}), "layout='uci'", &around()), [PathBuf::from("/v")]);
}

#[test]
fn a_plan_survives_the_way_to_the_worker() {
    let pem = json!({"transport_method": "ssh", "vmware_uri": "ssh://h/a.vmx", "ssh_key": "PEM"});
    for (kind, more) in [("local", pem), ("rhv", json!({})), ("osp", json!({})), ("domain", json!({}))] {
        let plan = with(kind, more).unwrap();
        let sent = serde_json::to_vec(&plan).unwrap();
        let received: Plan = serde_json::from_slice(&sent).unwrap();
        assert_eq!(serde_json::to_vec(&received).unwrap(), sent);
        assert_eq!(received.secrets().len(), plan.secrets().len());
    }
}
