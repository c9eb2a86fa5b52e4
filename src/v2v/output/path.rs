//! Names of source disks as clients know them. Pure.

/// A path on an ESXi host in the datastore form: `/vmfs/volumes/<store>/<vm>/<disk>[-flat].vmdk` becomes
/// `[<store>] <vm>/<disk>.vmdk`; every other path stays as it is (contract.md 5). Percent escapes are not decoded.
pub fn datastore_path(path: &str) -> String {
    rewrite(path).unwrap_or_else(|| path.to_owned())
}

fn rewrite(path: &str) -> Option<String> {
    let (store, file) = path.strip_prefix("/vmfs/volumes/")?.split_once('/')?;
    let (vm, disk) = file.split_once('/')?;
    let disk = disk.strip_suffix(".vmdk")?;
    let disk = disk.strip_suffix("-flat").filter(|name| !name.is_empty()).unwrap_or(disk);
    let complete = !store.is_empty() && !vm.is_empty() && !disk.is_empty();
    complete.then(|| format!("[{store}] {vm}/{disk}.vmdk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmfs_paths_become_datastore_paths_and_others_stay() {
        for (path, expected) in [
            ("/vmfs/volumes/ds/a/a-flat.vmdk", "[ds] a/a.vmdk"),
            ("/vmfs/volumes/ds/a/a.vmdk", "[ds] a/a.vmdk"),
            ("/vmfs/volumes/my store/my vm/my disk_1-flat.vmdk", "[my store] my vm/my disk_1.vmdk"),
            ("/vmfs/volumes/ds/a%20b/a%20b.vmdk", "[ds] a%20b/a%20b.vmdk"),
            ("/vmfs/volumes/ds/a/sub/a-flat.vmdk", "[ds] a/sub/a.vmdk"),
            ("/vmfs/volumes/ds/a/a-flat-flat.vmdk", "[ds] a/a-flat.vmdk"),
            ("/vmfs/volumes/ds/a/-flat.vmdk", "[ds] a/-flat.vmdk"),
            ("[ds] a/a.vmdk", "[ds] a/a.vmdk"),
            ("/vmfs/volumes/ds/a.vmdk", "/vmfs/volumes/ds/a.vmdk"),
            ("/vmfs/volumes//a/a.vmdk", "/vmfs/volumes//a/a.vmdk"),
            ("/vmfs/volumes/ds/a/.vmdk", "/vmfs/volumes/ds/a/.vmdk"),
            ("/vmfs/volumes/ds/a/a.vmx", "/vmfs/volumes/ds/a/a.vmx"),
            ("/x/vmfs/volumes/ds/a/a.vmdk", "/x/vmfs/volumes/ds/a/a.vmdk"),
            ("/var/tmp/disk.img", "/var/tmp/disk.img"),
            ("", ""),
        ] {
            assert_eq!(datastore_path(path), expected, "{path}");
        }
    }
}
