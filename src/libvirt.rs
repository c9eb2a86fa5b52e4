//! libvirt XML into a [`Guest`] and its images. Pure.
//!
//! The opposite way, a guest worded as libvirt XML, is another module's. What libvirt would not read as a disk of the
//! guest (CD-ROMs, floppies) is left out; what is a disk but cannot be copied (network disks, volumes of pools, host
//! devices) is refused by name: a guest that arrives without one of its disks is a broken guest.

use std::path::PathBuf;

use crate::guest::{Attachment, Bus, Disk, Firmware, Guest, Nic};
use crate::json::one_line;
use crate::source::local::ImageFormat;
use crate::xml::{self, Element, XmlError};

/// XML that describes no guest that could be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibvirtError {
    /// Not XML.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Something else.
    #[error("it is not the XML of a domain: its first element is <{0}>, not <domain>")]
    NotDomain(String),
    /// A number or unit that libvirt would not take either.
    #[error("its {what} \"{value}\" makes no sense")]
    Value {
        /// Which.
        what: &'static str,
        /// As it stands.
        value: String,
    },
    /// A disk that is no file or block device of this host.
    #[error(
        "disk {disk} is of type {kind}, which cannot be read here: copy it to a file or attach it as a block device, \
         and name that in the XML"
    )]
    Kind {
        /// Its target, e.g. `vda`.
        disk: String,
        /// `network`, `volume` ..
        kind: String,
    },
    /// A disk without an image.
    #[error("disk {0} has no source")]
    NoSource(String),
    /// A format that nothing here opens.
    #[error("disk {disk} has the format {format}, which is not supported: convert it with qemu-img first")]
    Format {
        /// Its target.
        disk: String,
        /// `driver type`.
        format: String,
    },
    /// No disk at all.
    #[error("it has no disk")]
    NoDisk,
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// A disk's `path` is its image as the XML names it.
    pub guest: Guest,
    /// One for each disk, in the order of the XML.
    pub images: Vec<Image>,
}

/// The image of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// File or block device; a relative path begins at the XML's directory, as for virt-v2v.
    pub path: PathBuf,
    /// Format, where the XML says it.
    pub format: Option<ImageFormat>,
}

/// Reads a domain, under the name that the caller gives it.
pub fn read(text: &str, name: &str) -> Result<Domain, LibvirtError> {
    let domain = xml::parse(text)?;
    if domain.name != "domain" {
        return Err(LibvirtError::NotDomain(one_line(&domain.name, 60)));
    }
    let (mut disks, mut images, mut nics) = (Vec::new(), Vec::new(), Vec::new());
    for device in domain.child("devices").map(|devices| devices.children.as_slice()).unwrap_or_default() {
        match device.name.as_str() {
            "disk" => {
                if let Some((disk, image)) = disk(device, disks.len())? {
                    disks.push(disk);
                    images.push(image);
                }
            }
            "interface" => nics.push(nic(device)),
            _ => {}
        }
    }
    if disks.is_empty() {
        return Err(LibvirtError::NoDisk);
    }
    let topology = domain.at(&["cpu", "topology"]);
    let guest = Guest {
        name: name.to_owned(),
        firmware: firmware(&domain),
        memory_kib: memory_kib(&domain)?,
        vcpus: vcpus(&domain, topology)?,
        cores_per_socket: topology.and_then(|topology| product(topology, &["cores", "dies", "threads"])),
        disks,
        nics,
        os: None,
    };
    Ok(Domain { guest, images })
}

fn firmware(domain: &Element) -> Firmware {
    let os = domain.child("os");
    let loader = os.and_then(|os| os.child("loader"));
    let is = |element: Option<&Element>, key: &str, value: &str| {
        element.and_then(|element| element.attribute(key)) == Some(value)
    };
    if !is(os, "firmware", "efi") && !is(loader, "type", "pflash") {
        return Firmware::Bios;
    }
    let features = os.and_then(|os| os.child("firmware")).map(|firmware| firmware.children.as_slice());
    let enabled = features
        .unwrap_or_default()
        .iter()
        .any(|feature| is(Some(feature), "name", "secure-boot") && is(Some(feature), "enabled", "yes"));
    Firmware::Efi { secure_boot: enabled || is(loader, "secure", "yes") }
}

/// libvirt's units; without one KiB.
fn memory_kib(domain: &Element) -> Result<u64, LibvirtError> {
    let Some(memory) = domain.child("memory") else {
        return Err(LibvirtError::Value { what: "memory", value: String::new() });
    };
    let unit = memory.attribute("unit").unwrap_or("KiB");
    let wrong =
        || LibvirtError::Value { what: "memory", value: one_line(&format!("{} {unit}", memory.text), 60) };
    let factor: u64 = match unit {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: u64 = memory.text.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).map(|bytes| bytes.div_ceil(1024)).filter(|kib| *kib > 0).ok_or_else(wrong)
}

