//! vmdk descriptors: the small text that says where a disk's data are. Pure.
//!
//! Only what must be known before a disk on another host is read from its flat file: is it the whole disk, and of what
//! size. Images of this host are opened by qemu, which has a vmdk driver.

use crate::json::one_line;

/// The part of a descriptor file that is read, in bytes: real ones have less than 1 KiB.
pub const HEAD_BYTES: usize = 64 << 10;
/// `parentCID` of a disk that stands on no other.
const NO_PARENT: &str = "ffffffff";
const SECTOR: u64 = 512;

/// A disk that cannot be read from one flat file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmdkError {
    /// Something else, or a sparse disk.
    #[error(
        "it is not a descriptor of a disk as ESXi keeps them; convert the disk with `vmkfstools -i` on the host first"
    )]
    NotDescriptor,
    /// A snapshot.
    #[error(
        "it is the delta of a snapshot: shut the virtual machine down and consolidate (delete) its snapshots, then start \
         the conversion again"
    )]
    Snapshot,
    /// Raw device mappings, disks in several pieces, vSAN, vVols.
    #[error(
        "its data are not in one flat file (createType {create_type}): move the disk to a VMFS or NFS datastore with \
         `vmkfstools -i` or Storage vMotion, or use transport_method vddk"
    )]
    NotFlat {
        /// The kind of disk.
        create_type: String,
    },
    /// A flat file of another name.
    #[error(
        "its data are in {found}, not in {expected}: rename the disk with `vmkfstools -E` so that both names agree"
    )]
    OtherName {
        /// In the descriptor.
        found: String,
        /// What is served.
        expected: String,
    },
}

/// What a descriptor says of a whole flat disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flat {
    /// Bytes of the disk.
    pub size: u64,
    /// `ddb.uuid` in the form of other UUIDs.
    pub uuid: Option<String>,
}

/// Reads the beginning of a descriptor file; `flat_name` is the file that will be read.
pub fn flat(head: &[u8], flat_name: &str) -> Result<Flat, VmdkError> {
    let text = String::from_utf8_lossy(head);
    if !text.trim_start().starts_with("# Disk DescriptorFile") {
        return Err(VmdkError::NotDescriptor);
    }
    let value = |wanted: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            key.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"'))
        })
    };
    // A delta may be as large as its base and look flat otherwise: its parent is what tells.
    let parent = value("parentCID").ok_or(VmdkError::NotDescriptor)?;
    if !parent.eq_ignore_ascii_case(NO_PARENT) || value("parentFileNameHint").is_some() {
        return Err(VmdkError::Snapshot);
    }
    let create_type = value("createType").unwrap_or_default();
    let not_flat = || VmdkError::NotFlat { create_type: one_line(create_type, 60) };
    let mut extents = text.lines().filter_map(extent);
    let (Some(only), None) = (extents.next(), extents.next()) else { return Err(not_flat()) };
    if !only.is_flat || !matches!(create_type, "vmfs" | "monolithicFlat") {
        return Err(not_flat());
    }
    if only.file != flat_name {
        return Err(VmdkError::OtherName {
            found: one_line(only.file, 200),
            expected: one_line(flat_name, 200),
        });
    }
    let size = only.sectors.checked_mul(SECTOR).filter(|size| *size > 0).ok_or_else(not_flat)?;
    Ok(Flat { size, uuid: value("ddb.uuid").and_then(uuid) })
}

struct Extent<'a> {
    sectors: u64,
    is_flat: bool,
    file: &'a str,
}

/// `RW 33554432 VMFS "vm-flat.vmdk"`, with an offset or other words behind.
fn extent(line: &str) -> Option<Extent<'_>> {
    let mut words = line.trim().splitn(4, [' ', '\t']);
    if !matches!(words.next()?, "RW" | "RDONLY" | "NOACCESS") {
        return None;
    }
    let (sectors, kind, rest) =
        (words.next()?.parse().ok()?, words.next()?, words.next().unwrap_or_default());
    let (file, behind) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
    let offset = behind.split_whitespace().next().unwrap_or("0");
    // `changeTrackPath=..` may follow on a host that tracks changes.
    let from_start = offset.trim_matches(',') == "0" || !offset.bytes().all(|byte| byte.is_ascii_digit());
    Some(Extent { sectors, is_flat: matches!(kind, "VMFS" | "FLAT") && from_start, file })
}

