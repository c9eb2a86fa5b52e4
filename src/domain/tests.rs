//! The three texts: golden ones, tables, and beside what the real virt-v2v wrote.

use std::io::Read;

use super::*;
use crate::guest::Disk;
use crate::v2v::output::DriversParser;

fn placed(paths: &[&str]) -> Vec<Placed> {
    paths.iter().map(|path| Placed { path: path.into(), format: DiskFormat::Qcow2 }).collect()
}

fn disks(buses: &[Bus]) -> Vec<Disk> {
    buses.iter().map(|bus| Disk { bus: *bus, ..Disk::default() }).collect()
}

fn nic(mac: Option<&str>, network: Option<&str>) -> Nic {
    Nic { mac: mac.map(str::to_owned), network: network.map(str::to_owned), ..Nic::default() }
}

/// Lines of a recorded run.
fn fixture(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/virt-v2v").join(path);
    let bytes = std::fs::read(&path).unwrap();
    if path.extension().is_none_or(|end| end != "gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

fn found(path: &str) -> Drivers {
    let mut parser = DriversParser::new();
    parser.feed(&fixture(path));
    parser.finish()
}

/// The value of an attribute everywhere in a text, in its order.
fn values<'a>(xml: &'a str, attribute: &str) -> Vec<&'a str> {
    let begin = format!(" {attribute}='");
    xml.split(begin.as_str()).skip(1).filter_map(|rest| rest.split('\'').next()).collect()
}

#[test]
fn the_source_hardware_is_told_to_the_converter() {
    let guest = Guest {
        name: "-a/b <ü> & 'c'".into(),
        firmware: Firmware::Efi { secure_boot: true },
        memory_kib: 4 << 20,
        vcpus: 6,
        cores_per_socket: Some(3),
        disks: disks(&[Bus::Scsi, Bus::Ide, Bus::Sata, Bus::Virtio, Bus::Nvme, Bus::Ide]),
        nics: vec![
            Nic { model: Some("vmxnet3".into()), ..nic(Some("00:50:56:aa:bb:01"), Some("VM Network")) },
            Nic { attachment: Attachment::Network, ..nic(None, Some("lab")) },
            nic(Some("00:50:56:aa:bb:02"), None),
        ],
        os: None,
    };
    let xml = for_conversion(&guest, &placed(&["/o/1", "/o/2", "/o/3", "/o/4", "/dev/x", "/o/6", "/o/7"]));
    assert_eq!(
        values(&xml, "dev"),
        ["hd", "sda", "hda", "sdb", "vda", "/dev/x", "nvme0n1", "hdb", "sdc"],
        "the letters of each bus, and one disk more than the guest is known to have"
    );
    assert_eq!(values(&xml, "bus"), ["scsi", "ide", "sata", "virtio", "nvme", "ide", "scsi"]);
    for part in [
        "<name>-a/b &lt;ü&gt; &amp; &apos;c&apos;</name>",
        "<memory unit='KiB'>4194304</memory>",
        "<vcpu>6</vcpu>",
        "<topology sockets='2' cores='3' threads='1'/>",
        "<os firmware='efi'>",
        "<disk type='block' device='disk'>",
        "<mac address='00:50:56:aa:bb:01'/>\n      <source bridge='VM Network'/>\n      <model type='vmxnet3'/>",
        "<interface type='network'>\n      <source network='lab'/>\n",
        "<mac address='00:50:56:aa:bb:02'/>\n      <source network='default'/>\n    </interface>",
    ] {
        assert!(xml.contains(part), "{part} not in {xml}");
    }
}

/// Said is only what is known: virt-v2v takes its word for it.
#[test]
fn firmware_that_is_not_known_is_not_told() {
    for (firmware, told) in [
        (Firmware::Unknown, "<os>"),
        (Firmware::Bios, "<os firmware='bios'>"),
        (Firmware::Efi { secure_boot: false }, "<os firmware='efi'>"),
    ] {
        let guest = Guest { firmware, ..Guest::default() };
        assert!(for_conversion(&guest, &[]).contains(told), "{firmware:?}");
    }
    // Nothing that virt-v2v would refuse either, although nothing is known.
    let xml = for_conversion(&Guest::default(), &[]);
    for part in ["<name>guest</name>", "<memory unit='KiB'>2097152</memory>", "<vcpu>1</vcpu>"] {
        assert!(xml.contains(part), "{part} not in {xml}");
    }
}

