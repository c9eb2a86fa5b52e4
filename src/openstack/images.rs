//! Glance's images.

use std::time::Duration;

use serde_json::Value;

use super::catalogue::{Service, text};
use super::wait::{Look, until};
use super::{Cloud, CloudError, MARK};
use crate::http::encoded;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// E.g. `active`.
    pub status: String,
    /// Smallest disk in GiB that it fits on.
    pub min_disk: u64,
    /// Its bytes, once they are known.
    pub size: Option<u64>,
    /// What it holds in bytes when it is unpacked, once that is known.
    pub virtual_size: Option<u64>,
    /// The mark of the job that made it.
    pub mark: Option<String>,
}

impl Image {
    fn read(value: &Value) -> Option<Self> {
        let number = |key| value.get(key).and_then(Value::as_u64);
        Some(Self {
            id: text(value, "id")?,
            name: text(value, "name").unwrap_or_default(),
            status: text(value, "status").unwrap_or_default().to_ascii_lowercase(),
            min_disk: number("min_disk").unwrap_or_default(),
            size: number("size"),
            virtual_size: number("virtual_size"),
            // Properties stand beside the rest.
            mark: text(value, MARK),
        })
    }
}

impl Cloud {
    /// An image.
    pub async fn image(&self, id: &str) -> Result<Image, CloudError> {
        let path = format!("/images/{}", encoded(id));
        let read = Image::read(&self.get(Service::Image, &path).await?);
        read.ok_or_else(|| CloudError::Shape { asked: format!("GET {path}"), what: "an image".to_owned() })
    }

    /// The image with this mark.
    pub async fn image_marked(&self, mark: &str) -> Result<Option<Image>, CloudError> {
        let entries =
            self.list(Service::Image, &format!("/images?{MARK}={}", encoded(mark)), "images").await?;
        Ok(entries.iter().filter_map(Image::read).find(|image| image.mark.as_deref() == Some(mark)))
    }

    /// Waits until it can be used.
    pub async fn image_active(&self, id: &str, patience: Duration) -> Result<Image, CloudError> {
        until("image", id, "active", patience, async || {
            let image = self.image(id).await?;
            match image.status.as_str() {
                "active" => Ok(Look::Done(image)),
                "killed" | "deleted" | "pending_delete" | "deactivated" => Err(CloudError::State {
                    what: "image",
                    id: id.to_owned(),
                    status: image.status,
                    words: String::new(),
                }),
                _ => Ok(Look::Not(image.status)),
            }
        })
        .await
    }

    /// Removes an image. Whether there was one. Who calls this has looked whose it is.
    pub async fn remove_image(&self, id: &str) -> Result<bool, CloudError> {
        self.delete(Service::Image, &format!("/images/{}", encoded(id))).await
    }
}
