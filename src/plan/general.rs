//! Keys that belong to no source and no destination (contract.md 1.2, 1.5). Pure.

use std::path::PathBuf;

use crate::document::Document;
use crate::plan::destination::Host;
use crate::plan::problems::Findings;
use crate::plan::source::Names;
use crate::plan::{DiskFormat, LuksVault, Surroundings};
use crate::site::{Layout, Site, TwoPhase};

/// `warm` and `two_phase` (contract.md 1.2).
pub(super) fn phases(document: &Document, host: Option<Host>, site: &Site, findings: &mut Findings) {
    let warm = document.warm == Some(true);
    if warm && document.two_phase == Some(false) {
        findings.contract("Cannot disable two-phase conversion when warm conversion is requested");
        return;
    }
    let key = match (warm, document.two_phase) {
        (true, _) => "warm",
        (false, Some(true)) => "two_phase",
        (false, _) => return,
    };
    match (site.two_phase, host) {
        (TwoPhase::Ignore, _) => {
            findings.warn(format!("{key} is ignored, as the site configuration says: one-phase conversion"));
        }
        (TwoPhase::Honour, Some(Host::Kubevirt)) => {
            findings.contract("This output does not support two-phase conversion");
        }
        (TwoPhase::Honour, _) => findings.ours(format!(
            "{key}: this version converts in one phase only; remove the key or set two_phase = \"ignore\" in the \
             site configuration"
        )),
    }
}

pub(super) fn output_format(given: Option<String>, findings: &mut Findings) -> Option<DiskFormat> {
    match given.as_deref() {
        None | Some("raw") => Some(DiskFormat::Raw),
        Some("qcow2") => Some(DiskFormat::Qcow2),
        Some(other) => {
            findings.contract(format!("Invalid output format '{other}', expected raw or qcow2"));
            None
        }
    }
}

/// v1 also took the name of a file in the ISO domain; there is none any more.
pub(super) fn virtio_win(given: Option<String>, findings: &mut Findings) -> Option<PathBuf> {
    let given = findings.text("virtio_win", given)?;
    if given.starts_with('/') {
        return Some(given.into());
    }
    findings.warn("virtio_win is ignored: it is not an absolute path".to_owned());
    None
}

/// Keys that are accepted and do nothing: the user should know (contract.md 1.2, 1.6).
pub(super) fn no_effect(document: &Document, findings: &mut Findings) {
    for (given, text) in [
        (
            document.install_drivers == Some(true),
            "install_drivers has no effect: virt-v2v installs the drivers it finds in virtio_win",
        ),
        (
            document.throttling.is_some(),
            "throttling is ignored: this version limits neither processor nor network",
        ),
        (
            document.resume == Some(true),
            "resume is ignored: a one-phase conversion starts from the beginning",
        ),
        (
            document.verify == Some(true),
            "verify is ignored: in a one-phase conversion virt-v2v copies the disks itself",
        ),
    ] {
        if given {
            findings.warn(text.to_owned());
        }
    }
    if document.osp_source_environment.is_some() {
        findings.ours("osp_source_environment: this version does not migrate from OpenStack yet".to_owned());
    }
}

pub(super) fn luks_vault(
    document: &mut Document,
    names: &Names,
    site: &Site,
    around: &Surroundings,
    findings: &mut Findings,
) -> LuksVault {
    let given = findings.text("luks_keys_vault", document.luks_keys_vault.take());
    let explicit = given.is_some();
    let paths = match given {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let home = around.home.as_ref().map(|home| home.join(".v2v_luks_keys_vault.json"));
            // Where clients of the v2 container mounted it (contract.md 1.5).
            let uci = (site.layout == Layout::Uci).then(|| "/var/lib/uci/luks_keys_vault.json".into());
            home.into_iter().chain(uci).collect()
        }
    };
    LuksVault { paths, explicit, names: names.all.clone() }
}
