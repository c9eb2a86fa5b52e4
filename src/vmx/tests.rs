use proptest::prelude::*;

use super::*;

/// As ESXi 7 writes them, with the devices mixed up.
const ESXI: &str = r#"#!/usr/bin/vmware
.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
nvram = "web 01.nvram"
displayName = "web |22one|22 |7c ä"
guestOS = "rhel8-64"
memSize = "4096"
numvcpus = "4"
cpuid.coresPerSocket = "2"
firmware = "efi"
uefi.secureBoot.enabled = "TRUE"
svga.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0.present = "TRUE"
scsi1.virtualDev = "lsilogic"
scsi1.present = "TRUE"
sata0.present = "TRUE"
ide0:0.present = "TRUE"
ide0:0.deviceType = "ata-hardDisk"
ide0:0.fileName = "ide.vmdk"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "/vmfs/volumes/iso/rhel.iso"
sata0:0.present = "TRUE"
sata0:1.fileName = "sata.vmdk"
sata0:1.present = "TRUE"
scsi1:0.deviceType = "scsi-hardDisk"
scsi1:0.fileName = "/vmfs/volumes/5f-aa/web 01/data.vmdk"
scsi1:0.present = "TRUE"
SCSI0:10.FILENAME = "ten.vmdk"
scsi0:10.present = "TRUE"
scsi0:2.deviceType = "scsi-hardDisk"
scsi0:2.fileName = "two.vmdk"
scsi0:2.present = "TRUE"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:0.fileName = "web 01|22.vmdk"
scsi0:0.present = "TRUE"
scsi0:0.redo = ""
scsi0:5.fileName = "gone.vmdk"
scsi0:5.present = "FALSE"
scsi0:6.fileName = "auto detect"
scsi0:7.deviceType = "scsi-passthru"
scsi0:7.fileName = "tape.vmdk"
scsi2.present = "FALSE"
scsi2:0.fileName = "unplugged.vmdk"
nvme0.present = "TRUE"
nvme0:0.fileName = "nvme.vmdk"
nvme0:0.present = "TRUE"
floppy0.fileName = "floppy.vmdk"
ethernet10.virtualDev = "e1000"
ethernet10.networkName = "Back |26 end"
ethernet10.addressType = "static"
ethernet10.address = "00:50:56:AA:BB:CC"
ethernet10.present = "TRUE"
ethernet0.virtualDev = "VmxNet3"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "generated"
ethernet0.generatedAddress = "00:0C:29:AB:CD:EF"
ethernet0.present = "TRUE"
ethernet1.pciSlotNumber = "192"
ethernet2.present = "FALSE"
ethernet2.virtualDev = "e1000"
"#;

fn guest(text: &str) -> Guest {
    Vmx::parse(text.as_bytes()).unwrap().guest("name").unwrap()
}

#[test]
fn a_machine_is_described_and_the_callers_name_wins() {
    let guest = guest(ESXI);
    assert_eq!(guest.name, "name");
    assert_eq!(guest.firmware, Firmware::Efi { secure_boot: true });
    assert_eq!((guest.memory_kib, guest.vcpus, guest.cores_per_socket), (4096 * 1024, 4, Some(2)));
    assert_eq!(guest.os.as_deref(), Some("rhel8-64"));
    assert_eq!(Vmx::parse(ESXI.as_bytes()).unwrap().get("DISPLAYNAME"), Some("web \"one\" | ä"));
}

