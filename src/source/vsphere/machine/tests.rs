use proptest::prelude::*;

use super::*;
use crate::source::vsphere::properties::page;
use crate::source::vsphere::soap::{Answer, parse};

const VCENTER: &str = include_str!("../../../../fixtures/vsphere/vcenter-8-machine.xml");
const HOST: &str = include_str!("../../../../fixtures/vsphere/esxi-65-machine.xml");

fn object(answer: &str) -> Object {
    let Answer::Response(response) = parse(answer.as_bytes()).unwrap() else { panic!("a fault") };
    page(&response).objects.remove(0)
}

fn names() -> Names {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    Names {
        networks: map(&[("dvportgroup-31", "prod/10"), ("5f2b-77", "segment")]),
        datastores: map(&[
            ("datastore-15", "ds:///vmfs/volumes/5f1a-c0/"),
            ("datastore-16", "ds:///vmfs/volumes/nfs/"),
        ]),
    }
}

#[test]
fn a_machine_is_told_in_full() {
    let told = machine(&object(VCENTER), "web / db", &names()).unwrap();
    let Inventory { guest, .. } = &told;
    assert_eq!((told.moref.as_str(), told.power, told.snapshots), ("vm-1042", PowerState::Off, 2));
    assert!(told.change_tracking && !told.template);
    assert_eq!(told.hardware_version.as_deref(), Some("vmx-19"));
    assert_eq!(told.tools.as_deref(), Some("guestToolsNotRunning"));
    assert_eq!((guest.name.as_str(), guest.memory_kib, guest.vcpus), ("web / db", 16 << 20, 8));
    assert_eq!(guest.cores_per_socket, Some(4));
    assert_eq!(guest.firmware, Firmware::Efi { secure_boot: true });
    assert_eq!(guest.os.as_deref(), Some("rhel8_64Guest"));
}

/// peers.md 6.3, row 31: equal units on two controllers, and still every disk is told from every other.
#[test]
fn disks_are_told_apart_in_the_order_of_the_machine() {
    let told = machine(&object(VCENTER), "x", &names()).unwrap();
    let places: Vec<_> = told
        .guest
        .disks
        .iter()
        .map(|disk| (disk.label.as_str(), disk.bus, disk.controller, disk.unit, disk.key, disk.size))
        .collect();
    assert_eq!(
        places,
        [
            ("Hard disk 1", Bus::Scsi, Some(0), Some(0), Some(2000), Some(40 << 30)),
            ("Hard disk 2", Bus::Scsi, Some(1), Some(0), Some(2016), Some(20 << 30)),
            ("Hard disk 3", Bus::Sata, Some(0), Some(1), Some(16001), Some((1 << 30) + 512)),
            ("Hard disk 4", Bus::Nvme, Some(0), Some(0), Some(32000), Some(10 << 30)),
        ]
    );
    assert_eq!(told.guest.disks[0].uuid.as_deref(), Some("6000C29f-5d68-43a4-8e73-3dbbf44c4ae8"));
    assert_eq!(told.guest.disks[0].path, "[san 01] web & db/web-000001.vmdk");
}

/// The newest file of the chain is what is read; its older ones only show that there are snapshots.
#[test]
fn what_is_behind_a_disk_is_the_newest_file() {
    let told = machine(&object(VCENTER), "x", &names()).unwrap();
    let [flat, sparse, mapping, _] = told.backings.as_slice() else { panic!("{told:?}") };
    assert_eq!((flat.kind.as_str(), flat.has_parent, flat.encrypted), ("FlatVer2", true, false));
    assert_eq!(flat.file, "[san 01] web & db/web-000001.vmdk");
    // contract.md 6.1: two slashes.
    assert_eq!(flat.absolute_path.as_deref(), Some("/vmfs/volumes/5f1a-c0//web & db/web-000001.vmdk"));
    assert_eq!(flat.change_id.as_deref(), Some("52 de c0 d9 b9 43 9d 10-07 d0 20 7a f5 4f 21 42/17"));
    assert_eq!((sparse.kind.as_str(), sparse.has_parent, sparse.encrypted), ("SeSparse", false, true));
    assert_eq!(sparse.mode.as_deref(), Some("independent_persistent"));
    assert_eq!(mapping.kind, "RawDiskMappingVer1");
    assert_eq!(mapping.sharing.as_deref(), Some("sharingMultiWriter"));
}

/// MAC addresses are compared by destinations, so they are lower case (peers.md 6.3, row 44); networks have names.
#[test]
fn networks_are_named_whatever_is_behind_them() {
    let told = machine(&object(VCENTER), "x", &names()).unwrap();
    let cards: Vec<_> = told
        .guest
        .nics
        .iter()
        .map(|nic| (nic.mac.as_deref(), nic.network.as_deref(), nic.model.as_deref()))
        .collect();
    assert_eq!(
        cards,
        [
            (Some("00:50:56:9e:4b:01"), Some("prod/10"), Some("vmxnet3")),
            (Some("00:50:56:00:00:02"), Some("VM Network"), Some("e1000e")),
            (Some("00:50:56:00:00:03"), Some("segment"), Some("sriov")),
            // Never switched on, and a group that this user may not see.
            (None, Some("dvportgroup-99"), Some("vmxnet3")),
        ]
    );
}

