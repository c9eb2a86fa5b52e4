//! Nova's servers: looked at, made, waited for, removed. What they have attached is [`super::attachments`]'.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::catalogue::{Service, array, text};
use super::version::Microversion;
use super::volumes::{is_busy, pairs};
use super::wait::{Look, once, until};
use super::{Cloud, CloudError, MARK};
use crate::http::encoded;

/// Since then a server may be asked for without any network.
const NETWORKS_NONE: Microversion = Microversion::new(2, 37);
/// Since then the id of an image stands in the answer.
const IMAGE_ID: Microversion = Microversion::new(2, 45);

/// A server, as far as its cloud shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// E.g. `ACTIVE`; empty if it was not said.
    pub status: String,
    /// What it is busy with.
    pub task: Option<String>,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// Why it is in `ERROR`.
    pub fault: Option<String>,
    /// Ids of its volumes.
    pub volumes: Vec<String>,
    /// The image it was booted from; `None`: from a volume.
    pub image: Option<String>,
    /// Id of its flavor, where that is told.
    pub flavor: Option<String>,
    /// `accessIPv4`.
    pub access_ipv4: Option<String>,
    /// All its addresses.
    pub addresses: Vec<String>,
    /// The project that owns it.
    pub project: Option<String>,
    /// The device it boots from, e.g. `/dev/vda`.
    pub root_device: Option<String>,
}

impl Server {
    /// From JSON: the `server` of an answer or an entry of a listing.
    pub fn read(value: &Value) -> Option<Self> {
        let inner = |key: &str, inner: &str| value.get(key).and_then(|value| text(value, inner));
        let networks = value.get("addresses").and_then(Value::as_object);
        let addresses =
            networks.into_iter().flatten().flat_map(|(_, list)| list.as_array().into_iter().flatten());
        // Those that can be reached from outside come first.
        let mut addresses: Vec<&Value> = addresses.collect();
        addresses.sort_by_key(|address| text(address, "OS-EXT-IPS:type").as_deref() != Some("floating"));
        let volumes = array(value, "os-extended-volumes:volumes_attached");
        Some(Self {
            id: text(value, "id")?,
            name: text(value, "name").unwrap_or_default(),
            status: text(value, "status").unwrap_or_default().to_ascii_uppercase(),
            task: text(value, "OS-EXT-STS:task_state"),
            metadata: pairs(value.get("metadata")),
            fault: inner("fault", "message"),
            volumes: volumes.iter().filter_map(|volume| text(volume, "id")).collect(),
            image: inner("image", "id"),
            flavor: inner("flavor", "id"),
            access_ipv4: text(value, "accessIPv4"),
            addresses: addresses.into_iter().filter_map(|address| text(address, "addr")).collect(),
            project: text(value, "tenant_id").or_else(|| text(value, "project_id")),
            root_device: text(value, "OS-EXT-SRV-ATTR:root_device_name"),
        })
    }

    /// The mark of the job that made it.
    pub fn mark(&self) -> Option<&str> {
        self.metadata.get(MARK).map(String::as_str)
    }
}

/// A server that is to be made of volumes.
#[derive(Debug, Clone, Default)]
pub struct NewServer {
    /// Its name.
    pub name: String,
    /// Id of its flavor.
    pub flavor: String,
    /// Its volumes in order; it boots from the first.
    pub volumes: Vec<String>,
    /// Ids of its ports in order.
    pub ports: Vec<String>,
    /// Names or ids; they count for networks without ports of their own.
    pub security_groups: Vec<String>,
}

impl NewServer {
    /// `networks_none`: it may be said that there are none.
    fn body(&self, mark: &str, networks_none: bool) -> Value {
        let disk = |(index, volume): (usize, &String)| {
            json!({
                "boot_index": if index == 0 { 0 } else { -1 },
                "uuid": volume,
                "source_type": "volume",
                "destination_type": "volume",
                "delete_on_termination": false,
            })
        };
        let mut server = json!({
            "name": self.name,
            "flavorRef": self.flavor,
            "block_device_mapping_v2": self.volumes.iter().enumerate().map(disk).collect::<Vec<_>>(),
            "metadata": { MARK: mark },
            "min_count": 1,
            "max_count": 1,
        });
        if !self.ports.is_empty() {
            server["networks"] = self.ports.iter().map(|port| json!({ "port": port })).collect();
        } else if networks_none {
            server["networks"] = json!("none");
        }
        if !self.security_groups.is_empty() {
            let groups = self.security_groups.iter().map(|group| json!({ "name": group }));
            server["security_groups"] = groups.collect();
        }
        json!({ "server": server })
    }
}

/// What neither runs a guest nor writes to its disks.
const HARMLESS: [&str; 12] = [
    "attach_volume",
    "detach_volume",
    "attach_interface",
    "detach_interface",
    "createImage",
    "createBackup",
    "lock",
    "unlock",
    "pause",
    "suspend",
    "stop",
    "trigger_crash_dump",
];

