//! Keys of the source: what the guest is called and how it is read (contract.md 1.2, 1.3). Pure.

use std::path::PathBuf;

use secrecy::ExposeSecret;

use crate::document::{Address, Document};
use crate::plan::problems::Findings;
use crate::plan::{LocalSource, Machine, Source, SshKey, general};
use crate::site::Site;
use crate::source::vsphere::address;
use crate::uri;

/// The guest's names.
pub(super) struct Names {
    /// The plain one; `None` when there are problems.
    pub plain: Option<String>,
    /// The URI that old clients sent in `vm_name`, without a password.
    pub uri: Option<String>,
    /// Every name the vault may use, plain ones included.
    pub all: Vec<String>,
}

/// Reads `vm_name`, a plain name or the URI of a vmx file.
pub(super) fn names(document: &mut Document, findings: &mut Findings) -> Names {
    let is_uri = |name: &Address| name.0.starts_with("ssh://");
    let mut names = Names { plain: None, uri: None, all: Vec::new() };
    let given = document.vm_name.take();
    if given.as_ref().is_some_and(is_uri) {
        names.uri = findings.uri("vm_name", given);
        names.all.extend(names.uri.clone());
        names.plain = names.uri.as_deref().and_then(uri::vmx_name);
        if names.plain.is_none() {
            findings.ours("vm_name: the URI does not name a vmx file".to_owned());
            return names;
        }
    } else {
        names.plain = findings.text("vm_name", given.map(|Address(name)| name));
    }
    let Some(plain) = &names.plain else {
        findings.contract("Missing vm_name");
        return names;
    };
    // It becomes an argument and a part of file names.
    if plain.starts_with('-') {
        findings.ours("vm_name must not begin with -: virt-v2v would take it for an option".to_owned());
    }
    if plain.contains(|character: char| character == '/' || character.is_control()) {
        findings.ours("vm_name must not contain / or control characters".to_owned());
    }
    names.all.push(plain.clone());
    // Only a vmx URI names the guest: the last part of vpx://host/dc/esxi is a hypervisor.
    let vmx =
        document.vmware_uri.as_ref().filter(|uri| is_uri(uri)).and_then(|Address(uri)| uri::vmx_name(uri));
    names.all.extend(vmx);
    names
}

/// Judges the keys of the transport; `None` when there are problems.
pub(super) fn source(
    document: &mut Document,
    names: &Names,
    site: &Site,
    findings: &mut Findings,
) -> Option<Source> {
    match document.transport_method.clone().as_deref() {
        None => findings.contract("No transport method specified"),
        Some("vddk") => return vddk(document, site, findings),
        Some("ssh") => return ssh(document, names, findings),
        Some("local") => return local(document, findings).map(Source::Local),
        Some(other) => findings.contract(format!("Unknown transport method: {other}")),
    }
    None
}

fn vddk(document: &mut Document, site: &Site, findings: &mut Findings) -> Option<Source> {
    let thumbprint = findings.text("vmware_fingerprint", document.vmware_fingerprint.take());
    // virt-v2v cannot do without it; the two-phase client believes the site's authorities, too.
    if thumbprint.is_none() && !general::is_two_phase(document, site) {
        findings.missing("vmware_fingerprint");
    }
    let uri = findings.uri("vmware_uri", document.vmware_uri.take());
    if uri.is_none() {
        findings.missing("vmware_uri");
    }
    let password = document.vmware_password.take();
    if password.is_none() {
        findings.missing("vmware_password");
    }
    let unchecked =
        uri.as_deref().is_some_and(|uri| address::Address::parse(uri).is_ok_and(|uri| uri.no_verify));
    if thumbprint.is_none() && unchecked && general::is_two_phase(document, site) {
        findings.ours(
            "vmware_uri says no_verify=1 and there is no vmware_fingerprint, so anybody could answer: give the fingerprint, \
             or leave no_verify=1 out"
                .to_owned(),
        );
    }
    let which = which(document, findings);
    Some(Source::Vddk {
        uri: uri?,
        thumbprint,
        ca_bundle: site.ca_bundle.clone(),
        password: password?,
        libdir: site.vddk_libdir.clone(),
        which,
    })
}

/// `vmware_moref` and `vmware_inventory_path`.
fn which(document: &mut Document, findings: &mut Findings) -> Option<Machine> {
    let moref = findings.text("vmware_moref", document.vmware_moref.take());
    let path = findings.text("vmware_inventory_path", document.vmware_inventory_path.take());
    match (moref, path) {
        (Some(_), Some(_)) => {
            findings.ours("vmware_moref and vmware_inventory_path cannot both be given".to_owned());
            None
        }
        (Some(moref), None) => {
            if !moref.chars().all(|character| character.is_ascii_alphanumeric() || "-_.".contains(character))
            {
                findings.ours(format!("vmware_moref is an id like vm-62, not {moref}"));
            }
            Some(Machine::Moref(moref))
        }
        (None, Some(path)) => {
            if !path.starts_with('/') || path.ends_with('/') {
                findings.ours(format!(
                    "vmware_inventory_path is a path like /datacenter/vm/folder/name, not {path}"
                ));
            }
            Some(Machine::Path(path))
        }
        (None, None) => None,
    }
}

fn ssh(document: &mut Document, names: &Names, findings: &mut Findings) -> Option<Source> {
    let uri = findings.uri("vmware_uri", document.vmware_uri.take()).or_else(|| names.uri.clone());
    let Some(uri) = uri else {
        findings.missing("vmware_uri");
        return None;
    };
    // Also keeps an argument from beginning with `-`. An empty one was refused before.
    if !uri.is_empty() && !uri.starts_with("ssh://") {
        findings.ours("vmware_uri must begin with ssh:// for transport_method ssh".to_owned());
    }
    Some(Source::Ssh { uri, key: ssh_key(document, findings) })
}

/// `ssh_key` and `ssh_key_file`.
pub(super) fn ssh_key(document: &mut Document, findings: &mut Findings) -> SshKey {
    let file = findings.absolute("ssh_key_file", document.ssh_key_file.take());
    match (document.ssh_key.take(), file) {
        (Some(text), _) if !text.expose_secret().trim().is_empty() => SshKey::Text(text),
        (_, Some(file)) => SshKey::File(file),
        (_, None) => SshKey::Default,
    }
}

fn local(document: &mut Document, findings: &mut Findings) -> Option<LocalSource> {
    let path = findings.absolute("source_path", document.source_path.take());
    let disks: Vec<PathBuf> = document
        .source_disks
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, disk)| {
            let key = format!("source_disks[{index}]");
            let path = findings.absolute(&key, Some(disk.clone()));
            if path.is_none() {
                findings.ours(format!("{key} is empty"));
            }
            path
        })
        .collect();
    match (path, disks.is_empty()) {
        (Some(_), false) => {
            findings.ours(
                "source_path and source_disks cannot both be given for transport_method local".to_owned(),
            );
            None
        }
        (None, true) => {
            findings.ours("transport_method local needs source_path or source_disks".to_owned());
            None
        }
        (None, false) => Some(LocalSource::Disks(disks)),
        (Some(path), true) => Some(kind(path)),
    }
}

fn kind(path: PathBuf) -> LocalSource {
    let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
    match extension.as_ref().and_then(|extension| extension.to_str()) {
        Some("xml") => LocalSource::LibvirtXml(path),
        Some("vmx") => LocalSource::Vmx(path),
        Some("ova") => LocalSource::Ova(path),
        _ => LocalSource::Disk(path),
    }
}
