//! OVF descriptors: the guest of an OVA, and the files its disks are in. Text into [`Guest`]. Pure.
//!
//! OVF 1.x and 2.x as VMware, oVirt and VirtualBox write them. Not here: finding the files in an archive
//! ([`crate::source::ova`]). Disks come in the order of the hardware items, as for virt-v2v. A disk that cannot be read
//! where it lies (compressed, in pieces, on a web server, empty) is refused by name.

use std::collections::BTreeMap;

use crate::guest::{Attachment, Bus, Disk, Firmware, Guest, Nic};
use crate::json::one_line;
use crate::xml::{self, Element, XmlError};

/// CIM's numbers of devices (`rasd:ResourceType`).
const PROCESSOR: &str = "3";
const MEMORY: &str = "4";
const IDE: &str = "5";
const SCSI: &str = "6";
const ETHERNET: &str = "10";
const HARD_DISK: &str = "17";
const SATA: &str = "20";

/// A descriptor of no guest that could be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OvfError {
    /// Not XML.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Something else.
    #[error("it is not an OVF: there is no <VirtualSystem> in <{0}>")]
    NotOvf(String),
    /// More than one guest.
    #[error("it holds {0} virtual machines: export each of them on its own")]
    Several(usize),
    /// A number that is none.
    #[error("its {what} \"{value}\" makes no sense")]
    Value {
        /// Which.
        what: &'static str,
        /// As it stands.
        value: String,
    },
    /// A disk that is nowhere.
    #[error("{disk}: {why}")]
    Disk {
        /// Label of the disk.
        disk: String,
        /// What is wrong with it.
        why: String,
    },
    /// No disk at all.
    #[error("it has no disk")]
    NoDisk,
}

/// A guest, and for each disk the name of its file as the descriptor writes it: relative to the descriptor, and perhaps
/// with percent escapes. A disk's `path` is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appliance {
    /// What it is.
    pub guest: Guest,
    /// In the order of `guest.disks`.
    pub files: Vec<String>,
}

/// Reads a descriptor, under the name that the caller gives the guest.
pub fn read(text: &str, name: &str) -> Result<Appliance, OvfError> {
    let envelope = xml::parse(text)?;
    let mut systems = Vec::new();
    find_systems(&envelope, &mut systems);
    let [system] = systems.as_slice() else {
        return Err(match systems.len() {
            0 => OvfError::NotOvf(one_line(&envelope.name, 60)),
            several => OvfError::Several(several),
        });
    };
    let section = system.child("VirtualHardwareSection");
    let hardware = Hardware { items: section.map(|section| section.children.as_slice()).unwrap_or_default() };
    let (disks, files) = hardware.disks(&envelope)?;
    if disks.is_empty() {
        return Err(OvfError::NoDisk);
    }
    let processor = hardware.of(PROCESSOR).next();
    let guest = Guest {
        name: name.to_owned(),
        firmware: hardware.firmware(),
        memory_kib: hardware.memory_kib()?,
        vcpus: number("processors", processor, "VirtualQuantity")?.map_or(1, narrow).max(1),
        cores_per_socket: number("cores", processor, "CoresPerSocket")?
            .map(narrow)
            .filter(|cores| *cores > 0),
        disks,
        nics: hardware.of(ETHERNET).map(nic).collect(),
        os: os(system),
    };
    Ok(Appliance { guest, files })
}

/// The guests, also those in collections. The depth of a tree is bounded.
fn find_systems<'a>(element: &'a Element, found: &mut Vec<&'a Element>) {
    for child in &element.children {
        match child.name.as_str() {
            "VirtualSystem" => found.push(child),
            "VirtualSystemCollection" => find_systems(child, found),
            _ => {}
        }
    }
}

/// VMware's word (`rhel7_64Guest`), or the description.
fn os(system: &Element) -> Option<String> {
    let section = system.child("OperatingSystemSection")?;
    section.attribute("osType").or(section.text_of("Description")).map(|os| one_line(os, 100))
}

struct Hardware<'a> {
    items: &'a [Element],
}

impl<'a> Hardware<'a> {
    /// `Item`, and OVF 2's `StorageItem` and `EthernetPortItem`.
    fn all(&self) -> impl Iterator<Item = &'a Element> + use<'a> {
        self.items.iter().filter(|item| item.name.ends_with("Item"))
    }

