use super::*;
use crate::source::vsphere::machine::{self, Names};
use crate::source::vsphere::properties::page;
use crate::source::vsphere::soap::{Answer, parse};

const VCENTER: &str = include_str!("../../../../fixtures/vsphere/vcenter-8-machine.xml");

fn fixture() -> Inventory {
    let Answer::Response(response) = parse(VCENTER.as_bytes()).unwrap() else { panic!("a fault") };
    machine::machine(&page(&response).objects[0], "web", &Names::default()).unwrap()
}

/// A machine with one disk that can be copied warm.
fn plain() -> Inventory {
    let mut machine = fixture();
    machine.guest.disks.truncate(1);
    machine.backings.truncate(1);
    machine
}

fn snapshot(name: &str) -> FoundSnapshot {
    let (moref, description) = ("snapshot-7".to_owned(), String::new());
    FoundSnapshot { moref, name: name.to_owned(), description, has_children: false }
}

fn of(machine: &Inventory, snapshots: &[FoundSnapshot]) -> Vec<Verdict> {
    let told = verdicts(machine, snapshots, &|name| name == "mine");
    told.into_iter().map(|told| told.verdict).collect()
}

#[track_caller]
fn cold(machine: &Inventory, snapshots: &[FoundSnapshot], parts: &[&str]) {
    match of(machine, snapshots).as_slice() {
        [Verdict::Cold { reason }] => {
            for part in parts {
                assert!(reason.contains(part), "{part}: {reason}");
            }
        }
        other => panic!("{other:?}"),
    }
}

/// One for each disk, in the machine's order, each with its own reason: an independent and encrypted one, and a shared LUN.
#[test]
fn each_disk_has_its_own_verdict() {
    let machine = fixture();
    let told = verdicts(&machine, &[], &|_| false);
    let labels: Vec<_> = told.iter().map(|told| told.label.as_str()).collect();
    assert_eq!(labels, ["Hard disk 1", "Hard disk 2", "Hard disk 3", "Hard disk 4"]);
    assert_eq!(told[0].path, "[san 01] web & db/web-000001.vmdk");
    let verdicts: Vec<_> = told.into_iter().map(|told| told.verdict).collect();
    let [Verdict::Warm, Verdict::Cold { reason: second }, Verdict::Cold { reason: third }, Verdict::Warm] =
        verdicts.as_slice()
    else {
        panic!("{verdicts:?}")
    };
    assert!(second.contains("independent_persistent") && second.contains("Direct Access"), "{second}");
    assert!(third.contains("multi-writer") && third.contains("must be off"), "{third}");
}

/// peers.md 6.3, row 9. What nobody tells is no reason.
#[test]
fn what_change_tracking_does_not_cover_is_cold() {
    type Change = fn(&mut Inventory);
    let cases: [(Change, &[&str]); 9] = [
        (|machine| machine.hardware_version = Some("vmx-04".to_owned()), &["vmx-04", "vmx-07"]),
        (
            |machine| machine.backings[0].mode = Some("independent_nonpersistent".to_owned()),
            &["snapshots leave it out"],
        ),
        (
            |machine| machine.backings[0].mode = Some("independent_persistent".to_owned()),
            &["snapshots leave it out"],
        ),
        (
            |machine| machine.backings[0].mode = Some("nonpersistent".to_owned()),
            &["nonpersistent", "persistent"],
        ),
        (
            |machine| machine.backings[0].sharing = Some("sharingMultiWriter".to_owned()),
            &["all machines that share it"],
        ),
        (
            |machine| machine.backings[0].bus_sharing = Some("physicalSharing".to_owned()),
            &["physicalSharing"],
        ),
        (|machine| machine.backings[0].encrypted = true, &["Direct Access", "nbdssl"]),
        (|machine| machine.backings[0].kind = "LocalPMem".to_owned(), &["persistent memory"]),
        (
            |machine| {
                machine.hardware_version = Some("vmx-03".to_owned());
                machine.backings[0].encrypted = true;
            },
            &["vmx-03", "; ", "Direct Access"],
        ),
    ];
    for (change, parts) in cases {
        let mut machine = plain();
        change(&mut machine);
        cold(&machine, &[], parts);
    }
    let warm: [Change; 7] = [
        |_| {},
        |machine| machine.hardware_version = Some("vmx-07".to_owned()),
        |machine| machine.hardware_version = Some("vmx-21".to_owned()),
        |machine| machine.hardware_version = Some("next".to_owned()),
        |machine| machine.hardware_version = None,
        |machine| machine.backings[0].mode = None,
        |machine| {
            machine.backings[0].kind = "RawDiskMappingVer1".to_owned();
            machine.backings[0].compatibility = Some("virtualMode".to_owned());
        },
    ];
    for (number, change) in warm.into_iter().enumerate() {
        let mut machine = plain();
        change(&mut machine);
        assert_eq!(of(&machine, &[]), [Verdict::Warm], "{number}");
    }
}

