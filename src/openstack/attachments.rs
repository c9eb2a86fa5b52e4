//! Volumes in servers: attached and detached, and waited for on both sides.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::catalogue::{Service, text};
use super::version::Microversion;
use super::volumes::{Volume, is_busy};
use super::wait::{Look, until};
use super::{Cloud, CloudError};
use crate::http::encoded;

/// Since then an attachment tells all of [`Manner`], and takes it.
const MANNER: Microversion = Microversion::new(2, 79);

/// How a volume is in a server: what it has to be again when it goes back there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manner {
    /// E.g. `/dev/vdb`. Some hypervisors heed it; with others the order counts in which volumes are attached.
    pub device: Option<String>,
    /// By which the guest knows it, in its metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Is the volume removed together with the server?
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub delete_on_termination: bool,
}

/// How often a volume is looked at that seems not to be attached by what Nova was asked for.
const MOST_IDLE: u32 = 3;
/// The part of the patience that Nova has to forget a volume that is detached for Cinder.
const FORGETTING: u32 = 10;
/// Pause between two looks at that.
const AGAIN: Duration = Duration::from_millis(500);

fn path(server: &str) -> String {
    format!("/servers/{}/os-volume_attachments", encoded(server))
}

impl Cloud {
    /// Has this server the volume? Nova says it where Cinder shows no attachments of a volume that is in use; `None`: neither
    /// does.
    async fn has(&self, server: &str, volume: &Volume) -> Result<Option<bool>, CloudError> {
        if volume.attachments.iter().any(|attachment| attachment.server == server) {
            return Ok(Some(true));
        }
        if volume.status != "in-use" || !volume.attachments.is_empty() {
            return Ok(Some(false));
        }
        self.lists(server, &volume.id).await
    }

