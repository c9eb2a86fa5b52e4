//! Names and ids: clients give either, as the `openstack` command took either.

use serde_json::Value;

use super::catalogue::{Service, array, text};
use super::{Cloud, CloudError};
use crate::http::encoded;

/// A kind of thing that a document may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Nova.
    Flavor,
    /// Nova.
    Server,
    /// Neutron.
    Network,
    /// Neutron.
    SecurityGroup,
    /// Cinder.
    VolumeType,
}

impl Resource {
    /// As a part of a sentence.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Flavor => "flavor",
            Self::Server => "server",
            Self::Network => "network",
            Self::SecurityGroup => "security group",
            Self::VolumeType => "volume type",
        }
    }

    fn service(self) -> Service {
        match self {
            Self::Flavor | Self::Server => Service::Compute,
            Self::Network | Self::SecurityGroup => Service::Network,
            Self::VolumeType => Service::Volume,
        }
    }

    /// Path of the listing, key of one, key of many.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Flavor => ("/flavors", "flavor", "flavors"),
            Self::Server => ("/servers", "server", "servers"),
            Self::Network => ("/networks", "network", "networks"),
            Self::SecurityGroup => ("/security-groups", "security_group", "security_groups"),
            Self::VolumeType => ("/types", "volume_type", "volume_types"),
        }
    }

    /// Neutron's filter is exact; Nova's is a regular expression, and Cinder has none for types.
    fn listing(self, given: &str) -> String {
        let (path, ..) = self.words();
        match self.service() {
            Service::Network => format!("{path}?name={}", encoded(given)),
            _ => path.to_owned(),
        }
    }
}

/// What a name or id names.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolved {
    /// This id; the thing as it was shown, `Null` where only its listing was seen.
    Known {
        /// The id.
        id: String,
        /// The thing.
        shown: Value,
    },
    /// The cloud does not say: the value as it was given, and why it is used so.
    Unclear {
        /// As given.
        id: String,
        /// The reason.
        why: String,
    },
}

impl Resolved {
    /// What stands in requests.
    pub fn id(&self) -> &str {
        match self {
            Self::Known { id, .. } | Self::Unclear { id, .. } => id,
        }
    }

    /// The thing, as far as it was shown.
    pub fn shown(&self) -> &Value {
        match self {
            Self::Known { shown, .. } => shown,
            Self::Unclear { .. } => &Value::Null,
        }
    }
}

impl Cloud {
    /// The thing with this id, else the one with exactly this name. It is [`CloudError::Unknown`] only if a listing shows
    /// that there is none.
    pub async fn resolve(&self, resource: Resource, given: &str) -> Result<Resolved, CloudError> {
        let (path, one, many) = resource.words();
        let service = resource.service();
        match self.get(service, &format!("{path}/{}", encoded(given))).await {
            Ok(answer) => {
                let shown = answer.get(one).cloned().unwrap_or(Value::Null);
                // `/types/default` is the default type, whatever it is called.
                if text(&shown, "id").is_none_or(|id| id == given) {
                    return Ok(Resolved::Known { id: given.to_owned(), shown });
                }
            }
            Err(error) if error.tells_nothing() => {}
            Err(error) => return Err(error),
        }
        let project = self.project();
        let mut listing = resource.listing(given);
        loop {
            let entries = match self.list(service, &listing, many).await {
                Ok(entries) => entries,
                Err(error) if error.tells_nothing() => {
                    return Ok(Resolved::Unclear { id: given.to_owned(), why: crate::log::chain(&error) });
                }
                Err(error) => return Err(error),
            };
            match choose(resource, given, &entries, &project) {
                // An id has no such name, and a cloud may show it nowhere but in its listing.
                Err(CloudError::Unknown { .. }) if listing != path => listing = path.to_owned(),
                chosen => return Ok(Resolved::Known { id: chosen?, shown: Value::Null }),
            }
        }
    }
}

/// The id of the entry that is meant. Those of the project come first: an administrator sees everybody's.
fn choose(resource: Resource, given: &str, entries: &[Value], project: &str) -> Result<String, CloudError> {
    let id = |entry: &Value| text(entry, "id");
    let is = |entry: &&Value, key: &str| entry.get(key).and_then(Value::as_str) == Some(given);
    if entries.iter().any(|entry| is(&entry, "id")) {
        return Ok(given.to_owned());
    }
    let named: Vec<&Value> =
        entries.iter().filter(|entry| is(entry, "name") && id(entry).is_some()).collect();
    let is_own = |entry: &&&Value| {
        ["project_id", "tenant_id"].iter().any(|key| text(entry, key).is_some_and(|own| own == project))
    };
    let own: Vec<&Value> = named.iter().filter(is_own).copied().collect();
    let meant = if named.len() > 1 && !own.is_empty() { own } else { named };
    let what = resource.noun();
    match meant.as_slice() {
        [one] => id(one).ok_or_else(|| unknown(what, given, project)),
        [] => Err(unknown(what, given, project)),
        several => Err(CloudError::Ambiguous { what, name: given.to_owned(), count: several.len() }),
    }
}

fn unknown(what: &'static str, name: &str, project: &str) -> CloudError {
    CloudError::Unknown { what, name: name.to_owned(), project: project.to_owned() }
}

/// Texts of an array of an object.
pub(super) fn texts(value: &Value, key: &str) -> Vec<String> {
    array(value, key).iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_is_meant_first_then_a_name_of_the_own_project() {
        let entries = [
            json!({ "id": "1", "name": "net" }),
            json!({ "id": "2", "name": "default", "project_id": "own" }),
            json!({ "id": "3", "name": "default", "tenant_id": "other" }),
            json!({ "id": "4", "name": "twice", "project_id": "own" }),
            json!({ "id": "5", "name": "twice", "project_id": "own" }),
            json!({ "id": "6", "name": "1" }),
            json!({ "id": "7", "name": "Net" }),
        ];
        let choose = |given| choose(Resource::Network, given, &entries, "own");
        for (given, id) in [("1", "1"), ("net", "1"), ("Net", "7"), ("default", "2"), ("7", "7")] {
            assert_eq!(choose(given).unwrap(), id, "{given}");
        }
        let said = choose("twice").unwrap_err().to_string();
        assert_eq!(said, "there are 2 networks named \"twice\": give the id");
        assert_eq!(choose("ne").unwrap_err().to_string(), "there is no network \"ne\" in project own");
    }
}
