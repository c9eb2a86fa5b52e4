//! Guests made of local disk images: the libvirt XML that virt-v2v is given for several of them, and what format an
//! image has. Pure; reading the first bytes of an image and writing the file are the caller's matter.

use std::path::PathBuf;

use crate::guest::Guest;

/// Memory of a guest nobody described, in KiB: virt-v2v reads KiB whatever `unit` says (virt-v2v-output.md 8).
const MEMORY_KIB: u64 = 2 * 1024 * 1024;
const VCPUS: u32 = 2;

/// Bytes of an image that [`sniff`] needs.
pub const SNIFF_BYTES: usize = 512;

/// Format of a disk image, as qemu names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Anything else.
    Raw,
    /// qcow2 (and its first version).
    Qcow2,
    /// VMware.
    Vmdk,
    /// Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
    /// Virtual PC, Xen.
    Vpc,
}

impl ImageFormat {
    /// By its word in libvirt XML.
    pub fn named(word: &str) -> Option<Self> {
        use ImageFormat::{Qcow2, Raw, Vdi, Vhdx, Vmdk, Vpc};
        [Raw, Qcow2, Vmdk, Vhdx, Vdi, Vpc].into_iter().find(|format| format.as_str() == word)
    }

    /// The word in libvirt XML.
    pub fn as_str(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Vdi => "vdi",
            ImageFormat::Vpc => "vpc",
        }
    }
}

/// The format that the first bytes of an image (at least [`SNIFF_BYTES`] of them, if it has so many) tell.
pub fn sniff(first_bytes: &[u8]) -> ImageFormat {
    let at =
        |offset: usize, magic: &[u8]| first_bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(0, b"QFI\xfb") {
        ImageFormat::Qcow2
    } else if at(0, b"KDMV") || at(0, b"COWD") || at(0, b"# Disk DescriptorFile") {
        ImageFormat::Vmdk
    } else if at(0, b"vhdxfile") {
        ImageFormat::Vhdx
    } else if at(64, &0xbeda_107f_u32.to_le_bytes()) {
        ImageFormat::Vdi
    } else if at(0, b"conectix") {
        // Only dynamic images have the footer's copy at the beginning; a fixed one reads as raw plus one sector.
        ImageFormat::Vpc
    } else {
        ImageFormat::Raw
    }
}

/// A guest nobody described, without its disks: as [`libvirt_xml`] words it.
pub fn guest(name: &str) -> Guest {
    Guest { name: name.to_owned(), memory_kib: MEMORY_KIB, vcpus: VCPUS, ..Guest::default() }
}

/// A libvirt domain with these disks in their order.
pub fn libvirt_xml(name: &str, disks: &[(PathBuf, ImageFormat)]) -> String {
    let mut xml = format!(
        "<domain type='kvm'>\n  <name>{}</name>\n  <memory unit='KiB'>{MEMORY_KIB}</memory>\n  \
         <vcpu>{VCPUS}</vcpu>\n  <os>\n    <type>hvm</type>\n  </os>\n  <features>\n    <acpi/>\n    <apic/>\n  </features>\n  \
         <devices>\n",
        escape(name)
    );
    for (index, (path, format)) in disks.iter().enumerate() {
        let (path, target) = (escape(&path.to_string_lossy()), device_name("sd", index));
        xml.push_str(&format!(
            "    <disk type='file' device='disk'>\n      <driver name='qemu' type='{}'/>\n      \
             <source file='{path}'/>\n      <target dev='{target}' bus='scsi'/>\n    </disk>\n",
            format.as_str()
        ));
    }
    xml.push_str("  </devices>\n</domain>\n");
    xml
}

/// sda, sdb .. sdz, sdaa ..
pub(crate) fn device_name(prefix: &str, mut index: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + (index % 26) as u8));
        index = match (index / 26).checked_sub(1) {
            Some(next) => next,
            None => break,
        };
    }
    format!("{prefix}{}", letters.iter().rev().collect::<String>())
}

/// For element text and for attributes in either quotes. Control characters XML cannot hold become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            // As they stand they would be read as spaces in an attribute.
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", u32::from(character))),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_has_the_disks_in_order_and_escaped() {
        let disks =
            [("/a/x & 'y' <z>.img".into(), ImageFormat::Raw), ("/b\n.vmdk".into(), ImageFormat::Vmdk)];
        let xml = libvirt_xml("a<b>&\u{1}", &disks);
        for part in [
            "<name>a&lt;b&gt;&amp;\u{fffd}</name>",
            "<memory unit='KiB'>2097152</memory>",
            "<vcpu>2</vcpu>",
            "type='raw'/>\n      <source file='/a/x &amp; &apos;y&apos; &lt;z&gt;.img'/>\n      <target dev='sda' bus='scsi'/>",
            "type='vmdk'/>\n      <source file='/b&#10;.vmdk'/>\n      <target dev='sdb' bus='scsi'/>",
        ] {
            assert!(xml.contains(part), "{part} not in {xml}");
        }
    }

    #[test]
    fn devices_are_lettered_as_qemu_does() {
        for (index, name) in
            [(0, "sda"), (25, "sdz"), (26, "sdaa"), (27, "sdab"), (701, "sdzz"), (702, "sdaaa")]
        {
            assert_eq!(device_name("sd", index), name);
        }
    }

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        let mut vdi = [0; SNIFF_BYTES];
        vdi[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        for (bytes, format) in [
            (&b"QFI\xfb\0\0\0\x03"[..], ImageFormat::Qcow2),
            (b"KDMV\x01", ImageFormat::Vmdk),
            (b"# Disk DescriptorFile\nversion=1", ImageFormat::Vmdk),
            (b"vhdxfile", ImageFormat::Vhdx),
            (b"conectix", ImageFormat::Vpc),
            (&vdi, ImageFormat::Vdi),
            (b"", ImageFormat::Raw),
            (b"QFI", ImageFormat::Raw),
            (&[0; SNIFF_BYTES], ImageFormat::Raw),
        ] {
            assert_eq!(sniff(bytes), format);
        }
    }
}
