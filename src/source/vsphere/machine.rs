//! A machine as vSphere describes it: properties as values. Pure; `inventory` asks for them.
//!
//! Everything is read leniently, for versions differ in what they leave out, but for what a copy cannot do without: a
//! machine without hardware, or a disk without a file, is refused with the reason that the server gave.

use std::collections::BTreeMap;

use super::properties::Object;
use super::snapshot;
use super::soap::{Element, Reference};
use crate::guest::{Attachment, Bus, Disk, Firmware, Guest, Nic};

/// What is asked of a machine.
pub(super) const WANTED: &[&str] = &[
    "name",
    "config.hardware",
    "config.firmware",
    "config.bootOptions",
    "config.guestId",
    "config.uuid",
    "config.version",
    "config.template",
    "config.changeVersion",
    "config.modified",
    "config.changeTrackingEnabled",
    "runtime.powerState",
    "runtime.connectionState",
    "guest.toolsRunningStatus",
    "snapshot",
    "datastore",
    "network",
];

/// A description that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// No hardware: the host is away, or the user may not see it.
    #[error("vSphere does not tell the hardware of VM \"{name}\" ({moref}): {reason}")]
    NoHardware {
        /// The machine.
        name: String,
        /// Its id.
        moref: String,
        /// Why.
        reason: String,
    },
    /// A disk that no file is behind.
    #[error(
        "{label} of VM \"{name}\" ({moref}) has no file behind it that vSphere names: its kind is {kind}"
    )]
    NoFile {
        /// The machine.
        name: String,
        /// Its id.
        moref: String,
        /// The disk.
        label: String,
        /// Type of its backing.
        kind: String,
    },
}

/// Is a machine running?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// It is off.
    Off,
    /// It runs.
    On,
    /// Its memory is on a disk: its disks are those of a running machine.
    Suspended,
    /// The server does not say.
    Unknown,
}

impl PowerState {
    /// By vSphere's word for it.
    pub(super) fn of(word: &str) -> Self {
        match word {
            "poweredOff" => Self::Off,
            "poweredOn" => Self::On,
            "suspended" => Self::Suspended,
            _ => Self::Unknown,
        }
    }
}

/// All that is known of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Managed object id, e.g. `vm-62`.
    pub moref: String,
    /// What it is, for destinations.
    pub guest: Guest,
    /// Is it running?
    pub power: PowerState,
    /// Its host's word on whether it can be reached: `connected`, `inaccessible` and so on.
    pub connection: String,
    /// Snapshots it has.
    pub snapshots: usize,
    /// Changed blocks are tracked (`config.changeTrackingEnabled`).
    pub change_tracking: bool,
    /// It is a template.
    pub template: bool,
    /// Hardware version, e.g. `vmx-13`.
    pub hardware_version: Option<String>,
    /// `guestToolsRunning` or another word of VMware's.
    pub tools: Option<String>,
    /// UUID of the BIOS.
    pub uuid: Option<String>,
    /// Changes with every change of the configuration, switching on included.
    pub configuration: Option<String>,
    /// What is behind each disk of `guest`, in its order.
    pub backings: Vec<Backing>,
}

/// What is behind a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backing {
    /// Type, e.g. `FlatVer2`, `SeSparse`, `RawDiskMappingVer1`.
    pub kind: String,
    /// The newest file of its chain, `[store] folder/disk.vmdk`.
    pub file: String,
    /// Where its host keeps it (contract.md 6.1); `None` where the datastore is not told.
    pub absolute_path: Option<String>,
    /// `persistent`, `independent_persistent` and so on.
    pub mode: Option<String>,
    /// `sharingNone` or `sharingMultiWriter`.
    pub sharing: Option<String>,
    /// `physicalMode` or `virtualMode` of a mapped LUN (RDM); `None` for files.
    pub compatibility: Option<String>,
    /// `physicalSharing` or `virtualSharing` of the controller: machines share its disks. `None` where they do not.
    pub bus_sharing: Option<String>,
    /// There are older files below it: snapshots exist.
    pub has_parent: bool,
    /// Encrypted by a key of vSphere's.
    pub encrypted: bool,
    /// Change id, where changed blocks are tracked.
    pub change_id: Option<String>,
}