fn vcpus(domain: &Element, topology: Option<&Element>) -> Result<u32, LibvirtError> {
    match domain.text_of("vcpu") {
        Some(text) => {
            let number = text.parse().ok().filter(|vcpus| *vcpus > 0);
            number.ok_or_else(|| LibvirtError::Value { what: "vcpu", value: one_line(text, 60) })
        }
        None => {
            let all =
                topology.and_then(|topology| product(topology, &["sockets", "cores", "dies", "threads"]));
            Ok(all.unwrap_or(1))
        }
    }
}

/// Of those attributes that are there; `None` when it is no number.
fn product(topology: &Element, names: &[&str]) -> Option<u32> {
    let numbers = names.iter().filter_map(|name| topology.attribute(name));
    let product =
        numbers.map(|text| text.parse::<u32>().ok()).try_fold(1_u32, |all, one| all.checked_mul(one?));
    product.filter(|product| *product > 0)
}

fn disk(device: &Element, index: usize) -> Result<Option<(Disk, Image)>, LibvirtError> {
    // `lun` is a block device that the guest talks to in SCSI; its content is a disk like others.
    if !matches!(device.attribute("device").unwrap_or("disk"), "disk" | "lun") {
        return Ok(None);
    }
    let target = device.child("target");
    let dev = target.and_then(|target| target.attribute("dev")).unwrap_or_default();
    let label = format!("Hard disk {}", index + 1);
    let shown = || if dev.is_empty() { label.clone() } else { one_line(dev, 40) };
    let kind = device.attribute("type").unwrap_or("file");
    let attribute = match kind {
        "file" => "file",
        "block" => "dev",
        other => {
            let source = device.child("source");
            let named = source.and_then(|source| source.attribute("name").or(source.attribute("volume")));
            let kind = named.map_or_else(|| other.to_owned(), |name| format!("{other} ({name})"));
            return Err(LibvirtError::Kind { disk: shown(), kind: one_line(&kind, 200) });
        }
    };
    let path = device.child("source").and_then(|source| source.attribute(attribute));
    let path = path.filter(|path| !path.is_empty()).ok_or_else(|| LibvirtError::NoSource(shown()))?;
    let format = match device.child("driver").and_then(|driver| driver.attribute("type")) {
        None => None,
        Some(word) => Some(
            ImageFormat::named(word)
                .ok_or_else(|| LibvirtError::Format { disk: shown(), format: one_line(word, 40) })?,
        ),
    };
    let (controller, unit) = place(device);
    let disk = Disk {
        path: path.to_owned(),
        bus: bus(target.and_then(|target| target.attribute("bus")), dev),
        label,
        controller,
        unit,
        ..Disk::default()
    };
    Ok(Some((disk, Image { path: path.into(), format })))
}

/// Without a word of its own, by the first letters of the device, as libvirt does.
fn bus(word: Option<&str>, dev: &str) -> Bus {
    match word {
        Some("ide") => Bus::Ide,
        Some("sata") => Bus::Sata,
        Some("virtio") => Bus::Virtio,
        Some("nvme") => Bus::Nvme,
        None if dev.starts_with("hd") => Bus::Ide,
        None if dev.starts_with("vd") => Bus::Virtio,
        // usb, xen and others: the most common one.
        _ => Bus::Scsi,
    }
}

/// Controller and unit of a drive's address; an IDE controller has two channels of two.
fn place(device: &Element) -> (Option<u32>, Option<u32>) {
    let address = device.child("address").filter(|address| address.attribute("type") == Some("drive"));
    let number = |name: &str| address?.attribute(name)?.parse::<u32>().ok();
    let unit = match (number("bus"), number("target"), number("unit")) {
        (Some(bus), _, Some(unit)) if bus > 0 => bus.checked_mul(2).and_then(|first| first.checked_add(unit)),
        (_, Some(target), Some(0)) if target > 0 => Some(target),
        (_, _, unit) => unit,
    };
    (number("controller"), unit)
}

fn nic(device: &Element) -> Nic {
    let source = device.child("source");
    let named = source.and_then(|source| {
        ["network", "bridge", "dev"].iter().find_map(|name| source.attribute(name)).map(str::to_owned)
    });
    let attribute = |child: &str, name: &str| device.child(child).and_then(|child| child.attribute(name));
    Nic {
        mac: attribute("mac", "address").map(str::to_ascii_lowercase),
        network: named,
        attachment: match device.attribute("type") {
            Some("network") => Attachment::Network,
            _ => Attachment::Bridge,
        },
        model: attribute("model", "type").map(str::to_owned),
    }
}

#[cfg(test)]
mod tests;