/// virt-v2v's order: by bus, then controller, then unit as numbers; two controllers may have equal units
/// (peers.md 6.3, row 31).
#[test]
fn disks_come_in_virt_v2vs_order_and_equal_units_stay_apart() {
    let disks = guest(ESXI).disks;
    let seen: Vec<_> =
        disks.iter().map(|disk| (disk.bus, disk.controller, disk.unit, disk.path.as_str())).collect();
    assert_eq!(
        seen,
        [
            (Bus::Scsi, Some(0), Some(0), "web 01\".vmdk"),
            (Bus::Scsi, Some(0), Some(2), "two.vmdk"),
            (Bus::Scsi, Some(0), Some(10), "ten.vmdk"),
            (Bus::Scsi, Some(1), Some(0), "/vmfs/volumes/5f-aa/web 01/data.vmdk"),
            (Bus::Nvme, Some(0), Some(0), "nvme.vmdk"),
            (Bus::Sata, Some(0), Some(1), "sata.vmdk"),
            (Bus::Ide, Some(0), Some(0), "ide.vmdk"),
        ]
    );
    let labels: Vec<&str> = disks.iter().map(|disk| disk.label.as_str()).collect();
    assert_eq!((labels[0], labels[6]), ("Hard disk 1", "Hard disk 7"));
}

#[test]
fn cards_come_by_their_number_with_the_address_in_lower_case() {
    let nic = |mac: &str, network: &str, model: &str| Nic {
        mac: Some(mac.to_owned()),
        network: Some(network.to_owned()),
        attachment: Default::default(),
        model: Some(model.to_owned()),
    };
    assert_eq!(
        guest(ESXI).nics,
        [nic("00:0c:29:ab:cd:ef", "VM Network", "vmxnet3"), nic("00:50:56:aa:bb:cc", "Back & end", "e1000")]
    );
}

#[test]
fn what_is_not_said_is_vmwares_default() {
    let guest = guest("displayname = \"x\"\r\nnumvcpus = \"\"\r\nscsi0:0.fileName = bare.vmdk\r\n");
    assert_eq!((guest.firmware, guest.memory_kib, guest.vcpus), (Firmware::Bios, 32 << 10, 1));
    assert_eq!((guest.cores_per_socket, guest.os, guest.nics.len()), (None, None, 0));
    assert_eq!(guest.disks[0].path, "bare.vmdk");
}

#[test]
fn an_encoding_is_respected_or_told() {
    let parse = |bytes: &[u8]| Vmx::parse(bytes).map(|vmx| vmx.get("a").unwrap().to_owned());
    assert_eq!(parse(b".encoding = \"windows-1252\"\na = \"\x80 |e4\"").unwrap(), "€ ä");
    assert_eq!(parse(b".encoding = \"UTF-8\"\na = \"|c3|A4|\"").unwrap(), "ä|");
    assert_eq!(parse(b".encoding = \"Shift_JIS\"\na = \"plain |\"").unwrap(), "plain |");
    assert_eq!(
        parse(b".encoding = \"Shift_JIS\"\na = \"\x83\x65\"").unwrap_err(),
        VmxError::Encoding { line: 2, encoding: "shift_jis".to_owned() }
    );
}

#[test]
fn what_is_no_vmx_is_told() {
    for bytes in [&b""[..], b"<domain type='kvm'/>", &[0; 512], b"# a = \"b\"\n"] {
        assert_eq!(Vmx::parse(bytes), Err(VmxError::NotVmx));
    }
    let encrypted = b"encryption.keySafe = \"vmware:key/list/(pair)\"\nencryption.data = \"e30=\"";
    assert_eq!(Vmx::parse(encrypted).unwrap().guest("x"), Err(VmxError::Encrypted));
    let error = Vmx::parse(b"memsize = \"lots\"").unwrap().guest("x").unwrap_err();
    assert_eq!(error.to_string(), "memsize = \"lots\" is not a number");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, text in "(scsi|ide|ethernet|memsize|.encoding)[0-9:.]{0,8}(filename|present)? ?= ?\"?[|0-9a-fé\"]{0,9}\n?") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            drop(Vmx::parse(bytes).map(|vmx| vmx.guest("x")));
        }
    }

    /// A value survives whatever stands in it.
    #[test]
    fn escapes_are_undone(value: String) {
        let escaped: String = value.bytes().map(|byte| format!("|{byte:02x}")).collect();
        let text = format!("a = \"{escaped}\"");
        let vmx = Vmx::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(vmx.get("a"), Some(value.as_str()));
    }
}
