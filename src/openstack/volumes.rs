//! Cinder's volumes: made, waited for, told what they are, removed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::catalogue::{Service, array, text};
use super::wait::{Look, once, until};
use super::{Cloud, CloudError, MARK};
use crate::http::encoded;

/// A volume, as far as its cloud shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// Its name; may be empty.
    pub name: String,
    /// E.g. `available`; empty if it was not said.
    pub status: String,
    /// In GiB.
    pub size: u64,
    /// May a server boot from it?
    pub bootable: bool,
    /// Its description.
    pub description: Option<String>,
    /// Name of its type.
    pub kind: Option<String>,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// The properties of the image it is taken for.
    pub image_metadata: BTreeMap<String, String>,
    /// Where it is attached.
    pub attachments: Vec<AttachedTo>,
    /// The project that owns it.
    pub project: Option<String>,
    /// When it was made, in the server's words.
    pub created_at: Option<String>,
}

/// A server that has a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachedTo {
    /// The server.
    pub server: String,
    /// E.g. `/dev/vdb`; a hint only.
    pub device: Option<String>,
}

impl Volume {
    /// From JSON: the `volume` of an answer or an entry of a listing.
    pub fn read(value: &Value) -> Option<Self> {
        let attachments = array(value, "attachments").iter().filter_map(|attachment| {
            Some(AttachedTo { server: text(attachment, "server_id")?, device: text(attachment, "device") })
        });
        let bootable = value.get("bootable");
        Some(Self {
            id: text(value, "id")?,
            name: text(value, "name").unwrap_or_default(),
            status: text(value, "status").unwrap_or_default().to_ascii_lowercase(),
            size: value.get("size").and_then(Value::as_u64).unwrap_or_default(),
            // Cinder says it as a text.
            bootable: bootable.is_some_and(|bootable| {
                bootable.as_bool() == Some(true) || bootable.as_str() == Some("true")
            }),
            description: text(value, "description"),
            kind: text(value, "volume_type"),
            metadata: pairs(value.get("metadata")),
            image_metadata: pairs(value.get("volume_image_metadata")),
            attachments: attachments.collect(),
            project: text(value, "os-vol-tenant-attr:tenant_id").or_else(|| text(value, "project_id")),
            created_at: text(value, "created_at"),
        })
    }

    /// The mark of the job that made it.
    pub fn mark(&self) -> Option<&str> {
        self.metadata.get(MARK).map(String::as_str)
    }

    /// Attached to another server than this one?
    pub fn is_attached_elsewhere(&self, server: &str) -> bool {
        self.attachments.iter().any(|attachment| attachment.server != server)
    }
}

/// Texts of an object.
pub(super) fn pairs(value: Option<&Value>) -> BTreeMap<String, String> {
    let object = value.and_then(Value::as_object);
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    object.into_iter().flatten().filter_map(text).collect()
}

/// A volume that is to be made.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// In GiB.
    pub size: u64,
    /// Name or id of its type.
    pub kind: Option<String>,
    /// What stands on it besides the mark.
    pub metadata: Vec<(String, String)>,
    /// Made of this snapshot.
    pub snapshot: Option<String>,
    /// Made of this image.
    pub image: Option<String>,
    /// Made of this volume.
    pub volume: Option<String>,
}

impl NewVolume {
    fn body(&self, mark: &str) -> Value {
        let mut metadata = Map::new();
        metadata.insert(MARK.to_owned(), json!(mark));
        metadata.extend(self.metadata.iter().map(|(key, value)| (key.clone(), json!(value))));
        let mut volume = json!({
            "name": self.name, "description": self.description, "size": self.size, "metadata": metadata,
        });
        let more = [
            ("volume_type", &self.kind),
            ("snapshot_id", &self.snapshot),
            ("imageRef", &self.image),
            ("source_volid", &self.volume),
        ];
        for (key, value) in more {
            if let Some(value) = value {
                volume[key] = json!(value);
            }
        }
        json!({ "volume": volume })
    }
}

fn path(id: &str) -> String {
    format!("/volumes/{}", encoded(id))
}

/// The answer's volume, or what it lacks.
fn volume(answer: &Value, asked: &str) -> Result<Volume, CloudError> {
    let read = answer.get("volume").and_then(Volume::read);
    read.ok_or_else(|| CloudError::Shape { asked: asked.to_owned(), what: "a volume".to_owned() })
}

impl Cloud {
    /// A volume.
    pub async fn volume(&self, id: &str) -> Result<Volume, CloudError> {
        let path = path(id);
        volume(&self.get(Service::Volume, &path).await?, &format!("GET {path}"))
    }

