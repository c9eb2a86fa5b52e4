//! Cinder's snapshots.

use std::time::Duration;

use serde_json::{Value, json};

use super::catalogue::{Service, text};
use super::volumes::{is_busy, pairs};
use super::wait::{Look, once, until};
use super::{Cloud, CloudError, MARK};
use crate::http::encoded;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Of this volume.
    pub volume: String,
    /// E.g. `available`.
    pub status: String,
    /// The mark of the job that made it.
    pub mark: Option<String>,
}

impl Snapshot {
    fn read(value: &Value) -> Option<Self> {
        Some(Self {
            id: text(value, "id")?,
            name: text(value, "name").unwrap_or_default(),
            volume: text(value, "volume_id").unwrap_or_default(),
            status: text(value, "status").unwrap_or_default().to_ascii_lowercase(),
            mark: pairs(value.get("metadata")).remove(MARK),
        })
    }
}

fn snapshot(answer: &Value, asked: &str) -> Result<Snapshot, CloudError> {
    let read = answer.get("snapshot").and_then(Snapshot::read);
    read.ok_or_else(|| CloudError::Shape { asked: asked.to_owned(), what: "a snapshot".to_owned() })
}

impl Cloud {
    /// A snapshot.
    pub async fn snapshot(&self, id: &str) -> Result<Snapshot, CloudError> {
        let path = format!("/snapshots/{}", encoded(id));
        snapshot(&self.get(Service::Volume, &path).await?, &format!("GET {path}"))
    }

    /// The snapshot with this mark.
    pub async fn snapshot_marked(&self, mark: &str) -> Result<Option<Snapshot>, CloudError> {
        let entries = self.list(Service::Volume, "/snapshots/detail", "snapshots").await?;
        let mut snapshots = entries.iter().filter_map(Snapshot::read);
        Ok(snapshots.find(|snapshot| snapshot.mark.as_deref() == Some(mark)))
    }

    /// Takes a snapshot of a volume, which may be in use.
    pub async fn create_snapshot(
        &self,
        volume: &str,
        name: &str,
        mark: &str,
        begun: bool,
    ) -> Result<Snapshot, CloudError> {
        let body = json!({ "snapshot": {
            "volume_id": volume, "name": name, "force": true, "metadata": { MARK: mark },
        } });
        once(
            begun,
            async || self.snapshot_marked(mark).await,
            async || snapshot(&self.post(Service::Volume, "/snapshots", &body).await?, "POST /snapshots"),
        )
        .await
    }

    /// Waits until it is in this state. A state of error ends it.
    pub async fn snapshot_in(
        &self,
        id: &str,
        wanted: &str,
        patience: Duration,
    ) -> Result<Snapshot, CloudError> {
        until("snapshot", id, wanted, patience, async || {
            let snapshot = self.snapshot(id).await?;
            match snapshot.status.as_str() {
                status if status == wanted => Ok(Look::Done(snapshot)),
                status if status.starts_with("error") => Err(state(id, snapshot.status)),
                _ => Ok(Look::Not(snapshot.status)),
            }
        })
        .await
    }

    /// Removes a snapshot and waits until it is gone; one that is busy is waited for. Whether there was one.
    pub async fn remove_snapshot(&self, id: &str, patience: Duration) -> Result<bool, CloudError> {
        let mut asked = false;
        until("snapshot", id, "gone", patience, async || {
            let snapshot = match self.snapshot(id).await {
                Ok(snapshot) => snapshot,
                Err(error) if error.is_not_found() => return Ok(Look::Done(asked)),
                Err(error) => return Err(error),
            };
            match snapshot.status.as_str() {
                "error_deleting" if asked => return Err(state(id, snapshot.status)),
                "deleting" | "creating" | "backing-up" => {}
                _ => match self.delete(Service::Volume, &format!("/snapshots/{}", encoded(id))).await {
                    Ok(true) => asked = true,
                    Ok(false) => return Ok(Look::Done(asked)),
                    Err(error) if is_busy(&error) => {
                        return Ok(Look::Not(crate::log::chain(&error)));
                    }
                    Err(error) => return Err(error),
                },
            }
            Ok(Look::Not(snapshot.status))
        })
        .await
    }
}

fn state(id: &str, status: String) -> CloudError {
    CloudError::State { what: "snapshot", id: id.to_owned(), status, words: String::new() }
}
