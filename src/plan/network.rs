//! `network_mappings` (contract.md 1.2, 1.4). Pure.

use crate::document::{List, Mapping};
use crate::plan::NetworkMapping;
use crate::plan::problems::Findings;

/// The mappings in the document's order; `None` when there are problems.
pub(super) fn mappings(given: Option<List<Mapping>>, findings: &mut Findings) -> Option<Vec<NetworkMapping>> {
    let items = match given {
        None => return Some(Vec::new()),
        Some(List::Items(items)) => items,
        Some(List::NotAList) => {
            findings.contract("\"network_mappings\" must be an array");
            return None;
        }
    };
    let mut mappings = Vec::with_capacity(items.len());
    let mut complete = true;
    for (index, Mapping(item)) in items.into_iter().enumerate() {
        let mut text = |key: &str, value| findings.text(&format!("network_mappings[{index}].{key}"), value);
        let source = text("source", item.source);
        let destination = text("destination", item.destination);
        let mac_address = text("mac_address", item.mac_address);
        let ip_address = text("ip_address", item.ip_address);
        match (source, destination) {
            (Some(source), Some(destination)) => {
                mappings.push(NetworkMapping { source, destination, mac_address, ip_address });
            }
            _ => {
                findings.contract("Both \"source\" and \"destination\" must be provided in network mapping");
                complete = false;
            }
        }
    }
    complete.then_some(mappings)
}

/// OpenStack makes a port for each mapping, so each needs its NIC.
pub(super) fn check_macs(mappings: Option<&[NetworkMapping]>, findings: &mut Findings) {
    if mappings.is_some_and(|mappings| mappings.iter().any(|mapping| mapping.mac_address.is_none())) {
        findings.contract("Missing mac address in one of network mappings");
    }
}
