//! What a warm migration does to a machine, on govmomi's simulator with raw files behind the disks: changed areas are
//! those of the files. Faults and odd answers are in `operations` and `changes`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use virt_v2v_wrapper::source::vsphere::machine::PowerState;
use virt_v2v_wrapper::source::vsphere::snapshot::{NewSnapshot, Snapshot};
use virt_v2v_wrapper::source::vsphere::tracking::{ALLOCATED, ChangesError, is_same_tracking};
use virt_v2v_wrapper::source::vsphere::verdict::{Verdict, verdicts};
use virt_v2v_wrapper::source::vsphere::{Vsphere, Which};

use super::simulator::{NAME, PASSWORD, Vcenter, have_simulator};
use crate::exports::site::{private, raw_disk};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

fn write(file: &Path, at: u64, byte: u8, length: usize) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&vec![byte; length], at).unwrap();
}

async fn snapshot(vsphere: &Vsphere, moref: &str, name: &str) -> Snapshot {
    let new = NewSnapshot { name: name.into(), description: "a test's".into(), quiesce: true };
    vsphere.create_snapshot(moref, &new).await.unwrap()
}

async fn changed(
    vsphere: &Vsphere,
    moref: &str,
    snapshot: &Snapshot,
    since: &str,
    size: u64,
) -> Vec<(u64, u64)> {
    let found = vsphere.changed_areas(moref, Some(&snapshot.moref), snapshot.disks[0].key, since, size).await;
    found.unwrap().iter().map(|extent| (extent.offset, extent.length)).collect()
}

/// One round of a warm migration: tracking on, a snapshot, a write, a second snapshot, the areas between the two, both
/// snapshots removed. The vCenter answers in slices that the disk is no multiple of.
#[tokio::test]
async fn changes_between_two_snapshots_are_what_was_written() {
    if !have_simulator() {
        return;
    }
    let disks = private();
    let raw = disks.path().join("a.raw");
    let size = 40 * MIB + 65536;
    File::create(&raw).unwrap().set_len(size).unwrap();
    write(&raw, 5 * MIB, 1, MIB as usize);
    let machines = json!([{"vm": "DC0_H0_VM0", "name": NAME, "disks": [raw]}]);
    let vcenter = Vcenter::with(&machines, 1, &["-cbt-chunk", "9437184"]);
    let vsphere = Vsphere::connect(&vcenter.job(NAME, PASSWORD).plan).await.unwrap();
    let machine = vsphere.planned(NAME).await.unwrap();
    let moref = machine.moref.as_str();
    assert_eq!(vsphere.machine_of(moref).await.unwrap(), machine);
    assert!(!machine.change_tracking);

    vsphere.set_change_tracking(moref, true).await.unwrap();
    assert!(vsphere.machine_of(moref).await.unwrap().change_tracking);
    assert_eq!(vsphere.snapshots(moref).await.unwrap(), []);

    let first = snapshot(&vsphere, moref, "v2v_cbt <1>").await;
    let [disk] = first.disks.as_slice() else { panic!("{first:?}") };
    assert_eq!(Some(disk.key), machine.guest.disks[0].key);
    assert_eq!((disk.size, disk.file.as_str()), (Some(size), machine.backings[0].file.as_str()));
    let since = disk.change_id.clone().unwrap();
    assert_eq!(changed(&vsphere, moref, &first, ALLOCATED, size).await, [(5 * MIB, MIB)]);

    // At the end, over the border of two slices, and where it was before.
    for (at, length) in [(40 * MIB, 65536), (9 * MIB - 65536, 131_072), (5 * MIB, 65536)] {
        write(&raw, at, 2, length);
    }
    let second = snapshot(&vsphere, moref, "v2v_cbt 2").await;
    let found = changed(&vsphere, moref, &second, &since, size).await;
    assert_eq!(found, [(5 * MIB, 65536), (9 * MIB - 65536, 131_072), (40 * MIB, 65536)]);
    let now = second.disks[0].change_id.as_deref().unwrap();
    assert!(now != since && is_same_tracking(&since, now), "{since} {now}");
    assert_eq!(vsphere.read_snapshot(&second.moref).await.unwrap(), second);

    let found = vsphere.snapshots(moref).await.unwrap();
    let told: Vec<_> =
        found.iter().map(|one| (one.name.as_str(), one.moref.as_str(), one.has_children)).collect();
    let expected = [("v2v_cbt <1>", first.moref.as_str(), true), ("v2v_cbt 2", second.moref.as_str(), false)];
    assert_eq!(told, expected);
    assert_eq!(found[0].description, "a test's");
    let warm = verdicts(&machine, &found, &|name| name.starts_with("v2v_cbt"));
    assert_eq!(warm[0].verdict, Verdict::Warm);
    assert!(matches!(verdicts(&machine, &found, &|_| false)[0].verdict, Verdict::Cold { .. }));

    // The older one first, as rounds do; the newer one stays.
    vsphere.remove_snapshot(&first.moref, LONG).await.unwrap();
    let left = vsphere.snapshots(moref).await.unwrap();
    assert_eq!(left.iter().map(|one| one.moref.as_str()).collect::<Vec<_>>(), [second.moref.as_str()]);
    let task = vsphere.begin_to_remove_snapshot(&second.moref).await.unwrap();
    vsphere.wait_for(&task, "RemoveSnapshot_Task", LONG).await.unwrap();
    assert_eq!(vsphere.snapshots(moref).await.unwrap(), []);
    for gone in [&first.moref, &second.moref] {
        vsphere.remove_snapshot(gone, LONG).await.unwrap();
    }
    assert!(vsphere.read_snapshot(&first.moref).await.unwrap_err().is_gone());

    // A change id that no tracking knows, and none at all any more.
    let key = second.disks[0].key;
    let error = vsphere.changed_areas(moref, None, key, "52 de/99", size).await.unwrap_err();
    assert!(matches!(&error, ChangesError::ChangeId { since, .. } if since == "52 de/99"), "{error:?}");
    let error = vsphere.changed_areas(moref, None, key + 7, "*", size).await.unwrap_err();
    assert!(matches!(error, ChangesError::Client(_)), "{error:?}");
    vsphere.set_change_tracking(moref, false).await.unwrap();
    let error = vsphere.changed_areas(moref, None, key, "*", size).await.unwrap_err();
    assert!(matches!(error, ChangesError::ChangeId { .. }), "{error:?}");
    vsphere.close().await;
}

