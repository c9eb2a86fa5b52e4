//! What machine a converted guest gets, in the words of oVirt's API. Pure: the same choices as [`crate::domain::final_domain`],
//! which words them for libvirt.

use serde_json::{Value, json};

use super::lookup::Cluster;
use crate::domain::mapping;
use crate::guest::{Firmware, Guest, Nic};
use crate::plan::NetworkMapping;
use crate::v2v::output::{BlockBus, Drivers, Machine, NetModel};

/// Memory of a guest nobody described, in KiB.
const MEMORY_KIB: u64 = 2 << 20;
/// The engine counts memory in these.
const MIB: u64 = 1 << 20;

/// The chipset, and whether it boots by UEFI with or without enforced signatures.
fn chipset(guest: &Guest, found: &Drivers) -> (Machine, Option<bool>) {
    let efi = match guest.firmware {
        Firmware::Efi { secure_boot } => Some(secure_boot),
        Firmware::Bios => None,
        Firmware::Unknown => found.uefi.then_some(false),
    };
    match found.machine() {
        // oVirt starts UEFI on q35 only.
        Machine::I440fx if efi.is_some() => (Machine::Q35, efi),
        chipset => (chipset, efi),
    }
}

/// `bios.type`; `None` where there is no choice.
fn bios(guest: &Guest, found: &Drivers, cluster: &Cluster) -> Option<&'static str> {
    if cluster.architecture.as_deref().is_some_and(|cpu| cpu != "x86_64" && cpu != "undefined") {
        return None;
    }
    match chipset(guest, found) {
        (Machine::Virt, _) => None,
        (_, Some(true)) => Some("q35_secure_boot"),
        (_, Some(false)) => Some("q35_ovmf"),
        (Machine::Q35, None) => Some("q35_sea_bios"),
        (Machine::I440fx, None) => Some("i440fx_sea_bios"),
    }
}

/// What disks hang on.
pub fn interface(guest: &Guest, found: &Drivers) -> &'static str {
    match found.block() {
        BlockBus::VirtioBlk => "virtio",
        BlockBus::VirtioScsi => "virtio_scsi",
        BlockBus::Ide if chipset(guest, found).0 == Machine::I440fx => "ide",
        BlockBus::Ide => "sata",
    }
}

/// The machine without disks and NICs. `os` is a name that the engine knows.
pub fn machine(
    guest: &Guest,
    found: &Drivers,
    (name, description): (&str, &str),
    (cluster_name, cluster): (&str, &Cluster),
    os: Option<&str>,
) -> Value {
    let kib = if guest.memory_kib == 0 { MEMORY_KIB } else { guest.memory_kib };
    let memory = (kib * 1024).next_multiple_of(MIB);
    let vcpus = guest.vcpus.max(1);
    let cores =
        guest.cores_per_socket.filter(|cores| *cores > 0 && vcpus.is_multiple_of(*cores)).unwrap_or(1);
    let cluster_ref = match &cluster.id {
        Some(id) => json!({"id": id}),
        None => json!({"name": cluster_name}),
    };
    let mut machine = json!({
        "name": name,
        "description": description,
        "cluster": cluster_ref,
        "template": {"name": "Blank"},
        "memory": memory,
        // The template's would be more than a small guest has.
        "memory_policy": {"guaranteed": memory},
        "cpu": {"topology": {"sockets": vcpus / cores, "cores": cores, "threads": 1}},
        "os": {"boot": {"devices": {"device": ["hd"]}}},
    });
    if let Some(os) = os {
        machine["os"]["type"] = os.into();
    }
    if let Some(bios) = bios(guest, found, cluster) {
        machine["bios"] = json!({"type": bios});
    }
    if interface(guest, found) == "virtio_scsi" {
        machine["virtio_scsi"] = json!({"enabled": true});
    }
    machine
}

