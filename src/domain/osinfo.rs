//! The name that libosinfo, and with it every manager of virtual machines, knows an operating system by.
//!
//! A table of what `virt-v2v -o local` writes (2.2) and of what has come since; an unknown system has no name, which is
//! no error: only defaults of a user interface hang on it.

use crate::v2v::output::Drivers;

/// `http://debian.org/debian/12`, if it is known.
pub(super) fn id(found: &Drivers) -> Option<String> {
    let (major, minor) = (found.major?, found.minor.unwrap_or(0));
    if found.os_type.as_deref() == Some("windows") {
        return windows(found, major, minor).map(|name| format!("http://microsoft.com/win/{name}"));
    }
    Some(match found.distro.as_deref()? {
        "rhel" => format!("http://redhat.com/rhel/{major}.{minor}"),
        "centos" if major < 7 => format!("http://centos.org/centos/{major}.{minor}"),
        "centos" if major == 7 => "http://centos.org/centos/7.0".to_owned(),
        "centos" => format!("http://centos.org/centos/{major}"),
        "rocky" => format!("http://rockylinux.org/rocky/{major}"),
        "almalinux" => format!("http://almalinux.org/almalinux/{major}"),
        "oraclelinux" => format!("http://oracle.com/ol/{major}.{minor}"),
        "debian" => format!("http://debian.org/debian/{major}"),
        "ubuntu" => format!("http://ubuntu.com/ubuntu/{major}.{minor:02}"),
        "fedora" => format!("http://fedoraproject.org/fedora/{major}"),
        "opensuse" => format!("http://opensuse.org/opensuse/{major}.{minor}"),
        "sles" => {
            let desktop = found.product_name.as_ref().is_some_and(|name| name.contains("Desktop"));
            let name = if desktop { "sled" } else { "sles" };
            match minor {
                0 => format!("http://suse.com/{name}/{major}"),
                minor => format!("http://suse.com/{name}/{major}.{minor}"),
            }
        }
        _ => return None,
    })
}

fn windows(found: &Drivers, major: u32, minor: u32) -> Option<&'static str> {
    let product = found.product_name.as_deref().unwrap_or_default();
    let server = found.product_variant.as_deref() == Some("Server");
    Some(match (major, minor, server) {
        (5, 1, _) => "xp",
        (5, 2, _) if product.contains("XP") => "xp",
        (5, 2, _) if product.contains("R2") => "2k3r2",
        (5, 2, _) => "2k3",
        (6, 0, true) => "2k8",
        (6, 0, false) => "vista",
        (6, 1, true) => "2k8r2",
        (6, 1, false) => "7",
        (6, 2, true) => "2k12",
        (6, 2, false) => "8",
        (6, 3, true) => "2k12r2",
        (6, 3, false) => "8.1",
        // Since then the version stands still and only the product's name tells.
        (10, 0, true) if product.contains("2025") => "2k25",
        (10, 0, true) if product.contains("2022") => "2k22",
        (10, 0, true) if product.contains("2019") => "2k19",
        (10, 0, true) => "2k16",
        (10, 0, false) if product.contains("Windows 11") => "11",
        (10, 0, false) => "10",
        _ => return None,
    })
}