/// `60 00 C2 9b ..-.. ..` as 8-4-4-4-12 in lower case.
fn uuid(words: &str) -> Option<String> {
    let digits: String =
        words.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    (digits.len() == 32).then(|| {
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]);
        parts.join("-")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(create_type: &str, parent: &str, extents: &str) -> String {
        format!(
            "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID={parent}\n\
             isNativeSnapshot=\"no\"\ncreateType=\"{create_type}\"\n\n# Extent description\n{extents}\n\n\
             # The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\nddb.thinProvisioned = \"1\"\n\
             ddb.uuid = \"60 00 C2 9b 1a 2b 3c 4d-5e 6f 70 81 92 a3 b4 c5\"\nddb.virtualHWVersion = \"19\"\n"
        )
    }

    #[test]
    fn a_whole_flat_disk_has_a_size_and_a_uuid() {
        for (create_type, extent) in [
            ("vmfs", "RW 33554432 VMFS \"my vm-flat.vmdk\""),
            (
                "vmfs",
                "RW 33554432 VMFS \"my vm-flat.vmdk\"\n\n# Change Tracking File\nchangeTrackPath=\"a-ctk.vmdk\"",
            ),
            ("monolithicFlat", "RW 33554432 FLAT \"my vm-flat.vmdk\" 0"),
        ] {
            let flat =
                flat(descriptor(create_type, "ffffffff", extent).as_bytes(), "my vm-flat.vmdk").unwrap();
            assert_eq!(flat.size, 16 << 30);
            assert_eq!(flat.uuid.as_deref(), Some("6000c29b-1a2b-3c4d-5e6f-708192a3b4c5"));
        }
    }

    /// Read as the whole disk, each of these would be a wrong disk that looks right.
    #[test]
    fn what_is_not_the_whole_disk_is_refused() {
        let not_flat = |create_type: &str| VmdkError::NotFlat { create_type: create_type.to_owned() };
        for (text, error) in [
            ("KDMV\u{1}".to_owned(), VmdkError::NotDescriptor),
            (String::new(), VmdkError::NotDescriptor),
            (
                "# Disk DescriptorFile\ncreateType=\"vmfs\"\nRW 8 VMFS \"a-flat.vmdk\"".to_owned(),
                VmdkError::NotDescriptor,
            ),
            (
                descriptor("vmfsSparse", "1a2b3c4d", "RW 8 VMFSSPARSE \"a-000001-delta.vmdk\""),
                VmdkError::Snapshot,
            ),
            (
                descriptor("seSparse", "1a2b3c4d", "RW 8 SESPARSE \"a-000001-sesparse.vmdk\""),
                VmdkError::Snapshot,
            ),
            (descriptor("vmfs", "1a2b3c4d", "RW 8 VMFS \"a-flat.vmdk\""), VmdkError::Snapshot),
            (
                descriptor("vmfs", "ffffffff\nparentFileNameHint=\"b.vmdk\"", "RW 8 VMFS \"a-flat.vmdk\""),
                VmdkError::Snapshot,
            ),
            (descriptor("seSparse", "ffffffff", "RW 8 SESPARSE \"a-flat.vmdk\""), not_flat("seSparse")),
            (
                descriptor("vmfsRawDeviceMap", "ffffffff", "RW 8 VMFSRDM \"a-rdm.vmdk\""),
                not_flat("vmfsRawDeviceMap"),
            ),
            (
                descriptor("vmfs", "ffffffff", "RW 8 VMFS \"a-flat.vmdk\"\nRW 8 VMFS \"b-flat.vmdk\""),
                not_flat("vmfs"),
            ),
            (
                descriptor("monolithicFlat", "ffffffff", "RW 8 FLAT \"a-flat.vmdk\" 63"),
                not_flat("monolithicFlat"),
            ),
            (descriptor("vmfs", "ffffffff", ""), not_flat("vmfs")),
            (descriptor("vmfs", "ffffffff", "RW 0 VMFS \"a-flat.vmdk\""), not_flat("vmfs")),
            (descriptor("vmfs", "ffffffff", "RW 99999999999999999 VMFS \"a-flat.vmdk\""), not_flat("vmfs")),
            (
                descriptor("vmfs", "ffffffff", "RW 8 VMFS \"vsan://1-2\""),
                VmdkError::OtherName { found: "vsan://1-2".to_owned(), expected: "a-flat.vmdk".to_owned() },
            ),
        ] {
            assert_eq!(flat(text.as_bytes(), "a-flat.vmdk"), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, extent in "RW [0-9]{0,20} (VMFS|FLAT)?[ \t\"a-b0-9]{0,20}", uuid in "\\PC{0,40}") {
            let text = descriptor("vmfs", "ffffffff", &format!("{extent}\nddb.uuid=\"{uuid}\""));
            for head in [bytes.as_slice(), text.as_bytes()] {
                drop(flat(head, "a"));
            }
        }
    }
}
