//! The plan: what will be done, decided and complete. Document + site configuration -> [`Plan`], or every problem.
//!
//! Pure: no file is opened here, no clock is read. What must be looked at on the host (who owns the LUKS vault) is asked
//! by [`crate::preflight`], before the fork. The worker gets this value alone, through a sealed memfd: it holds secrets.
//!
//! * [`problems`] collects what is wrong: the contract's texts in the contract's order, then our own
//! * `source`, `destination`, `network`, `warm` and `general` each judge their keys

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::site::Site;
use crate::throttle::Limits;

mod destination;
mod from;
mod general;
mod network;
mod openstack_source;
pub mod problems;
mod source;
mod two_phase;
mod warm;

use destination::Host;
pub use from::{LocalSource, Machine, Source, SshKey};
use problems::{Findings, Problems};
pub use two_phase::{TwoPhase, TwoPhasePrograms};
pub use warm::{Quiesce, Shutdown, ShutdownMode, Warm};

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
    /// Where the keys of encrypted devices are looked for; [`crate::preflight`] reads them.
    pub luks_vault: LuksVault,
    /// Keys of encrypted devices, from the vault, in its order. Empty until [`crate::preflight`].
    pub luks_keys: Vec<LuksKey>,
    /// Paths that initialise `disks` of the state, in the document's order.
    pub source_disks: Vec<String>,
    /// Whether the document gave `source_disks`: then `disk_count` is known from the start (contract.md 3.1).
    pub source_disks_given: bool,
    /// Certificates are not verified.
    pub insecure_connection: bool,
    /// Disks are copied by this program and converted afterwards; `None`: virt-v2v does both (contract.md 6).
    pub two_phase: Option<TwoPhase>,
    /// Limits from the start on.
    pub limits: Limits,
    /// Limits may also come later: virt-v2v is started so that it can take them.
    pub limits_expected: bool,
    /// False: stay in the foreground, with exit codes 0 / 2 / 1.
    pub daemonize: bool,
    /// Programs and directories of this host.
    pub tools: Tools,
    /// Things the user should know although the job goes on; they reach the log and `warnings`.
    pub warnings: Vec<String>,
    /// Secrets of the document that this job has no use for: a password inside a URI, credentials of another
    /// destination. They are only here so that no text shows them.
    #[serde(serialize_with = "crate::secret::expose_list")]
    pub extra_secrets: Vec<SecretString>,
}

/// What the program knows of its surroundings, put in by the edge ([`crate::preflight::surroundings`]).
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `data/vm` of the working directory, absolute, when it exists: then this is a KubeVirt pod (contract.md 1.1).
    pub pod_directory: Option<PathBuf>,
    /// The virt-v2v that will run.
    pub virt_v2v: PathBuf,
    /// A fresh random UUID, for `osp_guest_id`.
    pub guest_id: String,
    /// What a two-phase conversion would use.
    pub two_phase_programs: TwoPhasePrograms,
}

/// Decides everything, or says everything that is wrong. The first problem is what the old program would have said.
pub fn plan(mut document: Document, site: &Site, around: &Surroundings) -> Result<Plan, Problems> {
    // A job never gets here: [`crate::export_only`] comes before.
    if document.nbd_export_only.is_some() {
        return Err(Problems::one(
            "nbd_export_only serves disks until a signal comes: there is no job to plan",
        ));
    }
    let mut findings = Findings::default();
    let host = destination::detect(&document, site, around, &mut findings);
    let names = source::names(&mut document, &mut findings);
    let moves = openstack_source::is_meant(&document);
    let source = match moves {
        true => openstack_source::source(&mut document, host, site, &mut findings),
        false => source::source(&mut document, &names, site, &mut findings),
    };
    let network_mappings = network::mappings(document.network_mappings.take(), &mut findings);
    let two_phase = general::phases(&mut document, moves, host, site, around, &mut findings);
    let output_format = general::output_format(document.output_format.take(), &mut findings);
    let destination =
        host.and_then(|host| destination::destination(host, &mut document, site, around, &mut findings));
    if let (Some(Host::Ovirt), Some(_)) = (host, &two_phase) {
        destination::check_conversion_host(destination.as_ref(), &mut findings);
    }
    if matches!(host, Some(Host::Openstack)) {
        network::check_macs(network_mappings.as_deref(), &mut findings);
    }
    warm::check_iteration_seconds(&document, &mut findings);
    general::no_effect(&document, source.as_ref(), two_phase.is_some(), &mut findings);
    warm::no_effect(&document, two_phase.as_ref(), &mut findings);

    let allocation = findings.text("allocation", document.allocation.take());
    let source_disks_given = document.source_disks.is_some();
    let luks_vault = general::luks_vault(&mut document, &names, site, around, &mut findings);
    let tools = Tools {
        virt_v2v: around.virt_v2v.clone(),
        tmp_dir: site.tmp_dir.clone(),
        virtio_win: general::virtio_win(document.virtio_win.take(), &mut findings)
            .or_else(|| site.virtio_win.clone()),
        libguestfs_backend_settings: site.libguestfs_backend_settings.clone(),
        patience_percent: site.patience_percent,
    };
    let throttling = document.throttling.take();
    let limits_expected = general::limits_expected(throttling.is_some(), host, site);
    let limits = general::limits(throttling, &mut findings);
    findings.unused_secrets(&mut document);

    let Findings { warnings, secrets, contract, ours } = findings;
    let problems: Vec<String> = contract.into_iter().chain(ours).collect();
    let parts = (names.plain, source, destination, network_mappings, output_format);
    let (Some(vm_name), Some(source), Some(destination), Some(network_mappings), Some(output_format)) = parts
    else {
        return Err(Problems::new(problems));
    };
    if !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    Ok(Plan {
        vm_name,
        source,
        destination,
        output_format,
        allocation,
        network_mappings,
        luks_vault,
        luks_keys: Vec::new(),
        source_disks: document.source_disks.unwrap_or_default(),
        source_disks_given,
        insecure_connection: document.insecure_connection == Some(true),
        two_phase,
        limits,
        limits_expected,
        // A pod is over when its first process is (contract.md 0: v2 never forked).
        daemonize: document.daemonize.unwrap_or(site.daemonize && host != Some(Host::Kubevirt)),
        tools,
        warnings,
        extra_secrets: secrets,
    })
}