    /// The same; `None` if there is none that this project sees.
    pub async fn volume_if_any(&self, id: &str) -> Result<Option<Volume>, CloudError> {
        match self.volume(id).await {
            Ok(volume) => Ok(Some(volume)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All volumes of the project.
    pub async fn volumes(&self) -> Result<Vec<Volume>, CloudError> {
        let entries = self.list_whole(Service::Volume, "/volumes", "volume", "volumes").await?;
        Ok(entries.iter().filter_map(Volume::read).collect())
    }

    /// The volume with this mark.
    pub async fn volume_marked(&self, mark: &str) -> Result<Option<Volume>, CloudError> {
        Ok(self.volumes().await?.into_iter().find(|volume| volume.mark() == Some(mark)))
    }

    /// Makes a volume with this mark; one that is there already is taken if it was `begun` before.
    pub async fn create_volume(
        &self,
        new: &NewVolume,
        mark: &str,
        begun: bool,
    ) -> Result<Volume, CloudError> {
        let body = new.body(mark);
        once(
            begun,
            async || self.volume_marked(mark).await,
            async || volume(&self.post(Service::Volume, "/volumes", &body).await?, "POST /volumes"),
        )
        .await
    }

    /// Waits until a volume is in this state. A state of error ends it.
    pub async fn volume_in(&self, id: &str, wanted: &str, patience: Duration) -> Result<Volume, CloudError> {
        until("volume", id, wanted, patience, async || {
            let volume = self.volume(id).await?;
            if volume.status == wanted {
                return Ok(Look::Done(volume));
            }
            match volume.status.starts_with("error") {
                true => Err(state(id, volume.status)),
                false => Ok(Look::Not(volume.status)),
            }
        })
        .await
    }

    /// A server may boot from it, or may not.
    pub async fn set_bootable(&self, id: &str, bootable: bool) -> Result<(), CloudError> {
        self.volume_action(id, &json!({ "os-set_bootable": { "bootable": bootable } })).await
    }

    /// Properties of the image that a server booted from it takes it for.
    pub async fn set_image_metadata(&self, id: &str, pairs: &[(String, String)]) -> Result<(), CloudError> {
        let metadata: Map<String, Value> =
            pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        self.volume_action(id, &json!({ "os-set_image_metadata": { "metadata": metadata } })).await
    }

    /// Metadata that is added to what a volume has.
    pub async fn set_volume_metadata(&self, id: &str, pairs: &[(String, String)]) -> Result<(), CloudError> {
        let metadata: Map<String, Value> =
            pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let body = json!({ "metadata": metadata });
        self.post(Service::Volume, &format!("{}/metadata", path(id)), &body).await.map(|_| ())
    }

    /// An action that may be repeated.
    async fn volume_action(&self, id: &str, body: &Value) -> Result<(), CloudError> {
        let path = format!("{}/action", path(id));
        let ask = async || self.post(Service::Volume, &path, body).await.map(|_| ());
        once(false, async || Ok(None), ask).await
    }

    /// Removes a volume and waits until it is gone; one that is busy is waited for. Whether there was one. Who calls this
    /// has looked whose it is.
    pub async fn remove_volume(&self, id: &str, patience: Duration) -> Result<bool, CloudError> {
        let mut asked = false;
        until("volume", id, "gone", patience, async || {
            let Some(volume) = self.volume_if_any(id).await? else { return Ok(Look::Done(asked)) };
            let is_free = matches!(volume.status.as_str(), "available" | "error" | "error_managing" | "");
            match volume.status.as_str() {
                "error_deleting" if asked => return Err(state(id, volume.status)),
                _ if asked && !is_free => {}
                status if is_free || status.starts_with("error") => {
                    match self.delete(Service::Volume, &path(id)).await {
                        Ok(true) => asked = true,
                        Ok(false) => return Ok(Look::Done(asked)),
                        // It became busy in between.
                        Err(error) if is_busy(&error) => {
                            return Ok(Look::Not(crate::log::chain(&error)));
                        }
                        Err(error) => return Err(error),
                    }
                }
                _ => {}
            }
            Ok(Look::Not(volume.status))
        })
        .await
    }
}

/// Refused for now: it is busy, or the server is. Or it is being done, and nobody said so.
pub(super) fn is_busy(error: &CloudError) -> bool {
    error.is_ambiguous() || error.status().is_some_and(|status| matches!(status, 400 | 409) || status >= 500)
}

fn state(id: &str, status: String) -> CloudError {
    CloudError::State { what: "volume", id: id.to_owned(), status, words: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_read_from_whatever_is_shown() {
        let full = json!({
            "id": "v", "name": null, "status": "in-use", "size": 5, "bootable": "true", "volume_type": "fast",
            "metadata": { "virt_v2v_guest_id": "g", "odd": 1, MARK: "m" },
            "attachments": [{ "server_id": "s", "device": "/dev/vdb", "id": "v" }, {}],
            "os-vol-tenant-attr:tenant_id": "p",
        });
        let volume = Volume::read(&full).unwrap();
        assert_eq!((volume.status.as_str(), volume.size, volume.bootable), ("in-use", 5, true));
        assert_eq!((volume.mark(), volume.project.as_deref()), (Some("m"), Some("p")));
        assert!(volume.is_attached_elsewhere("other") && !volume.is_attached_elsewhere("s"));
        let bare = Volume::read(&json!({ "id": "v" })).unwrap();
        assert_eq!(bare, Volume { id: "v".to_owned(), ..Volume::default() });
        assert_eq!(Volume::read(&json!({ "id": "" })), None);
    }

    #[test]
    fn a_new_volume_says_whose_it_is() {
        let new = NewVolume {
            name: "n".into(),
            size: 3,
            kind: Some("t".into()),
            metadata: vec![("k".into(), "v".into())],
            ..NewVolume::default()
        };
        let expected = json!({ "volume": {
            "name": "n", "description": "", "size": 3, "volume_type": "t", "metadata": { MARK: "m", "k": "v" }
        } });
        assert_eq!(new.body("m"), expected);
    }
}
