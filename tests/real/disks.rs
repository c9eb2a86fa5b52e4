//! Looking into disk images without an appliance: size, content, a file of the first file system.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::lab::{find, run};

/// A file of the ext4 file system on the first partition of a raw image: no appliance needed to look into a disk.
pub fn cat(image: &Path, path: &str) -> Vec<u8> {
    run(Command::new(find("debugfs").unwrap())
        .arg("-R")
        .arg(format!("cat {path}"))
        .arg(format!("{}?offset=1048576", image.display())))
}

/// Asserts that virt-v2v converted the guest on this raw image: its fstab names virtio disks.
pub fn assert_is_converted(image: &Path) {
    let fstab = String::from_utf8(cat(image, "/etc/fstab")).unwrap();
    assert!(fstab.contains("/dev/vda1 / ext4"), "{} is not converted: {fstab}", image.display());
}

/// Format and virtual size as qemu-img sees them.
pub fn image_info(image: &Path) -> (String, u64) {
    let json = run(Command::new("qemu-img").args(["info", "--output=json"]).arg(image));
    let info: Value = serde_json::from_slice(&json).unwrap();
    (info["format"].as_str().unwrap().to_owned(), info["virtual-size"].as_u64().unwrap())
}

/// Asserts that two images hold the same bytes.
pub fn assert_same_content(a: (&Path, &str), b: (&Path, &str)) {
    run(Command::new("qemu-img").args(["compare", "-f", a.1, "-F", b.1]).args([a.0, b.0]));
}

/// Bytes without holes and without repetition, so that a lost or moved block shows; no file system, so that the
/// conversion has no reason to write here.
pub fn noise(path: &Path, mebibytes: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(mebibytes << 20);
    while bytes.len() < mebibytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}