impl Inventory {
    /// A text for disk number `disk` that changes when its content may have: when the machine was switched on,
    /// reconfigured, reverted, or another file took the disk's place. `None` where the server tells nothing of the kind.
    pub fn mark(&self, disk: usize) -> Option<String> {
        let backing = self.backings.get(disk)?;
        let change_id = backing.change_id.as_deref();
        if change_id.is_none() && self.configuration.is_none() {
            return None;
        }
        let parts = [self.uuid.as_deref(), self.configuration.as_deref(), change_id, Some(&backing.file)];
        Some(parts.map(Option::unwrap_or_default).join("|"))
    }

    /// Where the host keeps each disk.
    pub fn absolute_paths(&self) -> Vec<Option<String>> {
        self.backings.iter().map(|backing| backing.absolute_path.clone()).collect()
    }

    /// The marks of all disks.
    pub fn marks(&self) -> Vec<Option<String>> {
        (0..self.backings.len()).map(|disk| self.mark(disk)).collect()
    }
}

/// Names that properties of a machine refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Of networks, by the key or id that a backing holds.
    pub networks: BTreeMap<String, String>,
    /// URLs of datastores, by their id.
    pub datastores: BTreeMap<String, String>,
}

/// vSphere escapes three characters in the names of its objects.
pub(super) fn unescaped(name: &str) -> String {
    let slashes = name.replace("%2f", "/").replace("%2F", "/");
    slashes.replace("%5c", "\\").replace("%5C", "\\").replace("%25", "%")
}

/// As vSphere stores it.
pub(super) fn escaped(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2f").replace('\\', "%5c")
}

/// Reads a machine. `name` is what its guest is called.
pub(super) fn machine(object: &Object, name: &str, names: &Names) -> Result<Inventory, MachineError> {
    let moref = object.reference.value.clone();
    let connection = object.text("runtime.connectionState").unwrap_or_default().to_owned();
    let Some(hardware) = object.get("config.hardware") else {
        let reason = match object.why_missing("config.hardware") {
            Some(fault) => fault.to_string(),
            None => format!("its connection state is {connection:?}"),
        };
        return Err(MachineError::NoHardware { name: name.to_owned(), moref, reason });
    };
    let (mut disks, mut backings) = (Vec::new(), Vec::new());
    for (disk, backing) in self::disks(hardware, names) {
        if backing.file.is_empty() {
            let (name, label, kind) = (name.to_owned(), disk.label, backing.kind);
            return Err(MachineError::NoFile { name, moref, label, kind });
        }
        disks.push(disk);
        backings.push(backing);
    }
    let boot = object.get("config.bootOptions");
    let firmware = match object.text("config.firmware") {
        Some("efi") => {
            Firmware::Efi { secure_boot: boot.is_some_and(|boot| boot.flag("efiSecureBootEnabled")) }
        }
        _ => Firmware::Bios,
    };
    let text = |path| object.text(path).map(str::to_owned);
    let guest = Guest {
        name: name.to_owned(),
        firmware,
        memory_kib: hardware.number::<u64>("memoryMB").unwrap_or_default().saturating_mul(1024),
        vcpus: hardware.number("numCPU").unwrap_or(1),
        cores_per_socket: hardware.number("numCoresPerSocket").filter(|&cores| cores > 0),
        disks,
        // Only network cards have one, and all of them.
        nics: hardware
            .all("device")
            .filter(|device| device.child("macAddress").is_some())
            .map(|card| nic(card, names))
            .collect(),
        os: text("config.guestId"),
    };
    let configuration = [text("config.changeVersion"), text("config.modified")];
    Ok(Inventory {
        moref,
        guest,
        power: object.text("runtime.powerState").map_or(PowerState::Unknown, PowerState::of),
        connection,
        snapshots: object.get("snapshot").map_or(0, |info| snapshot::found(info).len()),
        change_tracking: object.get("config.changeTrackingEnabled").is_some_and(Element::is_true),
        template: object.get("config.template").is_some_and(Element::is_true),
        hardware_version: text("config.version"),
        tools: text("guest.toolsRunningStatus"),
        uuid: text("config.uuid"),
        configuration: (configuration.iter().any(Option::is_some))
            .then(|| configuration.map(Option::unwrap_or_default).join(" ")),
        backings,
    })
}

/// Portgroups, opaque networks and datastores that a machine refers to, for one more question.
pub(super) fn referred(object: &Object) -> Vec<Reference> {
    let lists = ["datastore", "network"].into_iter().filter_map(|path| object.get(path));
    // An array of references, whatever its elements are called.
    lists.flat_map(|list| list.children.iter().filter_map(Element::reference)).collect()
}

