//! The plan of a machine on the simulated vCenter: what is said of it running and off, warm and cold, and that it and the
//! machine stay as they were. What the plan refuses the job fails with, in the same words.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use virt_v2v_wrapper::source::vsphere::machine::PowerState;
use virt_v2v_wrapper::source::vsphere::{NewSnapshot, Vsphere};

use super::simulator::{PASSWORD, Vcenter, have_simulator, wait_for};
use crate::exports::site::{have, nbdkit_with_vddk, private, raw_disk};
use crate::plan::{Planned, plan};
use crate::rig::sandbox::Sandbox;

const NAME: &str = "DC0_H0_VM0";
const LIMIT: Duration = Duration::from_secs(120);

struct Site {
    vcenter: Vcenter,
    sandbox: Sandbox,
    session: Vsphere,
    moref: String,
    _disks: tempfile::TempDir,
}

impl Site {
    /// A machine with two disks that is off. `None`: the test is skipped.
    async fn new() -> Option<Self> {
        if !have_simulator() || !have(&["nbdkit", "qemu-nbd", "qemu-img", "cc"]) {
            return None;
        }
        let disks = private();
        let raw = ["a.raw", "b.raw"].map(|name| disks.path().join(name));
        raw.iter().for_each(|file| raw_disk(file));
        let machine = json!({"vm": NAME, "disks": raw, "off": true, "memory": 512, "firmware": "efi", "guest": "rhel8_64Guest"});
        let vcenter = Vcenter::start(&json!([machine]), 1);
        let nbdkit = nbdkit_with_vddk(vcenter.directory.path(), PASSWORD);
        let mut sandbox = Sandbox::new("plan-vsphere");
        sandbox.configure("job", json!({"nbdkit": nbdkit}).as_object().unwrap());
        let session = Vsphere::connect(&vcenter.job(NAME, PASSWORD).plan).await.unwrap();
        let moref = session.machine(NAME).await.unwrap().moref;
        Some(Self { vcenter, sandbox, session, moref, _disks: disks })
    }

    fn document(&self, more: &Value) -> String {
        let mut document = json!({
            "vm_name": NAME,
            "transport_method": "vddk",
            "vmware_uri": format!("vpx://{}/DC0/DC0_H0?no_verify=1", self.vcenter.address),
            "vmware_fingerprint": self.vcenter.certificate.fingerprint("sha256"),
            "vmware_password": PASSWORD,
            "output_directory": self.sandbox.path("out"),
        });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document.to_string()
    }

    /// Plans; the machine is as it was, and the password is nowhere.
    async fn plan(&self, more: &Value) -> Planned {
        let before = self.session.machine(NAME).await.unwrap();
        let planned = plan(&self.sandbox, &self.document(more));
        let after = self.session.machine(NAME).await.unwrap();
        assert_eq!(before, after, "{more}");
        let all = format!("{}{}{:?}", planned.text, planned.json, planned.problems);
        assert!(!all.contains("Zx81") && !all.contains("7431"), "{all}");
        planned
    }

    /// The last message of the job.
    fn fails_with(&self, more: &Value) -> Value {
        let mut job = self.sandbox.spawn(self.document(more).into_bytes());
        let last = job.wait_finished(LIMIT).unwrap_or_else(|| panic!("{more}: {:?}", job.last_state()));
        // Its last processes still tidy up.
        job.gone_within(LIMIT).unwrap();
        job.end();
        assert_eq!(last["failed"], true, "{more}");
        last["last_message"]["message"].clone()
    }

    async fn refused(&self, more: &Value, words: &str) {
        let planned = self.plan(more).await;
        assert_eq!((planned.code, planned.problems.len()), (Some(1), 1), "{more}: {:?}", planned.problems);
        assert!(planned.problems[0].contains(words), "{more}: {:?}", planned.problems);
        assert_eq!(
            planned.json["guest"]["disks"].as_array().unwrap().len(),
            2,
            "the guest is shown all the same"
        );
        assert_eq!(self.fails_with(more), planned.problems[0], "{more}");
    }

    async fn fits(&self, more: &Value) -> Planned {
        let planned = self.plan(more).await;
        assert_eq!(planned.code, Some(0), "{more}: {:?}", planned.problems);
        planned
    }
}

