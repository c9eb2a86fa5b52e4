//! The document on stdin: every key of every generation (contract.md 1), typed and lenient. Pure.
//!
//! What a key means, which keys go together and what is missing is [`crate::plan`]'s matter; here a document only
//! has the right shape or not. `null` is the same as absent everywhere. Keys nobody knows are given back by name:
//! clients send extras to every version, and a misspelt key should be found in the log. Called once, before the fork.

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use crate::json::{self, Anything, JsonError};

mod values;

pub use values::{Address, Limit, List, Pairs, Quiesce, Scalar, Seconds, Verify};

/// Largest document that is read: far above any real one (a few kB), far below memory.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Why there is no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// More than [`MAX_BYTES`].
    #[error("the document on stdin is larger than {} MiB", MAX_BYTES / 1024 / 1024)]
    TooLarge,
    /// Nothing but white space.
    #[error("the document on stdin is empty: send one JSON object")]
    Empty,
    /// Not JSON, or not of the right types.
    #[error("the document on stdin: {0}")]
    Text(JsonError),
    /// One key has a value of a wrong type, stands twice or is nested too deep.
    #[error("{0}")]
    Key(JsonError),
}

impl From<JsonError> for DocumentError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Shape { .. } | JsonError::Duplicate { .. } | JsonError::TooDeep { .. } => {
                Self::Key(error)
            }
            JsonError::NotUtf8 { .. } | JsonError::Syntax { .. } | JsonError::Top { .. } => Self::Text(error),
        }
    }
}

/// A document, and the keys in it that no version knows.
#[derive(Debug)]
pub struct Parsed {
    /// The document.
    pub document: Document,
    /// Paths of unknown keys, in the document's order.
    pub unknown_keys: Vec<String>,
}

/// Reads a document. Errors are one line, name the key with its path, and hold no value.
pub fn parse(bytes: &[u8]) -> Result<Parsed, DocumentError> {
    if bytes.len() > MAX_BYTES {
        return Err(DocumentError::TooLarge);
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(DocumentError::Empty);
    }
    let text = json::check(bytes)?;
    let mut unknown_keys = Vec::new();
    let document = json::read(json::Object::seed(), text, &mut unknown_keys)?;
    Ok(Parsed { document, unknown_keys })
}

