//! The verb `plan`: what it shows, what it refuses as the job does, and that it begins nothing.
//!
//! That what it shows is what runs is in `two_phase/planned.rs`; vSphere is in `vsphere/planned.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::exports::site::{have, qemu_img};
use crate::ovirt::engine::Engine;
use crate::rig::json_file;
use crate::rig::sandbox::Sandbox;

const LIMIT: Duration = Duration::from_secs(90);

/// What the program said to one document.
pub struct Planned {
    /// Exit code.
    pub code: Option<i32>,
    /// Of `--json`.
    pub json: Value,
    /// For people.
    pub text: String,
    /// Lines of stderr.
    pub problems: Vec<String>,
}

impl Planned {
    /// Program and arguments of every command, stage by stage.
    pub fn commands(&self) -> Vec<Vec<String>> {
        let stages = self.json["stages"].as_array().unwrap().iter();
        let commands = stages.flat_map(|stage| stage["commands"].as_array().unwrap());
        commands.map(|command| serde_json::from_value(command["argv"].clone()).unwrap()).collect()
    }

    /// What a stage does.
    pub fn does(&self, name: &str) -> String {
        let stages = self.json["stages"].as_array().unwrap();
        let stage = stages.iter().find(|stage| stage["name"] == name);
        stage.map_or_else(String::new, |stage| stage["does"].to_string())
    }
}

/// Plans a document in both forms, which say the same, fit the schema, and change nothing in the sandbox.
pub fn plan(sandbox: &Sandbox, document: &str) -> Planned {
    let before = listing(&sandbox.dir);
    let text = sandbox.child(&["plan"], document).wait_with_output().unwrap();
    let json = sandbox.child(&["plan", "--json"], document).wait_with_output().unwrap();
    assert_eq!(listing(&sandbox.dir), before, "nothing is made, removed or written");
    let shown = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let value: Value = serde_json::from_slice(&json.stdout).unwrap();
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/plan.schema.json");
    let schema = jsonschema::validator_for(&json_file(schema)).unwrap();
    let errors: Vec<String> = schema.iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}: {value:#}");
    let problems: Vec<String> = shown(&json.stderr).lines().map(str::to_owned).collect();
    assert_eq!(value["problems"], json!(problems), "stderr and JSON say the same");
    assert_eq!((text.status, shown(&text.stderr)), (json.status, shown(&json.stderr)));
    assert_eq!(value["would_run"], json!(json.status.success()), "{value:#}");
    Planned { code: json.status.code(), json: value, text: shown(&text.stdout), problems }
}

/// All below a directory, with what would change if anybody wrote.
fn listing(directory: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let data = path.symlink_metadata().unwrap();
        if data.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, data.len(), data.modified().unwrap()));
    }
    found.sort();
    found
}

fn sandbox(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.configure("job", &Map::new());
    let disk = fs::File::create(sandbox.path("disk.img")).unwrap();
    disk.set_len((3 << 30) + 512).unwrap();
    sandbox
}

fn document(sandbox: &Sandbox, more: &Value) -> String {
    let mut document = json!({"vm_name": "guest", "transport_method": "local", "source_path": sandbox.path("disk.img"),
                              "output_directory": sandbox.path("out")});
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document.to_string()
}

