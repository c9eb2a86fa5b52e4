//! The guest: what is known of a virtual machine, whatever it comes from and wherever it goes. Pure.
//!
//! Sources make one (from vSphere's inventory, a vmx file, a libvirt XML), [`crate::domain`] words it as libvirt XML
//! for virt-v2v-in-place and for the user, destinations build a machine from it. It holds no secret, and no path of a
//! copy: those are the destination's.

use serde::{Deserialize, Serialize};

/// One virtual machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Plain name.
    pub name: String,
    /// How it boots.
    pub firmware: Firmware,
    /// Memory in KiB: virt-v2v reads KiB whatever `unit` says (virt-v2v-output.md 8).
    pub memory_kib: u64,
    /// Processors, all sockets and cores together.
    pub vcpus: u32,
    /// Cores of one socket, where the source says it.
    pub cores_per_socket: Option<u32>,
    /// In the order of the source, which is the order of the copies.
    pub disks: Vec<Disk>,
    /// In the order of the source.
    pub nics: Vec<Nic>,
    /// The source's word for the operating system, e.g. `rhel8_64Guest`.
    pub os: Option<String>,
}

impl Guest {
    /// Does the source say that it runs Windows? VMware's words begin so, `windows9Server64Guest`, `winXPProGuest`; an OVF
    /// may have a sentence instead.
    pub fn is_windows(&self) -> bool {
        let os = self.os.as_deref().unwrap_or_default().to_ascii_lowercase();
        os.starts_with("win") || os.contains("windows")
    }
}

/// How a guest boots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// The source does not say: bare disks. virt-v2v finds out.
    #[default]
    Unknown,
    /// The old way.
    Bios,
    /// UEFI.
    Efi {
        /// Only signed loaders.
        secure_boot: bool,
    },
}

/// What a disk hangs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// IDE.
    Ide,
    /// SATA.
    Sata,
    /// SCSI, whichever controller.
    #[default]
    Scsi,
    /// virtio-blk.
    Virtio,
    /// NVMe.
    Nvme,
}

impl Bus {
    /// The word of libvirt XML.
    pub fn as_str(self) -> &'static str {
        match self {
            Bus::Ide => "ide",
            Bus::Sata => "sata",
            Bus::Scsi => "scsi",
            Bus::Virtio => "virtio",
            Bus::Nvme => "nvme",
        }
    }
}

/// One disk. Together `controller`, `unit`, `key` and `uuid` tell disks apart: two controllers may have equal units
/// (peers.md 6.3, row 31).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The path its owner knows: `[store] vm/disk.vmdk`, or the image's path.
    pub path: String,
    /// The source's label, e.g. `Hard disk 1`; made from the order where the source has none.
    pub label: String,
    /// What it hangs on.
    pub bus: Bus,
    /// Number of the controller.
    pub controller: Option<u32>,
    /// Place on the controller.
    pub unit: Option<u32>,
    /// vSphere's device key.
    pub key: Option<i32>,
    /// UUID of the disk.
    pub uuid: Option<String>,
    /// Size of its content in bytes, where the source tells it.
    pub size: Option<u64>,
    /// What it is beside its content, where it is a volume of an OpenStack.
    #[serde(default)]
    pub volume: Option<Volume>,
}

/// What an OpenStack knows of a volume, which a volume that takes its place is to have, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name; may be empty.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// Name of its type: another cloud may have none of that name.
    pub kind: Option<String>,
    /// May a server boot from it?
    pub bootable: bool,
    /// The properties of the image that a server booted from it takes it for.
    pub image_properties: Vec<(String, String)>,
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Lower case, with colons.
    pub mac: Option<String>,
    /// Name of the network (or bridge, or port group) at the source.
    pub network: Option<String>,
    /// What that name names.
    pub attachment: Attachment,
    /// The source's model, e.g. `vmxnet3`.
    pub model: Option<String>,
}

/// What a network interface is attached to, in the words of libvirt XML.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// A bridge; also what VMware's networks are to libvirt and to virt-v2v.
    #[default]
    Bridge,
    /// A network that libvirt manages.
    Network,
}

impl Attachment {
    /// The word of libvirt XML.
    pub fn as_str(self) -> &'static str {
        match self {
            Attachment::Bridge => "bridge",
            Attachment::Network => "network",
        }
    }
}