/// What one migration is to be: the JSON object that the program reads from its standard input.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Document {
    /// Name of the virtual machine. Clients of v1 sent the URI of the vmx file here when transport_method was ssh;
    /// that still works.
    #[schemars(with = "Option<String>")]
    pub vm_name: Option<Address>,
    /// How the guest is read: `vddk`, `ssh` or `local`.
    pub transport_method: Option<String>,
    /// Format of the new disks: `raw` (default) or `qcow2`.
    pub output_format: Option<String>,
    /// Disks of the guest, in its order: they appear in the state file from the start. With transport_method
    /// `local`, the absolute paths of the disk images.
    pub source_disks: Option<Vec<String>>,
    /// Which network each NIC is connected to.
    #[schemars(with = "Option<Vec<MappingEntry>>")]
    pub network_mappings: Option<List<Mapping>>,
    /// Install Windows drivers. Has no effect: virt-v2v installs those it finds through virtio_win.
    pub install_drivers: Option<bool>,
    /// Absolute path of the virtio-win ISO image or directory.
    pub virtio_win: Option<String>,
    /// Allocation of the new disks: `sparse` or `preallocated`. Without it, oVirt's storage type decides.
    pub allocation: Option<String>,
    /// Certificates of the destination are not verified.
    pub insecure_connection: Option<bool>,
    /// Private key (PEM text) that logs in to the ESXi host.
    #[schemars(with = "Option<String>")]
    pub ssh_key: Option<SecretString>,
    /// Absolute path of a private key that is already on the host.
    pub ssh_key_file: Option<String>,
    /// JSON file with keys of encrypted devices. Default: `.v2v_luks_keys_vault.json` in the home directory.
    pub luks_keys_vault: Option<String>,
    /// Limits from the start on; clients change them later through the throttling file.
    #[schemars(with = "Option<ThrottlingKeys>")]
    pub throttling: Option<Throttling>,
    /// false: stay in the foreground until the end. Default: the site's configuration, which is true by default.
    pub daemonize: Option<bool>,
    /// Copy the disks first, convert them on the host afterwards.
    pub two_phase: Option<bool>,
    /// Copy while the virtual machine runs, until the client asks for cutover. Implies two_phase.
    pub warm: Option<bool>,
    /// Seconds between two copies of a warm migration. Default 3600.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub iteration_seconds: Option<Seconds>,
    /// Another name of iteration_seconds, which it wins over: seconds from the end of one copy to the next.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub delta_interval: Option<Seconds>,
    /// When the last copy of a warm migration begins, unless the client asks for it earlier: RFC 3339 with its zone,
    /// like 2026-01-31T22:00:00+01:00.
    pub finalize_at: Option<String>,
    /// Seconds before finalize_at from which on finalize_delta_interval counts. Default 600.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub finalize_window: Option<Seconds>,
    /// Seconds between two copies shortly before finalize_at. Default 30.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub finalize_delta_interval: Option<Seconds>,
    /// Seconds from the shutdown of the virtual machine to its last copy. Default 0: 30 for Windows, 15 for others.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub finalize_settle_seconds: Option<Seconds>,
    /// Who switches the virtual machine off before its last copy: `auto` (the guest is asked, and after five minutes
    /// switched off), `force` (switched off at once), `manual` (somebody else, who is waited for), `never` (default:
    /// somebody else, who has done so; a machine that is on is refused).
    pub shutdown_mode: Option<String>,
    /// Whether the guest writes out its file systems before a copy of a warm migration: `auto` (default: if it can),
    /// `require` or true, `never` or false.
    #[schemars(with = "Option<values::VerifyShape>")]
    pub snapshot_quiesce: Option<Quiesce>,
    /// The last copy of a warm migration begins by itself once the virtual machine would be off for no longer than this
    /// many seconds.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub downtime_budget_seconds: Option<Seconds>,
    /// true: the change tracking that this program switched on for a warm migration stays on.
    pub keep_change_tracking: Option<bool>,
    /// Id (or API path) of the virtual machine this program runs in, for two-phase conversion to oVirt.
    pub conversion_host_uuid: Option<String>,
    /// Sent by clients, read by no version.
    #[schemars(with = "serde_json::Value")]
    pub vm_uuid: Option<Anything>,
    /// Container image of the source conversion host (OpenStack to OpenStack).
    pub uci_container_image: Option<String>,
    /// Older name of uci_container_image.
    pub uci_container: Option<String>,
    /// Only export these devices over NBD: device path to port.
    #[schemars(with = "Option<std::collections::BTreeMap<String, u16>>")]
    pub nbd_export_only: Option<Pairs<u16>>,
    /// Was a debug switch of the oVirt SDK; has no effect.
    #[schemars(with = "serde_json::Value")]
    pub rhv_debug: Option<Anything>,
    /// Was accepted by accident; has no effect, the libguestfs backend is always `direct`.
    #[schemars(with = "serde_json::Value")]
    pub backend: Option<Anything>,
    /// Was accepted by accident; has no effect.
    #[schemars(with = "serde_json::Value")]
    pub vmware_password_file: Option<Anything>,
    /// Was accepted by accident; has no effect.
    #[schemars(with = "serde_json::Value")]
    pub rhv_password_file: Option<Anything>,
    /// Was accepted by accident; has no effect.
    #[schemars(with = "serde_json::Value")]
    pub luks_keys_files: Option<Anything>,

    /// libvirt URI of the hypervisor (vddk), or `ssh://user@host/path/vm.vmx` (ssh).
    #[schemars(with = "Option<String>")]
    pub vmware_uri: Option<Address>,
    /// Fingerprint of the hypervisor's certificate: SHA-1 or, with two_phase, also SHA-256. With two_phase it may be left
    /// out where the site's authorities signed the certificate.
    pub vmware_fingerprint: Option<String>,
    /// Password of the user in vmware_uri.
    #[schemars(with = "Option<String>")]
    pub vmware_password: Option<SecretString>,
    /// Two-phase from vSphere: id of the virtual machine, e.g. `vm-62`, where several have the same name.
    pub vmware_moref: Option<String>,
    /// Two-phase from vSphere: path of the virtual machine, `/datacenter/vm/folder/name`, where several have the same
    /// name. A slash in a name is written `%2f`.
    pub vmware_inventory_path: Option<String>,

    /// Absolute path of the guest for transport_method `local`: a libvirt XML, vmx or ova file, otherwise a disk image.
    pub source_path: Option<String>,

    /// Absolute path of an existing directory of this host: the disks and the libvirt XML are written there.
    pub output_directory: Option<String>,
    /// Tag of an earlier job of the same document that was interrupted: what it copied is not copied again.
    pub resume: Option<String>,
    /// `full` (default): copied disks are read back and compared with what was read from the source; `off`.
    #[schemars(with = "Option<values::VerifyShape>")]
    pub verify: Option<Verify>,

    /// URL of the oVirt API: selects oVirt as destination.
    #[schemars(with = "Option<String>")]
    pub rhv_url: Option<Address>,
    /// Password of the user in rhv_url, otherwise of `admin@internal`.
    #[schemars(with = "Option<String>")]
    pub rhv_password: Option<SecretString>,
    /// Name of the oVirt cluster.
    pub rhv_cluster: Option<String>,
    /// Name of the oVirt storage domain.
    pub rhv_storage: Option<String>,
    /// CA certificates of the oVirt API, an absolute path. Default: the site's bundle.
    pub rhv_cafile: Option<String>,
    /// `host:/path` of an oVirt export domain: selects it as destination.
    pub export_domain: Option<String>,

    /// Credentials of OpenStack as in a keystonerc file, keys beginning with `os-` or `OS_`: selects OpenStack as
    /// destination.
    #[schemars(with = "Option<std::collections::BTreeMap<String, values::ScalarShape>>")]
    pub osp_environment: Option<Pairs<Scalar>>,
    /// Id of the OpenStack server this program runs in.
    pub osp_server_id: Option<String>,
    /// Id of the project that gets the new server.
    pub osp_destination_project_id: Option<String>,
    /// Id of the new server's flavor.
    pub osp_flavor_id: Option<String>,
    /// Ids of the new server's security groups.
    #[schemars(with = "Option<Vec<String>>")]
    pub osp_security_groups_ids: Option<List<String>>,
    /// Another spelling of osp_security_groups_ids.
    #[schemars(with = "Option<Vec<String>>")]
    pub osp_security_group_ids: Option<List<String>>,
    /// Type of the new volumes.
    pub osp_volume_type_id: Option<String>,
    /// Id that virt-v2v writes into the volumes' metadata. Default: a random one.
    pub osp_guest_id: Option<String>,
    /// Credentials of the OpenStack the guest comes from; keys with or without `os-`, ids may stand inside.
    #[schemars(with = "Option<std::collections::BTreeMap<String, values::ScalarShape>>")]
    pub osp_source_environment: Option<Pairs<Scalar>>,
    /// Id of the server to migrate from OpenStack.
    pub osp_source_vm_id: Option<String>,
    /// Id of the conversion host in the OpenStack the guest comes from.
    pub osp_source_conversion_vm_id: Option<String>,
}

