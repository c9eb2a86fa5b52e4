use proptest::prelude::*;

use super::*;

/// As `virsh dumpxml` prints a running guest.
const DOMAIN: &str = r#"<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name>
  <uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>
  <memory unit='MiB'>1536</memory>
  <currentMemory unit='KiB'>524288</currentMemory>
  <vcpu placement='static' current='2'>8</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='no' name='enrolled-keys'/><feature enabled='yes' name='secure-boot'/></firmware>
    <loader readonly='yes' secure='no' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
  </os>
  <cpu mode='host-model'><topology sockets='2' dies='1' cores='2' threads='2'/></cpu>
  <devices>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sdz' bus='sata'/></disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/a &amp; b.qcow2' index='1'><encryption/></source>
      <backingStore type='file'><format type='raw'/><source file='/images/base.img'/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/data'/>
      <target dev='sda' bus='scsi'/>
      <address type='drive' controller='1' bus='0' target='0' unit='3'/>
    </disk>
    <disk type='file'><source file='relative.img'/><target dev='hdd'/>
      <address type='drive' controller='0' bus='1' target='0' unit='1'/></disk>
    <interface type='network'>
      <mac address='52:54:00:AB:CD:EF'/><source network='default' bridge='virbr0'/><model type='virtio'/>
    </interface>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>
    <interface type='user'/>
    <hostdev mode='subsystem' type='pci'/>
  </devices>
</domain>"#;

#[test]
fn a_domain_is_described_and_the_callers_name_wins() {
    let guest = read(DOMAIN, "name").unwrap().guest;
    assert_eq!((guest.name.as_str(), guest.memory_kib), ("name", 1536 << 10));
    assert_eq!((guest.vcpus, guest.cores_per_socket), (8, Some(4)));
    assert_eq!(guest.firmware, Firmware::Efi { secure_boot: true });
    let nics: Vec<_> = guest
        .nics
        .iter()
        .map(|nic| [&nic.mac, &nic.network, &nic.model].map(|text| text.as_deref()))
        .collect();
    assert_eq!(
        nics,
        [
            [Some("52:54:00:ab:cd:ef"), Some("default"), Some("virtio")],
            [Some("52:54:00:00:00:01"), Some("br0"), None],
            [None; 3]
        ]
    );
}

#[test]
fn disks_come_in_their_order_with_their_own_source() {
    let domain = read(DOMAIN, "name").unwrap();
    let seen: Vec<_> = domain
        .guest
        .disks
        .iter()
        .zip(&domain.images)
        .map(|(disk, image)| {
            assert_eq!(image.path.to_str(), Some(disk.path.as_str()));
            (disk.label.as_str(), disk.path.as_str(), image.format, disk.bus, disk.controller, disk.unit)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("Hard disk 1", "/images/a & b.qcow2", Some(ImageFormat::Qcow2), Bus::Virtio, None, None),
            ("Hard disk 2", "/dev/vg/data", Some(ImageFormat::Raw), Bus::Scsi, Some(1), Some(3)),
            ("Hard disk 3", "relative.img", None, Bus::Ide, Some(0), Some(3)),
        ]
    );
}

fn with(memory: &str, os: &str, disk: &str) -> String {
    format!("<domain>{memory}{os}<devices>{disk}</devices></domain>")
}

const MEMORY: &str = "<memory>1</memory>";
const DISK: &str = "<disk type='file'><source file='/a'/></disk>";

#[test]
fn memory_has_libvirts_units() {
    for (memory, kib) in [
        ("<memory>2097152</memory>", 2 << 20),
        ("<memory unit='b'>1025</memory>", 2),
        ("<memory unit='KB'>1024</memory>", 1000),
        ("<memory unit='M'>3</memory>", 3 << 10),
        ("<memory unit='GiB'>2</memory>", 2 << 20),
        ("<memory unit='TB'>1</memory>", 976_562_500),
    ] {
        assert_eq!(read(&with(memory, "", DISK), "x").unwrap().guest.memory_kib, kib, "{memory}");
    }
    for memory in [
        "",
        "<memory/>",
        "<memory>0</memory>",
        "<memory unit='PB'>1</memory>",
        "<memory unit='T'>99999999999</memory>",
    ] {
        let error = read(&with(memory, "", DISK), "x").unwrap_err();
        assert!(matches!(error, LibvirtError::Value { what: "memory", .. }), "{error}");
    }
}

/// Lost firmware is a guest that does not boot (peers.md 6.3, row 45).
#[test]
fn firmware_is_told_by_any_of_its_forms() {
    let efi = |secure_boot| Firmware::Efi { secure_boot };
    for (os, firmware) in [
        ("", Firmware::Bios),
        ("<os><type>hvm</type></os>", Firmware::Bios),
        ("<os><loader type='rom'>/usr/share/bios.bin</loader></os>", Firmware::Bios),
        ("<os firmware='bios'/>", Firmware::Bios),
        ("<os firmware='efi'/>", efi(false)),
        ("<os><loader type='pflash'>/x.fd</loader></os>", efi(false)),
        ("<os><loader type='pflash' secure='yes'>/x.fd</loader></os>", efi(true)),
        (
            "<os firmware='efi'><firmware><feature name='secure-boot' enabled='no'/></firmware></os>",
            efi(false),
        ),
    ] {
        assert_eq!(read(&with(MEMORY, os, DISK), "x").unwrap().guest.firmware, firmware, "{os}");
    }
}

#[test]
fn a_disk_that_cannot_be_copied_is_named() {
    for (disk, words) in [
        (
            "<disk type='network' device='disk'><source protocol='rbd' name='pool/image'/><target dev='vdb'/></disk>",
            "disk vdb is of type network (pool/image)",
        ),
        (
            "<disk type='volume'><source pool='p' volume='v'/></disk>",
            "disk Hard disk 2 is of type volume (v)",
        ),
        ("<disk type='nvme'><target dev='vdc'/></disk>", "disk vdc is of type nvme"),
        ("<disk type='file'><target dev='vdd'/></disk>", "disk vdd has no source"),
        ("<disk type='file'><source file='/a'/><driver type='qed'/></disk>", "has the format qed"),
    ] {
        let error = read(&with(MEMORY, "", &format!("{DISK}{disk}")), "x").unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(read(&with(MEMORY, "", ""), "x"), Err(LibvirtError::NoDisk));
    assert_eq!(read("<network/>", "x"), Err(LibvirtError::NotDomain("network".to_owned())));
}

proptest! {
    #[test]
    fn no_text_panics(text: String, number in "[0-9]{0,21}", word in "\\PC{0,9}") {
        drop(read(&text, "x"));
        let disk = format!(
            "<disk type='file'><source file='/a'/><target dev='{number}'/>\
             <address type='drive' controller='{number}' bus='{number}' unit='{number}'/></disk>"
        );
        let cpu = format!("<cpu><topology sockets='{number}' cores='{number}'/></cpu><vcpu>{word}</vcpu>");
        drop(read(&with(&format!("<memory unit='T'>{number}</memory>"), &cpu, &disk), "x"));
    }
}