#[tokio::test]
async fn a_machine_that_is_off_is_shown_with_the_nbdkits_that_will_run() {
    let Some(site) = Site::new().await else { return };
    let more = json!({"two_phase": true, "vmware_moref": site.moref});
    let planned = site.fits(&more).await;
    let (guest, machine) = (&planned.json["guest"], &planned.json["machine"]);
    assert_eq!(
        (&guest["firmware"], &guest["memory_bytes"]),
        (&json!("efi"), &json!(512_u64 << 20)),
        "{guest:#}"
    );
    assert_eq!(guest["nics"][0]["network"], "DC0_DVPG0");
    assert_eq!((&machine["power"], &machine["moref"]), (&json!("off"), &json!(site.moref)), "{machine:#}");
    let verdicts = [0, 1].map(|disk| guest["disks"][disk]["verdict"]["how"].clone());
    assert_eq!(verdicts, [json!("warm"), json!("warm")], "{guest:#}");
    assert_eq!(planned.does("shutdown"), "", "it is off");

    let mut job = site.sandbox.spawn(site.document(&more).into_bytes());
    job.wait_finished(LIMIT).unwrap();
    job.end();
    let state = site.sandbox.state_file().unwrap();
    let tag = state.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let log = fs::read_to_string(site.sandbox.path("log").join(tag).join("virt-v2v-wrapper.log")).unwrap();
    let commands = planned.commands();
    let served: Vec<&Vec<String>> = commands.iter().filter(|words| words[0].ends_with("/nbdkit")).collect();
    assert_eq!(served.len(), 2, "{commands:?}");
    for words in served {
        assert!(
            words.contains(&"password=+***".to_owned()) && words.contains(&"vddk".to_owned()),
            "{words:?}"
        );
        let line: Vec<String> =
            words[1..].iter().map(|word| format!("'{}'", word.replace("<tag>", tag))).collect();
        let line = format!("running {} {}", words[0], line.join(" "));
        assert!(log.contains(&line), "{line}\nnot in\n{log}");
    }
    site.session.close().await;
}

#[tokio::test]
async fn a_machine_that_runs_is_shown_with_what_becomes_of_it() {
    let Some(site) = Site::new().await else { return };
    site.session.power_on(&site.moref).await.unwrap();
    wait_for(&site.session, PowerState::On).await;

    site.refused(&json!({"two_phase": true}), "Cannot perform final copy for running VM").await;
    let one_phase = site.plan(&json!({})).await;
    assert_eq!(one_phase.code, Some(1));
    assert!(one_phase.problems[0].contains("is not switched off"), "{:?}", one_phase.problems);

    let forced =
        site.fits(&json!({"two_phase": true, "shutdown_mode": "force", "finalize_settle_seconds": 7})).await;
    let shutdown = forced.does("shutdown");
    assert!(shutdown.contains("switched off at once") && shutdown.contains("7 s to settle"), "{shutdown}");
    let effects = forced.json["effects"].to_string();
    assert!(effects.contains("on again if the job fails"), "{effects}");

    let warm = json!({"warm": true, "delta_interval": 120, "downtime_budget_seconds": 90, "shutdown_mode": "manual"});
    let planned = site.fits(&warm).await;
    assert_eq!(planned.json["mode"], "warm");
    let rounds = planned.does("rounds");
    for part in [
        "change tracking of the machine is switched on",
        "v2v_cbt <tag> #0",
        "120 s after the end of a round",
    ] {
        assert!(rounds.contains(part), "{part} not in {rounds}");
    }
    let cutover = planned.does("cutover");
    for part in ["/jobs/<tag>/cutover", "no longer than 90 s", "shutdown_mode manual", "15 s to settle"] {
        assert!(cutover.contains(part), "{part} not in {cutover}");
    }
    let commands = planned.commands().concat();
    assert!(commands.contains(&"snapshot=<snapshot id>".to_owned()), "{commands:?}");
    assert!(commands.contains(&"file=<newest file of the disk>".to_owned()), "{commands:?}");
    let effects = planned.json["effects"].to_string();
    assert!(
        effects.contains("v2v_cbt <tag> #<round>") && effects.contains("switched off again at the end"),
        "{effects}"
    );

    // Somebody else's snapshot: change tracking is not safe any more.
    let new = NewSnapshot { name: "before update".into(), description: String::new(), quiesce: false };
    site.session.create_snapshot(&site.moref, &new).await.unwrap();
    site.refused(&warm, "\"before update\"").await;
    let planned = site.plan(&warm).await;
    assert_eq!(planned.json["machine"]["snapshots"], json!(["before update"]));
    let verdict = &planned.json["guest"]["disks"][1]["verdict"];
    assert_eq!(verdict["how"], "cold", "{verdict}");
    assert_eq!(planned.text.matches("cold only").count(), 2, "{}", planned.text);
    assert_eq!(
        planned.text.matches("make change tracking unsafe").count(),
        1,
        "one reason, once: {}",
        planned.text
    );
    // It stands in nobody's way who switches the machine off.
    site.fits(&json!({"two_phase": true, "shutdown_mode": "force"})).await;
    site.session.close().await;
}