/// The disks among a machine's devices, or a snapshot's, with what is behind them, in their order.
pub(super) fn disks(hardware: &Element, names: &Names) -> Vec<(Disk, Backing)> {
    let devices: Vec<&Element> = hardware.all("device").collect();
    let disks = devices.iter().filter(|device| device.kind.as_deref() == Some("VirtualDisk"));
    disks.map(|device| disk(device, &devices, names)).collect()
}

fn disk(device: &Element, devices: &[&Element], names: &Names) -> (Disk, Backing) {
    let empty = Element::default();
    let source = device.child("backing").unwrap_or(&empty);
    let text = |name| source.text_of(name).map(str::to_owned);
    let file = source.text_of("fileName").unwrap_or_default();
    let store = source.child("datastore").and_then(Element::reference);
    let url = store.and_then(|store| names.datastores.get(&store.value));
    let key: Option<i32> = device.number("controllerKey");
    let controller =
        devices.iter().find(|other| key.is_some() && other.number("key") == key).copied().unwrap_or(&empty);
    let bus_sharing = controller.text_of("sharedBus").filter(|sharing| *sharing != "noSharing");
    let backing = Backing {
        kind: shortened(source.kind.as_deref().unwrap_or_default(), "VirtualDisk", "BackingInfo"),
        file: file.to_owned(),
        absolute_path: url.and_then(|url| absolute_path(url, file)),
        mode: text("diskMode"),
        sharing: text("sharing"),
        compatibility: text("compatibilityMode"),
        bus_sharing: bus_sharing.map(str::to_owned),
        has_parent: source.child("parent").is_some(),
        encrypted: source.child("keyId").is_some(),
        change_id: text("changeId"),
    };
    let size = || device.number::<u64>("capacityInKB").map(|kib| kib.saturating_mul(1024));
    let disk = Disk {
        path: file.to_owned(),
        label: label(device),
        bus: bus(controller.kind.as_deref().unwrap_or_default()),
        controller: controller.number("busNumber"),
        unit: device.number("unitNumber"),
        key: device.number("key"),
        uuid: text("uuid"),
        // In bytes since 5.5.
        size: device.number("capacityInBytes").or_else(size),
        volume: None,
    };
    (disk, backing)
}

fn label(device: &Element) -> String {
    let told = device.at(&["deviceInfo", "label"]).map(|label| label.text.clone());
    told.filter(|label| !label.is_empty())
        .unwrap_or_else(|| format!("disk {}", device.text_of("key").unwrap_or("without key")))
}

/// `ParaVirtualSCSIController`, `VirtualLsiLogicSASController`, `VirtualAHCIController` and so on.
fn bus(controller: &str) -> Bus {
    match controller {
        name if name.contains("IDE") => Bus::Ide,
        name if name.contains("AHCI") || name.contains("SATA") => Bus::Sata,
        name if name.contains("NVM") => Bus::Nvme,
        _ => Bus::Scsi,
    }
}

fn nic(card: &Element, names: &Names) -> Nic {
    let empty = Element::default();
    let backing = card.child("backing").unwrap_or(&empty);
    let key = backing.at(&["port", "portgroupKey"]).or(backing.child("opaqueNetworkId"));
    let named = key.map(|key| names.networks.get(&key.text).unwrap_or(&key.text).to_owned());
    let told = backing.text_of("deviceName").map(str::to_owned);
    let model = shortened(card.kind.as_deref().unwrap_or_default(), "Virtual", "EthernetCard");
    Nic {
        mac: card.text_of("macAddress").map(str::to_lowercase),
        network: named.or(told).filter(|name| !name.is_empty()),
        attachment: Attachment::Bridge,
        model: Some(model.to_lowercase()).filter(|model| !model.is_empty()),
    }
}

fn shortened(kind: &str, prefix: &str, suffix: &str) -> String {
    let kind = kind.strip_prefix(prefix).unwrap_or(kind);
    kind.strip_suffix(suffix).unwrap_or(kind).to_owned()
}

/// The datastore's URL without `ds://`, a slash, and the path in it. URLs end with a slash, so there are two: that is
/// what clients of the old program see (contract.md 6.1).
fn absolute_path(url: &str, file: &str) -> Option<String> {
    let (_, relative) = file.strip_prefix('[')?.split_once("] ")?;
    Some(format!("{}/{relative}", url.strip_prefix("ds://").unwrap_or(url)))
}

#[cfg(test)]
mod tests;