/// A name that every engine takes: letters, digits, and `.`, `_`, `-`.
pub fn plain(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

/// The engine's name of the system, in lower case, if it is sure: the engine decides by it what a guest can do.
pub fn os(found: &Drivers) -> Option<String> {
    let (major, minor) = (found.major?, found.minor.unwrap_or(0));
    let wide = found.arch() == "x86_64";
    let bits = if wide { "x64" } else { "" };
    match (found.os_type.as_deref()?, found.distro.as_deref()) {
        ("windows", _) => windows(found, major, minor, bits),
        ("linux", Some("rhel" | "centos" | "rocky" | "almalinux" | "oraclelinux")) => match major {
            4..=6 => Some(format!("rhel_{major}{bits}")),
            7.. if wide => Some(format!("rhel_{major}x64")),
            _ => None,
        },
        ("linux", Some("sles")) if major == 11 => Some("sles_11".to_owned()),
        ("linux", Some("debian")) if major >= 9 => Some("debian_9".to_owned()),
        ("linux", Some("debian")) if major >= 7 => Some("debian_7".to_owned()),
        ("linux", Some("ubuntu")) if major >= 18 => Some("ubuntu_18_04".to_owned()),
        ("linux", Some("ubuntu")) if (12..=14).contains(&major) => Some(format!("ubuntu_{major}_{minor:02}")),
        ("linux", _) => Some("other_linux".to_owned()),
        _ => None,
    }
}

fn windows(found: &Drivers, major: u32, minor: u32, bits: &str) -> Option<String> {
    let product = found.product_name.as_deref().unwrap_or_default();
    let server = found.product_variant.as_deref() == Some("Server");
    let of_both = |name: &str| Some(format!("windows_{name}{bits}"));
    let wide = |name: &str| (!bits.is_empty()).then(|| format!("windows_{name}"));
    match (major, minor, server) {
        (5, 1, _) => Some("windows_xp".to_owned()),
        (5, 2, true) => of_both("2003"),
        (6, 0, true) => of_both("2008"),
        (6, 1, true) => wide("2008r2x64"),
        (6, 1, false) => of_both("7"),
        (6, 2, true) => wide("2012x64"),
        (6, 3, true) => wide("2012r2x64"),
        (6, 2 | 3, false) => of_both("8"),
        (10, 0, true) if product.contains("2025") => wide("2025"),
        (10, 0, true) if product.contains("2022") => wide("2022"),
        (10, 0, true) if product.contains("2019") => wide("2019x64"),
        (10, 0, true) if product.contains("2016") => wide("2016x64"),
        (10, 0, false) if product.contains("Windows 11") => wide("11"),
        (10, 0, false) => of_both("10"),
        _ => None,
    }
}

/// A NIC, and what its profile is looked up by.
pub struct WantedNic<'a> {
    /// Without a profile.
    pub body: Value,
    /// `destination` of the mapping that is for it.
    pub destination: Option<&'a str>,
    /// As its owner knows it.
    pub label: String,
}

