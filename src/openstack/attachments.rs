//! Volumes in servers: attached and detached, and waited for on both sides.

use std::time::Duration;

use serde_json::json;

use super::catalogue::Service;
use super::volumes::is_busy;
use super::wait::{Look, until};
use super::{Cloud, CloudError};
use crate::http::encoded;

fn path(server: &str) -> String {
    format!("/servers/{}/os-volume_attachments", encoded(server))
}

impl Cloud {
    /// Attaches a volume and waits until it is. One that is attached there already stays.
    pub async fn attach(&self, server: &str, volume: &str, patience: Duration) -> Result<(), CloudError> {
        self.attach_as(server, volume, None, patience).await
    }

    /// The same under a device's name, which some hypervisors heed.
    pub async fn attach_as(
        &self,
        server: &str,
        volume: &str,
        device: Option<&str>,
        patience: Duration,
    ) -> Result<(), CloudError> {
        let there = |volume: &super::volumes::Volume| {
            volume.status == "in-use"
                && volume.attachments.iter().any(|attachment| attachment.server == server)
        };
        if !there(&self.volume(volume).await?) {
            let mut body = json!({ "volumeAttachment": { "volumeId": volume } });
            if let Some(device) = device {
                body["volumeAttachment"]["device"] = json!(device);
            }
            match self.post(Service::Compute, &path(server), &body).await {
                Ok(_) => {}
                // It may be under way.
                Err(error) if error.is_ambiguous() => {
                    tracing::warn!("{}: looking whether it was done all the same", crate::log::chain(&error));
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    if self.volume(volume).await?.status == "available" {
                        self.post(Service::Compute, &path(server), &body).await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let mut tried = false;
        until("volume", volume, "attached", patience, async || {
            let shown = self.volume(volume).await?;
            if there(&shown) {
                return Ok(Look::Done(()));
            }
            let failed = shown.status.starts_with("error") || (tried && shown.status == "available");
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

    /// Detaches a volume and waits until it is available, or in other servers only. One that is not attached there is left
    /// as it is.
    pub async fn detach(&self, server: &str, volume: &str, patience: Duration) -> Result<(), CloudError> {
        let path = format!("{}/{}", path(server), encoded(volume));
        let mut asked = false;
        until("volume", volume, "detached", patience, async || {
            let Some(shown) = self.volume_if_any(volume).await? else { return Ok(Look::Done(())) };
            let is_there = shown.attachments.iter().any(|attachment| attachment.server == server);
            match shown.status.as_str() {
                "in-use" if is_there && !asked => match self.delete(Service::Compute, &path).await {
                    Ok(_) => asked = true,
                    // Busy with the one before.
                    Err(error) if is_busy(&error) => {
                        return Ok(Look::Not(crate::log::chain(&error)));
                    }
                    Err(error) => return Err(error),
                },
                "in-use" if is_there => {}
                "detaching" | "attaching" | "reserved" => {}
                status if status.starts_with("error") && is_there => {
                    let words = format!(": it could not be detached from server {server}");
                    let (id, status) = (volume.to_owned(), shown.status);
                    return Err(CloudError::State { what: "volume", id, status, words });
                }
                _ => return Ok(Look::Done(())),
            }
            Ok(Look::Not(shown.status))
        })
        .await
    }
}
