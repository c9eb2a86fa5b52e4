//! A volume offered to another project, and accepted there. Both projects are sessions of their own.

use std::time::Duration;

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::catalogue::{Service, text};
use super::version::Microversion;
use super::wait::once;
use super::{Cloud, CloudError};
use crate::http::encoded;

/// The two paths of the same thing; clouds of today have both, and the later one asks for a microversion.
const PATHS: [(&str, Option<Microversion>); 2] =
    [("/os-volume-transfer", None), ("/volume-transfers", Some(Microversion::new(3, 55)))];

/// An offer.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Its id.
    pub id: String,
    /// Its name: the mark.
    pub name: String,
    /// The volume.
    pub volume: String,
    /// What accepts it; shown to its maker only, once.
    pub key: Option<SecretString>,
}

impl Transfer {
    fn read(value: &Value) -> Option<Self> {
        Some(Self {
            id: text(value, "id")?,
            name: text(value, "name").unwrap_or_default(),
            volume: text(value, "volume_id").unwrap_or_default(),
            key: text(value, "auth_key").map(SecretString::from),
        })
    }
}

/// There may be no such path; an offer that is gone looks the same.
fn is_no_path(error: &CloudError) -> bool {
    matches!(error.status(), Some(404 | 405 | 410 | 501))
}

impl Cloud {
    /// A request to whichever of the paths is there.
    async fn transfer_request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CloudError> {
        let mut last = None;
        for (base, microversion) in PATHS {
            let path = format!("{base}{path}");
            match self.json(method.clone(), Service::Volume, microversion, &path, body).await {
                Err(error) if is_no_path(&error) => last = last.or(Some(error)),
                answered => return answered,
            }
        }
        Err(last.unwrap_or_else(|| CloudError::Shape {
            asked: PATHS[0].0.to_owned(),
            what: "an answer".to_owned(),
        }))
    }

    /// Offers a volume. An ambiguous error leaves the question whether it was: [`Cloud::transfers`] tells.
    pub async fn offer_volume(&self, volume: &str, mark: &str) -> Result<Transfer, CloudError> {
        let body = json!({ "transfer": { "volume_id": volume, "name": mark } });
        let answer = self.transfer_request(Method::POST, "", Some(&body)).await?;
        let transfer = answer.get("transfer").and_then(Transfer::read);
        let transfer = transfer.map(|transfer| Transfer { volume: volume.to_owned(), ..transfer });
        transfer.filter(|transfer| transfer.key.is_some()).ok_or_else(|| CloudError::Shape {
            asked: format!("POST {}", PATHS[0].0),
            what: "a transfer with an auth_key".to_owned(),
        })
    }

    /// Accepts what another project offered.
    pub async fn accept_volume(&self, id: &str, key: &SecretString) -> Result<(), CloudError> {
        let body = json!({ "accept": { "auth_key": key.expose_secret() } });
        let path = format!("/{}/accept", encoded(id));
        self.transfer_request(Method::POST, &path, Some(&body)).await.map(|_| ())
    }

    /// All open offers of the project.
    pub async fn transfers(&self) -> Result<Vec<Transfer>, CloudError> {
        let mut last = None;
        for (base, _) in PATHS {
            match self.list_whole(Service::Volume, base, "transfer", "transfers").await {
                Ok(entries) => return Ok(entries.iter().filter_map(Transfer::read).collect()),
                Err(error) if error.tells_nothing() => last = last.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(Vec::new()), Err)
    }

    /// Takes an offer back: the volume is available again. Whether there was one.
    pub async fn withdraw_transfer(&self, id: &str) -> Result<bool, CloudError> {
        match self.transfer_request(Method::DELETE, &format!("/{}", encoded(id)), None).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Offers a volume that is available, with a key that accepts it. What was offered by a request that nobody answered is
    /// withdrawn and offered anew: its key is lost.
    pub async fn offer(&self, volume: &str, mark: &str, patience: Duration) -> Result<Transfer, CloudError> {
        let mut tries = 0;
        loop {
            match self.offer_volume(volume, mark).await {
                Err(error) if error.is_ambiguous() && tries < 2 => {
                    tries += 1;
                    tracing::warn!("{}: offering volume {volume} again", crate::log::chain(&error));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    match self.withdraw_all(volume, mark).await {
                        // Whether there is an offer cannot be told: what went wrong first is what counts.
                        Err(silent) if silent.tells_nothing() => return Err(error),
                        withdrawn => withdrawn?,
                    }
                    self.volume_in(volume, "available", patience).await?;
                }
                offered => return offered,
            }
        }
    }

    /// Accepts an offer of another project and waits until the volume is this one's, and available.
    pub async fn accept(&self, offer: &Transfer, patience: Duration) -> Result<(), CloudError> {
        let key = offer.key.clone().unwrap_or_default();
        let accepted = async || {
            let owner = self.volume_if_any(&offer.volume).await?.and_then(|volume| volume.project);
            Ok(owner.is_some_and(|owner| owner == self.project()).then_some(()))
        };
        once(false, accepted, async || match self.accept_volume(&offer.id, &key).await {
            // Gone, because an earlier request that nobody answered accepted it?
            Err(error) if error.is_not_found() => accepted().await?.ok_or(error),
            answered => answered,
        })
        .await?;
        self.volume_in(&offer.volume, "available", patience).await.map(|_| ())
    }

    /// Withdraws every offer of this volume with this mark. Offers that have no name where a cloud shows none are the job's,
    /// too, as their volume is.
    pub async fn withdraw_all(&self, volume: &str, mark: &str) -> Result<(), CloudError> {
        for transfer in self.transfers().await? {
            if transfer.volume == volume && (transfer.name == mark || transfer.name.is_empty()) {
                self.withdraw_transfer(&transfer.id).await?;
            }
        }
        Ok(())
    }
}