/// Off and on, asked for twice: the second time there is nothing to do.
#[tokio::test]
async fn a_machine_is_switched_off_and_on() {
    if !have_simulator() {
        return;
    }
    let disks = private();
    let raw = disks.path().join("a.raw");
    raw_disk(&raw);
    let machine = json!({"vm": "DC0_H0_VM0", "disks": [raw], "shutdownAfter": 0.3});
    let vcenter = Vcenter::start(&json!([machine]), 1);
    let vsphere = Vsphere::connect(&vcenter.job("DC0_H0_VM0", PASSWORD).plan).await.unwrap();
    let moref = vsphere.machine("DC0_H0_VM0").await.unwrap().moref;
    assert_eq!(vsphere.power(&moref).await.unwrap().state, PowerState::On);
    for _ in 0..2 {
        vsphere.power_on(&moref).await.unwrap();
    }
    vsphere.shut_down_guest(&moref).await.unwrap();
    // Asked is not done: a guest takes its time, and vCenter answers before that.
    let off = async {
        while vsphere.power(&moref).await.unwrap().state != PowerState::Off {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, off).await.expect("the guest was asked to shut down and is never off");
    vsphere.shut_down_guest(&moref).await.unwrap();
    vsphere.power_on(&moref).await.unwrap();
    for _ in 0..2 {
        vsphere.power_off(&moref).await.unwrap();
        assert_eq!(vsphere.power(&moref).await.unwrap().state, PowerState::Off);
    }
    let error = vsphere.power("vm-0").await.unwrap_err();
    assert!(error.is_gone(), "{error:?}");
    assert!(error.to_string().starts_with("there is no VirtualMachine vm-0 at https://"), "{error}");
    vsphere.close().await;
}

/// Two machines of one name: the document's id or path says which one, and the guest keeps the document's name.
#[tokio::test]
async fn a_name_that_two_machines_have_is_told_by_id_or_path() {
    if !have_simulator() {
        return;
    }
    let same = |machine: &str| json!({"vm": machine, "name": "twin", "off": true, "disks": []});
    let vcenter = Vcenter::start(&json!([same("DC0_H0_VM0"), same("DC1_H0_VM1")]), 2);
    let vsphere = Vsphere::connect(&vcenter.job("twin", PASSWORD).plan).await.unwrap();
    let error = vsphere.planned("twin").await.unwrap_err().to_string();
    assert!(error.contains("vmware_moref or vmware_inventory_path"), "{error}");
    let mut morefs = Vec::new();
    for path in ["/DC0/vm/twin", "/DC1/vm/twin"] {
        let machine = vsphere.find(Which::Path(path)).await.unwrap();
        assert_eq!(vsphere.find(Which::Moref(&machine.moref)).await.unwrap(), machine);
        assert!(error.contains(&format!("{} in {}", machine.moref, &path[..7])), "{error}");
        let keys = [json!({"vmware_inventory_path": path}), json!({"vmware_moref": machine.moref})];
        for key in keys {
            let named = Vsphere::connect(&vcenter.job_with("a guest", PASSWORD, &key).plan).await.unwrap();
            let meant = named.planned("a guest").await.unwrap();
            assert_eq!((&meant.moref, meant.guest.name.as_str()), (&machine.moref, "a guest"), "{key}");
            named.close().await;
        }
        morefs.push(machine.moref);
    }
    assert_ne!(morefs[0], morefs[1]);
    let error = vsphere.find(Which::Path("/DC0/vm")).await.unwrap_err().to_string();
    assert!(error.contains("is no VM but a Folder"), "{error}");
    let error = vsphere.find(Which::Path("/DC0/vm/other")).await.unwrap_err().to_string();
    assert!(error.starts_with("No VM at /DC0/vm/other that administrator@vsphere.local may see"), "{error}");
    let error = vsphere.find(Which::Moref("vm-0")).await.unwrap_err().to_string();
    assert!(error.starts_with("No VM with id vm-0 at https://"), "{error}");
    vsphere.close().await;
}
