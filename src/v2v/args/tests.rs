//! Command lines, source by destination by option, and the contract's examples byte for byte.

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::*;
use crate::plan::{Surroundings, plan};
use crate::site::Site;
use crate::throttle::rate_file;

/// virt-v2v 1.42, 2.2 and 2.10, as far as the command line depends on them.
const OLD: &str =
    "virt-v2v\nvddk\nio/oo\nmac-option\noutput:json\noutput:local\noutput:rhv\noutput:rhv-upload\n";
const V22: &str =
    "virt-v2v\nvirt-v2v-2.0\nmac-option\noutput:kubevirt\noutput:local\noutput:rhv\noutput:rhv-upload\n";
const V210: &str =
    "virt-v2v\nvirt-v2v-2.0\nmac-option\noutput:kubevirt\noutput:disk\noutput:ovirt\noutput:ovirt-upload\n";

fn show(arg: &Arg) -> String {
    match arg {
        Arg::Plain(text) => text.to_str().unwrap().to_owned(),
        Arg::SecretFile { prefix, content } => format!("{prefix}${{FILE:{}}}", content.expose_secret()),
    }
}

fn line(document: &Value, site: &str, capabilities: &str) -> CommandLine {
    let (plan, capabilities) = (planned(document, site), Capabilities::parse(capabilities));
    let bandwidth_file = rate_file::path(&plan, &capabilities, Path::new("/tmp/job"));
    one_phase(&plan, &capabilities, Paths { bandwidth_file: bandwidth_file.as_deref().ok(), ..paths() })
}

fn paths() -> Paths<'static> {
    Paths {
        machine_readable_log: Path::new("/log/mr"),
        libvirt_xml: Path::new("/tmp/job/vm.xml"),
        private_directory: Path::new("/tmp/job"),
        bandwidth_file: None,
        ssh_auth_sock: Some(Path::new("/tmp/job/agent")),
    }
}

fn planned(document: &Value, site: &str) -> Plan {
    let site = Site::parse(site, Path::new("/c")).unwrap();
    let around = Surroundings {
        pod_directory: Some("/data/vm".into()),
        guest_id: "random".into(),
        ..Surroundings::default()
    };
    let parsed = crate::document::parse(&serde_json::to_vec(document).unwrap()).unwrap();
    let mut plan = plan(parsed.document, &site, &around).unwrap();
    if document["vm_name"] == "crypt" {
        plan.luks_keys = ["one", "two"]
            .iter()
            .enumerate()
            .map(|(index, &key)| crate::plan::LuksKey {
                device: format!("/dev/sda{}", index + 1),
                key: key.into(),
            })
            .collect();
    }
    plan
}

/// Arguments after what every command line begins with, joined by `|`.
fn args(document: &Value, site: &str, capabilities: &str) -> String {
    let all: Vec<String> = line(document, site, capabilities).args.iter().map(show).collect();
    let (start, rest) = all.split_at(5);
    assert_eq!(start, ["-v", "-x", "--root", "first", "--machine-readable=file:/log/mr"]);
    rest.join("|")
}

fn document(parts: &[&Value]) -> Value {
    let mut document = json!({"vm_name": "My VM"});
    for part in parts {
        for (key, value) in part.as_object().unwrap() {
            document[key] = value.clone();
        }
    }
    document
}

fn sources() -> Vec<(Value, &'static str)> {
    let password = "My VM|-i|libvirt|-ic|esx://root@h?no_verify=1|-it|vddk|-io|vddk-libdir=/vddk|-io|vddk-thumbprint=01:23|PW|${FILE:vmw}";
    vec![
        (
            json!({"transport_method": "vddk", "vmware_uri": "esx://root@h?no_verify=1", "vmware_password": "vmw", "vmware_fingerprint": "01:23"}),
            password,
        ),
        (
            json!({"transport_method": "ssh", "vmware_uri": "ssh://root@h/a%20b.vmx"}),
            "ssh://root@h/a%20b.vmx|-i|vmx|-it|ssh",
        ),
        (json!({"transport_method": "local", "source_path": "/a.img"}), "-i|disk|/a.img"),
        (json!({"transport_method": "local", "source_path": "/a.xml"}), "-i|libvirtxml|/a.xml"),
        (json!({"transport_method": "local", "source_path": "/a.vmx"}), "-i|vmx|/a.vmx"),
        (json!({"transport_method": "local", "source_path": "/a.ova"}), "-i|ova|/a.ova"),
        (json!({"transport_method": "local", "source_disks": ["/a", "/b"]}), "-i|libvirtxml|/tmp/job/vm.xml"),
    ]
}

