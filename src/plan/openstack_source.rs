//! Keys of a guest that comes from an OpenStack (contract.md 1.6, 7): both documented shapes. Pure.
//!
//! One has `os-` before each key of `osp_source_environment` and the two ids beside it; the other has plain keys, with `vm_id`,
//! `conversion_vm_id` and `verify` among them.

use secrecy::{ExposeSecret, SecretString};

use super::destination::Host;
use super::problems::{Findings, without_os};
use super::{Source, source};
use crate::document::{Document, Pairs, Scalar};
use crate::site::Site;

/// The container that serves the disks, where the document names none (contract.md 1.2).
const IMAGE: &str = "v2v-conversion-host";

/// Is that where the guest comes from?
pub(super) fn is_meant(document: &Document) -> bool {
    document.osp_source_environment.is_some()
}

/// Judges them; `None` when there are problems.
pub(super) fn source(
    document: &mut Document,
    host: Option<Host>,
    site: &Site,
    findings: &mut Findings,
) -> Option<Source> {
    match document.transport_method.as_deref() {
        None => findings.contract("No transport method specified"),
        Some("ssh") => {}
        Some(other) => findings.ours(format!(
            "osp_source_environment needs transport_method ssh, not {other}: the source conversion host is reached that way"
        )),
    }
    if host.is_some_and(|host| host != Host::Openstack) {
        findings.ours(
            "osp_source_environment: a guest of an OpenStack can only go to an OpenStack: give osp_environment".to_owned(),
        );
    }
    let Pairs(pairs) = document.osp_source_environment.take().unwrap_or(Pairs(Vec::new()));
    if pairs.is_empty() {
        findings.missing("osp_source_environment");
    }
    let mut inside = Inside::default();
    for (key, Scalar(value)) in pairs {
        inside.take(&key, value, findings);
    }
    let Inside { environment, vm_id, converter_id, verify } = inside;
    let vm = document.osp_source_vm_id.take().filter(|id| !id.is_empty()).or(vm_id);
    let vm_id = findings.mandatory("osp_source_vm_id", vm);
    let converter = document.osp_source_conversion_vm_id.take().filter(|id| !id.is_empty()).or(converter_id);
    let converter_id = findings.mandatory("osp_source_conversion_vm_id", converter);
    let image = [document.uci_container_image.take(), document.uci_container.take()];
    let image = image.into_iter().flatten().find(|image| !image.is_empty());
    let image = findings.text("uci_container_image", image).unwrap_or_else(|| IMAGE.to_owned());
    if image.starts_with('-') {
        findings
            .ours("uci_container_image must not begin with -: podman would take it for an option".to_owned());
    }
    let key = source::ssh_key(document, findings);
    Some(Source::Openstack {
        environment,
        insecure: !verify.unwrap_or(document.insecure_connection != Some(true)),
        ca_bundle: site.ca_bundle.clone(),
        vm_id: vm_id?,
        converter_id: converter_id?,
        image,
        key,
    })
}

/// What stands in the environment.
#[derive(Default)]
struct Inside {
    /// As that of the destination: without `os-`, lower case, `-` between words.
    environment: Vec<(String, SecretString)>,
    vm_id: Option<String>,
    converter_id: Option<String>,
    verify: Option<bool>,
}

impl Inside {
    fn take(&mut self, key: &str, value: SecretString, findings: &mut Findings) {
        let plain = without_os(key).unwrap_or(key);
        let text = || Some(value.expose_secret().to_owned()).filter(|text| !text.is_empty());
        match plain.to_ascii_lowercase().replace('_', "-").as_str() {
            "vm-id" => self.vm_id = text(),
            "conversion-vm-id" => self.converter_id = text(),
            "verify" => {
                let no = ["false", "0", "no"].iter().any(|word| value.expose_secret().eq_ignore_ascii_case(word));
                self.verify = Some(!no);
            }
            "cloud" => findings.ours(
                "osp_source_environment: os-cloud cannot be used; give auth_url and the credentials themselves".to_owned(),
            ),
            "" => findings.ours(format!("found invalid key in osp_source_environment: {key}")),
            name => {
                findings.auth_url("osp_source_environment", name, &value);
                self.environment.push((name.to_owned(), value));
            }
        }
    }
}
