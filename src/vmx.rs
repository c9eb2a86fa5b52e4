//! vmx files: what VMware's hosts keep beside the disks of a virtual machine. Text into [`Guest`]. Pure.
//!
//! `key = "value"` lines; keys in any case; `|22` in a value is the byte 22 hex; `.encoding` names the file's character
//! set. Disks come in virt-v2v's order (2.2, seen in its log: scsi, nvme, sata, ide, each by controller and unit), so
//! that the copies mean the same to both. Which disks there are is virt-v2v's rule with two differences: `present =
//! "FALSE"` counts, and a disk may have its `deviceType` or lack it on any bus, as hosts really write it; virt-v2v 2.2
//! loses an IDE disk that lacks it and a SATA disk that has it.
//!
//! Not here: opening anything. A disk's path is its `fileName` as it stands; the sources know relative to what.

use std::collections::BTreeMap;

use crate::guest::{Attachment, Bus, Disk, Firmware, Guest, Nic};
use crate::json::one_line;

/// Largest file that is read, in bytes. Real ones have 3 to 10 KiB.
pub const MAX_BYTES: usize = 1 << 20;

/// VMware's own defaults: 32 MiB and one processor.
const DEFAULT_MIB: u64 = 32;
const DEFAULT_VCPUS: u64 = 1;

/// virt-v2v's order.
const BUSES: [(&str, Bus); 4] =
    [("scsi", Bus::Scsi), ("nvme", Bus::Nvme), ("sata", Bus::Sata), ("ide", Bus::Ide)];

/// A file that is no description of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmxError {
    /// Something else.
    #[error("it is not a vmx file: there is no line of the form key = \"value\" in it")]
    NotVmx,
    /// Bytes that its `.encoding` does not explain.
    #[error(
        "its text cannot be read: line {line} is not {encoding}; save the file as UTF-8 with .encoding = \"UTF-8\""
    )]
    Encoding {
        /// From 1.
        line: usize,
        /// What `.encoding` says.
        encoding: String,
    },
    /// What is said of its disks is encrypted, and so are they.
    #[error("the virtual machine is encrypted: decrypt it in VMware (remove its encryption policy) first")]
    Encrypted,
    /// A value that must be a number.
    #[error("{key} = \"{value}\" is not a number")]
    Number {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// A parsed file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vmx {
    /// By lower-cased key; of two equal keys the later one.
    values: BTreeMap<String, String>,
}