/// The NICs, in order; each keeps its address.
pub fn nics<'a>(guest: &Guest, found: &Drivers, mappings: &'a [NetworkMapping]) -> Vec<WantedNic<'a>> {
    let model = match found.net() {
        NetModel::Virtio => "virtio",
        NetModel::E1000 => "e1000",
        NetModel::Rtl8139 => "rtl8139",
    };
    let wanted = |(index, nic): (usize, &Nic)| {
        let mapping = mapping(nic, mappings);
        let mut body =
            json!({"name": format!("nic{}", index + 1), "interface": model, "plugged": true, "linked": true});
        let given = mapping.and_then(|mapping| mapping.mac_address.as_deref());
        if let Some(mac) = nic.mac.as_deref().or(given) {
            body["mac"] = json!({"address": mac.trim().replace('-', ":").to_ascii_lowercase()});
        }
        let network = nic.network.as_deref().unwrap_or("no network");
        WantedNic {
            body,
            destination: mapping.map(|mapping| mapping.destination.as_str()),
            label: format!("NIC {} ({network})", index + 1),
        }
    };
    guest.nics.iter().enumerate().map(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drivers(block: BlockBus, net: NetModel, machine: Machine) -> Drivers {
        Drivers { block: Some(block), net: Some(net), machine: Some(machine), ..Drivers::default() }
    }

    #[test]
    fn firmware_and_buses_are_those_the_guest_has_drivers_for() {
        use {BlockBus::*, Machine::*};
        let efi = |secure_boot| Firmware::Efi { secure_boot };
        for (firmware, chipset, block, bios, bus) in [
            (Firmware::Bios, I440fx, VirtioBlk, "i440fx_sea_bios", "virtio"),
            (Firmware::Bios, Q35, VirtioScsi, "q35_sea_bios", "virtio_scsi"),
            (Firmware::Bios, I440fx, Ide, "i440fx_sea_bios", "ide"),
            (Firmware::Bios, Q35, Ide, "q35_sea_bios", "sata"),
            (efi(false), I440fx, Ide, "q35_ovmf", "sata"),
            (efi(false), Q35, VirtioBlk, "q35_ovmf", "virtio"),
            (efi(true), I440fx, VirtioBlk, "q35_secure_boot", "virtio"),
            (Firmware::Unknown, Q35, VirtioBlk, "q35_sea_bios", "virtio"),
        ] {
            let guest = Guest {
                firmware,
                memory_kib: 1 << 20,
                vcpus: 6,
                cores_per_socket: Some(3),
                ..Guest::default()
            };
            let found = drivers(block, NetModel::Virtio, chipset);
            let cluster = Cluster::default();
            let machine = machine(&guest, &found, ("n", "d"), ("Default", &cluster), Some("rhel_8x64"));
            assert_eq!((machine["bios"]["type"].as_str(), interface(&guest, &found)), (Some(bios), bus));
            assert_eq!(machine["virtio_scsi"]["enabled"].as_bool(), (bus == "virtio_scsi").then_some(true));
            assert_eq!(machine["memory"], 1_u64 << 30);
            assert_eq!(machine["cpu"]["topology"], json!({"sockets": 2, "cores": 3, "threads": 1}));
            assert_eq!(
                (&machine["os"]["type"], &machine["cluster"]["name"]),
                (&json!("rhel_8x64"), &json!("Default"))
            );
        }
        let power =
            Cluster { architecture: Some("ppc64".into()), id: Some("c".into()), ..Cluster::default() };
        let machine = machine(&Guest::default(), &Drivers::default(), ("n", "d"), ("Default", &power), None);
        assert_eq!((&machine["bios"], &machine["cluster"]), (&Value::Null, &json!({"id": "c"})));
        assert_eq!(machine["memory"], MEMORY_KIB * 1024);
    }

    #[test]
    fn only_a_system_that_is_known_for_sure_has_a_name() {
        let of = |kind: &str, distro: &str, major, minor, arch: &str, product: &str, variant: &str| {
            os(&Drivers {
                os_type: Some(kind.into()),
                distro: Some(distro.into()),
                major: Some(major),
                minor: Some(minor),
                arch: Some(arch.into()),
                product_name: Some(product.into()),
                product_variant: Some(variant.into()),
                ..Drivers::default()
            })
        };
        let linux = |distro: &str, major, arch: &str| of("linux", distro, major, 4, arch, "", "");
        assert_eq!(linux("rhel", 9, "x86_64").as_deref(), Some("rhel_9x64"));
        assert_eq!(linux("centos", 6, "i686").as_deref(), Some("rhel_6"));
        assert_eq!(linux("gentoo", 2, "x86_64").as_deref(), Some("other_linux"));
        let windows = |major, minor, product: &str, variant: &str| {
            of("windows", "windows", major, minor, "x86_64", product, variant)
        };
        assert_eq!(windows(10, 0, "Windows Server 2019", "Server").as_deref(), Some("windows_2019x64"));
        assert_eq!(windows(10, 0, "Windows 10 Pro", "Client").as_deref(), Some("windows_10x64"));
        assert_eq!(windows(10, 0, "Windows Server 2031", "Server"), None);
        assert_eq!(os(&Drivers::default()), None);
    }

    #[test]
    fn a_nic_keeps_its_address_and_goes_where_it_is_mapped() {
        let nic = |mac: Option<&str>, network: &str| Nic {
            mac: mac.map(str::to_owned),
            network: Some(network.into()),
            ..Nic::default()
        };
        let guest = Guest {
            nics: vec![nic(Some("00:50:56:aa:bb:01"), "VM Network"), nic(None, "lan"), nic(None, "unmapped")],
            ..Guest::default()
        };
        let mapping = |source: &str, destination: &str, mac: Option<&str>| NetworkMapping {
            source: source.into(),
            destination: destination.into(),
            mac_address: mac.map(str::to_owned),
            ip_address: None,
        };
        let mappings = [
            mapping("other", "by address", Some("00-50-56-AA-BB-01")),
            mapping("lan", "by network", Some("52:54:00:00:00:02")),
        ];
        let found = drivers(BlockBus::VirtioBlk, NetModel::E1000, Machine::Q35);
        let nics = nics(&guest, &found, &mappings);
        let seen: Vec<_> = nics
            .iter()
            .map(|nic| (nic.destination, nic.body["mac"]["address"].as_str(), nic.body["interface"].as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (Some("by address"), Some("00:50:56:aa:bb:01"), Some("e1000")),
                (Some("by network"), Some("52:54:00:00:00:02"), Some("e1000")),
                (None, None, Some("e1000")),
            ]
        );
    }
}
