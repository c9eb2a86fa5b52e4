//! Keys that belong to no source and no destination (contract.md 1.2, 1.5). Pure.

use std::path::PathBuf;

use crate::document::{Document, Limit, Throttling, Verify};
use crate::job;
use crate::plan::destination::Host;
use crate::plan::problems::Findings;
use crate::plan::source::Names;
use crate::plan::{DiskFormat, LuksVault, Machine, Source, Surroundings, TwoPhase, warm};
use crate::site::{self, Layout, Site};
use crate::throttle::{Asked, Limits};

/// `warm`, `two_phase` and the keys that go with them (contract.md 1.2).
///
/// `moves`: the guest only changes its OpenStack, which is always such a conversion, but for the conversion.
pub(super) fn phases(
    document: &mut Document,
    moves: bool,
    host: Option<Host>,
    site: &Site,
    around: &Surroundings,
    findings: &mut Findings,
) -> Option<TwoPhase> {
    let is_warm = document.warm == Some(true);
    if is_warm && moves {
        findings.ours("warm: a guest of an OpenStack is copied when it is shut down: remove warm".to_owned());
        return None;
    }
    let keys = warm::keys(document, findings);
    if is_warm && document.two_phase == Some(false) {
        findings.contract("Cannot disable two-phase conversion when warm conversion is requested");
        return None;
    }
    let key = match (is_warm, document.two_phase) {
        _ if moves => "osp_source_environment",
        (true, _) => "warm",
        (false, Some(true)) => "two_phase",
        (false, _) => return None,
    };
    match (site.two_phase, host) {
        _ if moves => {}
        (site::TwoPhase::Ignore, _) => {
            findings.warn(format!("{key} is ignored, as the site configuration says: one-phase conversion"));
            return None;
        }
        (site::TwoPhase::Honour, Some(Host::Kubevirt)) => {
            findings.contract("This output does not support two-phase conversion");
            return None;
        }
        (site::TwoPhase::Honour, Some(Host::Ovirt)) if document.rhv_url.is_none() => findings.ours(format!(
            "{key}: disks cannot be copied into an export_domain; remove the key or give rhv_url"
        )),
        (site::TwoPhase::Honour, Some(Host::Ovirt | Host::Openstack)) => {
            // In two phases v2 always made raw ones (contract.md 4).
            if document.output_format.as_deref() == Some("qcow2") {
                findings
                    .warn(format!("output_format qcow2 is ignored: with {key} the disks of a cloud are raw"));
            }
        }
        (site::TwoPhase::Honour, Some(_) | None) => {}
    }
    if is_warm {
        warm::go_together(document, &keys, findings);
    }
    let verify = match document.verify.take() {
        None => true,
        Some(Verify(word)) if word == "full" => true,
        Some(Verify(word)) if word == "off" => false,
        Some(Verify(word)) => {
            findings.ours(format!("verify: {word} is neither full nor off"));
            true
        }
    };
    let resume = findings.text("resume", document.resume.take());
    if resume.as_deref().is_some_and(|tag| !job::is_tag(tag)) {
        findings.ours("resume must be the tag of an earlier job, like 20260131T235959-4711".to_owned());
    }
    Some(TwoPhase {
        convert: !moves,
        verify,
        resume,
        programs: around.two_phase_programs.clone(),
        warm: is_warm.then_some(keys.warm),
        shutdown: keys.shutdown,
        keep_change_tracking: document.keep_change_tracking == Some(true),
    })
}

/// Will this program copy the disks? What [`phases`] decides, for those who are asked before.
pub(super) fn is_two_phase(document: &Document, site: &Site) -> bool {
    let asked = document.two_phase.unwrap_or(document.warm == Some(true));
    asked && site.two_phase == site::TwoPhase::Honour
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
pub(super) fn no_effect(
    document: &Document,
    source: Option<&Source>,
    two_phase: bool,
    findings: &mut Findings,
) {
    let by_name = "is ignored: in a one-phase conversion virt-v2v looks for the machine by its name";
    for (key, unread) in [
        ("vmware_moref", document.vmware_moref.is_some()),
        ("vmware_inventory_path", document.vmware_inventory_path.is_some()),
    ] {
        if unread {
            findings.warn(format!("{key} is ignored: it is for transport_method vddk"));
        }
    }
    match source {
        Some(Source::Vddk { which: Some(Machine::Moref(_)), .. }) if !two_phase => {
            findings.warn(format!("vmware_moref {by_name}"));
        }
        Some(Source::Vddk { which: Some(Machine::Path(_)), .. }) if !two_phase => {
            findings.warn(format!("vmware_inventory_path {by_name}"));
        }
        _ => {}
    }
    for (given, text) in [
        (
            document.install_drivers == Some(true),
            "install_drivers has no effect: virt-v2v installs the drivers it finds in virtio_win",
        ),
        (
            document.resume.is_some() && !two_phase,
            "resume is ignored: a one-phase conversion starts from the beginning",
        ),
        (
            document.verify == Some(Verify("full".to_owned())) && !two_phase,
            "verify is ignored: in a one-phase conversion virt-v2v copies the disks itself",
        ),
    ] {
        if given {
            findings.warn(text.to_owned());
        }
    }
}

/// `throttling`. A value that is none does not stop the job: the old program said so and went on (contract.md 8.1).
pub(super) fn limits(given: Option<Throttling>, findings: &mut Findings) -> Limits {
    let Some(Throttling(keys)) = given else { return Limits::default() };
    let text = |limit: &Option<Limit>| limit.as_ref().map(|limit| limit.0.clone());
    let asked = Asked::from_texts(text(&keys.cpu).as_deref(), text(&keys.network).as_deref());
    asked.problems.iter().for_each(|problem| findings.warn(problem.to_string()));
    asked.limits
}

/// virt-v2v takes a network limit only if it was told at its start where to look for one. Told always, but for the
/// clouds in layout `uci`: there the arguments are those of v2, which had no throttling (contract.md 0, 4), unless the
/// document speaks of it.
pub(super) fn limits_expected(given: bool, host: Option<Host>, site: &Site) -> bool {
    given || site.layout == Layout::Job || matches!(host, Some(Host::Local))
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