/// Told at its start, virt-v2v takes a limit at any time; where nobody may ask for one the arguments stay as they were.
#[test]
fn virt_v2v_is_told_where_to_look_for_a_network_limit() {
    let cloud = json!({"export_domain": "h:/x"});
    let directory = json!({"output_directory": "/out"});
    let asked = json!({"throttling": {}});
    let none = json!({});
    let [vddk, ssh, local] = [0, 1, 2].map(|at| sources()[at].0.clone());
    let able = &format!("{V22}bandwidth-option\n");
    for (source, destination, throttling, site, capabilities, told) in [
        (&vddk, &directory, &none, "layout = 'uci'", able, true),
        (&ssh, &directory, &none, "", able, true),
        (&vddk, &cloud, &none, "", able, true),
        (&vddk, &cloud, &none, "layout = 'uci'", able, false),
        (&vddk, &cloud, &asked, "layout = 'uci'", able, true),
        (&local, &directory, &asked, "", able, false),
        (&vddk, &directory, &asked, "", &V22.to_owned(), false),
    ] {
        let args = args(&document(&[source, destination, throttling]), site, capabilities);
        assert_eq!(args.ends_with("|--bandwidth-file|/tmp/job/bandwidth"), told, "{args}");
        assert_eq!(args.contains("--bandwidth"), told, "{args}");
    }
}