/// What nothing can read is said before anything is begun, whatever else would be wrong with it.
#[test]
fn what_cannot_be_read_is_blocked() {
    type Change = fn(&mut Inventory);
    let cases: [(Change, &str); 5] = [
        (
            |machine| {
                machine.backings[0].kind = "RawDiskMappingVer1".to_owned();
                machine.backings[0].compatibility = Some("physicalMode".to_owned());
                machine.backings[0].mode = Some("independent_persistent".to_owned());
            },
            "physical mode",
        ),
        (|machine| machine.backings[0].kind = "RawDiskVer2".to_owned(), "RawDiskVer2"),
        (|machine| machine.backings[0].kind = "PartitionedRawDiskVer2".to_owned(), "device of the host"),
        (|machine| machine.backings[0].file = String::new(), "no file"),
        (|machine| machine.template = true, "template"),
    ];
    for (change, part) in cases {
        let mut machine = plain();
        change(&mut machine);
        match of(&machine, &[snapshot("theirs")]).as_slice() {
            [Verdict::Blocked { reason }] => assert!(reason.contains(part), "{part}: {reason}"),
            other => panic!("{part}: {other:?}"),
        }
    }
}

/// peers.md 6.3, rows 8 and 12: only the job's own snapshots are none; a dead job's are told with the remedy.
#[test]
fn snapshots_of_others_make_all_disks_cold() {
    let machine = plain();
    assert_eq!(of(&machine, &[snapshot("mine")]), [Verdict::Warm]);
    cold(
        &machine,
        &[snapshot("mine"), snapshot("before update")],
        &["\"before update\" (snapshot-7)", "delete them"],
    );
    let left_over = [snapshot("v2v_cbt 20260101T000000-1")];
    cold(&machine, &left_over, &["v2v_cbt 20260101T000000-1", "virt-v2v-wrapper cleanup"]);
    let many: Vec<_> = (0..9).map(|number| snapshot(&format!("s{number}"))).collect();
    cold(&machine, &many, &["\"s2\"", "and 6 more"]);
    let Verdict::Cold { reason } = &of(&machine, &many)[0] else { panic!("not cold") };
    assert!(!reason.contains("\"s3\"") && !reason.contains("cleanup"), "{reason}");
    assert_eq!(
        of(&fixture(), &[snapshot("x")]).iter().filter(|verdict| **verdict == Verdict::Warm).count(),
        0
    );
}

/// Warnings only where they are true: tools of a machine that is off do not run, and that means nothing.
#[test]
fn notes_are_about_what_is_so() {
    let mut machine = plain();
    assert_eq!(notes(&machine), Vec::<String>::new());
    machine.power = PowerState::On;
    let [note] = notes(&machine).try_into().unwrap();
    assert!(note.contains("VMware Tools do not run in VM \"web\""), "{note}");
    machine.tools = Some("guestToolsRunning".to_owned());
    assert_eq!(notes(&machine), Vec::<String>::new());
    machine.guest.os = Some("windows2019srv_64Guest".to_owned());
    machine.connection = "inaccessible".to_owned();
    machine.snapshots = 0;
    let told = notes(&machine);
    for part in ["hibernation", "\"inaccessible\"", "Hard disk 1 of VM \"web\" has older files"] {
        assert!(told.iter().any(|note| note.contains(part)), "{part}: {told:?}");
    }
    assert_eq!(told.len(), 3);
    machine.guest.os = Some("darwin20_64Guest".to_owned());
    assert_eq!(notes(&machine).len(), 2);
}