impl Plan {
    /// Every secret this job knows, for the scrubber.
    pub fn secrets(&self) -> Vec<SecretString> {
        let mut secrets = self.extra_secrets.clone();
        match &self.source {
            Source::Vddk { password, .. } => secrets.push(password.clone()),
            Source::Ssh { key, .. } => add_key(key, &mut secrets),
            Source::Openstack { environment, key, .. } => {
                secrets.extend(problems::secrets_of(environment));
                add_key(key, &mut secrets);
            }
            Source::Local(_) => {}
        }
        match &self.destination {
            Destination::Ovirt { password, .. } => secrets.push(password.clone()),
            Destination::Openstack { environment, .. } => secrets.extend(problems::secrets_of(environment)),
            Destination::Local { .. } | Destination::ExportDomain { .. } | Destination::Kubevirt { .. } => {}
        }
        secrets.extend(self.luks_keys.iter().map(|key| key.key.clone()));
        secrets.retain(|secret| !secret.expose_secret().is_empty());
        secrets
    }
}

fn add_key(key: &SshKey, secrets: &mut Vec<SecretString>) {
    if let SshKey::Text(text) = key {
        problems::add_ssh_key(text, secrets);
    }
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
        /// Id of this host's own machine (`conversion_host_uuid`): two-phase disks are attached to it.
        conversion_host: Option<String>,
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
        /// The site's authorities, where `os-cacert` names none.
        ca_bundle: Option<PathBuf>,
    },
    /// KubeVirt, inside the conversion pod.
    Kubevirt {
        /// Directory of the VM's disks, `data/vm` of the working directory made absolute.
        directory: PathBuf,
    },
}

impl Destination {
    /// Whether something is made there through an API, which a failed job must remove again.
    pub fn has_api(&self) -> bool {
        self.cloud().is_some()
    }

    /// Which cloud it is and who works there, without a secret: two jobs with the same one can clean up after each other.
    pub fn cloud(&self) -> Option<String> {
        match self {
            Self::Ovirt { url, .. } => Some(format!("oVirt {url}")),
            Self::Openstack { environment, project_id, .. } => {
                let shown = environment.iter().filter(|(key, _)| !problems::names_a_secret(key));
                let mut pairs: Vec<String> =
                    shown.map(|(key, value)| format!("{key}={}", value.expose_secret())).collect();
                pairs.sort();
                Some(format!("OpenStack {}, to project {project_id}", pairs.join(" ")))
            }
            Self::Local { .. } | Self::ExportDomain { .. } | Self::Kubevirt { .. } => None,
        }
    }
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

/// Where keys of encrypted devices are looked for (contract.md 1.5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LuksVault {
    /// Files, the first that exists counts.
    pub paths: Vec<PathBuf>,
    /// Whether the document named the file.
    pub explicit: bool,
    /// Names under which the guest's keys may stand, the first found counts.
    pub names: Vec<String>,
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
    /// See [`Tools::patience`].
    pub patience_percent: u32,
}

impl Tools {
    /// How long this host waits for what is slow or fails, where it is usually waited `usual`.
    pub fn patience(&self, usual: Duration) -> Duration {
        usual * self.patience_percent / 100
    }
}

#[cfg(test)]
mod tests;
