//! The plan: what will be done, decided and complete. Document + site configuration -> [`Plan`], or every problem.
//!
//! Pure: no file is opened here, no clock is read. What must be looked at on the host (does the output directory
//! exist, who owns the LUKS vault) is asked by [`crate::start`] and by each destination's check, before the fork.
//! The worker gets this value, and nothing else, through a sealed memfd: it holds secrets.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// Everything the worker needs to know to migrate one guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Plain name of the guest, never a URI (contract.md 1.3).
    pub vm_name: String,
    /// Where the guest comes from.
    pub source: Source,
    /// Where it goes.
    pub destination: Destination,
    /// Format of the disks made, `-of`.
    pub output_format: DiskFormat,
    /// `-oa`, as given: not validated since v1.7 (contract.md 1.2).
    pub allocation: Option<String>,
    /// NIC mappings in the document's order.
    pub network_mappings: Vec<NetworkMapping>,
    /// Keys of encrypted devices, from the vault, in its order.
    pub luks_keys: Vec<LuksKey>,
    /// Paths that initialise `disks` of the state, in the document's order.
    pub source_disks: Vec<String>,
    /// Whether the document gave `source_disks`: then `disk_count` is known from the start (contract.md 3.1).
    pub source_disks_given: bool,
    /// Certificates are not verified.
    pub insecure_connection: bool,
    /// False: stay in the foreground, with exit codes 0 / 2 / 1.
    pub daemonize: bool,
    /// Programs and directories of this host.
    pub tools: Tools,
    /// Things the user should know although the job goes on; they reach the log and `warnings`.
    pub warnings: Vec<String>,
}

/// Where the guest comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Source {
    /// VMware over VDDK (`transport_method: vddk`).
    Vddk {
        /// libvirt URI without a password.
        uri: String,
        /// SHA-1 thumbprint, as given.
        thumbprint: String,
        /// Password of the URI's user.
        #[serde(serialize_with = "crate::secret::expose")]
        password: SecretString,
        /// Directory of the VDDK library.
        libdir: PathBuf,
    },
    /// A vmx file over ssh (`transport_method: ssh`).
    Ssh {
        /// `ssh://user@host/path/vm.vmx`, percent-escaped as given.
        uri: String,
        /// Which key logs in.
        key: SshKey,
    },
    /// Files of this host (`transport_method: local`).
    Local(LocalSource),
}

/// The key that logs in to an ESXi host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum SshKey {
    /// The caller's own keys, `~/.ssh`.
    Default,
    /// A file that is already there (`ssh_key_file`).
    File(PathBuf),
    /// PEM text from the document (`ssh_key`).
    Text(#[serde(serialize_with = "crate::secret::expose")] SecretString),
}

/// A guest made of local files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LocalSource {
    /// One disk image, `-i disk`.
    Disk(PathBuf),
    /// A libvirt domain, `-i libvirtxml`.
    LibvirtXml(PathBuf),
    /// A vmx file, `-i vmx`.
    Vmx(PathBuf),
    /// An OVA, `-i ova`.
    Ova(PathBuf),
    /// Images in order; the worker writes the libvirt XML.
    Disks(Vec<PathBuf>),
}

/// Where the guest goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Destination {
    /// A directory of this host (`output_directory`).
    Local {
        /// Absolute path.
        directory: PathBuf,
    },
    /// oVirt/RHV through its API (`rhv_url`).
    Ovirt {
        /// Engine API URL without a password.
        url: String,
        /// Password of the URL's user or `admin@internal`.
        #[serde(serialize_with = "crate::secret::expose")]
        password: SecretString,
        /// `rhv_cluster`.
        cluster: String,
        /// `rhv_storage`.
        storage: String,
        /// CA file: `rhv_cafile` or the site's bundle.
        cafile: PathBuf,
    },
    /// oVirt/RHV export domain (`export_domain`).
    ExportDomain {
        /// `host:/path`.
        domain: String,
    },
    /// OpenStack (`osp_environment`).
    Openstack {
        /// `osp_environment` without its `os-` prefix: lower case, `-` between words, in the document's order.
        #[serde(serialize_with = "expose_environment")]
        environment: Vec<(String, SecretString)>,
        /// `osp_server_id`.
        server_id: String,
        /// `osp_guest_id` or a random one.
        guest_id: String,
        /// `osp_destination_project_id`.
        project_id: String,
        /// `osp_flavor_id`.
        flavor_id: String,
        /// `osp_security_groups_ids`.
        security_groups_ids: Vec<String>,
        /// `osp_volume_type_id`.
        volume_type_id: Option<String>,
    },
    /// KubeVirt, inside the conversion pod.
    Kubevirt {
        /// Directory of the VM's disks, `data/vm` of the working directory made absolute.
        directory: PathBuf,
    },
}

fn expose_environment<S: serde::Serializer>(
    environment: &[(String, SecretString)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    use secrecy::ExposeSecret;
    serializer.collect_seq(environment.iter().map(|(key, value)| (key, value.expose_secret())))
}

/// `output_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Raw, the default.
    #[default]
    Raw,
    /// qcow2.
    Qcow2,
}

impl DiskFormat {
    /// The word virt-v2v and qemu-img use.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

/// One entry of `network_mappings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkMapping {
    /// Network of the source.
    pub source: String,
    /// Network of the destination.
    pub destination: String,
    /// MAC address of the NIC.
    pub mac_address: Option<String>,
    /// Address to keep (OpenStack).
    pub ip_address: Option<String>,
}

/// A key of the LUKS vault (contract.md 1.5).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LuksKey {
    /// `/dev/sda1`, a UUID, or what virt-v2v's `--key` takes.
    pub device: String,
    /// The passphrase.
    #[serde(serialize_with = "crate::secret::expose")]
    pub key: SecretString,
}

/// Programs and directories of this host, resolved to absolute paths before the fork.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tools {
    /// virt-v2v.
    pub virt_v2v: PathBuf,
    /// Parent of every job's private directory (`TMPDIR` of the tools).
    pub tmp_dir: PathBuf,
    /// Set as `VIRTIO_WIN` for virt-v2v.
    pub virtio_win: Option<PathBuf>,
    /// Set as `LIBGUESTFS_BACKEND_SETTINGS`.
    pub libguestfs_backend_settings: Option<String>,
}