const USERS: &str = r#"<?xml version="1.0" encoding="ISO-8859-1"?>
<!-- kept -->
<domain type='vmware' id='3'>
  <name>a &amp; b</name>
  <memory unit='GiB' dumpCore='off'> 2 </memory>
  <currentMemory unit='bytes'>1025</currentMemory>
  <os firmware="efi"><type machine='q35'>hvm</type></os>
  <devices>
    <disk type='network' device='disk' snapshot='no'>
      <driver name='qemu' type='vmdk' cache="none" io='a"b'/>
      <auth username='u'><secret type='ceph' usage='x'/></auth>
      <source protocol='nbd' name='x'><host name='h'/></source>
      <backingStore type='file'><format type='raw'/><source file='/old'/></backingStore>
      <target dev='sda' bus='sata'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='hda' bus='ide'/></disk>
    <disk type='block'><source dev='/dev/old'/><target dev='vdb' bus='virtio'/><boot order='1'/></disk>
    <disk device='disk'/>
    <controller type='scsi' model='lsilogic'/>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='b'/></interface>
  </devices>
</domain>
"#;

#[test]
fn of_the_users_xml_only_disks_and_memory_change() {
    let xml = patched(USERS, &placed(&["/o/<1>", "/dev/new", "/o/3"])).unwrap();
    let expected = r#"<?xml version="1.0" encoding="utf-8"?>
<!-- kept -->
<domain type='vmware' id='3'>
  <name>a &amp; b</name>
  <memory dumpCore="off" unit="KiB">2097152</memory>
  <currentMemory unit="KiB">2</currentMemory>
  <os firmware="efi"><type machine='q35'>hvm</type></os>
  <devices>
    <disk type="file" device="disk" snapshot="no">
      <target dev='sda' bus='sata'/>
    <driver name="qemu" cache="none" io="a&quot;b" type="qcow2"/><source file="/o/&lt;1&gt;"/></disk>
    <disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='hda' bus='ide'/></disk>
    <disk type="block" device="disk"><target dev='vdb' bus='virtio'/><boot order='1'/><driver name="qemu" type="qcow2"/><source dev="/dev/new"/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/o/3"/></disk>
    <controller type='scsi' model='lsilogic'/>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='b'/></interface>
  </devices>
</domain>
"#;
    let tidy = |text: &str| {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(tidy(&xml), tidy(expected));
}

#[test]
fn a_guest_is_converted_with_all_its_disks_or_not_at_all() {
    for copies in [0, 2, 4] {
        let copied = vec![Placed { path: "/o".into(), format: DiskFormat::Raw }; copies];
        let text = patched(USERS, &copied).unwrap_err().to_string();
        assert!(text.contains("has 3 disks") && text.contains(&format!("but {copies} were")), "{text}");
    }
}

#[test]
fn memory_becomes_kib_whatever_unit_it_was_in() {
    let memory = |element: &str| {
        let xml = patched(&format!("<domain>{element}</domain>"), &[])?;
        Ok::<_, DomainError>(xml.split(['>', '<']).nth(4).unwrap_or_default().to_owned())
    };
    for (element, kib) in [
        ("<memory>4096</memory>", "4096"),
        ("<memory unit='KiB'>\n 4096\n</memory>", "4096"),
        ("<memory unit='k'>1</memory>", "1"),
        ("<memory unit='b'>1024</memory>", "1"),
        ("<memory unit='KB'>1</memory>", "1"),
        ("<memory unit='MB'>1</memory>", "977"),
        ("<memory unit='M'>1</memory>", "1024"),
        ("<memory unit='G'>1</memory>", "1048576"),
        ("<memory unit='TiB'>1</memory>", "1073741824"),
        ("<maxMemory slots='2' unit='GiB'>9</maxMemory>", "9"),
    ] {
        assert_eq!(memory(element).unwrap(), kib, "{element}");
    }
    for element in [
        "<memory unit='apples'>1</memory>",
        "<memory>much</memory>",
        "<memory unit='TiB'>99999999999</memory>",
        "<memory></memory>",
    ] {
        assert!(matches!(memory(element), Err(DomainError::Memory { .. })), "{element}");
    }
}

#[test]
fn what_is_no_domain_is_refused() {
    for text in ["", "<?xml version='1.0'?>", "no xml", "<network/>", "<network><domain/></network>"] {
        assert!(matches!(patched(text, &[]), Err(DomainError::NoDomain)), "{text:?}");
    }
    for text in ["<domain>", "<domain></network>", "<domain><a></domain>", "<domain><memory>1", "<domain a"] {
        assert!(matches!(patched(text, &[]), Err(DomainError::Xml { .. })), "{text:?}");
    }
    let torn = "<domain><devices><disk device='disk'><source>";
    assert!(matches!(patched(torn, &placed(&["/o"])), Err(DomainError::Xml { .. })));
}

/// `virt-v2v -o local` as recorded, against ours for the same guest: what it says, we say, except on purpose.
#[test]
fn the_users_xml_is_virt_v2vs_own() {
    let case = "2.2.0/libvirtxml-two-disks-o-local-raw-vx";
    let theirs = String::from_utf8(fixture(&format!("{case}/output/two.xml"))).unwrap();
    let guest = Guest {
        name: "two".into(),
        memory_kib: 1024,
        vcpus: 1,
        nics: vec![Nic {
            attachment: Attachment::Network,
            ..nic(Some("52:54:00:00:00:01"), Some("default"))
        }],
        ..Guest::default()
    };
    let files: Vec<Placed> = values(&theirs, "file")
        .into_iter()
        .filter(|file| file.starts_with('/'))
        .map(|file| Placed { path: file.into(), format: DiskFormat::Raw })
        .collect();
    assert_eq!(files.len(), 2);
    let ours = final_domain(&guest, &files, &[], &found(&format!("{case}/v2v.log.gz")));
    let sorted = |xml: &str| {
        let lines = xml.lines().map(str::trim).filter(|line| !line.starts_with("<!--"));
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (ours, theirs) = (sorted(&ours), sorted(&theirs));
    let missing: Vec<_> = theirs.iter().filter(|line| !ours.contains(line)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let more: Vec<_> = ours.iter().filter(|line| !theirs.contains(line)).collect();
    assert_eq!(more, ["<boot dev='hd'/>"]);
}

/// virt-v2v-in-place's own words, 2.2 and 2.10.
#[test]
fn drivers_are_read_from_recorded_logs() {
    for (case, acpi, level) in [
        ("2.2.0/in-place-libvirtxml-two-disks-vx", Some(true), None),
        ("2.10.0/in-place-libvirtxml-two-disks-O-vx", None, Some(0)),
    ] {
        let found = found(&format!("{case}/v2v.log.gz"));
        assert_eq!((found.block, found.net), (Some(BlockBus::VirtioBlk), Some(NetModel::Virtio)), "{case}");
        assert_eq!((found.acpi, found.arch_level, found.uefi), (acpi, level, false), "{case}");
        assert_eq!(osinfo::id(&found).as_deref(), Some("http://debian.org/debian/12"), "{case}");
    }
}

#[test]
fn devices_are_those_the_guest_has_drivers_for() {
    let plain = Drivers { arch: Some("x86_64".into()), ..Drivers::default() };
    let scsi = Drivers { block: Some(BlockBus::VirtioScsi), ..plain.clone() };
    let none = Drivers {
        block: Some(BlockBus::Ide),
        net: Some(NetModel::Rtl8139),
        machine: Some(Machine::I440fx),
        rng: Some(false),
        balloon: Some(false),
        pvpanic: Some(true),
        default_cpu: Some(false),
        rtc_utc: Some(false),
        ..plain.clone()
    };
    let sata = Drivers { machine: Some(Machine::Q35), ..none.clone() };
    let old = Drivers { virtio_1_0: Some(false), ..plain.clone() };
    let arm = Drivers { arch: Some("aarch64".into()), ..plain.clone() };
    for (name, found, parts, without) in [
        (
            "virtio",
            &plain,
            vec!["dev='vdb' bus='virtio'", "<model type='virtio'/>", "machine='q35'"],
            vec!["<cpu"],
        ),
        ("scsi", &scsi, vec!["dev='sdb' bus='scsi'", "model='virtio-scsi'"], vec!["bus='virtio'"]),
        (
            "nothing",
            &none,
            vec![
                "dev='hdb' bus='ide'",
                "<model type='rtl8139'/>",
                "machine='pc'",
                "<memballoon model='none'/>",
                "iobase='0x505'",
                "<cpu mode='host-passthrough'/>",
                "<clock offset='localtime'/>",
            ],
            vec!["<rng"],
        ),
        ("q35 without IDE", &sata, vec!["dev='sdb' bus='sata'"], vec!["bus='ide'"]),
        (
            "old virtio",
            &old,
            vec!["device='disk' model='virtio-transitional'", "<model type='virtio-transitional'/>"],
            vec![],
        ),
        ("arm", &arm, vec!["arch='aarch64' machine='virt'"], vec!["<apic/>"]),
    ] {
        let guest = Guest { nics: vec![nic(None, None)], ..Guest::default() };
        let xml = final_domain(&guest, &placed(&["/a", "/b"]), &[], found);
        for part in parts {
            assert!(xml.contains(part), "{name}: {part} not in {xml}");
        }
        for part in without {
            assert!(!xml.contains(part), "{name}: {part} in {xml}");
        }
    }
}

/// Firmware lost is "no bootable device" (peers.md 6.3, row 45).
#[test]
fn firmware_is_kept_and_found_out_where_nobody_knew() {
    let found_uefi = Drivers { uefi: true, machine: Some(Machine::I440fx), ..Drivers::default() };
    let found_bios = Drivers { uefi: false, ..found_uefi.clone() };
    for (firmware, found, efi, secure) in [
        (Firmware::Unknown, &found_bios, false, false),
        (Firmware::Unknown, &found_uefi, true, false),
        (Firmware::Bios, &found_uefi, false, false),
        (Firmware::Efi { secure_boot: false }, &found_bios, true, false),
        (Firmware::Efi { secure_boot: true }, &found_bios, true, true),
    ] {
        let xml = final_domain(&Guest { firmware, ..Guest::default() }, &[], &[], found);
        assert_eq!(xml.contains("<os firmware='efi'>"), efi, "{firmware:?}");
        assert_eq!(xml.contains("<feature enabled='yes' name='secure-boot'/>"), secure, "{firmware:?}");
        assert_eq!(xml.contains("<feature enabled='no' name='secure-boot'/>"), efi && !secure);
        assert_eq!(xml.contains("<smm state='on'/>"), secure, "{firmware:?}");
        assert_eq!(xml.contains("machine='q35'"), secure, "only q35 can: {firmware:?}");
    }
}

/// peers.md 6.3, row 44: by address, in any case, never by order.
#[test]
fn networks_follow_the_address_then_the_name_and_never_the_order() {
    let mapping = |source: &str, destination: &str, mac: Option<&str>| NetworkMapping {
        source: source.into(),
        destination: destination.into(),
        mac_address: mac.map(str::to_owned),
        ip_address: None,
    };
    let mappings = [
        mapping("lan", "by mac 2", Some("00-50-56-AA-BB-02")),
        mapping("lan", "by mac 1", Some("00:50:56:AA:BB:01")),
        mapping("lan", "by name", None),
        mapping("dmz", "another", Some("00:50:56:aa:bb:99")),
    ];
    for (mac, network, expected) in [
        (Some("00:50:56:aa:bb:01"), Some("lan"), "by mac 1"),
        (Some("00:50:56:aa:bb:02"), Some("elsewhere"), "by mac 2"),
        (Some("00:50:56:aa:bb:03"), Some("lan"), "by name"),
        (Some("00:50:56:aa:bb:03"), Some("dmz"), "dmz"),
        (None, Some("dmz"), "another"),
        (None, Some("lan"), "by name"),
    ] {
        let guest = Guest { nics: vec![nic(mac, network)], ..Guest::default() };
        let xml = final_domain(&guest, &[], &mappings, &Drivers::default());
        assert_eq!(values(&xml, "bridge"), [expected], "{mac:?} on {network:?}");
    }
}

#[test]
fn systems_have_the_names_that_libosinfo_gives_them() {
    let windows = |major, minor, variant: &str, product: &str| Drivers {
        os_type: Some("windows".into()),
        distro: Some("windows".into()),
        major: Some(major),
        minor: Some(minor),
        product_variant: Some(variant.into()),
        product_name: Some(product.into()),
        ..Drivers::default()
    };
    let linux = |distro: &str, major, minor| Drivers {
        os_type: Some("linux".into()),
        distro: Some(distro.into()),
        major: Some(major),
        minor: Some(minor),
        ..Drivers::default()
    };
    for (found, id) in [
        (linux("rhel", 8, 6), Some("http://redhat.com/rhel/8.6")),
        (linux("ubuntu", 22, 4), Some("http://ubuntu.com/ubuntu/22.04")),
        (linux("centos", 7, 9), Some("http://centos.org/centos/7.0")),
        (linux("sles", 15, 0), Some("http://suse.com/sles/15")),
        (linux("unknown", 1, 0), None),
        (windows(10, 0, "Server", "Windows Server 2019 Standard"), Some("http://microsoft.com/win/2k19")),
        (windows(6, 1, "Client", "Windows 7 Professional"), Some("http://microsoft.com/win/7")),
        (windows(99, 0, "Client", ""), None),
        (Drivers::default(), None),
    ] {
        assert_eq!(osinfo::id(&found).as_deref(), id);
    }
}