/// The line of virt-v2v, the disk, the room, and what a person reads of it.
#[test]
fn one_local_disk_is_shown_and_its_virt_v2v_is_the_one_that_runs() {
    let sandbox = sandbox("plan-local");
    let document = document(&sandbox, &json!({"throttling": {}, "misspelt": 1, "daemonize": false}));
    let planned = plan(&sandbox, &document);
    assert_eq!(planned.code, Some(0), "{:?}", planned.problems);
    let json = &planned.json;
    assert_eq!(
        (&json["mode"], &json["guest"]["disks"][0]["size_bytes"]),
        (&json!("one_phase"), &json!((3_u64 << 30) + 512))
    );
    assert_eq!(json["warnings"], json!(["unknown key misspelt ignored"]));
    assert_eq!(json["room"]["worst_case_bytes"], json!((3_u64 << 30) + 512));
    let lines: Vec<&str> = planned.text.lines().collect();
    assert_eq!(lines[0], "Job          one-phase, would run");
    let disk = format!("Disks        Hard disk 1  scsi  3.0 GiB  {}", sandbox.path("disk.img").display());
    assert!(lines.contains(&disk.as_str()), "{}", planned.text);
    let made: Vec<&str> =
        json["effects"].as_array().unwrap().iter().map(|effect| effect["name"].as_str().unwrap()).collect();
    assert!(made.contains(&sandbox.path("out/guest-sda").to_str().unwrap()), "{made:?}");

    let ended = sandbox.child(&[], &document).wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let state = sandbox.state_file().unwrap();
    let tag = state.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let mut ran = vec![sandbox.path("bin/virt-v2v").display().to_string()];
    let record = sandbox.record().unwrap();
    ran.extend(record["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()));
    let shown: Vec<Vec<String>> = planned.commands();
    let shown: Vec<String> = shown[0].iter().map(|word| word.replace("<tag>", &tag)).collect();
    assert_eq!(shown, ran);
}

/// Whatever the job says before its reply, the plan says, word for word.
#[test]
fn what_the_job_refuses_the_plan_refuses_in_the_same_words() {
    let tag = Regex::new(r"\d{8}T\d{6}-\d+").unwrap();
    let no_configuration = json!({});
    let table = [
        (
            no_configuration.clone(),
            json!({"vm_name": null, "transport_method": "carrier pigeon", "output_format": "vhd"}),
            3,
        ),
        (no_configuration.clone(), json!({"vm_name": 7}), 1),
        (no_configuration.clone(), json!({"source_path": "/nowhere/disk.img"}), 1),
        (no_configuration.clone(), json!({"output_directory": "/nowhere/out"}), 1),
        (no_configuration.clone(), json!({"warm": true}), 1),
        (no_configuration.clone(), json!({"two_phase": true, "resume": "20200101T000000-1"}), 1),
        (no_configuration.clone(), json!({"luks_keys_vault": "${DIR}/config.toml"}), 1),
        (json!({"virt_v2v": "/nowhere/virt-v2v"}), json!({}), 1),
        (json!({"nbdkit": "/nowhere/nbdkit"}), json!({"two_phase": true}), 1),
        (json!({"state_dir": "/dev/null/state"}), json!({}), 1),
        (json!({"tmp_dir": "/dev/null/tmp"}), json!({}), 1),
        (json!({"misspelt": 1}), json!({}), 1),
    ];
    for (keys, more, problems) in table {
        let mut sandbox = sandbox("plan-refused");
        sandbox.configure("job", keys.as_object().unwrap());
        let document = document(&sandbox, &sandbox.substitute(&more));
        let planned = plan(&sandbox, &document);
        assert_eq!(
            (planned.code, planned.problems.len(), planned.text.as_str()),
            (Some(1), problems, ""),
            "{keys} {more}"
        );
        let refused = sandbox.child(&[], &document).wait_with_output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{keys} {more}");
        let said = String::from_utf8(refused.stderr).unwrap();
        let said: Vec<String> =
            said.lines().map(|line| tag.replace_all(line, "<tag>").into_owned()).collect();
        let planned: Vec<String> =
            planned.problems.iter().map(|line| tag.replace_all(line, "<tag>").into_owned()).collect();
        assert_eq!(planned, said, "{keys} {more}");
    }
    // Not even JSON.
    let sandbox = sandbox("plan-refused");
    for text in ["", "[]", "{\"vm_name\": "] {
        let refused = sandbox.child(&[], text).wait_with_output().unwrap();
        assert_eq!(
            plan(&sandbox, text).problems.join("\n") + "\n",
            String::from_utf8(refused.stderr).unwrap()
        );
    }
}

/// What the job finds out only in the background, and tells in its state.
#[test]
fn what_the_job_fails_with_before_it_begins_the_plan_says_now() {
    if !have(&["nbdkit", "qemu-nbd", "qemu-img"]) {
        return;
    }
    let sandbox = sandbox("plan-fails");
    fs::write(sandbox.path("machine.vmx"), "scsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"a.vmdk\"\n")
        .unwrap();
    fs::write(sandbox.path("machine.vmx.lck"), "").unwrap();
    fs::write(sandbox.path("none.xml"), "<domain><name>a</name></domain>").unwrap();
    let cloud = json!({"os-auth_url": "http://127.0.0.1:1", "os-password": "quite-secret"});
    for more in [
        json!({"two_phase": true, "source_path": sandbox.path("machine.vmx")}),
        json!({"two_phase": true, "source_path": sandbox.path("none.xml")}),
        json!({"output_directory": null, "osp_environment": cloud, "osp_server_id": "s", "osp_flavor_id": "f",
               "osp_destination_project_id": "p", "osp_security_groups_ids": ["g"]}),
    ] {
        let document = document(&sandbox, &more);
        let planned = plan(&sandbox, &document);
        assert_eq!((planned.code, planned.problems.len()), (Some(1), 1), "{more}: {:?}", planned.problems);
        let mut job = sandbox.spawn(document.into_bytes());
        let last = job.wait_finished(LIMIT).unwrap();
        // Its last processes still tidy up.
        job.gone_within(LIMIT).unwrap();
        job.end();
        assert_eq!(last["last_message"]["message"], planned.problems[0], "{more}");
    }
}

/// Passwords of the document, inside its URIs, of the vault: in neither form, whether the job would run or not.
#[test]
fn no_secret_is_shown() {
    let sandbox = sandbox("plan-secrets");
    let vault = sandbox.path("vault.json");
    fs::write(&vault, json!({"guest": [{"device": "/dev/sda1", "key": "luks-9f3a \"x\""}]}).to_string())
        .unwrap();
    fs::set_permissions(&vault, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let key = sandbox.test_key().to_owned();
    let vmware = json!({"transport_method": "vddk", "source_path": null, "luks_keys_vault": vault,
        "vmware_uri": "vpx://user:uri%2Fpass-77@127.0.0.1:1/DC/host?no_verify=1", "vmware_password": "vmware-\"pass\"-88",
        "vmware_fingerprint": "1A:3F:26:C6:DC:2C:44:88:AA:33:81:3C:18:6E:5D:9F:C0:EE:DF:5C"});
    let with = |more: Value| {
        let mut document = vmware.clone();
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    };
    // The plan looks at an engine as the job would.
    let directory = sandbox.path("engine");
    fs::create_dir_all(&directory).unwrap();
    let engine = Engine::start(&directory);
    engine.world().password = "rhv-pass-55".to_owned();
    let url = |user: &str| engine.url.replace("https://", &format!("https://{user}@"));
    let shown = url("admin%40internal");
    let table = [
        (with(json!({})), 0, vec!["-ip", "***", "/dev/sda1:file:***"]),
        (with(json!({"two_phase": true})), 1, vec![]),
        (
            json!({"output_directory": null, "rhv_url": url("admin%40internal:engine-66"), "rhv_password": "rhv-pass-55",
                   "rhv_cluster": "Default", "rhv_storage": "data", "rhv_cafile": engine.certificate.file}),
            0,
            vec!["-op", "***", shown.as_str()],
        ),
        (
            json!({"transport_method": "ssh", "source_path": null, "ssh_key": key,
                   "vmware_uri": "ssh://root:ssh-pass-44@127.0.0.1:1/vmfs/a/a.vmx"}),
            0,
            vec!["ssh://root@127.0.0.1:1/vmfs/a/a.vmx"],
        ),
    ];
    let armour = key.lines().filter(|line| line.len() > 20 && !line.contains("--")).map(str::to_owned);
    let mut secrets: Vec<String> = armour.collect();
    secrets.extend(["77", "88", "9f3a", "66", "55", "44"].map(|digits| format!("-{digits}")));
    secrets.extend(["pass-77", "vmware-", "luks-", "engine-", "rhv-pass"].map(str::to_owned));
    for (more, code, words) in table {
        let planned = plan(&sandbox, &document(&sandbox, &more));
        assert_eq!(planned.code, Some(code), "{more}: {:?}", planned.problems);
        let all = format!("{}\n{}\n{}", planned.text, planned.json, planned.problems.join("\n"));
        // An address of the document that is none of them.
        let all = all.replace("--", "");
        for secret in &secrets {
            assert!(!all.contains(secret.as_str()), "{secret} in {all}");
        }
        let argv = planned.commands().concat();
        for word in words {
            assert!(argv.iter().any(|have| have == word), "{word} not in {argv:?}");
        }
    }
}

/// No room, and Windows without drivers: said before hours of copying.
#[test]
fn what_is_missing_for_the_guest_is_a_warning() {
    if !have(&["nbdkit", "qemu-nbd", "qemu-img"]) {
        return;
    }
    let mut sandbox = sandbox("plan-warns");
    sandbox.configure("job", json!({"virtio_win": "/nowhere/virtio-win"}).as_object().unwrap());
    fs::create_dir(sandbox.path("vm")).unwrap();
    qemu_img(&sandbox.path("vm"), "create -q -f vmdk a.vmdk 6E");
    fs::write(
        sandbox.path("vm/a.vmx"),
        "guestOS = \"windows2019srv-64\"\nfirmware = \"efi\"\nmemSize = \"2048\"\nnumvcpus = \"4\"\nscsi0.present = \"TRUE\"\n\
         scsi0:3.present = \"TRUE\"\nscsi0:3.fileName = \"a.vmdk\"\nethernet0.present = \"TRUE\"\n\
         ethernet0.virtualDev = \"vmxnet3\"\nethernet0.networkName = \"VM Network\"\n\
         ethernet0.generatedAddress = \"00:0C:29:AA:BB:CC\"\n",
    )
    .unwrap();
    let more = json!({"two_phase": true, "source_path": sandbox.path("vm/a.vmx"),
                      "network_mappings": [{"source": "VM Network", "destination": "prod"}]});
    let planned = plan(&sandbox, &document(&sandbox, &more));
    assert_eq!(planned.code, Some(0), "{:?}", planned.problems);
    let warnings = planned.json["warnings"].to_string();
    for part in [
        "There are no Windows drivers at /nowhere/virtio-win",
        "MiB free, and the disks may grow to",
        "the copy waits for room",
    ] {
        assert!(warnings.contains(part), "{part} not in {warnings}");
    }
    assert_eq!(planned.json["room"]["is_enough"], json!(false));
    let guest = &planned.json["guest"];
    assert_eq!(
        (&guest["firmware"], &guest["cpus"], &guest["memory_bytes"]),
        (&json!("efi"), &json!(4), &json!(2_u64 << 30))
    );
    assert_eq!(guest["disks"][0]["controller"], "scsi0:3");
    let nic =
        json!({"mac": "00:0c:29:aa:bb:cc", "network": "VM Network", "becomes": "prod", "model": "vmxnet3"});
    assert_eq!(guest["nics"], json!([nic]));
}