    fn of(&self, kind: &'static str) -> impl Iterator<Item = &'a Element> + use<'a> {
        self.all().filter(move |item| item.text_of("ResourceType") == Some(kind))
    }

    /// VMware's settings stand beside the items.
    fn setting(&self, wanted: &str) -> Option<&'a str> {
        let settings =
            self.items.iter().filter(|item| matches!(item.name.as_str(), "Config" | "ExtraConfig"));
        let mut found = settings.filter(|setting| setting.attribute("key") == Some(wanted));
        found.next().and_then(|setting| setting.attribute("value"))
    }

    fn firmware(&self) -> Firmware {
        let is =
            |key: &str, value: &str| self.setting(key).is_some_and(|text| text.eq_ignore_ascii_case(value));
        if is("firmware", "efi") {
            Firmware::Efi { secure_boot: is("bootOptions.efiSecureBootEnabled", "true") }
        } else {
            Firmware::Bios
        }
    }

    fn memory_kib(&self) -> Result<u64, OvfError> {
        let item = self.of(MEMORY).next();
        let unit = item.and_then(|item| item.text_of("AllocationUnits")).unwrap_or("byte * 2^20");
        let wrong = |value: &str| OvfError::Value { what: "memory", value: one_line(value, 60) };
        let quantity = number("memory", item, "VirtualQuantity")?.ok_or_else(|| wrong(""))?;
        let factor = unit_bytes(unit).ok_or_else(|| wrong(unit))?;
        let bytes = quantity.checked_mul(factor).filter(|bytes| *bytes > 0);
        bytes.map(|bytes| bytes.div_ceil(1024)).ok_or_else(|| wrong(&format!("{quantity} {unit}")))
    }

    fn disks(&self, envelope: &Element) -> Result<(Vec<Disk>, Vec<String>), OvfError> {
        let (controllers, store) = (self.controllers(), Store { envelope });
        let (mut disks, mut files) = (Vec::new(), Vec::new());
        for (index, item) in self.of(HARD_DISK).enumerate() {
            let label =
                item.text_of("ElementName").or(item.text_of("Caption")).map(|label| one_line(label, 80));
            let label = label.unwrap_or_else(|| format!("Hard disk {}", index + 1));
            let resource = item.text_of("HostResource").unwrap_or_default();
            let (file, size) =
                store.file(resource).map_err(|why| OvfError::Disk { disk: label.clone(), why })?;
            let place = item.text_of("Parent").and_then(|parent| controllers.get(parent));
            disks.push(Disk {
                path: file.clone(),
                label,
                bus: place.map_or(Bus::Scsi, |(bus, _)| *bus),
                controller: place.map(|(_, number)| *number),
                unit: item.text_of("AddressOnParent").and_then(|unit| unit.parse().ok()),
                size,
                ..Disk::default()
            });
            files.push(file);
        }
        Ok((disks, files))
    }

    /// Bus and number of each controller by its id. Its `Address` is its number; without one it is counted.
    fn controllers(&self) -> BTreeMap<&'a str, (Bus, u32)> {
        let (mut controllers, mut counts) = (BTreeMap::new(), BTreeMap::<&str, u32>::new());
        for item in self.all() {
            let nvme = item
                .text_of("ResourceSubType")
                .is_some_and(|kind| kind.to_ascii_lowercase().contains("nvme"));
            let bus = match item.text_of("ResourceType") {
                Some(IDE) => Bus::Ide,
                Some(SCSI) => Bus::Scsi,
                Some(SATA) if nvme => Bus::Nvme,
                Some(SATA) => Bus::Sata,
                _ => continue,
            };
            let count = counts.entry(bus.as_str()).or_default();
            let number = item.text_of("Address").and_then(|number| number.parse().ok()).unwrap_or(*count);
            *count = count.saturating_add(1);
            if let Some(id) = item.text_of("InstanceID").or(item.text_of("InstanceId")) {
                controllers.insert(id, (bus, number));
            }
        }
        controllers
    }
}

