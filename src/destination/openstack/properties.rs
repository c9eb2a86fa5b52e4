//! Properties of the image that a server takes its boot volume for: the hardware that the converted guest has drivers for.
//! The choices are those of [`crate::domain::final_domain`]. Pure.

use crate::guest::{Firmware, Guest};
use crate::v2v::output::{BlockBus, Drivers, Machine, NetModel};

/// Properties that tell of the image's own file, not of a server made of it.
const OF_THE_FILE: [&str; 8] =
    ["checksum", "container_format", "disk_format", "image_id", "image_name", "min_disk", "min_ram", "size"];

/// For the boot volume: those that it had where it was one already, which runs as it is; else those of what it was
/// converted to.
pub(super) fn of(machine: &super::Machine<'_>) -> Vec<(String, String)> {
    match machine.guest.disks.first().and_then(|disk| disk.volume.as_ref()) {
        Some(volume) => {
            let of_server = |(key, _): &&(String, String)| !OF_THE_FILE.contains(&key.as_str());
            volume.image_properties.iter().filter(of_server).cloned().collect()
        }
        None => properties(machine.guest, machine.drivers),
    }
}

/// For the boot volume of a guest that we converted; virt-v2v sets its own.
fn properties(guest: &Guest, found: &Drivers) -> Vec<(String, String)> {
    let (efi, secure) = match guest.firmware {
        Firmware::Efi { secure_boot } => (true, secure_boot),
        Firmware::Bios => (false, false),
        Firmware::Unknown => (found.uefi, false),
    };
    let chipset = match found.machine() {
        Machine::Virt => "virt",
        // Secure boot needs its protected memory, and not every cloud has UEFI for the old one.
        _ if efi => "q35",
        Machine::Q35 => "q35",
        Machine::I440fx => "pc",
    };
    let (bus, model) = match found.block() {
        BlockBus::VirtioBlk => ("virtio", None),
        BlockBus::VirtioScsi => ("scsi", Some("virtio-scsi")),
        // Only the old chipset has an IDE controller.
        BlockBus::Ide if chipset == "pc" => ("ide", None),
        BlockBus::Ide => ("sata", None),
    };
    let net = match found.net() {
        NetModel::Virtio => "virtio",
        NetModel::E1000 => "e1000",
        NetModel::Rtl8139 => "rtl8139",
    };
    let mut properties = vec![
        ("hw_disk_bus", bus),
        ("hw_vif_model", net),
        ("hw_machine_type", chipset),
        ("hw_video_model", if chipset == "virt" { "virtio" } else { "vga" }),
        ("architecture", found.arch()),
    ];
    properties.extend(model.map(|model| ("hw_scsi_model", model)));
    if efi {
        properties.push(("hw_firmware_type", "uefi"));
        // Said either way: a cloud's default may enforce signatures that this guest's loader does not have.
        properties.push(("os_secure_boot", if secure { "required" } else { "disabled" }));
    }
    if found.rng() {
        properties.push(("hw_rng_model", "virtio"));
    }
    let is_windows = found.os_type.as_deref().map_or(guest.is_windows(), |kind| kind == "windows");
    match found.os_type.as_deref() {
        Some(kind @ ("linux" | "windows")) => properties.push(("os_type", kind)),
        _ if is_windows => properties.push(("os_type", "windows")),
        _ => {}
    }
    properties.extend(found.distro.as_deref().map(|distro| ("os_distro", distro)));
    properties.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(firmware: Firmware, found: &Drivers) -> Vec<String> {
        let guest = Guest { firmware, ..Guest::default() };
        properties(&guest, found).iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    fn has(all: &[String], some: &[&str]) -> bool {
        some.iter().all(|one| all.iter().any(|property| property == one))
    }

    fn lacks(all: &[String], key: &str) -> bool {
        !all.iter().any(|property| property.split('=').next() == Some(key))
    }

    #[test]
    fn the_hardware_is_what_the_guest_has_drivers_for() {
        let linux = of(Firmware::Bios, &Drivers::default());
        assert!(
            has(&linux, &["hw_disk_bus=virtio", "hw_vif_model=virtio", "hw_machine_type=q35"]),
            "{linux:?}"
        );
        assert!(lacks(&linux, "hw_firmware_type") && lacks(&linux, "hw_scsi_model"), "{linux:?}");

        let scsi = Drivers { block: Some(BlockBus::VirtioScsi), ..Drivers::default() };
        assert!(has(&of(Firmware::Bios, &scsi), &["hw_disk_bus=scsi", "hw_scsi_model=virtio-scsi"]));

        let old =
            Drivers { os_type: Some("windows".into()), machine: Some(Machine::I440fx), ..Drivers::default() };
        let old = of(Firmware::Bios, &old);
        assert!(
            has(&old, &["hw_disk_bus=ide", "hw_vif_model=e1000", "hw_machine_type=pc", "os_type=windows"]),
            "{old:?}"
        );
        assert!(lacks(&old, "hw_rng_model"), "{old:?}");
        let sata = Drivers { os_type: Some("windows".into()), ..Drivers::default() };
        assert!(has(&of(Firmware::Bios, &sata), &["hw_disk_bus=sata"]));
    }

    #[test]
    fn uefi_is_that_of_the_source_or_what_virt_v2v_found() {
        let pc = Drivers { machine: Some(Machine::I440fx), uefi: true, ..Drivers::default() };
        let secure = of(Firmware::Efi { secure_boot: true }, &pc);
        assert!(has(&secure, &["hw_firmware_type=uefi", "os_secure_boot=required", "hw_machine_type=q35"]));
        let open = of(Firmware::Efi { secure_boot: false }, &pc);
        assert!(has(&open, &["os_secure_boot=disabled"]));
        assert!(has(&of(Firmware::Unknown, &pc), &["hw_firmware_type=uefi"]));
        assert!(lacks(&of(Firmware::Bios, &pc), "hw_firmware_type"));
    }
}