#[test]
fn a_host_that_tells_little_is_understood() {
    let object = object(HOST);
    let told = machine(&object, "old 50% box", &Names::default()).unwrap();
    let guest = &told.guest;
    assert_eq!((guest.firmware, guest.memory_kib, guest.cores_per_socket), (Firmware::Bios, 512 << 10, None));
    let disk = &guest.disks[0];
    assert_eq!(
        (disk.bus, disk.controller, disk.unit, disk.size),
        (Bus::Ide, Some(1), Some(0), Some(1 << 30))
    );
    assert_eq!((disk.label.as_str(), &disk.uuid), ("disk 3002", &None));
    assert_eq!((told.snapshots, told.change_tracking, told.mark(0)), (0, false, None));
    assert_eq!(told.backings[0].absolute_path, None);
    let nic = &guest.nics[0];
    assert_eq!((nic.model.as_deref(), nic.network.as_deref()), (Some("pcnet32"), Some("VM Network")));
    assert_eq!(unescaped(object.text("name").unwrap()), "old 50% box");
}

/// A mark that stays the same means that nothing was written: anything that may come with a write changes it.
#[test]
fn the_mark_changes_with_everything_that_may_change_the_content() {
    let mark = |answer: &str| machine(&object(answer), "x", &names()).unwrap().mark(0).unwrap();
    let first = mark(VCENTER);
    assert_eq!(first, mark(VCENTER));
    for (from, to) in [
        (
            "<name>config.changeVersion</name><val xsi:type=\"xsd:string\">2026-03",
            "<name>config.changeVersion</name><val>2027-03",
        ),
        ("21 42/17</changeId>", "21 42/18</changeId>"),
        ("web-000001.vmdk", "web-000002.vmdk"),
        ("421e9f3d", "421e9f3e"),
    ] {
        assert!(VCENTER.contains(from), "{from}");
        assert_ne!(first, mark(&VCENTER.replace(from, to)), "{to}");
    }
    assert_eq!(machine(&object(VCENTER), "x", &names()).unwrap().mark(4), None);
}

#[test]
fn other_power_states_are_known() {
    for (word, state) in [
        ("poweredOn", PowerState::On),
        ("suspended", PowerState::Suspended),
        ("sleeping", PowerState::Unknown),
    ] {
        let answer = VCENTER
            .replace("VirtualMachinePowerState\">poweredOff", &format!("VirtualMachinePowerState\">{word}"));
        assert_eq!(machine(&object(&answer), "x", &names()).unwrap().power, state);
    }
}

#[test]
fn a_machine_that_is_not_told_is_refused_with_the_reason() {
    let hidden = HOST.replace("<name>config.hardware</name>", "<name>config.other</name>");
    let error = machine(&object(&hidden), "x", &Names::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "vSphere does not tell the hardware of VM \"x\" (7): its connection state is \"connected\""
    );
    let forbidden = hidden.replace(
        "<obj type=\"VirtualMachine\">7</obj>",
        "<obj type=\"VirtualMachine\">7</obj><missingSet><path>config.hardware</path><fault><fault \
         xsi:type=\"NoPermission\"/><localizedMessage>Denied.</localizedMessage></fault></missingSet>",
    );
    let error = machine(&object(&forbidden), "x", &Names::default()).unwrap_err().to_string();
    assert!(error.ends_with("Denied (NoPermission)"), "{error}");
    let local = HOST.replace("<fileName>[datastore1] old 50%25 box/old.vmdk</fileName>", "");
    let error = machine(&object(&local), "x", &Names::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "disk 3002 of VM \"x\" (7) has no file behind it that vSphere names: its kind is SparseVer2"
    );
}

/// Takes children away, doubles them, and changes texts, as `choices` say.
fn damage(element: &mut Element, choices: &mut std::vec::IntoIter<u8>) {
    match choices.next().unwrap_or(255) {
        0..4 => element.children.clear(),
        4..8 => element.children.extend(element.children.first().cloned()),
        8..12 => element.text = "-99999999999999999999".to_owned(),
        12..16 => element.text = "[".to_owned(),
        16..20 => element.kind = Some("\u{e9}BackingInfo".to_owned()),
        20..24 => element.target = None,
        24..28 => element.children.truncate(1),
        _ => {}
    }
    for child in &mut element.children {
        damage(child, choices);
    }
}

proptest! {
    /// Whatever a server leaves out or mixes up: a machine or an error.
    #[test]
    fn no_description_panics(choices in proptest::collection::vec(any::<u8>(), 700)) {
        let Answer::Response(mut response) = parse(VCENTER.as_bytes()).unwrap() else { panic!("a fault") };
        damage(&mut response, &mut choices.into_iter());
        for object in page(&response).objects {
            referred(&object);
            if let Ok(told) = machine(&object, "x", &names()) {
                told.mark(0);
                prop_assert_eq!(told.backings.len(), told.guest.disks.len());
            }
        }
    }
}