fn nic(item: &Element) -> Nic {
    Nic {
        mac: item.text_of("Address").map(str::to_ascii_lowercase),
        network: item.text_of("Connection").map(str::to_owned),
        attachment: Attachment::Bridge,
        model: item.text_of("ResourceSubType").map(str::to_ascii_lowercase),
    }
}

/// The disks and files that items refer to.
struct Store<'a> {
    envelope: &'a Element,
}

impl<'a> Store<'a> {
    /// The file of `ovf:/disk/vmdisk1` or `ovf:/file/file1`, and the disk's size in bytes.
    fn file(&self, resource: &str) -> Result<(String, Option<u64>), String> {
        let way = resource.strip_prefix("ovf:").unwrap_or(resource).trim_start_matches('/');
        let shown = || one_line(resource, 100);
        match way.split_once('/') {
            Some(("disk", id)) => {
                let disk = self.by("DiskSection", "Disk", "diskId", id);
                let disk = disk.ok_or_else(|| format!("{} is not in the DiskSection", shown()))?;
                if disk.attribute("parentRef").is_some_and(|parent| !parent.is_empty()) {
                    return Err(
                        "it is a delta on another disk: export the virtual machine without snapshots".into(),
                    );
                }
                let file = disk.attribute("fileRef").filter(|file| !file.is_empty());
                let file = file.ok_or("it is empty (it has no fileRef): remove it from the OVF, and add an empty disk after the conversion")?;
                Ok((self.reference(file)?, capacity(disk)))
            }
            Some(("file", id)) => Ok((self.reference(id)?, None)),
            _ => Err(format!("its HostResource \"{}\" names no disk", shown())),
        }
    }

    fn reference(&self, id: &str) -> Result<String, String> {
        let file = self.by("References", "File", "id", id);
        let file = file.ok_or_else(|| format!("file {} is not in the References", one_line(id, 100)))?;
        let href = file.attribute("href").unwrap_or_default();
        let shown = one_line(href, 200);
        if href.is_empty() {
            return Err(format!("file {} has no href", one_line(id, 100)));
        }
        if href.contains("://") {
            return Err(format!(
                "{shown} is not in the OVA: download it, and name the local file in the OVF"
            ));
        }
        if file.attribute("chunkSize").is_some() {
            return Err(format!("{shown} is stored in pieces: export the virtual machine without chunks"));
        }
        match file.attribute("compression") {
            None | Some("" | "identity") => Ok(href.to_owned()),
            Some(how) => Err(format!(
                "{shown} is compressed ({}): unpack the OVA and the disk, and remove ovf:compression from the OVF; or \
                 export the virtual machine without compression",
                one_line(how, 40)
            )),
        }
    }

    fn by(&self, section: &str, kind: &'a str, key: &str, value: &str) -> Option<&'a Element> {
        self.envelope.child(section)?.all(kind).find(|element| element.attribute(key) == Some(value))
    }
}

fn capacity(disk: &Element) -> Option<u64> {
    let number: u64 = disk.attribute("capacity")?.parse().ok()?;
    number.checked_mul(unit_bytes(disk.attribute("capacityAllocationUnits").unwrap_or("byte"))?)
}

/// `byte * 2^20` and the words of older exporters.
fn unit_bytes(unit: &str) -> Option<u64> {
    let unit: String =
        unit.chars().filter(|letter| !letter.is_whitespace()).collect::<String>().to_ascii_lowercase();
    if let Some(power) = unit.strip_prefix("byte*2^").or(unit.strip_prefix("bytes*2^")) {
        return power.parse().ok().and_then(|power| 1_u64.checked_shl(power));
    }
    Some(match unit.as_str() {
        "" | "byte" | "bytes" => 1,
        "kb" | "kilobytes" => 1 << 10,
        "mb" | "megabytes" => 1 << 20,
        "gb" | "gigabytes" => 1 << 30,
        _ => return None,
    })
}

fn number(what: &'static str, item: Option<&Element>, name: &str) -> Result<Option<u64>, OvfError> {
    let Some(text) = item.and_then(|item| item.text_of(name)) else { return Ok(None) };
    let wrong = |_| OvfError::Value { what, value: one_line(text, 60) };
    text.parse().map(Some).map_err(wrong)
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
