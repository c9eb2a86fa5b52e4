use proptest::prelude::*;

use super::*;

/// As vCenter 7 exports, shortened.
const VMWARE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope vmw:buildId="build-17327517" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vmw="http://www.vmware.com/schema/ovf"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
  <References>
    <File ovf:href="web-1.vmdk" ovf:id="file1" ovf:size="68608"/>
    <File ovf:href="web%202.vmdk" ovf:id="file2" ovf:size="68608"/>
    <File ovf:href="web.nvram" ovf:id="file3"/>
  </References>
  <DiskSection><Info/>
    <Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1"/>
    <Disk ovf:capacity="1048576" ovf:diskId="vmdisk2" ovf:fileRef="file2"/>
  </DiskSection>
  <VirtualSystem ovf:id="web">
    <Name>web</Name>
    <OperatingSystemSection ovf:id="80" vmw:osType="rhel7_64Guest"><Description>RHEL 7</Description></OperatingSystemSection>
    <VirtualHardwareSection>
      <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity>
        <vmw:CoresPerSocket ovf:required="false">2</vmw:CoresPerSocket></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>vmware.nvme.controller</rasd:ResourceSubType><rasd:ResourceType>20</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>Hard disk 1</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>9</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:HostResource>/disk/vmdisk2</rasd:HostResource><rasd:InstanceID>10</rasd:InstanceID>
        <rasd:Parent>4</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <StorageItem><rasd:HostResource>ovf:/file/file1</rasd:HostResource>
        <rasd:Parent>5</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></StorageItem>
      <Item><rasd:AddressOnParent>7</rasd:AddressOnParent><rasd:Address>00:50:56:AA:BB:CC</rasd:Address>
        <rasd:Connection>VM Network</rasd:Connection><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>"#;

#[test]
fn an_appliance_is_described_and_the_callers_name_wins() {
    let guest = read(VMWARE, "name").unwrap().guest;
    assert_eq!((guest.name.as_str(), guest.memory_kib), ("name", 2 << 20));
    assert_eq!((guest.vcpus, guest.cores_per_socket), (4, Some(2)));
    assert_eq!(guest.firmware, Firmware::Efi { secure_boot: true });
    assert_eq!(guest.os.as_deref(), Some("rhel7_64Guest"));
    let nic = Nic {
        mac: Some("00:50:56:aa:bb:cc".to_owned()),
        network: Some("VM Network".to_owned()),
        attachment: Default::default(),
        model: Some("vmxnet3".to_owned()),
    };
    assert_eq!(guest.nics, [nic]);
}

#[test]
fn disks_come_in_the_order_of_the_items_and_equal_units_stay_apart() {
    let Appliance { guest, files } = read(VMWARE, "name").unwrap();
    assert_eq!(files, ["web-1.vmdk", "web%202.vmdk", "web-1.vmdk"]);
    let seen: Vec<_> = guest
        .disks
        .iter()
        .map(|disk| (disk.label.as_str(), disk.bus, disk.controller, disk.unit, disk.size))
        .collect();
    assert_eq!(
        seen,
        [
            ("Hard disk 1", Bus::Scsi, Some(0), Some(0), Some(16 << 30)),
            ("Hard disk 2", Bus::Scsi, Some(1), Some(0), Some(1 << 20)),
            ("Hard disk 3", Bus::Nvme, Some(0), None, None),
        ]
    );
}

#[test]
fn a_disk_that_cannot_be_read_in_place_is_named() {
    for (from, to, words) in [
        (
            "ovf:id=\"file1\"",
            "ovf:id=\"file1\" ovf:compression=\"gzip\"",
            "Hard disk 1: web-1.vmdk is compressed (gzip)",
        ),
        (
            "ovf:id=\"file2\"",
            "ovf:id=\"file2\" ovf:chunkSize=\"7\"",
            "Hard disk 2: web%202.vmdk is stored in pieces",
        ),
        ("web-1.vmdk", "http://h/web-1.vmdk", "Hard disk 1: http://h/web-1.vmdk is not in the OVA"),
        ("ovf:fileRef=\"file1\"", "", "Hard disk 1: it is empty"),
        (
            "ovf:fileRef=\"file1\"",
            "ovf:fileRef=\"file9\"",
            "Hard disk 1: file file9 is not in the References",
        ),
        ("ovf:fileRef=\"file1\"", "ovf:fileRef=\"file1\" ovf:parentRef=\"x\"", "Hard disk 1: it is a delta"),
        (
            "ovf:/disk/vmdisk1",
            "ovf:/disk/vmdisk9",
            "Hard disk 1: ovf:/disk/vmdisk9 is not in the DiskSection",
        ),
        ("ovf:/disk/vmdisk1", "", "Hard disk 1: its HostResource \"\" names no disk"),
        (">2048<", ">2 GB<", "its memory \"2 GB\""),
        ("byte * 2^20", "byte * 2^99", "its memory \"byte * 2^99\""),
    ] {
        assert!(VMWARE.contains(from), "{from}");
        let error = read(&VMWARE.replacen(from, to, 1), "x").unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_is_no_guest_is_told() {
    assert_eq!(read("<domain/>", "x"), Err(OvfError::NotOvf("domain".to_owned())));
    let several = "<Envelope><VirtualSystemCollection><VirtualSystem/><VirtualSystem/></VirtualSystemCollection></Envelope>";
    assert_eq!(read(several, "x"), Err(OvfError::Several(2)));
    assert_eq!(read("<Envelope><VirtualSystem/></Envelope>", "x"), Err(OvfError::NoDisk));
}

#[test]
fn units_are_powers_and_words() {
    for (unit, bytes) in [
        ("byte * 2^30", Some(1 << 30)),
        ("byte*2^10", Some(1 << 10)),
        ("MegaBytes", Some(1 << 20)),
        ("byte", Some(1)),
        ("byte * 2^64", None),
        ("furlong", None),
    ] {
        assert_eq!(unit_bytes(unit), bytes, "{unit}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text: String, from in 0_usize..3000, length in 0_usize..40, by in "[0-9<>/:\"a-z^]{0,12}") {
        drop(read(&text, "x"));
        let mut changed: String = VMWARE.chars().take(from).collect();
        changed.push_str(&by);
        changed.extend(VMWARE.chars().skip(from + length));
        drop(read(&changed, "x"));
        prop_assert!(unit_bytes(&text).is_none_or(|bytes| bytes > 0));
    }
}