    /// Does Nova say that this server has the volume? `None`: it does not say.
    async fn lists(&self, server: &str, volume: &str) -> Result<Option<bool>, CloudError> {
        match self.list(Service::Compute, &path(server), "volumeAttachments").await {
            Ok(entries) => {
                let of = |entry: &Value| text(entry, "volumeId").or_else(|| text(entry, "id"));
                Ok(Some(entries.iter().any(|entry| of(entry).as_deref() == Some(volume))))
            }
            Err(error) if error.tells_nothing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same of a volume that is `available`: where Nova fails to say, what Cinder says counts.
    async fn lists_available(&self, server: &str, volume: &str) -> Option<bool> {
        self.lists(server, volume).await.unwrap_or_else(|error| {
            tracing::debug!("{}", crate::log::chain(&error));
            Some(false)
        })
    }

    /// Waits until a volume that Cinder has taken out of a server is no disk of it for Nova either: that comes a moment
    /// later, and until then no server may have it. A record that stays is a fault of its own, and no reason to fail.
    async fn forgotten(&self, server: &str, volume: &str, patience: Duration) {
        let begun = Instant::now();
        while self.lists_available(server, volume).await == Some(true) {
            if begun.elapsed() >= patience / FORGETTING {
                tracing::warn!(
                    "Nova takes volume {volume} for a disk of server {server}, and Cinder does not"
                );
                return;
            }
            sleep(AGAIN.min(patience / FORGETTING)).await;
        }
    }

    /// Attaches a volume and waits until it is. One that is attached there already stays.
    pub async fn attach(&self, server: &str, volume: &str, patience: Duration) -> Result<(), CloudError> {
        self.attach_as(server, volume, &Manner::default(), patience).await
    }

    /// How a volume is attached, as far as its cloud tells: tag and end since Train.
    pub async fn manner(&self, server: &str, volume: &str) -> Result<Manner, CloudError> {
        let path = format!("{}/{}", path(server), encoded(volume));
        let version = self.microversion(Service::Compute, MANNER).await;
        let answer = match self.json(Method::GET, Service::Compute, version, &path, None).await {
            Ok(answer) => answer,
            Err(error) if error.tells_nothing() => return Ok(Manner::default()),
            Err(error) => return Err(error),
        };
        let shown = &answer["volumeAttachment"];
        Ok(Manner {
            device: text(shown, "device"),
            tag: text(shown, "tag"),
            delete_on_termination: shown["delete_on_termination"] == true,
        })
    }

    /// The same as it was attached before.
    pub async fn attach_as(
        &self,
        server: &str,
        volume: &str,
        manner: &Manner,
        patience: Duration,
    ) -> Result<(), CloudError> {
        let shown = self.volume(volume).await?;
        if shown.status != "in-use" || self.has(server, &shown).await? != Some(true) {
            if shown.status == "available" {
                self.forgotten(server, volume, patience).await;
            }
            let mut body = json!({ "volumeAttachment": { "volumeId": volume } });
            let Manner { device, tag, delete_on_termination } = manner;
            let told = &mut body["volumeAttachment"];
            if let Some(device) = device {
                told["device"] = json!(device);
            }
            if let Some(tag) = tag {
                told["tag"] = json!(tag);
            }
            if *delete_on_termination {
                told["delete_on_termination"] = json!(true);
            }
            let version = match tag.is_some() || *delete_on_termination {
                true => self.microversion(Service::Compute, MANNER).await,
                false => None,
            };
            let path = path(server);
            let post = async || self.json(Method::POST, Service::Compute, version, &path, Some(&body)).await;
            match post().await {
                Ok(_) => {}
                // It may be under way.
                Err(error) if error.is_ambiguous() => {
                    tracing::warn!("{}: looking whether it was done all the same", crate::log::chain(&error));
                    sleep(Duration::from_secs(2)).await;
                    if self.volume(volume).await?.status == "available" {
                        post().await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let (mut tried, mut idle) = (false, 0);
        until("volume", volume, "attached", patience, async || {
            let shown = self.volume(volume).await?;
            // Nova has been asked for it and has not refused: where nobody says who has it, that counts.
            if shown.status == "in-use" && self.has(server, &shown).await? != Some(false) {
                return Ok(Look::Done(()));
            }
            let mut failed = shown.status.starts_with("error") || (tried && shown.status == "available");
            // Nova reserves a volume before it answers. One that stays as it was failed between two looks, unless its cloud
            // does not show what becomes of volumes at all.
            idle += u32::from(shown.status == "available");
            if idle > MOST_IDLE && !failed {
                match self.lists(server, volume).await? {
                    Some(false) => failed = true,
                    Some(true) | None => return Ok(Look::Done(())),
                }
            }
            tried |= shown.status == "attaching" || shown.status == "reserved";
            match failed {
                true => Err(CloudError::State {
                    what: "volume",
                    id: volume.to_owned(),
                    status: shown.status,
                    words: format!(": it could not be attached to server {server}"),
                }),
                false => Ok(Look::Not(shown.status)),
            }
        })
        .await
    }

    /// Detaches a volume and waits until it is available, or in other servers only, for both services. One that is not
    /// attached there is left as it is.
    pub async fn detach(&self, server: &str, volume: &str, patience: Duration) -> Result<(), CloudError> {
        let path = format!("{}/{}", path(server), encoded(volume));
        let mut asked = false;
        until("volume", volume, "detached", patience, async || {
            let Some(shown) = self.volume_if_any(volume).await? else { return Ok(Look::Done(())) };
            let has = self.has(server, &shown).await?;
            match shown.status.as_str() {
                "in-use" if has != Some(false) && !asked => {
                    match self.delete(Service::Compute, &path).await {
                        // Nova knows of none, and Cinder does not say that there is one.
                        Ok(false) if has.is_none() => return Ok(Look::Done(())),
                        Ok(_) => asked = true,
                        // Busy with the one before.
                        Err(error) if is_busy(&error) => {
                            return Ok(Look::Not(crate::log::chain(&error)));
                        }
                        Err(error) => return Err(error),
                    }
                }
                "in-use" if has != Some(false) => {}
                "detaching" | "attaching" | "reserved" => {}
                // Of a cloud that does not show it; or Nova is about to forget it, and says so when it is asked again.
                "available" if !asked && self.lists_available(server, volume).await != Some(false) => {
                    match self.delete(Service::Compute, &path).await {
                        Ok(_) => asked = true,
                        Err(error) if error.status().is_some_and(|status| status < 500) => {
                            return Ok(Look::Done(()));
                        }
                        Err(error) => return Err(error),
                    }
                }
                status if status.starts_with("error") && has == Some(true) => {
                    let words = format!(": it could not be detached from server {server}");
                    let (id, status) = (volume.to_owned(), shown.status);
                    return Err(CloudError::State { what: "volume", id, status, words });
                }
                _ => return Ok(Look::Done(())),
            }
            Ok(Look::Not(shown.status))
        })
        .await?;
        self.forgotten(server, volume, patience).await;
        Ok(())
    }
}
