//! Neutron's ports, and the subnets that decide which address one may have.

use serde_json::{Value, json};

use super::catalogue::{Service, text};
use super::resolve::texts;
use super::wait::once;
use super::{Cloud, CloudError};
use crate::http::encoded;

/// A port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// Its network.
    pub network: String,
    /// The mark of the job that made it.
    pub description: String,
    /// The server that has it; empty: none.
    pub device: String,
    /// Its security groups.
    pub security_groups: Vec<String>,
}

impl Port {
    fn read(value: &Value) -> Option<Self> {
        let word = |key| text(value, key).unwrap_or_default();
        Some(Self {
            id: text(value, "id")?,
            name: word("name"),
            mac: word("mac_address").to_ascii_lowercase(),
            network: word("network_id"),
            description: word("description"),
            device: word("device_id"),
            security_groups: texts(value, "security_groups"),
        })
    }
}

/// A port that is to be made.
#[derive(Debug, Clone, Default)]
pub struct NewPort {
    /// Its name.
    pub name: String,
    /// Id of its network.
    pub network: String,
    /// Its MAC address.
    pub mac: Option<String>,
    /// The address it keeps.
    pub fixed_ip: Option<String>,
    /// Ids of its security groups.
    pub security_groups: Vec<String>,
}

impl NewPort {
    fn body(&self, mark: &str) -> Value {
        let mut port = json!({
            "name": self.name, "network_id": self.network, "admin_state_up": true, "description": mark,
        });
        if let Some(mac) = &self.mac {
            port["mac_address"] = json!(mac);
        }
        if let Some(ip) = &self.fixed_ip {
            port["fixed_ips"] = json!([{ "ip_address": ip }]);
        }
        if !self.security_groups.is_empty() {
            port["security_groups"] = json!(self.security_groups);
        }
        json!({ "port": port })
    }
}

impl Cloud {
    /// A port; `None` if there is none that this project sees.
    pub async fn port_if_any(&self, id: &str) -> Result<Option<Port>, CloudError> {
        match self.get(Service::Network, &format!("/ports/{}", encoded(id))).await {
            Ok(answer) => Ok(answer.get("port").and_then(Port::read)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The port of this name with this mark.
    pub async fn port_marked(&self, name: &str, mark: &str) -> Result<Option<Port>, CloudError> {
        let path = format!("/ports?name={}", encoded(name));
        let entries = self.list(Service::Network, &path, "ports").await?;
        let mut ports = entries.iter().filter_map(Port::read);
        Ok(ports.find(|port| port.description == mark))
    }

    /// Any port with this mark, whatever its name.
    pub async fn port_described(&self, mark: &str) -> Result<Option<Port>, CloudError> {
        let entries = self.list(Service::Network, "/ports", "ports").await?;
        Ok(entries.iter().filter_map(Port::read).find(|port| port.description == mark))
    }

    /// Makes a port with this mark; one that is there already is taken if it was `begun` before.
    pub async fn create_port(&self, new: &NewPort, mark: &str, begun: bool) -> Result<Port, CloudError> {
        let body = new.body(mark);
        once(
            begun,
            async || self.port_marked(&new.name, mark).await,
            async || {
                let answer = match self.post(Service::Network, "/ports", &body).await {
                    // Descriptions are an extension (standard-attr-description).
                    Err(error) if is_without_descriptions(&error) => {
                        let mut bare = body.clone();
                        bare["port"].as_object_mut().map(|port| port.remove("description"));
                        self.post(Service::Network, "/ports", &bare).await?
                    }
                    answered => answered?,
                };
                let read = answer.get("port").and_then(Port::read);
                read.ok_or_else(|| CloudError::Shape {
                    asked: "POST /ports".to_owned(),
                    what: "a port".to_owned(),
                })
            },
        )
        .await
    }

    /// Removes a port. Whether there was one. Who calls this has looked whose it is.
    pub async fn remove_port(&self, id: &str) -> Result<bool, CloudError> {
        self.delete(Service::Network, &format!("/ports/{}", encoded(id))).await
    }

    /// The ranges of a network's subnets, `10.0.0.0/24`.
    pub async fn subnets(&self, network: &str) -> Result<Vec<String>, CloudError> {
        let path = format!("/subnets?network_id={}", encoded(network));
        let entries = self.list(Service::Network, &path, "subnets").await?;
        let of_network =
            entries.iter().filter(|subnet| text(subnet, "network_id").is_none_or(|own| own == network));
        Ok(of_network.filter_map(|subnet| text(subnet, "cidr")).collect())
    }
}

/// Neutron's refusal of an attribute that it does not know.
fn is_without_descriptions(error: &CloudError) -> bool {
    error.status() == Some(400) && crate::log::chain(error).contains("'description'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_what_was_asked_for_and_no_more() {
        let new = NewPort {
            name: "vm_port_0".into(),
            network: "n".into(),
            mac: Some("00:50:56:00:00:01".into()),
            fixed_ip: Some("10.0.0.7".into()),
            security_groups: vec!["g".into()],
        };
        let expected = json!({ "port": {
            "name": "vm_port_0", "network_id": "n", "admin_state_up": true, "description": "m",
            "mac_address": "00:50:56:00:00:01", "fixed_ips": [{ "ip_address": "10.0.0.7" }], "security_groups": ["g"],
        } });
        assert_eq!(new.body("m"), expected);
        let bare = NewPort { fixed_ip: None, security_groups: vec![], ..new }.body("m");
        assert!(bare["port"].get("fixed_ips").is_none() && bare["port"].get("security_groups").is_none());
    }
}