/// The newest of the actions that nova lists, but for [`HARMLESS`] ones.
fn last_change(answer: &Value) -> Option<String> {
    let known = array(answer, "instanceActions").iter().filter_map(|action| {
        let name = text(action, "action")?;
        let is_harmless = HARMLESS.contains(&name.as_str());
        let change = (text(action, "start_time"), format!("{name} {}", text(action, "request_id")?));
        (!is_harmless).then_some(change)
    });
    // Nova lists the newest first; of two at one time the last maximum is taken.
    let known: Vec<_> = known.collect();
    known.into_iter().rev().max_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, change)| change)
}

fn path(id: &str) -> String {
    format!("/servers/{}", encoded(id))
}

impl Cloud {
    /// A server.
    pub async fn server(&self, id: &str) -> Result<Server, CloudError> {
        let path = path(id);
        let answer = self.get(Service::Compute, &path).await?;
        let read = answer.get("server").and_then(Server::read);
        read.ok_or_else(|| CloudError::Shape { asked: format!("GET {path}"), what: "a server".to_owned() })
    }

    /// The same; `None` if there is none that this project sees.
    pub async fn server_if_any(&self, id: &str) -> Result<Option<Server>, CloudError> {
        match self.server(id).await {
            Ok(server) => Ok(Some(server)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last thing done to a server after which its disks may be others, e.g. `start req-1f5a...`; `None` where its
    /// cloud does not tell (it is a matter of its policy).
    pub async fn last_change(&self, id: &str) -> Result<Option<String>, CloudError> {
        let path = format!("{}/os-instance-actions", path(id));
        match self.get(Service::Compute, &path).await {
            Ok(answer) => Ok(last_change(&answer)),
            Err(error) if error.status().is_some_and(|status| status < 500 || status == 501) => {
                tracing::debug!(
                    "whether server {id} runs meanwhile cannot be told: {}",
                    crate::log::chain(&error)
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// All servers of the project: ids and names only. Nova's filter of names is a regular expression, so it is not used.
    pub async fn servers(&self) -> Result<Vec<Server>, CloudError> {
        let entries = self.list(Service::Compute, "/servers", "servers").await?;
        Ok(entries.iter().filter_map(Server::read).collect())
    }

    /// The server with this mark.
    pub async fn server_marked(&self, mark: &str) -> Result<Option<Server>, CloudError> {
        let entries = self.list_whole(Service::Compute, "/servers", "server", "servers").await?;
        Ok(entries.iter().filter_map(Server::read).find(|server| server.mark() == Some(mark)))
    }

    /// Makes a server with this mark, and gives its id; one that is there already is taken if it was `begun` before.
    pub async fn create_server(
        &self,
        new: &NewServer,
        mark: &str,
        begun: bool,
    ) -> Result<String, CloudError> {
        let none = match new.ports.is_empty() {
            true => self.microversion(Service::Compute, NETWORKS_NONE).await,
            false => None,
        };
        let body = new.body(mark, none.is_some());
        let find = async || Ok(self.server_marked(mark).await?.map(|server| server.id));
        once(begun, find, async || {
            let answer = self.json(Method::POST, Service::Compute, none, "/servers", Some(&body)).await?;
            let id = answer.get("server").and_then(|server| text(server, "id"));
            id.ok_or_else(|| CloudError::Shape {
                asked: "POST /servers".to_owned(),
                what: "a server".to_owned(),
            })
        })
        .await
    }

    /// Waits until a server is in this state, and at rest. `ERROR` ends it, with the server's words; one that shows no state
    /// is not waited for.
    pub async fn server_in(&self, id: &str, wanted: &str, patience: Duration) -> Result<Server, CloudError> {
        until("server", id, wanted, patience, async || {
            let server = self.server(id).await?;
            match server.status.as_str() {
                status if status == wanted && server.task.is_none() => Ok(Look::Done(server)),
                "" => Ok(Look::Done(server)),
                "ERROR" | "DELETED" => {
                    let words = server.fault.map(|fault| format!(": {fault}")).unwrap_or_default();
                    Err(CloudError::State { what: "server", id: id.to_owned(), status: server.status, words })
                }
                _ => Ok(Look::Not(server.status)),
            }
        })
        .await
    }

    /// Removes a server and waits until it is gone. Whether there was one. Who calls this has looked whose it is.
    pub async fn remove_server(&self, id: &str, patience: Duration) -> Result<bool, CloudError> {
        let mut asked = false;
        until("server", id, "gone", patience, async || {
            let Some(server) = self.server_if_any(id).await? else { return Ok(Look::Done(asked)) };
            match server.status.as_str() {
                "DELETED" => return Ok(Look::Done(asked)),
                // Kept for a while by its cloud, volumes and all.
                "SOFT_DELETED" => {
                    let body = json!({ "forceDelete": null });
                    self.post(Service::Compute, &format!("{}/action", path(id)), &body).await?;
                }
                _ if asked => {}
                _ => match self.delete(Service::Compute, &path(id)).await {
                    Ok(true) => asked = true,
                    Ok(false) => return Ok(Look::Done(asked)),
                    Err(error) if is_busy(&error) => {
                        return Ok(Look::Not(crate::log::chain(&error)));
                    }
                    Err(error) => return Err(error),
                },
            }
            Ok(Look::Not(server.status))
        })
        .await
    }

    /// An image of a server's own disk, begun: its id. It is found again by its mark, a property
    /// ([`Cloud::image_marked`]).
    pub async fn create_server_image(
        &self,
        id: &str,
        name: &str,
        mark: &str,
        begun: bool,
    ) -> Result<String, CloudError> {
        let microversion = self.microversion(Service::Compute, IMAGE_ID).await;
        let metadata = Map::from_iter([(MARK.to_owned(), json!(mark))]);
        let body = json!({ "createImage": { "name": name, "metadata": metadata } });
        let find = async || Ok(self.image_marked(mark).await?.map(|image| image.id));
        once(begun, find, async || {
            let path = format!("{}/action", path(id));
            let answer =
                self.answer(Method::POST, Service::Compute, microversion, &path, Some(&body)).await?;
            let said = answer.json().ok().and_then(|answer| text(&answer, "image_id"));
            let location = answer.headers.get("location").and_then(|location| location.to_str().ok());
            let last = location.and_then(|location| location.trim_end_matches('/').rsplit('/').next());
            said.or_else(|| last.filter(|last| !last.is_empty()).map(str::to_owned)).ok_or_else(|| {
                CloudError::Shape { asked: format!("POST {path}"), what: "the id of an image".to_owned() }
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_boots_from_its_first_volume_and_keeps_all() {
        let new = NewServer {
            name: "vm".into(),
            flavor: "f".into(),
            volumes: vec!["a".into(), "b".into()],
            ports: vec!["p".into()],
            security_groups: vec!["g".into()],
        };
        let body = new.body("m", true);
        let server = &body["server"];
        assert_eq!(server["networks"], json!([{ "port": "p" }]));
        assert_eq!(server["security_groups"], json!([{ "name": "g" }]));
        assert_eq!(server["metadata"], json!({ MARK: "m" }));
        let disks = server["block_device_mapping_v2"].as_array().unwrap();
        let seen: Vec<_> =
            disks.iter().map(|disk| (disk["uuid"].as_str().unwrap(), disk["boot_index"].as_i64())).collect();
        assert_eq!(seen, [("a", Some(0)), ("b", Some(-1))]);
        assert!(
            disks
                .iter()
                .all(|disk| disk["delete_on_termination"] == false && disk["source_type"] == "volume")
        );
        let alone = NewServer { ports: vec![], ..new };
        assert_eq!(alone.body("m", true)["server"]["networks"], "none");
        assert_eq!(alone.body("m", false)["server"].get("networks"), None);
    }

    #[test]
    fn what_ran_or_changed_a_server_is_told_from_what_did_not() {
        let action = |name: &str, second: u32| {
            json!({ "action": name, "request_id": format!("req-{second}"),
                "start_time": format!("2026-01-01T00:00:{second:02}.000000") })
        };
        let last = |actions: Vec<Value>| last_change(&json!({ "instanceActions": actions }));
        let quiet = vec![action("detach_volume", 9), action("stop", 8), action("create", 1)];
        assert_eq!(last(quiet.clone()).as_deref(), Some("create req-1"));
        let ran = [vec![action("stop", 11), action("start", 10)], quiet.clone()].concat();
        assert_eq!(last(ran.clone()).as_deref(), Some("start req-10"));
        // In another order too.
        assert_eq!(last(ran.into_iter().rev().collect()).as_deref(), Some("start req-10"));
        // What this program does not know counts.
        assert_eq!(last([vec![action("fly", 12)], quiet].concat()).as_deref(), Some("fly req-12"));
        assert_eq!(last(vec![action("attach_volume", 1)]), None);
        assert_eq!(last_change(&json!({})), None);
    }

    #[test]
    fn a_server_is_read_from_whatever_is_shown() {
        let server = Server::read(&json!({
            "id": "s", "status": "error", "fault": { "message": "No valid host" }, "image": "", "flavor": { "id": "f" },
            "addresses": { "net": [{ "addr": "10.0.0.7" }, { "addr": "fd00::7" }] }, "accessIPv4": "",
            "os-extended-volumes:volumes_attached": [{ "id": "v" }], "metadata": { MARK: "m" },
        }))
        .unwrap();
        assert_eq!((server.status.as_str(), server.fault.as_deref()), ("ERROR", Some("No valid host")));
        assert_eq!(server.addresses, ["10.0.0.7", "fd00::7"]);
        assert_eq!((server.image, server.flavor.as_deref(), server.access_ipv4), (None, Some("f"), None));
        assert_eq!(server.volumes, ["v"]);
        assert_eq!(Server::read(&json!({ "name": "s" })), None);
    }
}