/// Keys, and the output part for 1.42, 2.2 and 2.10.
fn destinations() -> Vec<(Value, [&'static str; 3])> {
    let rhv = json!({"rhv_url": "https://e/api", "rhv_cluster": "Default", "rhv_storage": "data", "rhv_password": "rhv"});
    let osp = json!({"osp_environment": {"os_auth_url": "u", "OS_PASSWORD": "hunter2"}, "osp_destination_project_id": "p",
        "osp_flavor_id": "f", "osp_security_groups_ids": [], "osp_server_id": "srv"});
    let upload = "--bridge|ovirtmgmt|-of|raw|-o|rhv-upload|-oc|https://e/api|-os|data|-op|${FILE:rhv}|-oo|rhv-cafile=/ca|-oo|rhv-cluster=Default|-oo|rhv-direct|-oo|rhv-verifypeer=true";
    let upload_new = "--bridge|ovirtmgmt|-of|raw|-o|ovirt-upload|-oc|https://e/api|-os|data|-op|${FILE:rhv}|-oo|ovirt-cafile=/ca|-oo|ovirt-cluster=Default|-oo|ovirt-verifypeer=true";
    let cinder = "-o|openstack|-oo|server-id=srv|-oo|guest-id=random|-oo|os-cloud=v2v";
    let (domain, domain_new) =
        ("--bridge|ovirtmgmt|-of|raw|-o|rhv|-os|h:/x", "--bridge|ovirtmgmt|-of|raw|-o|ovirt|-os|h:/x");
    let (json_mode, kubevirt) = (
        "-o|json|-os|/data/vm|-oo|json-disks-pattern=disk%{DiskNo}/disk.img",
        "-of|raw|-o|kubevirt|-os|/data/vm",
    );
    vec![
        (
            json!({"output_directory": "/out"}),
            ["-of|raw|-o|local|-os|/out", "-of|raw|-o|local|-os|/out", "-of|raw|-o|disk|-os|/out"],
        ),
        (rhv, [upload, upload, upload_new]),
        (json!({"export_domain": "h:/x"}), [domain, domain, domain_new]),
        (osp, [cinder; 3]),
        (json!({}), [json_mode, kubevirt, kubevirt]),
    ]
}

const SITE: &str = "layout = 'uci'\nvddk_libdir = '/vddk'\nca_bundle = '/ca'";

#[test]
fn every_source_goes_to_every_destination() {
    for (source, input) in sources() {
        for (destination, outputs) in destinations() {
            for ((words, output), password) in
                [OLD, V22, V210].iter().zip(outputs).zip(["--password-file", "-ip", "-ip"])
            {
                let document = document(&[&source, &destination]);
                let name = if source["transport_method"] == "local" { "|-on|My VM" } else { "" };
                let expected = format!("{}|{output}{name}", input.replace("PW", password));
                assert_eq!(args(&document, SITE, words), expected);
            }
        }
    }
}

#[test]
fn options_stand_between_source_and_destination_and_in_order() {
    let (source, input) = sources().swap_remove(1);
    let (local, _) = destinations().swap_remove(0);
    let networks = json!({"network_mappings": [{"source": "src_net_1", "destination": "dst_net_1"},
        {"source": "src net 2", "destination": "dst net 2", "mac_address": "01:23:45:67:89:AB"}]});
    for (more, words, expected) in [
        (
            &networks,
            V22,
            "--bridge|src_net_1:dst_net_1|--mac|01:23:45:67:89:AB:bridge:dst net 2|-of|raw|-o|local|-os|/out",
        ),
        // No capability, no --mac: the mapping is then by network name alone.
        (
            &networks,
            "virt-v2v",
            "--bridge|src_net_1:dst_net_1|--bridge|src net 2:dst net 2|-of|raw|-o|local|-os|/out",
        ),
        (
            &json!({"output_format": "qcow2", "allocation": "preallocated"}),
            V22,
            "-of|qcow2|-oa|preallocated|-o|local|-os|/out",
        ),
        (
            &json!({"vm_name": "crypt"}),
            V22,
            "--key|/dev/sda1:file:${FILE:one}|--key|/dev/sda2:file:${FILE:two}|-of|raw|-o|local|-os|/out",
        ),
    ] {
        assert_eq!(args(&document(&[&source, &local, more]), SITE, words), format!("{input}|{expected}"));
    }
}

#[test]
fn clouds_take_their_own_options() {
    let (source, input) = sources().swap_remove(1);
    let mut destinations = destinations();
    let (osp, _) = destinations.swap_remove(3);
    let (rhv, _) = destinations.swap_remove(1);
    let more = json!({"osp_volume_type_id": "fast", "insecure_connection": true, "osp_guest_id": "g",
        "allocation": "sparse"});
    assert_eq!(
        args(&document(&[&source, &osp, &more]), SITE, V22),
        format!(
            "{input}|-o|openstack|-oo|server-id=srv|-oo|guest-id=g|-oo|os-cloud=v2v|-os|fast|-oo|verify-server-certificate=false"
        )
    );
    let rhv = args(&document(&[&source, &rhv, &more]), SITE, V22);
    assert!(rhv.contains("-of|raw|-oa|sparse|-o|rhv-upload"), "{rhv}");
    assert!(rhv.ends_with("-oo|rhv-direct|-oo|rhv-verifypeer=false"), "{rhv}");
}

#[test]
fn openstack_credentials_stand_in_a_file_only() {
    let (source, _) = sources().swap_remove(0);
    let (osp, _) = destinations().swap_remove(3);
    let line = line(&document(&[&source, &osp]), SITE, V22);
    let (_, file) = line.env.iter().find(|(name, _)| name == "OS_CLIENT_CONFIG_FILE").unwrap();
    let file = show(file);
    assert!(matches!(file.strip_prefix("${FILE:"), Some(json) if json.contains("hunter2")));
    assert_eq!(line.env_without, ["OS_"]);
    let public =
        line.args.iter().filter(|arg| matches!(arg, Arg::Plain(_))).map(show).collect::<Vec<_>>().concat();
    assert!(!public.contains("hunter2") && !public.contains("vmw"), "{public}");
}

#[test]
fn the_environment_is_complete_and_public() {
    let site = format!("{SITE}\nvirtio_win = '/win'\nlibguestfs_backend_settings = 'force_tcg'");
    let (local, _) = destinations().swap_remove(0);
    for (index, extra) in [(0, None), (1, Some("SSH_AUTH_SOCK=/tmp/job/agent")), (2, None)] {
        let (source, _) = sources().swap_remove(index);
        let env: Vec<String> = line(&document(&[&source, &local]), &site, V22)
            .env
            .iter()
            .map(|(name, value)| format!("{name}={}", show(value)))
            .collect();
        let mut expected = vec![
            "LANG=C",
            "LC_ALL=C.UTF-8",
            "LIBGUESTFS_BACKEND=direct",
            "TMPDIR=/tmp/job",
            "VIRT_V2V_TMPDIR=/tmp/job",
            "LIBGUESTFS_BACKEND_SETTINGS=force_tcg",
            "VIRTIO_WIN=/win",
        ];
        expected.extend(extra);
        assert_eq!(env, expected);
    }
}

/// Whatever the guest came from: it is converted from local disks, and nothing is said that 2.2 does not know.
#[test]
fn a_conversion_in_place_is_told_disks_and_keys_only() {
    let options = json!({"vm_name": "crypt", "output_format": "qcow2", "allocation": "preallocated",
        "network_mappings": [{"source": "a", "destination": "b", "mac_address": "01:23:45:67:89:AB"},
            {"source": "a", "destination": "c"}]});
    let (local, _) = destinations().swap_remove(0);
    for (source, _) in sources() {
        let document = document(&[&source, &local, &options]);
        let line = in_place(&planned(&document, SITE), paths());
        let args: Vec<String> = line.args.iter().map(show).collect();
        assert_eq!(
            args.join("|"),
            "-v|-x|--root|first|--machine-readable=file:/log/mr|-i|libvirtxml|/tmp/job/vm.xml|\
             --key|/dev/sda1:file:${FILE:one}|--key|/dev/sda2:file:${FILE:two}"
        );
        let env = |line: &CommandLine| -> Vec<String> {
            line.env.iter().map(|(name, value)| format!("{name}={}", show(value))).collect()
        };
        assert_eq!(
            env(&line),
            env(&self::line(&document, SITE, V22)),
            "the same environment as in one phase"
        );
    }
}

#[test]
fn dangerous_options_are_never_given() {
    for (source, _) in sources() {
        for (destination, _) in destinations() {
            for words in [OLD, V22, V210] {
                let line = args(&document(&[&source, &destination]), SITE, words);
                for option in ["--parallel", "--no-copy", "--debug-overlays", "--in-place"] {
                    assert!(!line.contains(option), "{line}");
                }
            }
        }
    }
}
