//! The catalogue that comes with a token: which service is where. Pure.

use serde_json::Value;

use super::version;

/// A service of OpenStack that is asked something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Cinder.
    Volume,
    /// Nova.
    Compute,
    /// Neutron.
    Network,
    /// Glance.
    Image,
}

impl Service {
    /// Types of the catalogue that mean it, the best one first. `volumev2` is another API.
    pub fn types(self) -> &'static [&'static str] {
        match self {
            Self::Volume => &["volumev3", "block-storage", "block-store", "volume"],
            Self::Compute => &["compute"],
            Self::Network => &["network"],
            Self::Image => &["image"],
        }
    }

    /// The path of the version that is spoken.
    pub fn version(self) -> &'static str {
        match self {
            Self::Volume => "v3",
            Self::Compute => "v2.1",
            Self::Network => "v2.0",
            Self::Image => "v2",
        }
    }

    /// Its name in the header `OpenStack-API-Version`, of those with microversions.
    pub fn microversion_name(self) -> Option<&'static str> {
        match self {
            Self::Volume => Some("volume"),
            Self::Compute => Some("compute"),
            Self::Network | Self::Image => None,
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    kind: String,
    interface: Option<String>,
    regions: Vec<String>,
    url: String,
}

/// Where everything is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    endpoints: Vec<Endpoint>,
}

impl Catalogue {
    /// Of the `token` of an answer of `/auth/tokens`.
    pub fn read(token: &Value) -> Self {
        let mut endpoints = Vec::new();
        for service in array(token, "catalog") {
            let kind = text(service, "type").unwrap_or_default();
            for endpoint in array(service, "endpoints") {
                let Some(url) = text(endpoint, "url") else { continue };
                let regions = ["region", "region_id"].iter().filter_map(|key| text(endpoint, key));
                endpoints.push(Endpoint {
                    kind: kind.clone(),
                    interface: text(endpoint, "interface"),
                    regions: regions.collect(),
                    url: url.trim_end_matches('/').to_owned(),
                });
            }
        }
        Self { endpoints }
    }

    /// The URL of a service. An entry that says no interface or region counts for all.
    pub fn url(&self, service: Service, interface: &str, region: Option<&str>) -> Option<&str> {
        let suits = |endpoint: &&Endpoint| {
            endpoint.interface.as_deref().is_none_or(|own| own == interface)
                && (endpoint.regions.is_empty()
                    || region.is_none_or(|region| endpoint.regions.iter().any(|own| own == region)))
        };
        // `volume` was v1, v2 and v3 in turn.
        let is_old = |url: &str| {
            service == Service::Volume
                && version::of(url).is_some_and(|is| is.starts_with("v1") || is.starts_with("v2"))
        };
        let of_kind = |kind: &&str| {
            let mut suiting = self.endpoints.iter().filter(suits);
            suiting.find(|endpoint| endpoint.kind == **kind && !is_old(&endpoint.url))
        };
        service.types().iter().find_map(of_kind).map(|endpoint| endpoint.url.as_str())
    }

    /// What there is, for a sentence.
    pub fn known(&self) -> String {
        let mut known: Vec<String> = Vec::new();
        for Endpoint { kind, interface, regions, .. } in &self.endpoints {
            let region = regions.first().map(|region| format!(" in {region}")).unwrap_or_default();
            let entry = format!("{kind} ({}{region})", interface.as_deref().unwrap_or("any"));
            if !known.contains(&entry) {
                known.push(entry);
            }
        }
        if known.is_empty() {
            "none at all: does the token belong to a project?".to_owned()
        } else {
            known.join(", ")
        }
    }
}

/// An array of an object; empty if there is none.
pub(super) fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A text of an object that is not empty.
pub(super) fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn catalogue() -> Catalogue {
        let endpoints = |base: &str| {
            json!([
                { "interface": "internal", "region": "one", "url": format!("http://internal/{base}") },
                { "interface": "public", "region_id": "one", "url": format!("http://one/{base}/") },
                { "interface": "public", "region_id": "two", "region": "two", "url": format!("http://two/{base}") },
            ])
        };
        Catalogue::read(&json!({ "catalog": [
            { "type": "volumev2", "endpoints": endpoints("volume/v2/p") },
            { "type": "block-storage", "endpoints": endpoints("block/v3/p") },
            { "type": "volumev3", "endpoints": endpoints("volume/v3/p") },
            { "type": "compute", "endpoints": endpoints("compute/v2.1") },
            { "type": "network", "endpoints": [{ "url": "http://any" }] },
            { "type": "image", "endpoints": [] },
        ] }))
    }

    #[test]
    fn type_interface_and_region_choose_the_url() {
        let catalogue = catalogue();
        for (service, interface, region, expected) in [
            (Service::Compute, "public", None, Some("http://one/compute/v2.1")),
            (Service::Compute, "public", Some("two"), Some("http://two/compute/v2.1")),
            (Service::Compute, "internal", None, Some("http://internal/compute/v2.1")),
            (Service::Compute, "admin", None, None),
            (Service::Compute, "public", Some("three"), None),
            (Service::Volume, "public", Some("one"), Some("http://one/volume/v3/p")),
            (Service::Network, "admin", Some("three"), Some("http://any")),
            (Service::Image, "public", None, None),
        ] {
            assert_eq!(
                catalogue.url(service, interface, region),
                expected,
                "{service:?} {interface} {region:?}"
            );
        }
    }

    #[test]
    fn a_volume_service_of_another_version_is_none() {
        let entry = |url: &str| json!({ "type": "volume", "endpoints": [{ "url": url }] });
        let of = |entries: Value| Catalogue::read(&json!({ "catalog": entries }));
        let url = |catalogue: &Catalogue| catalogue.url(Service::Volume, "public", None).map(str::to_owned);
        assert_eq!(url(&of(json!([entry("http://v/v1/p")]))), None);
        assert_eq!(
            url(&of(json!([entry("http://v/v2/p"), entry("http://v/v3/p")]))).as_deref(),
            Some("http://v/v3/p")
        );
        assert_eq!(url(&of(json!([entry("http://v/volume")]))).as_deref(), Some("http://v/volume"));
    }

    #[test]
    fn an_empty_catalogue_says_what_to_look_at() {
        assert!(Catalogue::read(&Value::Null).known().contains("does the token belong to a project?"));
        assert!(catalogue().known().contains("compute (public in two)"), "{}", catalogue().known());
    }
}