impl Vmx {
    /// Reads the bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, VmxError> {
        let lines: Vec<Line> = lines(bytes).collect();
        let encoding = lines.iter().rev().find(|line| line.key == b".encoding").map(|line| &line.value);
        let encoding = encoding.map_or_else(String::new, |name| String::from_utf8_lossy(name).to_lowercase());
        let mut values = BTreeMap::new();
        for Line { number, key, value } in lines {
            let text = decode(&value, &encoding)
                .ok_or_else(|| VmxError::Encoding { line: number, encoding: one_line(&encoding, 40) })?;
            values.insert(String::from_utf8_lossy(&key).into_owned(), text);
        }
        if values.is_empty() { Err(VmxError::NotVmx) } else { Ok(Self { values }) }
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(&key.to_ascii_lowercase()).map(String::as_str)
    }

    /// The machine, under the name that the caller gives it. A disk's `path` is its `fileName`.
    pub fn guest(&self, name: &str) -> Result<Guest, VmxError> {
        if self.get("encryption.keysafe").is_some() {
            return Err(VmxError::Encrypted);
        }
        let efi = self.get("firmware").is_some_and(|firmware| firmware.trim().eq_ignore_ascii_case("efi"));
        let secure_boot = self.truth("uefi.secureboot.enabled") == Some(true);
        let vcpus = self.number("numvcpus")?.unwrap_or(DEFAULT_VCPUS);
        let cores = self.number("cpuid.corespersocket")?;
        Ok(Guest {
            name: name.to_owned(),
            firmware: if efi { Firmware::Efi { secure_boot } } else { Firmware::Bios },
            memory_kib: self.number("memsize")?.unwrap_or(DEFAULT_MIB).saturating_mul(1024),
            vcpus: narrow(vcpus).max(1),
            cores_per_socket: cores.map(narrow).filter(|cores| *cores > 0),
            disks: self.disks(),
            nics: self.nics(),
            os: self.get("guestos").filter(|os| !os.is_empty()).map(str::to_owned),
        })
    }

    fn disks(&self) -> Vec<Disk> {
        let mut places: Vec<(usize, u32, u32)> = Vec::new();
        for key in self.values.keys() {
            if let Some(device) = key.strip_suffix(".filename")
                && let Some(place @ (bus, controller, unit)) = place(device)
                && self.is_disk(device, BUSES[bus].0, controller)
                // `scsi0:00` would be the same place.
                && device == format!("{}{controller}:{unit}", BUSES[bus].0)
            {
                places.push(place);
            }
        }
        places.sort_unstable();
        let disks = places.into_iter().enumerate().map(|(index, (bus, controller, unit))| {
            let (word, bus) = BUSES[bus];
            Disk {
                path: self.get(&format!("{word}{controller}:{unit}.filename")).unwrap_or_default().to_owned(),
                label: format!("Hard disk {}", index + 1),
                bus,
                controller: Some(controller),
                unit: Some(unit),
                ..Disk::default()
            }
        });
        disks.collect()
    }

    fn is_disk(&self, device: &str, bus: &str, controller: u32) -> bool {
        let file = self.get(&format!("{device}.filename")).unwrap_or_default().to_ascii_lowercase();
        let kind = self.get(&format!("{device}.devicetype")).map(str::to_ascii_lowercase);
        // disk, plainDisk, rawDisk, scsi-hardDisk, ata-hardDisk; not atapi-cdrom, cdrom-image, scsi-passthru ..
        let is_disk = kind.map_or(file.ends_with(".vmdk"), |kind| kind.ends_with("disk"));
        is_disk
            && !file.is_empty()
            && self.truth(&format!("{device}.present")) != Some(false)
            && self.truth(&format!("{bus}{controller}.present")) != Some(false)
    }

    fn nics(&self) -> Vec<Nic> {
        let number = |key: &String| key.strip_prefix("ethernet")?.split_once('.')?.0.parse::<u32>().ok();
        let mut numbers: Vec<u32> = self.values.keys().filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().filter_map(|number| self.nic(number)).collect()
    }

    fn nic(&self, number: u32) -> Option<Nic> {
        let get = |key: &str| {
            self.get(&format!("ethernet{number}.{key}")).map(str::trim).filter(|value| !value.is_empty())
        };
        let nic = Nic {
            // By addressType `static` the first is meant, otherwise the second; hosts write only the one that is.
            mac: get("address").or(get("generatedaddress")).map(str::to_ascii_lowercase),
            network: get("networkname").map(str::to_owned),
            attachment: Attachment::Bridge,
            model: get("virtualdev").map(str::to_ascii_lowercase),
        };
        // Of a card that was removed, a host leaves `pciSlotNumber` and the like.
        let described = nic != Nic::default() || get("connectiontype").is_some();
        self.truth(&format!("ethernet{number}.present")).unwrap_or(described).then_some(nic)
    }

    fn number(&self, key: &str) -> Result<Option<u64>, VmxError> {
        let Some(value) = self.get(key).map(str::trim).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let number =
            value.parse().map_err(|_| VmxError::Number { key: key.to_owned(), value: one_line(value, 40) });
        number.map(Some)
    }

    fn truth(&self, key: &str) -> Option<bool> {
        match self.get(key)?.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => None,
        }
    }
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Bus (an index of [`BUSES`]), controller and unit of `scsi0:1`.
fn place(device: &str) -> Option<(usize, u32, u32)> {
    let bus = BUSES.iter().position(|(word, _)| device.starts_with(word))?;
    let (controller, unit) = device.strip_prefix(BUSES[bus].0)?.split_once(':')?;
    Some((bus, controller.parse().ok()?, unit.parse().ok()?))
}

/// One `key = "value"`; the key in lower case, the value's escapes undone.
struct Line {
    number: usize,
    key: Vec<u8>,
    value: Vec<u8>,
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = Line> + use<'_> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let numbered = bytes.split(|byte| *byte == b'\n').enumerate();
    numbered.filter_map(|(index, line)| {
        let line = line.trim_ascii();
        // Also `#!/usr/bin/vmware`.
        if line.starts_with(b"#") {
            return None;
        }
        let equals = memchr::memchr(b'=', line)?;
        let key = line.get(..equals)?.trim_ascii();
        // Names of devices and settings; anything else is another kind of file.
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:-".contains(byte);
        if key.is_empty() || !key.iter().all(is_name) {
            return None;
        }
        let value = line.get(equals + 1..)?.trim_ascii();
        let value = match value.strip_prefix(b"\"") {
            Some(quoted) => quoted.get(..memchr::memchr(b'"', quoted).unwrap_or(quoted.len()))?,
            None => value,
        };
        Some(Line { number: index + 1, key: key.to_ascii_lowercase(), value: unescape(value) })
    })
}

/// `|22` is one byte. A `|` that escapes nothing stays.
fn unescape(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, behind)) = rest.split_first() {
        let escaped = (*first == b'|').then(|| behind.split_at_checked(2)).flatten();
        let byte = escaped.and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = byte.unwrap_or((*first, behind));
        plain.push(byte);
        rest = after;
    }
    plain
}

/// A value in the file's encoding. Others than these are read when they are, as nearly always, UTF-8 or ASCII.
fn decode(value: &[u8], encoding: &str) -> Option<String> {
    match encoding {
        "windows-1252" | "iso-8859-1" | "latin1" => Some(value.iter().map(|byte| western(*byte)).collect()),
        _ => std::str::from_utf8(value).ok().map(str::to_owned),
    }
}

/// windows-1252; what it leaves undefined is as in ISO 8859-1.
fn western(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    let high = byte.checked_sub(0x80).and_then(|index| HIGH.get(usize::from(index)));
    high.copied().unwrap_or(char::from(byte))
}

#[cfg(test)]
mod tests;
