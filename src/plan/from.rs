//! Where a guest comes from. Values only; `source` and `openstack_source` judge the keys.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// Where the guest comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Source {
    /// VMware over VDDK (`transport_method: vddk`).
    Vddk {
        /// libvirt URI without a password.
        uri: String,
        /// Fingerprint of the certificate, as given; `None` only in two-phase conversions, where authorities decide then.
        thumbprint: Option<String>,
        /// The site's authorities.
        ca_bundle: Option<PathBuf>,
        /// Password of the URI's user.
        #[serde(serialize_with = "crate::secret::expose")]
        password: SecretString,
        /// Directory of the VDDK library.
        libdir: PathBuf,
        /// Which machine is meant, where its name does not say it.
        which: Option<Machine>,
    },
    /// A vmx file over ssh (`transport_method: ssh`).
    Ssh {
        /// `ssh://user@host/path/vm.vmx`, percent-escaped as given.
        uri: String,
        /// Which key logs in.
        key: SshKey,
    },
    /// A server of an OpenStack, which goes to an OpenStack (`osp_source_environment`).
    Openstack {
        /// `osp_source_environment` as [`super::Destination::Openstack`] has its own.
        #[serde(serialize_with = "super::expose_environment")]
        environment: Vec<(String, SecretString)>,
        /// Certificates are not verified.
        insecure: bool,
        /// The site's authorities, where `os-cacert` names none.
        ca_bundle: Option<PathBuf>,
        /// `osp_source_vm_id`.
        vm_id: String,
        /// `osp_source_conversion_vm_id`.
        converter_id: String,
        /// `uci_container_image`.
        image: String,
        /// Which key logs in to the conversion host.
        key: SshKey,
    },
    /// Files of this host (`transport_method: local`).
    Local(LocalSource),
}

/// A machine of a vSphere, told by something else than its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Machine {
    /// Its managed object id, e.g. `vm-62` (`vmware_moref`).
    Moref(String),
    /// `/datacenter/vm/folder/name` (`vmware_inventory_path`).
    Path(String),
}

/// The key that logs in to an ESXi host, or to a conversion host.
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
