//! Keys of the destination: which one is meant, and what it needs (contract.md 1.1, 1.4). Pure.

use secrecy::SecretString;

use crate::document::{Document, List, Pairs, Scalar};
use crate::plan::problems::{Findings, without_os};
use crate::plan::{Destination, Surroundings};
use crate::site::{Layout, Site};

/// Which destination the keys mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    /// `rhv_url` or `export_domain`.
    Ovirt,
    /// `osp_environment`.
    Openstack,
    /// `output_directory`.
    Local,
    /// None of them, in a KubeVirt pod.
    Kubevirt,
}

/// Detection by the keys that are there, in the contract's order. It came before every other check.
pub(super) fn detect(
    document: &Document,
    site: &Site,
    around: &Surroundings,
    findings: &mut Findings,
) -> Option<Host> {
    let ovirt =
        [("rhv_url", document.rhv_url.is_some()), ("export_domain", document.export_domain.is_some())];
    let ovirt = ovirt.into_iter().find_map(|(key, given)| given.then_some(key));
    let openstack = document.osp_environment.is_some().then_some("osp_environment");
    if let (Some(cloud), true) = (ovirt.or(openstack), document.output_directory.is_some()) {
        findings.ours(format!("output_directory and {cloud} cannot both be given: name one destination"));
    }
    if let (Some(key), Some(_)) = (ovirt, openstack) {
        findings.warn(format!("osp_environment is ignored: {key} is given"));
    }
    if ovirt.is_some() {
        return Some(Host::Ovirt);
    }
    if openstack.is_some() {
        return Some(Host::Openstack);
    }
    if document.output_directory.is_some() {
        return Some(Host::Local);
    }
    // v2 knew a pod by this directory, v1.13 and later by the request to stay in the foreground.
    let in_pod = site.layout == Layout::Uci || document.daemonize == Some(false);
    if in_pod && around.pod_directory.is_some() {
        return Some(Host::Kubevirt);
    }
    findings.contract(
        "Cannot detect type of host: give rhv_url, export_domain, osp_environment or output_directory",
    );
    None
}

/// Judges the keys of the destination; `None` when there are problems.
pub(super) fn destination(
    host: Host,
    document: &mut Document,
    site: &Site,
    around: &Surroundings,
    findings: &mut Findings,
) -> Option<Destination> {
    match host {
        Host::Ovirt => ovirt(document, site, findings),
        Host::Openstack => openstack(document, site, around, findings),
        Host::Local => match findings.absolute("output_directory", document.output_directory.take()) {
            Some(directory) => Some(Destination::Local { directory }),
            None => {
                findings.ours("output_directory is empty".to_owned());
                None
            }
        },
        Host::Kubevirt => around.pod_directory.clone().map(|directory| Destination::Kubevirt { directory }),
    }
}

fn ovirt(document: &mut Document, site: &Site, findings: &mut Findings) -> Option<Destination> {
    let url = findings.uri("rhv_url", document.rhv_url.take());
    let domain = findings.text("export_domain", document.export_domain.take());
    let Some(url) = url else {
        return match domain {
            Some(domain) => Some(Destination::ExportDomain { domain }),
            None => {
                findings.contract("No target specified");
                None
            }
        };
    };
    if domain.is_some() {
        findings.warn("export_domain is ignored: rhv_url is given".to_owned());
    }
    let cluster = findings.mandatory("rhv_cluster", document.rhv_cluster.take());
    let password = document.rhv_password.take();
    if password.is_none() {
        findings.missing("rhv_password");
    }
    let storage = findings.mandatory("rhv_storage", document.rhv_storage.take());
    let cafile = findings.absolute("rhv_cafile", document.rhv_cafile.take());
    let conversion_host = conversion_host(document, findings);
    Some(Destination::Ovirt {
        url,
        password: password?,
        cluster: cluster?,
        storage: storage?,
        cafile: cafile.unwrap_or_else(|| site.ovirt_ca_bundle()),
        conversion_host,
    })
}

/// Bare, or as a path whose last segment it is (contract.md 1.2).
fn conversion_host(document: &mut Document, findings: &mut Findings) -> Option<String> {
    let given = findings.text("conversion_host_uuid", document.conversion_host_uuid.take())?;
    let id = given.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Disks that are copied by this program are attached to the machine that it runs on. A `KeyError` in the old program, after
/// everything else (contract.md 1.2).
pub(super) fn check_conversion_host(destination: Option<&Destination>, findings: &mut Findings) {
    if let Some(Destination::Ovirt { conversion_host: None, .. }) = destination {
        findings.missing("conversion_host_uuid");
    }
}

fn openstack(
    document: &mut Document,
    site: &Site,
    around: &Surroundings,
    findings: &mut Findings,
) -> Option<Destination> {
    let project_id =
        findings.mandatory("osp_destination_project_id", document.osp_destination_project_id.take());
    let Pairs(pairs) = document.osp_environment.take().unwrap_or(Pairs(Vec::new()));
    if pairs.is_empty() {
        findings.missing("osp_environment");
    }
    let flavor_id = findings.mandatory("osp_flavor_id", document.osp_flavor_id.take());
    // Both spellings were documented, one was read (contract.md 1.6).
    let other_spelling = document.osp_security_group_ids.take();
    let groups = document.osp_security_groups_ids.take().or(other_spelling);
    if groups.is_none() {
        findings.missing("osp_security_groups_ids");
    }
    let server_id = findings.mandatory("osp_server_id", document.osp_server_id.take());
    let environment = environment(pairs, findings);
    let security_groups_ids = match groups {
        Some(List::Items(groups)) => Some(groups),
        Some(List::NotAList) => {
            findings.contract("osp_security_groups_ids must be a list");
            None
        }
        None => None,
    };
    let volume_type_id = findings.text("osp_volume_type_id", document.osp_volume_type_id.take());
    let guest_id = findings.text("osp_guest_id", document.osp_guest_id.take());
    Some(Destination::Openstack {
        environment,
        server_id: server_id?,
        guest_id: guest_id.unwrap_or_else(|| around.guest_id.clone()),
        project_id: project_id?,
        flavor_id: flavor_id?,
        security_groups_ids: security_groups_ids?,
        volume_type_id,
        ca_bundle: site.ca_bundle.clone(),
    })
}

/// Keys without their `os-`, as virt-v2v's options spell them: lower case, `-` between words (contract.md 4).
fn environment(pairs: Vec<(String, Scalar)>, findings: &mut Findings) -> Vec<(String, SecretString)> {
    let mut environment = Vec::with_capacity(pairs.len());
    for (key, Scalar(value)) in pairs {
        let Some(plain) = without_os(&key).filter(|plain| !plain.is_empty() && !plain.contains('\0')) else {
            findings.contract(format!("found invalid key in Openstack environment: {key}"));
            continue;
        };
        let key = plain.to_ascii_lowercase().replace('_', "-");
        findings.auth_url("osp_environment", &key, &value);
        if key == "cloud" {
            findings.ours(
                "osp_environment: os-cloud cannot be used; give os-auth_url and the credentials themselves"
                    .to_owned(),
            );
        }
        environment.push((key, value));
    }
    environment
}
