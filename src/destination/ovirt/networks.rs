//! The networks a guest can be attached to: vNIC profiles, found by their own name or by that of their network.
//!
//! Looked up before anything is copied (is every mapping good?), used when the machine gets its NICs.

use std::collections::BTreeMap;

use serde_json::Value;

use super::OvirtError;
use super::answer::{id_of, list, text};
use super::client::Engine;
use super::lookup::Cluster;
use crate::http::encoded;

/// What the engine told of them.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    /// Names by id, of those that the cluster has.
    networks: BTreeMap<String, String>,
    profiles: Vec<Profile>,
}

#[derive(Debug, Clone)]
struct Profile {
    id: String,
    name: String,
    network: String,
    /// Its NICs are those of the host itself.
    passes_through: bool,
}

impl Networks {
    /// Those of the cluster; `None`: the engine does not tell.
    pub async fn of(engine: &Engine, cluster: &Cluster) -> Result<Option<Self>, OvirtError> {
        let what = "cannot look up the networks";
        let of_cluster = match &cluster.id {
            Some(id) => engine.optional(what, &format!("clusters/{}/networks", encoded(id))).await?,
            None => None,
        };
        // Every cluster has one: where none is shown, the engine does not tell them so.
        let answer = match of_cluster.filter(|answer| shows_any(answer, "network")) {
            Some(answer) => Some(answer),
            None => engine.optional(what, "networks").await?.filter(|answer| shows_any(answer, "network")),
        };
        let profiles = engine.optional("cannot look up the vNIC profiles", "vnicprofiles").await?;
        Ok(answer.zip(profiles).and_then(|(networks, profiles)| Self::read(&networks, &profiles, cluster)))
    }

    fn read(networks: &Value, profiles: &Value, cluster: &Cluster) -> Option<Self> {
        let elsewhere = |network: &Value| match (id_of(network, "data_center"), &cluster.data_center) {
            (Some(its), Some(ours)) => its != ours,
            _ => false,
        };
        let named = |thing: &Value| Some((text(thing, "id")?.to_owned(), text(thing, "name")?.to_owned()));
        let here = list(networks, "network")?.iter().filter(|network| !elsewhere(network));
        let networks: BTreeMap<String, String> = here.filter_map(named).collect();
        let profile = |profile: &Value| {
            let (id, name) = named(profile)?;
            let network = id_of(profile, "network")?.to_owned();
            let mode = profile.get("pass_through").and_then(|pass| text(pass, "mode"));
            let passes_through = mode.is_some_and(|mode| mode != "disabled");
            networks.contains_key(&network).then_some(Profile { id, name, network, passes_through })
        };
        let profiles = list(profiles, "vnic_profile")?.iter().filter_map(profile).collect();
        Some(Self { networks, profiles })
    }

    /// The profile that a mapping's `destination` means: that of a network of this name (the one that is called the same, if it
    /// has several), a profile of this name, or an id of either.
    pub fn profile(&self, destination: &str) -> Option<&str> {
        let name_of = |profile: &Profile| self.networks.get(&profile.network).map(String::as_str);
        let rank = |profile: &Profile| match () {
            () if name_of(profile) == Some(destination) && profile.name == destination => Some(0),
            () if name_of(profile) == Some(destination) && !profile.passes_through => Some(1),
            () if profile.name == destination => Some(2),
            () if profile.id == destination => Some(3),
            () if profile.network == destination && !profile.passes_through => Some(4),
            () => None,
        };
        let ranked = self.profiles.iter().filter_map(|profile| Some((rank(profile)?, profile)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, profile)| profile.id.as_str())
    }
}

fn shows_any(answer: &Value, key: &str) -> bool {
    list(answer, key).is_some_and(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_destination_is_a_network_or_a_profile_of_the_data_center() {
        let networks = json!({"network": [
            {"id": "n1", "name": "ovirtmgmt", "data_center": {"id": "dc"}},
            {"id": "n2", "name": "lan two"},
            {"id": "n3", "name": "far", "data_center": {"id": "other"}},
            {"id": "n4", "name": "bare"},
        ]});
        let profiles = json!({"vnic_profile": [
            {"id": "p0", "name": "gold", "network": {"id": "n1"}},
            {"id": "p1", "name": "ovirtmgmt", "network": {"id": "n1"}},
            {"id": "p2", "name": "direct", "network": {"id": "n2"}, "pass_through": {"mode": "enabled"}},
            {"id": "p3", "name": "second", "network": {"id": "n2"}, "pass_through": {"mode": "disabled"}},
            {"id": "p4", "name": "far", "network": {"id": "n3"}},
        ]});
        let cluster = Cluster { data_center: Some("dc".into()), ..Cluster::default() };
        let known = Networks::read(&networks, &profiles, &cluster).unwrap();
        for (destination, profile) in [
            ("ovirtmgmt", Some("p1")),
            ("gold", Some("p0")),
            ("lan two", Some("p3")),
            ("direct", Some("p2")),
            ("p0", Some("p0")),
            ("n2", Some("p3")),
            ("far", None),
            ("bare", None),
            ("OVIRTMGMT", None),
        ] {
            assert_eq!(known.profile(destination), profile, "{destination}");
        }
        assert!(Networks::read(&json!({"x": 1}), &profiles, &cluster).is_none());
    }
}
