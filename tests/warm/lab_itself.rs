//! The lab itself: what is measured with it is what it says. The crate's client asks the vCenter; the only job is a
//! cold one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use virt_v2v_wrapper::source::vsphere::Vsphere;
use virt_v2v_wrapper::source::vsphere::properties::Of;
use virt_v2v_wrapper::source::vsphere::soap::{Call, Element, Reference};

use super::lab::{LIMIT, Lab, MIB, NAME, compare, hash, number, wait_status};
use crate::exports::site::{have, private};
use crate::rig::poll;
use crate::vsphere::simulator::PASSWORD;

/// Sizes that are no multiple of 64 KiB or 4 KiB; two disks with the same unit number on two controllers.
fn three_disks() -> Value {
    json!({"disks": [9 * MIB + 512, 5 * MIB + 1536, 7 * MIB], "controllers": [0, 0, 1], "tools": "running"})
}

/// A task's end: its result, or the kind of its fault.
async fn end_of(session: &Vsphere, call: Call) -> Result<Option<Element>, String> {
    let task = session.client().value(&call).await.map_err(|error| error.to_string())?.reference().unwrap();
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        let wanted: &[(&str, &[&str])] = &[("Task", &["info.state", "info.result", "info.error"])];
        let tasks =
            session.client().properties(Of::Objects(std::slice::from_ref(&task)), wanted).await.unwrap();
        match tasks[0].text("info.state") {
            Some("success") => return Ok(tasks[0].get("info.result").cloned()),
            Some("error") => {
                let fault = tasks[0].get("info.error").and_then(|error| error.child("fault")).unwrap();
                return Err(fault.kind.clone().unwrap());
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("{call:?} has no end");
}

fn machine(lab: &Lab) -> Reference {
    Reference::new("VirtualMachine", lab.moref())
}

fn create(lab: &Lab, name: &str) -> Call {
    Call::new("CreateSnapshot_Task", &machine(lab))
        .text("name", name)
        .text("description", "")
        .text("memory", "false")
        .text("quiesce", "true")
}

fn remove(snapshot: &Reference) -> Call {
    Call::new("RemoveSnapshot_Task", snapshot).text("removeChildren", "false").text("consolidate", "true")
}

async fn snapshot(lab: &Lab, session: &Vsphere, name: &str) -> Reference {
    end_of(session, create(lab, name)).await.unwrap().unwrap().reference().unwrap()
}

async fn track(lab: &Lab, session: &Vsphere, on: bool) {
    let reconfigure = Call::new("ReconfigVM_Task", &machine(lab))
        .nested("spec", |spec| spec.text("changeTrackingEnabled", &on.to_string()));
    end_of(session, reconfigure).await.unwrap();
}

async fn session(lab: &Lab) -> Vsphere {
    Vsphere::connect(&lab.vcenter.job(NAME, PASSWORD).plan).await.unwrap()
}

/// Change ids that a snapshot shows for the disks, by their keys.
async fn change_ids(session: &Vsphere, of: &Reference) -> Vec<Option<String>> {
    let wanted: &[(&str, &[&str])] = &[("VirtualMachineSnapshot", &["config.hardware"])];
    let objects = session.client().properties(Of::Objects(std::slice::from_ref(of)), wanted).await.unwrap();
    let hardware = objects[0].get("config.hardware").unwrap();
    let disks = hardware.all("device").filter(|device| device.kind.as_deref() == Some("VirtualDisk"));
    disks.map(|disk| disk.at(&["backing", "changeId"]).map(|id| id.text.clone())).collect()
}

/// All areas of a disk that changed since, over as many answers as there are, and how many these were.
async fn changed(
    lab: &Lab,
    session: &Vsphere,
    at: &Reference,
    disk: usize,
    since: &str,
) -> (Vec<(u64, u64)>, usize) {
    let (key, size) = (lab.keys()[disk], fs::metadata(&lab.raws[disk]).unwrap().len());
    let (mut areas, mut answers, mut start) = (Vec::new(), 0, 0);
    while start < size {
        let call = Call::new("QueryChangedDiskAreas", &machine(lab))
            .reference("snapshot", at)
            .text("deviceKey", &key.to_string())
            .text("startOffset", &start.to_string())
            .text("changeId", since);
        let answer = session.client().value(&call).await.unwrap();
        let told = answer.all("changedArea");
        areas.extend(told.map(|area| (area.number("start").unwrap(), area.number("length").unwrap())));
        assert_eq!(answer.number("startOffset"), Some(start));
        start += answer.number::<u64>("length").unwrap();
        answers += 1;
    }
    assert_eq!(start, size);
    (areas, answers)
}

/// Files that the VDDK stand-in serves for a snapshot.
fn served(lab: &Lab, snapshot: &Reference) -> Vec<PathBuf> {
    let directory = lab.machine().join(&snapshot.value);
    (1..=lab.raws.len()).map(|disk| directory.join(format!("disk{disk}.vmdk"))).collect()
}

/// A snapshot of all disks is one moment of the guest, whatever it does meanwhile; what changed between two of them is
/// told; nothing is written after the machine is off; and the machine is afterwards what it was before.
#[tokio::test]
async fn a_snapshot_is_one_moment_and_the_machine_is_left_as_it_was() {
    let Some(mut lab) = Lab::start("job", &three_disks()) else { return };
    let before = lab.dump();
    let disks = before["disks"].as_array().unwrap();
    let places: Vec<_> = disks.iter().map(|disk| (&disk["controller"], &disk["unit"])).collect();
    assert_eq!(json!(places), json!([[0, 0], [0, 1], [1, 0]]));
    let session = session(&lab).await;
    track(&lab, &session, true).await;
    // Without a pause: a copy that is not made at one moment is seen.
    lab.write(&["--seed", "7", "--largest", "65536", "--rate", "1000000000"]);
    lab.wait_written(20);

    let first = snapshot(&lab, &session, "first").await;
    let during = lab.dump();
    assert_eq!(during["disks"][0]["file"], "[LocalDS_0] DC0_H0_VM0/disk1-000001.vmdk");
    assert_eq!(during["disks"][0]["parents"], json!(["[LocalDS_0] DC0_H0_VM0/disk1.vmdk"]));
    assert_eq!(during["snapshots"][0]["files"][0], "[LocalDS_0] DC0_H0_VM0/disk1.vmdk");
    let ids = change_ids(&session, &first).await;
    let copies = private();
    let mut moments = Vec::new();
    for (index, file) in served(&lab, &first).iter().enumerate() {
        fs::copy(file, copies.path().join(format!("{index}"))).unwrap();
        moments.push(number(file));
    }
    lab.wait_written(20);
    let second = snapshot(&lab, &session, "second").await;
    moments.extend(served(&lab, &second).iter().map(|file| number(file)));
    let [one, two] = [moments[0].unwrap(), moments[3].unwrap()];
    assert_eq!(moments, [[Some(one); 3], [Some(two); 3]].concat());
    assert!(one >= 20 && two >= one + 20, "{moments:?}");
    assert_eq!(lab.dump()["disks"][0]["parents"].as_array().unwrap().len(), 2);

    // The older copy and what changed since are the newer one.
    for (index, file) in served(&lab, &second).iter().enumerate() {
        // In one answer, in slices, and with few areas in each answer.
        lab.slice([0, MIB, 0][index]);
        lab.fewer_areas([0, 0, 1][index]);
        let (areas, answers) = changed(&lab, &session, &second, index, ids[index].as_deref().unwrap()).await;
        assert!([answers == 1, answers == 6, answers >= areas.len()][index], "disk {index}: {answers}");
        let newer = fs::read(file).unwrap();
        let mut older = fs::read(copies.path().join(format!("{index}"))).unwrap();
        assert!(older != newer && !areas.is_empty(), "disk {index}");
        for (start, length) in areas {
            let area = start as usize..(start + length) as usize;
            older[area.clone()].copy_from_slice(&newer[area]);
        }
        assert!(older == newer, "disk {index}");
    }
    for snapshot in [&first, &second] {
        end_of(&session, remove(snapshot)).await.unwrap();
        assert!(!lab.machine().join(&snapshot.value).exists());
    }

    end_of(&session, Call::new("PowerOffVM_Task", &machine(&lab))).await.unwrap();
    let last: Vec<_> = lab.raws.iter().map(|raw| (number(raw), fs::read(raw).unwrap())).collect();
    assert!(last.iter().all(|(number, _)| number == &last[0].0), "written together");
    // Ten times as long as a batch of the guest takes; it would write if it did not know.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (raw, (_, bytes)) in lab.raws.iter().zip(&last) {
        assert!(fs::read(raw).unwrap() == *bytes, "{raw:?}");
    }
    assert_eq!(Some(lab.rest()), last[0].0);
    lab.switch("on");
    track(&lab, &session, false).await;
    session.close().await;
    assert_eq!(lab.dump(), before);
    let steps = lab.steps(&["CreateSnapshot_Task", "RemoveSnapshot_Task", "PowerOffVM_Task"]);
    assert_eq!(
        steps,
        [
            "CreateSnapshot_Task begun first",
            "CreateSnapshot_Task done first",
            "CreateSnapshot_Task begun second",
            "CreateSnapshot_Task done second",
            "RemoveSnapshot_Task begun first",
            "RemoveSnapshot_Task done first",
            "RemoveSnapshot_Task begun second",
            "RemoveSnapshot_Task done second",
            "PowerOffVM_Task done ",
        ]
    );
}

/// What the vCenter is told to do wrong it does, once.
#[tokio::test]
async fn a_vcenter_fails_as_it_is_told() {
    let mut config = three_disks();
    config["cbt"] = json!(true);
    config["disks"][1] = json!({"size": 5 * MIB, "cbt": false});
    config["disks"][2] = json!({"size": 7 * MIB, "independent": true});
    config["snapshots"] = json!(["before upgrade"]);
    let Some(mut lab) = Lab::start("job", &config) else { return };
    let before = lab.dump();
    assert_eq!(before["snapshots"][0]["name"], "before upgrade");
    let session = session(&lab).await;

    lab.fail_quiesced(1);
    assert_eq!(end_of(&session, create(&lab, "fails")).await.unwrap_err(), "ApplicationQuiesceFault");
    let first = snapshot(&lab, &session, "first").await;
    // One disk needs a second snapshot, another is in none.
    let ids = change_ids(&session, &first).await;
    assert_eq!(ids.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false]);

    // Nothing else is done to the machine meanwhile.
    lab.slow_removal(3600.0);
    let slow = end_of(&session, remove(&first));
    let refused = async {
        while lab.events_of("RemoveSnapshot_Task", "begun").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = end_of(&session, create(&lab, "too early")).await.unwrap_err();
        lab.slow_removal(0.0);
        refused
    };
    let (removed, refused) = tokio::join!(slow, refused);
    removed.unwrap();
    assert!(refused.contains("Another task is already in progress"), "{refused}");
    assert_eq!(lab.dump(), before);
    assert_eq!(session.machine(NAME).await.unwrap().snapshots, 1);

    // The client logs in again by itself.
    let logins = session.client().logins();
    lab.expire_sessions();
    let second = snapshot(&lab, &session, "second").await;
    assert_eq!(session.client().logins(), logins + 1);
    let ids = change_ids(&session, &second).await;
    assert_eq!(ids.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
    let id = ids[0].clone().unwrap();
    let key = lab.keys()[0];
    assert_eq!(changed(&lab, &session, &second, 0, &id).await, (Vec::new(), 1));
    let question = || {
        Call::new("QueryChangedDiskAreas", &machine(&lab))
            .reference("snapshot", &second)
            .text("deviceKey", &key.to_string())
            .text("startOffset", "0")
            .text("changeId", &id)
    };
    lab.fail_queries(1);
    let error = session.client().value(&question()).await.unwrap_err().to_string();
    assert!(error.contains("Error caused by file"), "{error}");
    session.client().value(&question()).await.unwrap();
    lab.reset_cbt();
    session.client().value(&question()).await.unwrap_err();
    lab.fail_removals(1);
    assert_eq!(end_of(&session, remove(&second)).await.unwrap_err(), "GenericVmConfigFault");
    end_of(&session, remove(&second)).await.unwrap();
    assert_eq!(lab.dump(), before);

    lab.grow_disk(key, 10 * MIB);
    assert_eq!(lab.dump()["disks"][0]["size"], 10 * MIB);
    let key = lab.add_disk(4 * MIB, 1);
    assert_eq!((key, lab.keys().len()), (2017, 4));
    lab.remove_disk(key);
    assert_eq!(lab.keys().len(), 3);

    lab.shutdown_after(-1.0);
    session.client().call(&Call::new("ShutdownGuest", &machine(&lab))).await.unwrap();
    assert_eq!(lab.power(), "poweredOn");
    lab.shutdown_after(0.1);
    poll(LIMIT, || (lab.power() == "poweredOff").then_some(())).expect("the guest shuts down");
    lab.switch("on");
    lab.tools("notRunning");
    let error = session.client().call(&Call::new("ShutdownGuest", &machine(&lab))).await.unwrap_err();
    assert!(error.to_string().contains("Tools"), "{error}");

    let begun = Instant::now();
    lab.freeze(0.5);
    session.keep_alive().await.unwrap();
    assert!(begun.elapsed().as_secs_f64() >= 0.5, "{:?}", begun.elapsed());
    session.close().await;
}

/// The VDDK stand-in reads a snapshot under any name of the chain, refuses what a running machine writes to, and fails
/// as its control file says.
#[tokio::test]
async fn the_vddk_serves_snapshots_and_fails_as_it_is_told() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let Some(lab) = Lab::start("job", &three_disks()) else { return };
    let session = session(&lab).await;
    let taken = snapshot(&lab, &session, "taken").await;
    session.close().await;
    lab.write_at(0, MIB, b"written after the snapshot");
    let directory = private();
    let copy = directory.path().join("copy");
    let read = |name: &str, snapshot: Option<&str>| -> Result<(), String> {
        let nbdkit = lab.vcenter.directory.path().join("nbdkit");
        let mut nbdkit = Command::new(nbdkit);
        nbdkit.args(["-r", "-U", "-", "vddk", "server=vc", "user=u"]);
        nbdkit.arg(format!("password=+{}", lab.vcenter.directory.path().join("password").display()));
        nbdkit.arg(format!("vm=moref={}", lab.moref()));
        nbdkit.arg(format!("file=[LocalDS_0] DC0_H0_VM0/{name}"));
        nbdkit.args(snapshot.map(|snapshot| format!("snapshot={snapshot}")));
        nbdkit.args([
            "--run",
            &format!("nbdcopy --connections=1 --request-size=1048576 \"$uri\" {}", copy.display()),
        ]);
        let output = nbdkit.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    };
    for name in ["disk1.vmdk", "disk1-000001.vmdk"] {
        read(name, Some(&taken.value)).unwrap();
        assert!(compare(&served(&lab, &taken)[0], &copy, "raw", false).is_ok(), "{name}");
        assert!(compare(&lab.raws[0], &copy, "raw", false).unwrap_err().contains(&format!("byte {MIB} of")));
        let error = read(name, None).unwrap_err();
        assert!(error.contains("Failed to lock the file"), "{error}");
    }
    for (lines, words) in [
        ("refuse You do not have access rights to this file", "access rights"),
        ("fail-at 4194304", "NBD_ERR_GENERIC"),
        ("only disk1\nfail-larger 1000000", "Failed to allocate the requested 1048576 bytes"),
    ] {
        lab.vddk(lines);
        let error = read("disk1.vmdk", Some(&taken.value)).unwrap_err();
        assert!(error.contains(words), "{lines}: {error}");
    }
    read("disk2.vmdk", Some(&taken.value)).unwrap();
    lab.vddk("connections 1\nhold");
    std::thread::scope(|scope| {
        let before = lab.events_of("vddk: open", "done").len();
        let held = scope.spawn(|| read("disk3.vmdk", Some(&taken.value)));
        lab.wait_events("vddk: open", "done", before + 1);
        let second = read("disk2.vmdk", Some(&taken.value)).unwrap_err();
        assert!(second.contains("vmware-authd"), "{second}");
        lab.vddk("connections 1");
        held.join().unwrap().unwrap();
    });
    lab.switch("off");
    lab.vddk("");
    read("disk1-000001.vmdk", None).unwrap();
    assert!(compare(&lab.raws[0], &copy, "raw", false).is_ok());
}

/// A job that the program takes today copies what the guest had written when its machine went off, and leaves the
/// machine as it was; no process of the lab is taken for one of the job's.
#[test]
fn a_cold_job_copies_the_last_moment_of_the_guest() {
    let Some(mut lab) = Lab::start("job", &three_disks()) else { return };
    lab.write(&["--seed", "11"]);
    lab.wait_written(10);
    lab.switch("off");
    let before = lab.dump();
    lab.vddk("hold");
    let mut job = lab.job(&json!({"warm": null, "two_phase": true}));
    wait_status(&job, "Pre-copy #0 (last)");
    lab.vddk("");
    let last = lab.end(&mut job);
    assert_eq!(last["failed"], false, "{last}");
    for (disk, raw) in lab.raws.iter().enumerate() {
        compare(raw, &lab.target(disk), "raw", true).unwrap();
        assert_eq!(last["disks"][disk]["checksum"], hash(raw));
    }
    assert_eq!(lab.dump(), before);
    assert!(lab.rest() >= 10);
}