/// Declares an object type: what serde derives would also take an array in its place.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident from $fields:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default)]
        pub struct $name(pub $fields);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::DeserializeSeed;
                json::Object::seed().deserialize(deserializer).map(Self)
            }
        }
    };
}

object!(
    /// One entry of `network_mappings`.
    Mapping from MappingEntry
);

/// Which network one NIC, or all NICs of one network, are connected to.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "NetworkMapping")]
pub struct MappingEntry {
    /// Network the NIC is connected to at the source.
    pub source: Option<String>,
    /// Network it is to be connected to.
    pub destination: Option<String>,
    /// MAC address of the NIC: then the mapping is for this NIC alone. Mandatory for OpenStack.
    pub mac_address: Option<String>,
    /// IPv4 address to keep (OpenStack), used when a subnet of the destination holds it.
    pub ip_address: Option<String>,
}

object!(
    /// `throttling`.
    Throttling from ThrottlingKeys
);

/// Limits of a running job.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Throttling")]
pub struct ThrottlingKeys {
    /// Percentage of one processor, or `unlimited`.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub cpu: Option<Limit>,
    /// Bytes per second, or `unlimited`.
    #[schemars(with = "Option<values::SecondsShape>")]
    pub network: Option<Limit>,
}

#[cfg(test)]
mod tests;
