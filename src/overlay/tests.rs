//! What needs no qemu-img; the rest is in `tests/real/overlays.rs`.

use super::*;

#[test]
fn only_names_that_qemu_takes_for_files_are_used() {
    for (path, fits) in [
        ("/var/tmp/a,b c=d'&<ü>.img", true),
        ("/json:{}/nbd://x", true),
        ("json:{\"driver\":\"nbd\"}", false),
        ("nbd://localhost/x", false),
        ("disk.img", false),
        ("", false),
        ("/a\nb", false),
    ] {
        assert_eq!(check_name(Path::new(path)).is_ok(), fits, "{path}");
    }
}

#[test]
fn overlays_are_named_by_number() {
    let base = Placed { path: "/out/-a b/c-sda".into(), format: DiskFormat::Raw };
    let overlay = Overlay::new(1, &base, Path::new("/o"));
    assert_eq!(overlay.placed(), Placed { path: "/o/disk-2.qcow2".into(), format: DiskFormat::Qcow2 });
}
